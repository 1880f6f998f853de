"""Adapters, diffs, merged checkpoints and stores to the Hugging Face hub, with a card, and nothing that strayed.

A store goes to a dataset repository, all else to a model repository.
"""

import re
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weightdiff.base import Base
from weightdiff.cards import checkpoint_card, diff_card, store_card
from weightdiff.diff import is_adapter
from weightdiff.files import inside, read_json
from weightdiff.formats.peft import BESIDE, CONFIG, WEIGHTS, load_peft
from weightdiff.formats.single import load_single
from weightdiff.hub import parse_id, reason_of
from weightdiff.store import Store

_CHECKPOINT = (
    "config.json", "generation_config.json", "weightdiff.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""What is sent of a merged checkpoint; optimizers, logs and whatever else lies there stay at home."""


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    base: Base | None = None,
) -> str:
    """Send an adapter, a diff, a merged checkpoint or a store to the hub, with a card, in one commit.

    Only the files that belong to it are sent. A README.md in the folder is its card; else one is written from what
    the files say.

    Args:
        folder: a PEFT folder, a store, a merged checkpoint (config.json and model*.safetensors), or one diff's
            `.safetensors` file.
        repo: `owner/name`; for a store `datasets/owner/name`, or without `datasets/`. It is made if it isn't there.
        private: make a private repository; False leaves it to what is usual for the owner.
        revision: the branch to commit to, made if it isn't there; None for the main one.
        message: what the commit says.
        base: the base model, for a PEFT folder that can't be read without it (DoRA, modules saved whole).

    Returns:
        The address of the commit.

    Raises:
        ValueError: the folder is none of these, or broken; no token, no permission, or the hub can't be reached; the
            repository is public where a private one was asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HTTPError

    found = parse_id(repo)
    revision, path = revision or found["revision"], Path(folder)
    if "/" not in found["repo"]:
        raise ValueError(f"{repo!r} is nobody's; expected owner/name, to send {path} there.")
    with tempfile.TemporaryDirectory() as temporary:
        parcel = _pack(path, found["repo"], Path(temporary), base)
        if found["dataset"] and parcel.repo_type != "dataset":
            raise ValueError(f"{path} is no store, and {repo!r} names a dataset; give owner/name without datasets/.")
        where = {"repo_id": found["repo"], "repo_type": parcel.repo_type}
        try:
            if get_token() is None:
                raise ValueError(f"there is no token to send {path} with; set HF_TOKEN, or run `hf auth login`.")
            api = HfApi()
            api.create_repo(**where, private=private or None, exist_ok=True)
            if private and not api.repo_info(**where).private:
                raise ValueError(f"{repo!r} is there already and is public; nothing was sent. Give another name.")
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(**where, branch=revision, exist_ok=True)
            adds = [CommitOperationAdd(name, str(file)) for name, file in sorted(parcel.files.items())]
            said = message or f"{parcel.what}, sent by weightdiff"
            return str(api.create_commit(**where, operations=adds, commit_message=said, revision=revision).commit_url)
        except (OSError, HTTPError, RuntimeError) as error:  # the last from its threads and its Rust
            raise ValueError(f"{path} can't be sent to {repo!r}: {reason_of(error)}. {_advice(error)}") from None


@dataclass(frozen=True)
class _Parcel:
    """What is sent: a word for it, the type of its repository, and its files by their name there."""

    what: str
    repo_type: Literal["model", "dataset"]
    files: dict[str, Path]


def _pack(path: Path, repo: str, temporary: Path, base: Base | None) -> _Parcel:
    """The files that belong to what lies at `path`, and its card; what has to be written for that is in `temporary`."""
    if path.is_file() and path.suffix == ".safetensors":
        parcel, card = _pack_single(path, repo)
    elif (path / "index.sqlite").is_file():
        parcel, card = _pack_store(path, repo, temporary)
    elif (path / "adapter_config.json").is_file():
        parcel, card = _pack_peft(path, repo, base)
    elif (path / "config.json").is_file() and any(path.glob("model*.safetensors")):
        parcel, card = _pack_checkpoint(path, repo)
    else:
        raise ValueError(
            f"{path} is nothing that can be sent; expected a PEFT folder (adapter_config.json and "
            "adapter_model.safetensors), a store (index.sqlite), a merged checkpoint (config.json and "
            "model*.safetensors), or one diff's .safetensors file."
        )
    written = temporary / "README.md"
    written.write_text(card, "utf-8")
    own = _inside(path, {written.name: path / written.name})
    return _Parcel(parcel.what, parcel.repo_type, parcel.files | {written.name: written} | own)


def _pack_single(path: Path, repo: str) -> tuple[_Parcel, str]:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", path.name, re.ASCII):
        raise ValueError(f"{path.name!r} is no name for a file on the hub; use letters, digits, '.', '_' and '-'.")
    return _Parcel("a diff", "model", {path.name: path}), diff_card(load_single(path), repo, peft=False)


def _pack_store(path: Path, repo: str, temporary: Path) -> tuple[_Parcel, str]:
    store, index = Store(path), temporary / "index.sqlite"
    shards = _copy_index(inside(path, index.name), index)
    files = {p.name: p for p in path.glob("shard-*.safetensors") if p.name in shards}
    card = store_card(store.base, store.metas(), repo)
    return _Parcel("a store of diffs", "dataset", _inside(path, files) | {index.name: index}), card


def _pack_peft(path: Path, repo: str, base: Base | None) -> tuple[_Parcel, str]:
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"{path} has no {WEIGHTS}, and pickles aren't sent; load it, and save it with save_peft.")
    diff = load_peft(path, base)
    files = {name: path / name for name in (CONFIG, WEIGHTS, BESIDE)}
    what = "a DIT adapter" if is_adapter(diff) else "a diff"
    return _Parcel(what, "model", _inside(path, files)), diff_card(diff, repo)


def _pack_checkpoint(path: Path, repo: str) -> tuple[_Parcel, str]:
    files = _inside(path, {p.name: p for pattern in _CHECKPOINT for p in path.glob(pattern)})
    meta = read_json(files["weightdiff.json"]) if "weightdiff.json" in files else {}
    return _Parcel("a merged checkpoint", "model", files), checkpoint_card(meta, repo)


def _inside(folder: Path, files: dict[str, Path]) -> dict[str, Path]:
    """Those of the files that are there; a link out of the folder is a ValueError, for it could send anything."""
    return {name: inside(folder, name) for name, path in files.items() if path.is_file()}


def _copy_index(index: Path, copy: Path) -> set[str]:
    """Copy a store's index as it is at one moment, though a writer be at work; returns the shards that it names."""
    try:
        # As a URI, read only: nothing is written beside an index that may lie where nobody may write.
        source = sqlite3.connect(f"{index.resolve().as_uri()}?mode=ro", uri=True, timeout=60)
        with closing(source), closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            target.execute("vacuum")  # what was deleted still lies in its pages
            return {shard for (shard,) in target.execute("select distinct shard from diffs")}
    except sqlite3.Error as error:
        raise ValueError(f"{index} can't be copied: {error}. Is it a store's index, and is there space?") from None


def _advice(error: Exception) -> str:
    """What to do about an error of the hub's."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "The token isn't accepted: set HF_TOKEN to one that is, or run `hf auth login`."
    if status == 403:
        return "The token may not write there: take one with write permission, or a name of your own."
    return "Can this machine reach the hub, and is HF_HUB_OFFLINE unset?"
