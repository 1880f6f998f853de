"""Decoder blocks compiled for long work on packed rows: one program for all blocks, for any number of tokens.

What a compiler gains is the small things between the matrix products: norms, rotary embeddings, activations and sums
go through memory once instead of a dozen times. The products, the bank and the attention stay operators of their own.
Where nothing can be compiled, the blocks run as they are, with the same results up to rounding.
"""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from weightdiff.base import Base

PAYS = 100
"""Steps from which compiling pays: it takes 5 to 25 seconds, and saves about a tenth of each step."""


def can_compile(device: torch.device) -> bool:
    """Does this machine have what a compiled block needs: on a CPU a C++ compiler and Python's headers?"""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 0)  # what Triton asks for
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    return compiler is not None and (Path(sysconfig.get_path("include")) / "Python.h").exists()


@cache
def _program(kind: type[nn.Module]) -> Any:
    """One program for all blocks of a kind, kept for as long as the process runs."""
    return torch.compile(kind.forward, dynamic=True)


@contextmanager
def compiled_blocks(base: Base, steps: int, wanted: bool | None = None) -> Iterator[bool]:
    """Run a model's decoder blocks compiled, for packed rows only; leaving gives them back as they were.

    Args:
        base: the base model.
        steps: how many steps are to come.
        wanted: None compiles where it can be done and pays.

    Yields:
        Whether the blocks are compiled.
    """
    if not (can_compile(base.device) and steps >= PAYS if wanted is None else wanted):
        yield False
        return
    blocks = base.model.get_decoder().layers
    try:
        for block in blocks:
            block.forward = MethodType(_program(type(block)), block)
        # What lies over a module is an attribute of it, and has another size in each step. Blocks with and without
        # diffs, with and without gradients, with and without a window are programs of their own.
        with torch._dynamo.config.patch(force_nn_module_property_static_shapes=False, recompile_limit=64):
            yield True
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
