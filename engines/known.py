"""What was made of an array, kept for arrays in which nothing can change while they live."""

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

__all__ = ["Known"]

T = TypeVar("T")


class Known(Generic[T]):
    """What was made of arrays before.

    While neighbours stand, a Verlet list hands over the very same `reverse` at every step. It is known again by
    identity, where that is proof: where it is closed for writing and holds its own memory, so that neither it nor an
    array that it is a view of can be written. A Verlet list closes its `reverse`, and makes another one when neighbours
    change. What a caller may write into is looked at anew each time. Arrays are not kept alive for this: each is
    forgotten as it is freed, before another one can have its place.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, tuple[int, ...]], tuple[weakref.ref[np.ndarray], T]] = {}

    def made_of(self, array: np.ndarray, kind: int, make: Callable[[], T]) -> T:
        """What was made of an array before, or is made now.

        Args:
            array: any.
            kind: of what is made, where there are several.
            make: makes it of that array.
        """
        if array.flags.writeable or array.base is not None:
            return make()
        key, known = (id(array), kind, array.shape), self._known  # a shape can be set, where numbers cannot
        if key not in known or known[key][0]() is not array:
            made = make()
            known[key] = weakref.ref(array, lambda _: known.pop(key, None)), made
        return known[key][1]

    def forget(self) -> None:
        """Keep nothing."""
        self._known.clear()
