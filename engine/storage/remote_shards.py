"""Shards as objects of a store, which fsspec reaches: S3, Google's, Azure's.

Endpoint, credentials and retries are the client library's: s3fs reads the environment and the files that botocore
reads (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_MAX_ATTEMPTS, ...), and asks five times on top of that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from engine.storage.files import NO_FILE, Stamp
from engine.storage.shard_store import Sizes
from engine.storage.store_url import PACKAGES
from engine.storage.zarr_setup import zarr

LONGEST_REASON = 300  # characters of what a client library says
WAY_OUT = "look at the connection, the endpoint and the credentials, then give the same command again"


class Unreachable(ValueError):
    """A store did not do what it was asked; it says nothing about what lies there."""


@contextmanager
def asking(where: str, verb: str) -> Iterator[None]:
    """Errors of a client library in one line.

    Raises:
        Unreachable: naming the object, and why it cannot be read, written, ...
    """
    try:
        yield
    except Unreachable:
        raise
    except Exception as error:  # each library raises its own
        why = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise Unreachable(f"{where} cannot be {verb} ({why}); {WAY_OUT}") from error


class RemoteShards:
    """Shards, and other files of an output, that are objects below a URL.

    An object appears when all of it is there: it is put at once, or where it is larger than 100 MB in parts that are
    completed at the end.

    Args:
        url: The output's URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @cached_property
    def files(self) -> Any:
        """The file system of fsspec that the objects are in; it remembers no listings.

        Raises:
            Unreachable: what it takes is not installed.
        """
        protocol = self.url.partition("://")[0]
        package = PACKAGES.get(protocol, "fsspec")
        for name in (package, "azure"):  # whose tracebacks would stand before our one line; a program's handlers stay
            logging.getLogger(name).addHandler(logging.NullHandler())
        try:
            import fsspec

            return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False)
        except ImportError:
            raise Unreachable(f"{self.url}: {protocol}:// needs {package}: pip install {package}") from None
        except Exception as error:  # credentials that are no credentials
            raise Unreachable(f"{self.url} cannot be reached ({' '.join(str(error).split())}); {WAY_OUT}") from error

    def where(self, name: PurePath | str) -> str:
        return f"{self.url}/{name}"

    def put(self, name: PurePath | str, parts: Sequence[bytes]) -> int:
        content = b"".join(parts)
        with asking(self.where(name), "written"):
            self.files.pipe_file(self.where(name), content)
        return len(content)

    def create(self, name: str, content: bytes) -> None:
        """Put an object where there is none; where there is one it is left as it is, if the store can see to that."""
        with asking(self.where(name), "written"), suppress(FileExistsError):
            self.files.pipe_file(self.where(name), content, mode="create")

    def get(self, name: PurePath | str) -> bytes | None:
        """The content of an object; None: there is none."""
        with asking(self.where(name), "read"):
            try:
                return bytes(self.files.cat_file(self.where(name)))
            except FileNotFoundError as error:
                if "bucket" in str(error).lower():
                    raise
                return None

    def size(self, name: PurePath | str) -> int:
        facts = self.facts(name)
        return 0 if facts is None else int(facts["size"])

    def sizes(self) -> Sizes:
        """One listing of all objects, a thousand of them a request."""
        with asking(self.url, "listed"):
            listing = self.files.find(self.url, detail=True)
        top = len(self.files._strip_protocol(self.url)) + 1
        size_of = {path[top:]: int(facts["size"]) for path, facts in listing.items() if facts["type"] == "file"}
        return lambda name: size_of.get(name.as_posix(), 0)

    def stamp(self, name: PurePath | str) -> Stamp | None:
        facts = self.facts(name)
        if facts is None:
            return None
        return (str(facts),) if facts["size"] else NO_FILE

    def facts(self, name: PurePath | str) -> dict[str, Any] | None:
        """What the store says of an object; None: there is none."""
        with asking(self.where(name), "looked at"):
            try:
                facts = self.files.info(self.where(name))
            except FileNotFoundError:
                return None
        return facts if facts["type"] == "file" else None

    def remove(self, name: PurePath | str) -> None:
        with asking(self.where(name), "removed"), suppress(FileNotFoundError):
            self.files.rm_file(self.where(name))

    def is_empty(self) -> bool:
        """Whether nothing lies at the URL, nor below it."""
        with asking(self.url, "listed"):
            try:
                return not self.files.ls(self.url, detail=False)
            except FileNotFoundError as error:
                if "bucket" in str(error).lower():
                    raise
                return True

    def clear(self, last: str) -> None:
        """Remove all that lies below the URL.

        Args:
            last: Name of the object that goes when all others are gone.
        """
        with asking(self.url, "removed"):
            paths = [path for path in self.files.find(self.url) if not path.endswith(f"{self.url}/{last}")]
            if paths:
                self.files.rm(paths)
        self.remove(last)

    def group(self, handle: Path) -> zarr.Group:
        """The output's Zarr group, to read: metadata from its handle, chunks from the store.

        The file system's own thread reads: one that zarr's loop had opened would not be closed at the end of Python.
        """
        files = self.files
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        wrapped = AsyncFileSystemWrapper(files, asynchronous=True)
        store = zarr.storage.FsspecStore(wrapped, read_only=True, path=files._strip_protocol(self.url))
        whole = HandleStore(store, zarr.storage.LocalStore(handle, read_only=True), self.url)
        return zarr.open_group(whole, mode="r", zarr_format=3, use_consolidated=False)


class HandleStore(zarr.storage.WrapperStore[zarr.storage.FsspecStore]):
    """A store whose metadata lies in a folder.

    Args:
        store: The store of the chunks.
        handle: The folder.
        url: Of the store, for messages.
    """

    def __init__(self, store: zarr.storage.FsspecStore, handle: zarr.storage.LocalStore, url: str) -> None:
        super().__init__(store)
        self.handle, self.url = handle, url

    def _with_store(self, store: zarr.storage.FsspecStore) -> HandleStore:
        return type(self)(store, self.handle, self.url)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if key.endswith("zarr.json"):
            return await self.handle.get(key, prototype, byte_range)
        with asking(f"{self.url}/{key}", "read"):
            return await self._store.get(key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        return await (self.handle if key.endswith("zarr.json") else self._store).exists(key)
