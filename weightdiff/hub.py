"""The Hugging Face hub: what is fetched from it, and never any code."""

import re
from collections.abc import Sequence
from pathlib import Path

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?")


def is_hub_id(name: str) -> bool:
    """Could this name a hub repository, `owner/name` or `owner/name@revision`, and isn't it a file or folder here?"""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def fetch(name: str, patterns: Sequence[str], kind: str = "model") -> Path:
    """A repository's files in the hub's cache; nothing is fetched that lies there already.

    Args:
        name: `owner/name`, or `owner/name@revision` for a branch, a tag or a commit.
        patterns: which files, as in `*.safetensors`.
        kind: `model` or `dataset`.

    Raises:
        ValueError: no such repository or revision, or it can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    found = _HUB_ID.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no hub id; expected owner/name, or owner/name@revision.")
    try:
        folder = snapshot_download(
            found["repo"], repo_type=kind, revision=found["revision"], allow_patterns=list(patterns)
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name!r} is no folder here, and can't be had from the hub: {reason}. Is the name right, and can this "
            "machine reach the hub (HF_HUB_OFFLINE is unset, HF_TOKEN is there for a private one)?"
        ) from None
    return Path(folder)
