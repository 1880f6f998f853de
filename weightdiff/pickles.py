"""torch's own files (`.pt`, `.bin`), read by a machine of ours that knows tensors and plain containers, nothing else.

Such a file is a zip of numbers and of a pickle, a little program that puts them together. Python's unpickler lets it
call anything. torch's own, with `weights_only=True`, lets it call what makes tensors, and there a page of text is
enough to ask for a terabyte. Here what it may do takes no more memory than its file has bytes, and calls nothing.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from weightdiff.archive import Archive, NoArchive
from weightdiff.files import MAX_NAME, are_sizes, check_memory, open_file

_STORAGES = {
    "torch DoubleStorage": torch.float64, "torch FloatStorage": torch.float32, "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16, "torch LongStorage": torch.int64, "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16, "torch CharStorage": torch.int8, "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}  # fmt: skip
_ORDERED, _TENSOR, _PARAMETER = (
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
)  # fmt: skip


def read_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds: tensors on the CPU, in dicts, lists and tuples, with text and numbers.

    Every tensor is an ordinary one that lies within its own storage, and together they are no more than the file.

    Raises:
        ValueError: no such file, none of `torch.save` or of one before 2020, cut off, one that lies about its sizes,
            or one that needs more than tensors and plain containers. Nothing of it was run.
    """
    with open_file(path) as file:
        try:
            archive = Archive(path, file)
            return _Machine(archive).run(archive.program())
        except NoArchive as error:
            raise ValueError(f"{path} is no file of torch.save (or one from before 2020): {error}.") from None
        except _Forbidden as error:
            raise ValueError(
                f"{path} asks for {error}, and is not read: only tensors in plain containers are, because anything "
                "else may run code of its own or fill the memory. Nothing of it was run."
            ) from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} can't be read (truncated?): {str(error).rstrip('.')}.") from None
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{path} can't be read: its pickle makes no sense ({why}).") from None


def read_bin(path: Path) -> dict[str, Float[Tensor, "..."]]:
    """An old `adapter_model.bin`: a state dict, as float32.

    Raises:
        ValueError: see `read_pickle`; or something else than tensors by name, not of floating point, or not finite.
    """
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected tensors by name.")
    check_memory(path, sum(4 * t.numel() for t in content.values() if isinstance(t, Tensor)))
    found = {}
    for name, tensor in content.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise ValueError(f"{path}: {name!r} is a {type(tensor).__name__}; expected tensors by name.")
        found[name] = finite(f"{path}: {name!r}", tensor)
    return found


def finite(what: str, tensor: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The tensor as float32.

    Args:
        what: how an error is to name it.

    Raises:
        ValueError: it isn't of floating point, or holds NaN or infinite values.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"{what} is of type {tensor.dtype}; expected floating point.")
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{what} holds NaN or infinite values; the finetune diverged.")
    return tensor


class _Forbidden(Exception):
    """What a pickle asked for that isn't given."""


@dataclass(frozen=True)
class _Global:
    """Something that a pickle names; never the thing itself."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Numbers that tensors lie in."""

    values: Shaped[Tensor, " n"]


class _Machine:
    """Runs a pickle's instructions, those that `torch.save` writes.

    None of them copies or compares more than it has itself brought. A list or dict has one place in what is read, so
    that ten lists, each holding the one before ten times, can't be made; a tensor is only made where its storage has
    room for it, and counts in every place.
    """

    def __init__(self, archive: Archive):
        self._archive, self._room, self._containers = archive, archive.size, archive.size + _SPARE
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[Any, Any] = {}
        self._storages: dict[str, _Storage] = {}

    def run(self, program: bytes) -> Any:
        """What the pickle leaves on the stack."""
        stack, memo = self._stack, self._memo
        for instruction, argument, _ in pickletools.genops(program):
            name = instruction.name
            if name in ("LONG_BINPUT", "BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(self._again(memo[argument]))
            elif name in _VALUES:
                stack.append(argument)
            elif name in _MAKERS:
                self._containers -= _CONTAINER
                if self._containers < 0:
                    raise ValueError("its lists and dicts take more memory than the file has bytes")
                stack.append(_MAKERS[name]())
            elif name in _ACTIONS:
                _ACTIONS[name](self)
            elif name == "GLOBAL":
                if argument not in (_ORDERED, _TENSOR, _PARAMETER, *_STORAGES):
                    raise _Forbidden(repr(str(argument).replace(" ", ".")[:200]))
                stack.append(_Global(str(argument)))
            elif name == "STOP":
                return stack.pop()
            elif name != "PROTO":
                raise _Forbidden(f"the instruction {name}, which torch.save doesn't write")

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        return self.take(len(self._stack) - self._marks.pop())

    def take(self, count: int) -> list[Any]:
        """The uppermost of the stack, taken from it."""
        at = len(self._stack) - count
        if not 0 <= at <= len(self._stack):
            raise ValueError("its pickle takes more from the stack than there is")
        items = self._stack[at:]
        del self._stack[at:]
        return items

    def push_tuple(self, items: list[Any]) -> None:
        self._stack.append(tuple(items))

    def append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ValueError("its pickle appends to something that is no list")
        self._stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        keys, target = items[::2], self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("its pickle sets items of something that is no dict")
        # To hash a tuple of tuples of the same tuple takes for ever, and to compare long texts nearly so.
        if not all(type(key) is int or (type(key) is str and len(key) <= MAX_NAME) for key in keys):
            raise ValueError(f"a key of a dict is neither a number nor a text of at most {MAX_NAME} characters")
        target.update(zip(keys, items[1::2], strict=True))

    def drop_state(self) -> None:
        """Only a state dict has a state, the versions of its modules; they aren't kept."""
        self.take(1)
        if type(self._stack[-1]) is not dict:
            raise ValueError("its pickle gives a state to something that is no dict")

    def refer(self) -> None:
        """A reference to a storage is replaced by the storage."""
        ((kind, element, key, _, count),) = self.take(1)
        if [type(part) for part in (kind, element, key, count)] != [str, _Global, str, int] or kind != "storage":
            raise ValueError("its pickle refers to something that is no storage")
        dtype = _STORAGES[element.name]
        if key not in self._storages:
            raw = self._archive.read(f"data/{key}")
            values = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
            if len(raw) != count * dtype.itemsize:
                raise ValueError(f"its storage {key!r} has {len(raw)} bytes, and claims to hold {count} of {dtype}")
            self._storages[key] = _Storage(values.view(dtype))
        if self._storages[key].values.dtype != dtype:
            raise ValueError(f"its storage {key!r} is of two types")
        self._stack.append(self._storages[key])

    def call(self) -> None:
        function, arguments = self.take(2)
        name = function.name if type(function) is _Global else type(function).__name__
        if name == _ORDERED and arguments == ():
            self._stack.append({})
        elif name == _TENSOR and type(arguments) is tuple and len(arguments) in (6, 7):
            self._stack.append(self._tensor(*arguments[:4]))
        elif name == _PARAMETER and type(arguments) is tuple and type(arguments[0]) is Tensor:
            self._stack.append(arguments[0])
        else:
            raise ValueError(f"its pickle calls {name!r} as torch.save doesn't")

    def _again(self, value: Any) -> Any:
        """What was kept in the memo, where using it twice costs nothing; what is read is a tree."""
        for part in value if type(value) is tuple and len(value) <= 8 else (value,):
            if type(part) is Tensor:
                self._charge(part)
            elif type(part) not in _ATOMS:
                raise ValueError(f"its pickle uses one {type(value).__name__} twice; save it with a copy of its own")
        return value

    def _charge(self, tensor: Shaped[Tensor, "..."]) -> None:
        self._room -= tensor.nbytes
        if self._room < 0:
            raise ValueError("its tensors share their numbers, and are more together than the file")

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Shaped[Tensor, "..."]:
        if not (type(storage) is _Storage and are_sizes([offset]) and are_sizes(size) and are_sizes(stride)):
            raise ValueError("what its pickle says of a tensor can't be understood")
        values, count = storage.values, prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and max(count, last + 1) > len(values):
            raise ValueError(f"a tensor of shape {list(size)} is larger than its storage of {len(values)} numbers")
        tensor = values.as_strided(size, stride, offset) if count else values.new_empty(size)
        self._charge(tensor)
        return tensor


_CONTAINER = 64
"""Bytes that an empty list or dict takes."""
_SPARE = 1 << 16
"""Bytes of them that even the smallest file may have."""
_ATOMS = (str, int, float, bool, type(None), _Global)
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_MAKERS: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
_ACTIONS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": lambda machine: machine.push_tuple(machine.since_mark()),
    "TUPLE1": lambda machine: machine.push_tuple(machine.take(1)),
    "TUPLE2": lambda machine: machine.push_tuple(machine.take(2)),
    "TUPLE3": lambda machine: machine.push_tuple(machine.take(3)),
    "APPEND": lambda machine: machine.append(machine.take(1)),
    "APPENDS": lambda machine: machine.append(machine.since_mark()),
    "SETITEM": lambda machine: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine: machine.set_items(machine.since_mark()),
    "BUILD": _Machine.drop_state,
    "BINPERSID": _Machine.refer,
    "REDUCE": _Machine.call,
}
