"""What was made and may be asked for again, as much as fits in so many bytes; the least recent goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Values by their key. Threads share it.

    Args:
        most: Bytes that it holds.
        size: Function from a value to its bytes.

    >>> cache = Cache(5, len)
    >>> for key in "abc": cache.put(key, b"12")
    >>> [key for key in "abc" if cache.get(key)], cache.bytes
    (['b', 'c'], 4)
    """

    def __init__(self, most: int, size: Callable[[Value], int]) -> None:
        self.most, self.size, self.bytes = most, size, 0
        self.lock = threading.Lock()
        self.values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        with self.lock:
            value = self.values.get(key)
            if value is not None:
                self.values.move_to_end(key)
            return value

    def put(self, key: Hashable, value: Value) -> None:
        with self.lock:
            before = self.values.pop(key, None)
            self.bytes += self.size(value) - (0 if before is None else self.size(before))
            self.values[key] = value
            while self.bytes > self.most:
                _, last = self.values.popitem(last=False)
                self.bytes -= self.size(last)
