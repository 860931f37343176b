"""URLs of outputs in object stores: which there are, and the folder that is the local part of one."""

from __future__ import annotations

import re
from pathlib import Path

# Whose objects appear whole or not at all, by the protocol of their URLs; and what Python needs to reach them.
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
OF_A_PROCESS = "memory"  # a store of fsspec that no other process sees


def is_url(text: str) -> bool:
    """Whether a text is a URL and no path.

    >>> is_url("s3://bucket/x.zarr"), is_url("runs/x.zarr"), is_url("a:b//c")
    (True, False, False)
    """
    return re.match(r"[A-Za-z][\w+.-]*://", text) is not None


def looks_like_url(path: Path) -> bool:
    """Whether a path was made of a URL, of which it keeps one slash.

    >>> looks_like_url(Path("s3://bucket/x.zarr")), looks_like_url(Path("runs/x.zarr"))
    (True, False)
    """
    return any(part[:-1] in (*PACKAGES, OF_A_PROCESS) for part in path.parts[:1] if part.endswith(":"))


def refuse_url(path: Path) -> None:
    """Refuse a URL where the path of an output is asked for.

    Raises:
        ValueError: naming the folder that is to be given instead.
    """
    if looks_like_url(path):
        url = f"{path.parts[0]}//{'/'.join(path.parts[1:])}"
        raise ValueError(
            f"{url} is in an object store; give its handle instead, the folder DIR/{path.name} of the `scratch` DIR "
            "that it was sampled with"
        )


def handle_of(url: str, scratch: str | Path) -> Path:
    """The handle of an output in a store: its folder in the scratch folder, which has its name.

    >>> handle_of("s3://bucket/runs/x.zarr/", "here")
    PosixPath('here/x.zarr')
    """
    return Path(scratch) / url.rstrip("/").rpartition("/")[2]


def check_url(url: str, processes: int) -> str:
    """A URL that an output can be written to, without a slash at its end.

    Args:
        processes: Number of processes that write.
    Raises:
        ValueError: no store that objects are put into whole, or no name in it.
    """
    protocol, _, rest = url.partition("://")
    if protocol == OF_A_PROCESS and processes > 1:
        raise ValueError(f"`out` {url} is the memory of one process and {processes} ranks write; pass s3://...")
    if protocol not in PACKAGES and protocol != OF_A_PROCESS:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise ValueError(f"`out` {url}: outputs are not written to {protocol}://; pass a path, or one of {known}")
    names = rest.rstrip("/").split("/")
    if "" in names or names[-1] in (".", "..") or len(names) < (1 if protocol == OF_A_PROCESS else 2):
        raise ValueError(f"`out` {url} names no output in a store; pass a bucket and a name, as s3://bucket/name.zarr")
    return url.rstrip("/")
