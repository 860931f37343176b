"""Files that were made for the browser, as many as fit in so many bytes; the least recent goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from engine.viewing.pictures import Picture


class Cache:
    """Pictures by their key. Threads share it.

    Args:
        most: Bytes that it holds.

    >>> cache = Cache(5)
    >>> for key in "abc": cache.put(key, ("text", b"12"))
    >>> [key for key in "abc" if cache.get(key)], cache.bytes
    (['b', 'c'], 4)
    """

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self.lock = threading.Lock()
        self.pictures: OrderedDict[Hashable, Picture] = OrderedDict()

    def get(self, key: Hashable) -> Picture | None:
        with self.lock:
            picture = self.pictures.get(key)
            if picture is not None:
                self.pictures.move_to_end(key)
            return picture

    def put(self, key: Hashable, picture: Picture) -> None:
        with self.lock:
            before = self.pictures.pop(key, None)
            self.bytes += len(picture[1]) - (len(before[1]) if before else 0)
            self.pictures[key] = picture
            while self.bytes > self.most:
                _, (_, content) = self.pictures.popitem(last=False)
                self.bytes -= len(content)
