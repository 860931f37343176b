"""Outputs that are damaged on purpose, runs that are killed, and what is expected of the same command then.

``FINISHED`` and ``UNFINISHED`` have a row for every kind of file: which files they are, and what is expected of them.
``WAYS`` are the ways to damage one; ``ROWS`` has every kind with every way. ``kill_and_resume`` is a row of kills.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from launching import (
    Running,
    kill_all,
    launch,
    lines_of,
    ranks_below,
    sha,
    shared_memory_of,
    start_and_kill,
    verify,
)

JOB = ("--size", "300x420", "--shard", 128, "--chunk", 64, "--labels", "example", "--preview", "none")
JOB = (*JOB, "--steps", 4, "--solver", "dpmpp2m", "--checkpoint-every", 0)
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
STATES = {"finished": FINISHED, "unfinished": UNFINISHED}


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
    """With another of its output, of the same name or beside it if there is one."""
    output = next(folder for folder in file.parents if folder.suffix == ".zarr")
    content = file.read_bytes()
    near = (*file.parents[1].glob(f"*/{file.name}"), *file.parent.iterdir())
    near, others = (
        {path for path in paths if path.is_file() and output in path.parents and path.read_bytes() != content}
        for paths in (near, output.rglob("*"))
    )
    other = drawn.choice(sorted(near or others))
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": truncated,
    "flipped": flipped,
    "emptied": emptied,
    "deleted": deleted,
    "a folder": a_folder,
    "swapped": swapped,
}
ROWS = [(state, kind, way) for state, kinds in STATES.items() for kind in kinds for way in WAYS]
SAME_SIZE = ("flipped", "swapped")  # a file's size may not tell


def make_whole(job: tuple, out: Path) -> Path:
    """The output of a run to its end."""
    done = launch(2, *job, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def make_killed(job: tuple, out: Path) -> Path:
    """The output of a run that was killed while it wrote the image: all of the labels and some of the image."""
    start_and_kill(lambda: image_shards(out) > 1, out, 2, *job)
    return out


def image_shards(out: Path) -> int:
    """The number of shards of the image that ranks have written."""
    return sum('"array": "0"' in line for file in out.glob("slidefield/ledger/*") for line in lines_of(file))


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


MOMENTS: dict[str, Callable[[Path, Path], bool]] = {
    "it begins": lambda out, log: out.exists(),
    "a level": lambda out, log: len(lines_of(log)) >= 2,
    "a checkpoint": lambda out, log: any(out.glob("slidefield/checkpoint/1/x/c/*/*/*")),
    "decoding": lambda out, log: image_shards(out) > 0,
    "the pyramid": lambda out, log: any(out.glob("1/c/*/*/*")),
}


def end_run(run: Running, how: str, drawn: random.Random) -> None:
    """Kill or signal a run, and wait for its end; what it has in shared memory goes with it."""
    victims = ranks_below(run.process.pid)
    shared = {file for victim in victims for file in shared_memory_of(victim)}
    with contextlib.suppress(ProcessLookupError):  # it may just have ended
        if how == "all":
            kill_all(run.process.pid)
        elif how == "mpiexec":
            run.process.kill()
        elif victims:
            os.kill(drawn.choice(victims), signal.SIGKILL if how == "a rank" else signal.Signals[f"SIG{how}"])
    run.end()
    while any(map(samples, victims)):  # without mpiexec they live a moment longer
        time.sleep(0.05)
    for file in shared:
        file.unlink(missing_ok=True)


def samples(pid: int) -> bool:
    """Whether a process is a rank of a run."""
    try:
        return b"engine.sample" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def kill_and_resume(whole: Path, place: Path, seed: int, arguments: tuple) -> None:
    """A run that is killed or signalled at a moment drawn from the seed ends, given again, in the same bytes."""
    drawn, out, log = random.Random(f"kill {seed}"), place / "out.zarr", place / "log.jsonl"
    moment, how = drawn.choice(list(MOMENTS)), drawn.choice(["all", "a rank", "mpiexec", "TERM", "USR1", "INT"])
    run = Running(drawn.randint(1, 3), *arguments, "--out", out, "--json-log", log)
    run.wait_until(lambda: MOMENTS[moment](out, log))
    time.sleep(drawn.random() * 0.3)
    end_run(run, how, drawn)
    done = launch(drawn.randint(1, 3), *arguments, "--out", out)
    text = f"{how} in {moment}, {seed}: {done.returncode}: {done.stdout}{done.stderr}"
    assert done.returncode == 0, text
    assert sha(out) == sha(whole), text
    assert arrays_of(out) == arrays_of(whole), text
