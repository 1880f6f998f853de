"""How many tokens should go through a training step on this machine: as few as train at full speed, and fit.

More diffs together train faster until the matrix products are as large as the machine likes them; from there on more
only takes memory. Measured once per base model, device, precision and number of threads, and kept in the cache folder.
"""

import json
import platform
import time
from pathlib import Path

import torch

from weightdiff.atomic import replacing
from weightdiff.bank import Layer, lay_over
from weightdiff.base import Base, cache_dir
from weightdiff.batch import Tokens, collate, cross_entropy_per_row
from weightdiff.diff import Factors

SIZES = {"cpu": [2**n for n in range(8, 13)], "cuda": [2**n for n in range(9, 18)]}
"""Tokens per step that are tried, one after the other."""
TYPICAL = {"cpu": 1024, "cuda": 16384}
"""What two cores like, where nothing was measured, and what a large GPU goes through in a moment."""
_ROW = 64
"""Tokens in a row that is measured with; half of them are its reply."""
_GAIN = 1.05
"""A size twice as large must train this much faster, or the smaller one is taken."""


def tokens_per_step(base: Base) -> int:
    """Tokens that a training step should have: the first size that twice its size doesn't beat by a twentieth.

    A size is not tried when the one before took a quarter of the memory that is free.

    Args:
        base: the base model, on its device.

    Returns:
        One of its device's `SIZES`, from the cache folder where this machine has been measured before.
    """
    path, key = cache_dir() / "tokens-per-step.json", _key(base)
    known = _read(path)
    if key not in known:
        known[key] = _measure(base)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            Path(temporary).write_text(json.dumps({**_read(path), **known}, indent=1))
    return known[key]


def _key(base: Base) -> str:
    cuda = base.device.type == "cuda"
    machine = torch.cuda.get_device_name(base.device) if cuda else f"{platform.machine()} {torch.get_num_threads()}"
    return f"{base.fingerprint} {base.model.dtype} {base.device.type} {machine}"


def _read(path: Path) -> dict[str, int]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or cut short: measured anew
        return {}


def _measure(base: Base) -> int:
    best, rate, free = 0, 0.0, _free(base)
    for size in SIZES.get(base.device.type, SIZES["cuda"]):
        try:
            _seconds(base, size)  # the first step of a size takes its memory, and isn't measured
            now = size / min(_seconds(base, size) for _ in range(3))
        except torch.OutOfMemoryError:
            break
        if now < rate * _GAIN:
            break
        best, rate = size, now
        if _free(base) < free * 3 / 4:
            break
    return best or typical(base.device.type)


def typical(device: str) -> int:
    """Tokens per step where nothing was measured, on a kind of device."""
    return TYPICAL.get(device, TYPICAL["cuda"])


def _seconds(base: Base, tokens: int) -> float:
    """One step of a rank-1 diff for every fourth row, without the optimizer."""
    rows = tokens // _ROW
    row = torch.randint(0, base.head.weight.shape[0], (_ROW,), generator=torch.Generator().manual_seed(0)).tolist()
    batch = collate([Tokens(tuple(row[: _ROW // 2]), tuple(row[_ROW // 2 :]))] * rows, base.device)
    n = -(-rows // 4)
    a = {k: torch.ones(n, 1, i, device=base.device).requires_grad_() for k, (_, i) in base.shapes.items()}
    b = {k: torch.zeros(n, o, 1, device=base.device).requires_grad_() for k, (o, _) in base.shapes.items()}
    started = time.perf_counter()
    with lay_over(base.targets, [Layer(Factors(a, b), batch.rows.row // 4)]):
        cross_entropy_per_row(base, batch).sum().backward()
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
    return time.perf_counter() - started


def _free(base: Base) -> int:
    """Bytes of memory that are free on the device, as the process stands."""
    if base.device.type == "cuda":
        return torch.cuda.mem_get_info(base.device)[0]
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(facts["MemAvailable"].split()[0]) * 1024
