"""What is fetched from the Hugging Face hub: tensors and settings, never any code."""

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from weightdiff.printable import printable

DIFF_FILES = ("*.safetensors", "*.json", "index.sqlite")
"""What is fetched of an adapter, a diff, a full checkpoint or a store: no code, no pickles. `*` matches `/` too."""
PICKLES = ("adapter_model.bin", "*/adapter_model.bin")
"""What is fetched of an old adapter besides, where the user allows pickles."""

_HUB_ID = re.compile(
    r"(?P<dataset>datasets/)?(?P<repo>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?", re.ASCII
)


def is_hub_id(name: str) -> bool:
    """Could this name a hub repository, and isn't it a file or folder here?

    Args:
        name: `owner/name` or `datasets/owner/name`, and perhaps `@revision`.
    """
    return _HUB_ID.fullmatch(name) is not None and not os.path.exists(name)


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

    found = parse_id(name)
    try:
        folder = Path(
            snapshot_download(
                found["repo"],
                repo_type="dataset" if found["dataset"] else "model",
                revision=found["revision"],
                allow_patterns=list(patterns),
            )
        )
    except (OSError, HTTPError, ValueError, RuntimeError) as error:  # the last from its threads and its Rust
        raise ValueError(
            f"{name!r} is no folder here, and can't be had from the hub: {reason_of(error)}. Is the name right, and "
            "can this machine reach the hub (HF_HUB_OFFLINE is unset, HF_TOKEN is there for a private one)?"
        ) from None
    there = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    if not any(fnmatchcase(path, pattern) for path in there for pattern in patterns):
        raise ValueError(f"{name!r} has none of the files {', '.join(patterns)}; is it the repository that you meant?")
    return folder


def parse_id(name: str) -> re.Match[str]:
    """A hub id's `dataset` (or None), `repo` and `revision` (or None); a ValueError for what isn't one."""
    found = _HUB_ID.fullmatch(name)
    if found is None:
        raise ValueError(
            f"{name!r} is no hub id; expected owner/name or datasets/owner/name, perhaps with @revision at its end."
        )
    return found


def reason_of(error: Exception) -> str:
    """The error in a line; what a server says may hold anything."""
    told = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return printable(". ".join(told[:2]) or type(error).__name__)
