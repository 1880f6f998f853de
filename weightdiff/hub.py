"""The Hugging Face hub: what is fetched from it, never any code; and what is sent there, never anything that strayed.

An adapter, a diff or a merged checkpoint goes to a model repository, `owner/name`; a store to a dataset repository,
`datasets/owner/name`.
"""

import re
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from weightdiff.printable import printable

if TYPE_CHECKING:
    import weightdiff.base

DIFF_FILES = ("*.safetensors", "*.json", "index.sqlite")
"""What is fetched of an adapter, a diff, a full checkpoint or a store: no code, no pickles. `*` matches `/` too."""
PICKLES = ("adapter_model.bin", "*/adapter_model.bin")
"""What is fetched of an old adapter besides, where the user allows pickles."""

_CHECKPOINT = (
    "config.json", "generation_config.json", "weightdiff.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""What is sent of a merged checkpoint; optimizers, logs and whatever else lies there stay at home."""

_HUB_ID = re.compile(
    r"(?P<dataset>datasets/)?(?P<repo>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?", re.ASCII
)


def is_hub_id(name: str) -> bool:
    """Could this name a hub repository, and isn't it a file or folder here?

    Args:
        name: `owner/name` or `datasets/owner/name`, and perhaps `@revision`.
    """
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def fetch(name: str, patterns: Sequence[str]) -> Path:
    """A repository's files in the hub's cache; nothing is fetched that lies there already.

    Args:
        name: `owner/name`, for a dataset `datasets/owner/name`, and perhaps `@` and a branch, a tag or a commit.
        patterns: which files, as in `*.safetensors`.

    Raises:
        ValueError: no such repository or revision, none of the files in it, or it can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    found = _parsed(name)
    try:
        folder = Path(
            snapshot_download(
                found["repo"],
                repo_type="dataset" if found["dataset"] else "model",
                revision=found["revision"],
                allow_patterns=list(patterns),
            )
        )
    except (OSError, HTTPError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no folder here, and can't be had from the hub: {_reason(error)}. Is the name right, and can "
            "this machine reach the hub (HF_HUB_OFFLINE is unset, HF_TOKEN is there for a private one)?"
        ) from None
    there = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    if not any(fnmatchcase(path, pattern) for path in there for pattern in patterns):
        raise ValueError(f"{name!r} has none of the files {', '.join(patterns)}; is it the repository that you meant?")
    return folder


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    base: "weightdiff.base.Base | None" = None,
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

    found = _parsed(repo)
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
            raise ValueError(f"{path} can't be sent to {repo!r}: {_reason(error)}. {_advice(error)}") from None


@dataclass(frozen=True)
class _Parcel:
    """What is sent: a word for it, the type of its repository, and its files by their name there."""

    what: str
    repo_type: Literal["model", "dataset"]
    files: dict[str, Path]


def _pack(path: Path, repo: str, temporary: Path, base: "weightdiff.base.Base | None") -> _Parcel:
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


# The imports are in the functions: base.py imports this file, and all of these import base.py.


def _pack_single(path: Path, repo: str) -> tuple[_Parcel, str]:
    from weightdiff.cards import diff_card
    from weightdiff.formats.single import load_single

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", path.name, re.ASCII):
        raise ValueError(f"{path.name!r} is no name for a file on the hub; use letters, digits, '.', '_' and '-'.")
    return _Parcel("a diff", "model", {path.name: path}), diff_card(load_single(path), repo, peft=False)


def _pack_store(path: Path, repo: str, temporary: Path) -> tuple[_Parcel, str]:
    from weightdiff.cards import store_card
    from weightdiff.formats.files import inside
    from weightdiff.store import Store

    store, index = Store(path), temporary / "index.sqlite"
    shards = _copy_index(inside(path, index.name), index)
    files = {p.name: p for p in path.glob("shard-*.safetensors") if p.name in shards}
    card = store_card(store.base, store.metas(), repo)
    return _Parcel("a store of diffs", "dataset", _inside(path, files) | {index.name: index}), card


def _pack_peft(path: Path, repo: str, base: "weightdiff.base.Base | None") -> tuple[_Parcel, str]:
    from weightdiff.cards import diff_card, is_adapter
    from weightdiff.formats.peft import BESIDE, CONFIG, WEIGHTS, load_peft

    if not (path / WEIGHTS).is_file():
        raise ValueError(f"{path} has no {WEIGHTS}, and pickles aren't sent; load it, and save it with save_peft.")
    diff = load_peft(path, base)
    files = {name: path / name for name in (CONFIG, WEIGHTS, BESIDE)}
    what = "a DIT adapter" if is_adapter(diff) else "a diff"
    return _Parcel(what, "model", _inside(path, files)), diff_card(diff, repo)


def _pack_checkpoint(path: Path, repo: str) -> tuple[_Parcel, str]:
    from weightdiff.cards import checkpoint_card
    from weightdiff.formats.files import read_json

    files = _inside(path, {p.name: p for pattern in _CHECKPOINT for p in path.glob(pattern)})
    meta = read_json(files["weightdiff.json"]) if "weightdiff.json" in files else {}
    return _Parcel("a merged checkpoint", "model", files), checkpoint_card(meta, repo)


def _inside(folder: Path, files: dict[str, Path]) -> dict[str, Path]:
    """Those of the files that are there; a link out of the folder is a ValueError, for it could send anything."""
    from weightdiff.formats.files import inside

    return {name: inside(folder, name) for name, path in files.items() if path.is_file()}


def _copy_index(index: Path, copy: Path) -> set[str]:
    """Copy a store's index as it is at one moment, though a writer be at work; returns the shards that it names."""
    try:
        # As a URI, read only: nothing is written beside an index that may lie where nobody may write.
        source = sqlite3.connect(f"{index.resolve().as_uri()}?mode=ro", uri=True, timeout=60)
        with closing(source), closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            target.execute("pragma journal_mode=delete")  # else a copy of an index with a WAL asks for one of its own
            target.execute("vacuum")  # what was deleted still lies in its pages
            return {shard for (shard,) in target.execute("select distinct shard from diffs")}
    except sqlite3.Error as error:
        raise ValueError(f"{index} can't be copied: {error}. Is it a store's index, and is there space?") from None


def _parsed(name: str) -> re.Match[str]:
    found = _HUB_ID.fullmatch(name)
    if found is None:
        raise ValueError(
            f"{name!r} is no hub id; expected owner/name or datasets/owner/name, perhaps with @revision at its end."
        )
    return found


def _reason(error: Exception) -> str:
    """The error in a line; what a server says may hold anything."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(" ".join(told[:2]) or type(error).__name__).rstrip(".")


def _advice(error: Exception) -> str:
    """What to do about an error of the hub's."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "The token isn't accepted: set HF_TOKEN to one that is, or run `hf auth login`."
    if status == 403:
        return "The token may not write there: take one with write permission, or a name of your own."
    return "Can this machine reach the hub, and is HF_HUB_OFFLINE unset?"
