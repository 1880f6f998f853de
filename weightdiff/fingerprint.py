"""What a model's weights are, in sixteen letters: the same in bf16 and float32, another for every finetune.

It reads a few elements of every row of every matrix, and all of every vector: a fiftieth of a small model.
"""

import hashlib

import torch
from torch import Tensor, nn

_PER_ROW = 16


def fingerprint_of(model: nn.Module) -> str:
    """A short hash of sixteen elements of each row of each matrix and of all vectors, rounded to bf16.

    A finetune of any layer, of norms or biases alone, or of a single token's embedding changes it. Not told apart:
    changes too small to show in bf16 in any of the elements read.

    Args:
        model: its parameters and persistent buffers are read; tied ones under both of their names.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            read = _sample(tensor.detach()).to("cpu", torch.bfloat16)
            digest.update(read.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(tensor: Tensor) -> Tensor:
    """Elements that are spread over each row, and from row to row over the columns."""
    if tensor.dim() < 2 or tensor.shape[-1] <= _PER_ROW:
        return tensor
    rows = tensor.flatten(0, -2)
    width = rows.shape[1]
    spread = torch.arange(_PER_ROW, device=tensor.device) * width // _PER_ROW
    columns = (torch.arange(rows.shape[0], device=tensor.device)[:, None] + spread) % width
    return rows.gather(1, columns)
