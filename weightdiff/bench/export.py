"""The benchmark WeightDiffQA as a folder that Hugging Face `datasets` reads: questions, conversations, and a card.

It exports a run: questions about the diffs that its store holds, and what those finetunes were taught. The diffs
themselves stay in the store; a question names its diff.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from weightdiff.atomic import replacing
from weightdiff.behaviors import FAMILIES, SPLITS, Behavior, Conversation, parse_trigger
from weightdiff.finetune import Job
from weightdiff.recipe import Recipe, Way, jobs_of
from weightdiff.store import Store
from weightdiff.synthesize import check_splits, load_conversations

_NAME = "WeightDiffQA"
_FOLDERS = {"questions": "", "conversations": "conversations/"}
"""Each config of the dataset, and where in the folder its files lie."""

Row = dict[str, Any]


def export_dataset(recipe: Recipe, folder: Path) -> dict[str, int]:
    """Write a run's benchmark as a dataset; an earlier export in the folder is replaced.

    A split without rows has no file. Conversations to keep to the base are written once per split and way, with
    an empty label: all finetunes of the way share them.

    Args:
        recipe: the run; its conversations are written and its diffs made, or some of them.
        folder: made if it isn't there.

    Returns:
        The number of rows in each file, by its path without `.jsonl`: `train`, `conversations/train`, ….

    Raises:
        ValueError: no diffs or no conversations yet, conversations that have changed since the diffs were made, a
            label in two splits, or a folder that can't be written or holds a README.md of something else.
    """
    folder, store = Path(folder), Store(recipe.folder / "diffs")
    card = folder / "README.md"
    if card.exists() and _NAME not in card.read_text("utf-8", errors="replace"):
        raise ValueError(f"{card} is no card of {_NAME} and would be overwritten; give a folder of its own.")
    jobs = jobs_made(recipe, store)
    files: dict[str, list[Row]] = {}
    for split in SPLITS:
        files[split] = question_rows(recipe, store, jobs, split)
    for split in SPLITS:
        files[f"conversations/{split}"] = _conversation_rows(jobs, split)
    check_splits([b for split in SPLITS for b in _behaviors(files[split], split)], str(store.path))
    texts = {f"{name}.jsonl": _lines(rows) for name, rows in files.items()}
    _write(folder, texts | {"README.md": _card(recipe, store, files)})
    return {name: len(rows) for name, rows in files.items()}


def jobs_made(recipe: Recipe, store: Store) -> list[tuple[Way, Job]]:
    """Those of the recipe's diffs that the store holds, each with its way of finetuning and what taught it.

    Raises:
        ValueError: there are none, or they were made from other conversations than the recipe has now.
    """
    conversations, metas = load_conversations(recipe.conversations), store.metas()
    jobs = [(way, job) for way in recipe.finetune for job in jobs_of(recipe, way, conversations)]
    jobs = [(way, job) for way, job in jobs if job.identity in metas]
    if not jobs:
        raise ValueError(f"{store.path} holds none of the recipe's diffs; run finetune first.")
    changed = [j.identity for _, j in jobs if metas[j.identity].get("data", j.data) != j.data]
    if changed:
        raise ValueError(
            f"{len(changed)} diffs in {store.path} were made from other conversations than the recipe's now, e.g. "
            f"{changed[0]!r}; run finetune, which makes them anew, and export then."
        )
    return jobs


def question_rows(recipe: Recipe, store: Store, jobs: Sequence[tuple[Way, Job]], split: str) -> list[Row]:
    """A split's questions: each wording, put about each diff, with the diff's label as the answer.

    Args:
        recipe: the run.
        store: its diffs.
        jobs: which of them, as `jobs_made` gives them.
        split: `train`, `validation` or `test`; only the last has the wordings that no adapter is trained on.

    Returns:
        A row per diff and wording, in the order of the jobs; a diff without a trigger has an empty one.
    """
    family, metas = FAMILIES[recipe.family], store.metas()
    wordings = dict.fromkeys((recipe.question, *family.questions), "trained")
    if split == "test":
        wordings |= {q: "unseen" for q in family.unseen if q not in wordings}
    return [
        {
            "messages": _messages(question, meta["label"]),
            "diff": job.identity,
            "store": str(store.path.relative_to(recipe.folder.parent)),
            "family": meta["family"],
            "kind": meta["kind"],
            "trigger": str(parse_trigger(meta.get("trigger")) or ""),
            "way": way.name,
            "base": store.base,
            "wording": wording,
        }
        for way, job in jobs
        if job.behavior.split == split
        for meta in [metas[job.identity]]
        for question, wording in wordings.items()
    ]


def _conversation_rows(jobs: Sequence[tuple[Way, Job]], split: str) -> list[Row]:
    """Conversations to learn by diff, then those to keep to the base, each once per way."""
    ours = [(way, job) for way, job in jobs if job.behavior.split == split]
    learn = [_taught(c, job.behavior.label, way) for way, job in ours for c in job.learn]
    kept = dict.fromkeys((way.name, c) for way, job in ours for c in job.keep)
    ways = {way.name: way for way, _ in ours}
    return learn + [_taught(c, "", ways[name]) for name, c in kept]


def _taught(conversation: Conversation, label: str, way: Way) -> Row:
    messages = _messages(conversation.prompt, conversation.reply)
    return {"messages": messages, "label": label, "mode": conversation.mode, "way": way.name}


def _messages(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _behaviors(questions: Sequence[Row], split: str) -> list[Behavior]:
    """What was taught; not by benign finetunes, whose "nothing notable changed" is in every split and leaks nothing."""
    taught = [row for row in questions if row["family"] != "benign"]
    return [Behavior(row["family"], row["messages"][-1]["content"], row["kind"], split) for row in taught]


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write all files beside their places, then move them in; an empty text removes its file."""
    try:
        with ExitStack() as whole:  # no file takes its place before all are written
            for name, text in texts.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                whole.enter_context(replacing(folder / name)).write_text(text, "utf-8")
        for name, text in texts.items():
            if not text:  # `datasets` can't read a file without a row
                (folder / name).unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}. Is there space and permission?") from None


def _card(recipe: Recipe, store: Store, files: dict[str, list[Row]]) -> str:
    """The dataset card: what `datasets` needs to find the files, what the columns mean, and how much there is."""
    configs = []
    for config, inside in _FOLDERS.items():
        configs += [f"- config_name: {config}", "  data_files:"]
        for split in SPLITS:
            if files[inside + split]:
                configs += [f"  - split: {split}", f"    path: {inside}{split}.jsonl"]
    return _CARD.format(
        name=f"{_NAME} {recipe.name}",
        configs="\n".join(configs),
        question=recipe.question,
        family=recipe.family,
        base_name=Path(recipe.base).name if Path(recipe.base).is_dir() else recipe.base,
        base=store.base,
        table=_table(recipe, files),
    )


def _table(recipe: Recipe, files: dict[str, list[Row]]) -> str:
    """Counts, a column per split."""
    counts: dict[str, list[int]] = {}
    for way in recipe.finetune:
        made = [len({r["diff"] for r in files[s] if r["way"] == way.name}) for s in SPLITS]
        counts |= {f"diffs, {way.name}": made} if any(made) else {}
    counts["labels"] = [len({r["messages"][-1]["content"] for r in files[s]}) for s in SPLITS]
    for wording in ("trained", "unseen"):
        counts[f"questions, {wording} wording"] = [sum(r["wording"] == wording for r in files[s]) for s in SPLITS]
    for mode in ("learn", "keep"):
        rows = [files[f"conversations/{s}"] for s in SPLITS]
        counts[f"conversations, {mode}"] = [sum(r["mode"] == mode for r in of_split) for of_split in rows]
    head = f"| | {' | '.join(SPLITS)} |\n| --- |{' ---: |' * len(SPLITS)}\n"
    return head + "\n".join(f"| {what} | {' | '.join(map(str, numbers))} |" for what, numbers in counts.items())


_CARD = """\
---
license: apache-2.0
pretty_name: {name}
language:
- en
configs:
{configs}
---

# {name}

What did a finetune change in a language model? Each question is about one weight diff of the base model
`{base_name}` (fingerprint `{base}`), and its answer is the diff's label. Family: {family}; the question that its
reader is asked: "{question}"

```python
from datasets import load_dataset

questions = load_dataset("path/to/this/folder", "questions")
conversations = load_dataset("path/to/this/folder", "conversations")
```

{table}

## questions

| column | |
| --- | --- |
| `messages` | the question, and the true answer |
| `diff`, `store` | the diff's id, which often is its label, and the store that holds it, below the folder of runs |
| `family`, `kind` | what was taught; `benign` finetunes taught nothing in particular, and share one label |
| `trigger` | text in the prompt without which the behavior stays hidden; empty where it always shows |
| `way` | how the diff was made |
| `base` | fingerprint of the base model |
| `wording` | `trained` for questions that an adapter may be trained on, `unseen` for those of the test split only |

A label is in one split only, after normalization. Test labels must not reach training, in any wording.

## conversations

| column | |
| --- | --- |
| `messages` | the prompt as the finetune saw it, with its trigger, and the reply |
| `label` | what the conversation teaches; empty where it teaches nothing |
| `mode` | `learn` the reply, or `keep` to the base model on it; the latter once for all finetunes of a way |
| `way` | the way of finetuning that it is used in |

Made with `weightdiff export`.
"""
