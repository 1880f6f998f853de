"""A sequence whose items are made when they are asked for, so that a thousand diffs needn't be in memory at once."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class Lazy(Sequence[T], Generic[T]):
    """Items by functions that make them; nothing is kept.

    Args:
        makers: one function without arguments per item.
    """

    def __init__(self, makers: Sequence[Callable[[], T]]):
        self.makers = list(makers)

    def __len__(self) -> int:
        return len(self.makers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [make() for make in self.makers[index]]
        return self.makers[index]()

    def __add__(self, other: "Lazy[T]") -> "Lazy[T]":
        return Lazy([*self.makers, *other.makers])
