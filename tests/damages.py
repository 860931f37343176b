"""Files of outputs that are damaged on purpose, and what is expected of the same command then.

``FINISHED`` and ``UNFINISHED`` have a row for every kind of file: which files they are, and what is expected of them.
``WAYS`` are the ways to damage one.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from launching import launch, sha, verify

SHARD = "c/[0-9]*/[0-9]*"  # of an array of labels; an image has one folder more
FINISHED = {
    "image": (f"0/{SHARD}/*", "sampled"),
    "pyramid": (f"1/{SHARD}/*", "made anew"),
    "labels": (f"labels/*/0/{SHARD}", "made anew"),
    "pyramid of labels": (f"labels/*/1/{SHARD}", "made anew"),
    "group": ("zarr.json", "mended"),
    "array": ("[01]/zarr.json", "mended"),
    "labels' group": ("labels/zarr.json", "mended"),
    "label group": ("labels/*/zarr.json", "mended"),
    "label array": ("labels/*/[01]/zarr.json", "mended"),
    "copy of metadata": ("slidefield/metadata.json", "mended"),
    "ledger": ("slidefield/ledger.jsonl", "noticed or harmless"),
    "lock": ("slidefield/lock", "harmless"),
}
UNFINISHED = {
    "image": (f"0/{SHARD}/*", "made anew"),
    "labels": (f"labels/*/0/{SHARD}", "made anew"),
    "group": ("zarr.json", "made anew"),
    "array": ("[01]/zarr.json", "made anew"),
    "labels' group": ("labels/zarr.json", "made anew"),
    "label group": ("labels/*/zarr.json", "made anew"),
    "label array": ("labels/*/[01]/zarr.json", "made anew"),
    "copy of metadata": ("slidefield/metadata.json", "made anew"),
    "ledger of a rank": ("slidefield/ledger/*.jsonl", "made anew"),
    "lock": ("slidefield/lock", "made anew"),
    "mark": ("slidefield/checkpoint.json", "refused"),
    "latents": ("slidefield/checkpoint/{slot}/x/c/*/*/*", "refused"),
    "array of latents": ("slidefield/checkpoint/{slot}/x/zarr.json", "refused"),
    "latents of the other slot": ("slidefield/checkpoint/{other}/x/c/*/*/*", "made anew"),
    "array of the other slot": ("slidefield/checkpoint/{other}/x/zarr.json", "made anew"),
}


def truncated(file: Path, drawn: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: drawn.randrange(1, max(file.stat().st_size, 2))])


def flipped(file: Path, drawn: random.Random) -> None:
    content = bytearray(file.read_bytes()) or bytearray(1)
    content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(7)
    file.write_bytes(content)


def emptied(file: Path, drawn: random.Random) -> None:
    file.write_bytes(b"")


def deleted(file: Path, drawn: random.Random) -> None:
    file.unlink()


def a_folder(file: Path, drawn: random.Random) -> None:
    file.unlink()
    file.mkdir()
    (file / "something").write_text("else")


def swapped(file: Path, drawn: random.Random) -> None:
    """With a file of its folder or its parent's, of the same name or beside it; else with one of another kind."""
    beside = [*file.parent.parent.glob(f"*/{file.name}"), *file.parent.iterdir()]
    others = sorted({path for path in beside if path.is_file() and path != file})
    other = drawn.choice(others) if others else next(p for p in sorted(file.parents[1].rglob("*")) if p.is_file())
    content, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(content)


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": truncated,
    "flipped": flipped,
    "emptied": emptied,
    "deleted": deleted,
    "a folder": a_folder,
    "swapped": swapped,
}
SAME_SIZE = ("flipped", "swapped")  # a file's size may not tell


def files_of(out: Path, pattern: str) -> list[Path]:
    """The files of a kind; ``{slot}`` is the checkpoint's slot that is whole."""
    mark = out / "slidefield" / "checkpoint.json"
    slot = json.loads(mark.read_text())["slot"] if mark.exists() else 0
    return sorted(path for path in out.glob(pattern.format(slot=slot, other=1 - slot)) if path.is_file())


def arrays_of(out: Path) -> dict[str, bytes]:
    """The content of every shard of an output."""
    files = (path for path in out.rglob("*") if path.is_file() and "/c/" in path.as_posix())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files if "slidefield" not in path.parts}


def one_error(done: subprocess.CompletedProcess) -> str:
    """The one line that a run is refused with."""
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def damage_finished(whole: Path, out: Path, kind: str, way: str, seed: int, ranks: int, arguments: tuple) -> None:
    """Damage a copy of a finished output; say as expected, by the same command, what is wrong; mend it."""
    pattern, expected = FINISHED[kind]
    drawn = random.Random(f"{kind} {way} {seed}")
    shutil.copytree(whole, out)
    WAYS[way](drawn.choice(files_of(out, pattern)), drawn)
    changed = arrays_of(out) != arrays_of(whole)

    seen, said = verify(out)
    again = launch(ranks, *arguments, "--out", out)
    text = f"{kind} {way} {seed}: verify {seen}: {said}\n{again.returncode}: {again.stdout}{again.stderr}"
    assert "Traceback" not in text, text
    assert seen in ((0,) if expected == "harmless" and way != "swapped" else (0, 1)), text
    if expected in ("sampled", "made anew"):
        assert seen == 1, text
    if expected == "sampled" and way not in SAME_SIZE:
        assert "--mend" in one_error(again), text
    if expected in ("made anew", "mended") and way not in SAME_SIZE:
        assert again.returncode == 0, text
        assert "made anew" in again.stdout or "is mended" in again.stdout, text
        assert verify(out)[0] == 0, text
        assert arrays_of(out) == arrays_of(whole), text
    if changed and way in SAME_SIZE:
        checked = launch(ranks, *arguments, "--out", out, "--verify")
        assert "is damaged" in again.stdout + again.stderr + checked.stdout + checked.stderr, (
            text + checked.stdout + checked.stderr
        )

    mended = launch(ranks, *arguments, "--out", out, "--mend")
    assert mended.returncode == 0, text + mended.stdout + mended.stderr
    assert verify(out)[0] == 0, text + verify(out)[1]
    assert arrays_of(out) == arrays_of(whole), text


def damage_unfinished(
    whole: Path, killed: Path, out: Path, kind: str, way: str, seed: int, ranks: int, arguments: tuple
) -> None:
    """Damage a copy of a killed run's output; the same command ends in the same bytes, or refuses in one line."""
    pattern, expected = UNFINISHED[kind]
    drawn = random.Random(f"{kind} {way} {seed}")
    shutil.copytree(killed, out)
    WAYS[way](drawn.choice(files_of(out, pattern)), drawn)

    done = launch(ranks, *arguments, "--out", out)
    text = f"{kind} {way} {seed}: {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in text, text
    if expected == "made anew" and way != "swapped":
        assert done.returncode == 0, text
    if expected == "refused" and way != "deleted":
        assert done.returncode == 1, text
    if done.returncode != 0:
        way_out = "--resume never" if "--resume never" in one_error(done) else "--overwrite"
        assert way_out in done.stderr, text
        done = launch(ranks, *arguments, "--out", out, *way_out.split())
        assert done.returncode == 0, text + done.stdout + done.stderr
    assert sha(out) == sha(whole), text
    assert arrays_of(out) == arrays_of(whole), text
