"""A sampler of bad inputs: options, job files, label maps and masks, model folders; each with what must be said of it.

A row is a function of its number alone. What is drawn could be no job, so that every row must be refused: in one line,
with status 1 or 2, without a traceback, with nothing left behind, and soon.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import launching
import numpy as np
import zarr
from launching import launch, tree
from PIL import Image

from engine.command_line import flag_of
from engine.models.files import WEIGHTS
from engine.options import FILE, FLAG, NAME, PATH
from engine.parsing import OPTIONS

SIDE = 64  # px
LONGEST = 60  # seconds that a refusal takes at most, on a busy machine too; it takes a tenth of one
LONGEST_LINE = 4000  # characters
NONSENSE = (
    "",
    "nan",
    "-1e400",
    "x" * 5000,
    "9" * 5000,
    "1,2,3,4",
    "½",
    "[]",
    "True",
    "\n",
    "\x1b[2J",
    "1:0",
    "0x0",
    "-7",
)


@dataclass(frozen=True)
class Row:
    """A bad input.

    Args:
        what: What is wrong with it.
        arguments: Of the command line, beside those of a job that is right.
        said: Words that the one line must have.
    """

    what: str
    arguments: tuple[str, ...]
    said: tuple[str, ...]


def row(number: int, folder: Path, model: Path) -> Row:
    """One row; its files are made below ``folder``."""
    drawn = random.Random(f"bad input {number}")
    family = FAMILIES[number % len(FAMILIES)]
    folder.mkdir(parents=True)
    return family(drawn, folder, model)


def fault(row: Row, place: Path, model: Path) -> str:
    """What was wrong with how a row was refused; empty: nothing."""
    right = ("--size", f"{SIDE}x{SIDE}", "--steps", "1", "--model", str(model), "--out", str(place / "out.zarr"))
    before, begun = tree(place), time.monotonic()
    try:
        done = launch(1, *right, *row.arguments)
    except subprocess.TimeoutExpired:
        return f"{row.what}: no end in {LONGEST} s"
    took = time.monotonic() - begun
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    faults = [
        *[f"status {done.returncode}"] * (done.returncode not in (1, 2)),
        *[f"{len(lines)} lines"] * (len(lines) != 1),
        *["no error line"] * (not any(line.startswith("error: ") for line in lines)),
        *["a long line"] * any(len(line) > LONGEST_LINE for line in lines),
        *[f"{took:.0f} s"] * (took > LONGEST),
        *["something was left"] * (tree(place) != before),
        *[f"not said: {word}" for word in row.said if word not in "".join(lines)],
    ]
    return f"{row.what}: {', '.join(faults)}: {' | '.join(lines)[-1000:]}" if faults else ""


def faults(numbers: range, folder: Path, model: Path, monkeypatch: Any) -> list[str]:
    """What was wrong with rows, one after the other."""
    monkeypatch.setattr(launching, "LONGEST", LONGEST)
    (folder / "place").mkdir()
    rows = (row(number, folder / str(number), model) for number in numbers)
    return [said for one in rows if (said := fault(one, folder / "place", model))]


# ---- options --------------------------------------------------------------------------------------


def wrong_option(drawn: random.Random, folder: Path, model: Path) -> Row:
    names = [name for name, option in OPTIONS.items() if option.kind not in (PATH, FILE, NAME, FLAG)]
    flag, value = flag_of(drawn.choice(names)), drawn.choice(NONSENSE)
    return Row(f"{flag} {value[:20]!r}", (f"{flag}={value}",), (flag,))


def unknown_option(drawn: random.Random, folder: Path, model: Path) -> Row:
    name = list(drawn.choice([name for name in OPTIONS if len(name) > 4]))
    at = drawn.randrange(1, len(name))
    name[at] = drawn.choice([letter for letter in "qxzj" if letter != name[at]])
    flag = flag_of("".join(name))
    return Row(f"unknown {flag}", (flag, "1"), (f"unrecognized argument {flag}; did you mean '--",))


# ---- job files ------------------------------------------------------------------------------------

JOBS: dict[str, str | bytes] = {
    "deep lists": "steps: " + "[" * 5000 + "]" * 5000,
    "deep mappings": "".join(f"{' ' * i}a:\n" for i in range(300)),
    "deeper mappings": "{a: " * 3000 + "1" + "}" * 3000,
    "aliases": "a: &a [1, 1]\nb: &b [*a, *a]\nc: &c [*b, *b]\nlabel: [*c, *c]\n",
    "an anchor": "steps: &n 3\n",
    "many digits": "steps: " + "9" * 5000,
    "many hexadecimal digits": "steps: 0x" + "f" * 5000,
    "a long value": "prompt: " + "carcinoma " * 6000,
    "a long list": f"label: {list(range(9000))}",
    "too large": "steps: 1\n#" + "x" * 10**6,
    "control characters": 'prompt: "a\\nb\\e[2J"\n',
    "half a character": 'prompt: "\\ud800"\n',
    "no text": bytes(range(256)),
    "a date that is none": "prompt: 2001-99-99\n",
    "a Python object": "steps: !!python/object/apply:os.system ['true']\n",
    "no mapping": "- steps\n",
    "nothing": "",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a number as key": "1: 2\n",
    "a tab": "steps:\t1\n\tsize: 2\n",
    "unclosed": 'prompt: "a\n',
    "two documents": "steps: 1\n---\nsteps: 2\n",
    "infinity": "guidance: .inf\n",
    "no number": "guidance: .nan\n",
    "null": "size: ~\n",
}


def wrong_job(drawn: random.Random, folder: Path, model: Path) -> Row:
    what, text = drawn.choice(list(JOBS.items()))
    job = folder / "job.yaml"
    job.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = ("--prompt", "label model") if what == "control characters" else (str(job),)
    return Row(f"job file, {what}", ("--job", str(job)), said)


def no_job(drawn: random.Random, folder: Path, model: Path) -> Row:
    path = no_file(drawn, folder, "job.yaml")
    return Row(f"job file, {path}", ("--job", str(path)), ("job",))


def no_file(drawn: random.Random, folder: Path, name: str) -> Path:
    """A path at which there is no file to be read."""
    path = folder / name
    kind = drawn.choice(["pipe", "pipe", "socket", "missing", "link to itself", "device", "long", "unreadable name"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            before = os.getcwd()
            os.chdir(folder)  # addresses are short
            listener.bind(name)
            os.chdir(before)
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "long":
        return folder / ("n" * 300 + path.suffix)
    elif kind == "unreadable name":
        return folder / "a\nb\x1b[2J" / name
    return path


# ---- label maps and masks -------------------------------------------------------------------------


def good_map() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, (SIDE, SIDE)).astype(np.uint8)


def wrong_array(drawn: random.Random, folder: Path, model: Path) -> Row:
    """An array that is no map of this size, in a format drawn."""
    good = good_map()
    arrays: dict[str, np.ndarray] = {
        "another size": good[:17],
        "one dimension": good[0],
        "three dimensions": good[None],
        "five dimensions": good[None, None, None],
        "a single value": good[0, 0],
        "no rows": good[:0],
        "nothing": np.zeros((0, 0), np.uint8),
        "floating": good.astype(np.float32),
        "complex": good.astype(np.complex64),
        "five channels": np.dstack([good] * 5),
    }
    what, array = drawn.choice(list(arrays.items()))
    format_ = drawn.choice(["npy", "h5", "zarr"])
    if what == "complex" and format_ == "zarr":
        format_ = "npy"
    path = folder / f"map.{format_}"
    if format_ == "npy":
        np.save(path, array)
    elif format_ == "h5":
        with h5py.File(path, "w") as file:
            file["map"] = array
        path = Path(f"{path}:/map")
    else:
        zarr.create_array(path, data=np.asarray(array))
    flag = drawn.choice(["--labels", "--roi"])
    return Row(f"{flag}, {what}, {format_}", (flag, str(path)), ("map",))


def wrong_values(drawn: random.Random, folder: Path, model: Path) -> Row:
    """Values or colours that are no labels, at a pixel that must be named."""
    good, (y, x) = good_map(), (drawn.randrange(SIDE), drawn.randrange(SIDE))
    kind = drawn.choice(["value", "negative", "colour", "translucent", "palette", "huge"])
    path = folder / "map.png"
    if kind in ("value", "negative", "huge"):
        wrong = good.astype(np.int64)
        wrong[y, x] = {"value": drawn.randrange(5, 256), "negative": -1, "huge": 2**62}[kind]
        np.save(path := folder / "map.npy", wrong)
    elif kind == "palette":
        good[y, x] = drawn.randrange(5, 256)
        image = Image.fromarray(good).convert("P")
        image.putdata(good.ravel().tolist())
        image.save(path)
    else:
        colors = np.array([(160, 160, 160), (214, 39, 40), (255, 187, 20), (44, 120, 200), (60, 170, 90)], np.uint8)
        pixels = np.dstack([colors[good], np.full((SIDE, SIDE), 255, np.uint8)])
        pixels[y, x] = (1, 2, 3, 255) if kind == "colour" else (*colors[1], 120)
        Image.fromarray(pixels).save(path)
    return Row(f"labels, {kind}", ("--labels", str(path)), (str(path), f"row {y}, column {x}"))


def wrong_bytes(drawn: random.Random, folder: Path, model: Path) -> Row:
    """A file that is cut or holds anything."""
    suffix = drawn.choice(["png", "tif", "npy", "h5:/a", "jpg", "bin"])
    path = folder / f"map.{suffix.split(':')[0]}"
    if suffix == "png" and drawn.random() < 0.6:
        Image.fromarray(good_map()).save(path)
        path.write_bytes(path.read_bytes()[: drawn.randrange(path.stat().st_size - 60)])
    elif suffix == "npy" and drawn.random() < 0.6:
        np.save(path, good_map())
        path.write_bytes(path.read_bytes()[: drawn.randrange(path.stat().st_size)])
    elif suffix == "tif" and drawn.random() < 0.6:
        import tifffile

        tifffile.imwrite(path, good_map())
        path.write_bytes(path.read_bytes()[: drawn.randrange(path.stat().st_size // 2)])
    else:
        heads = (b"", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", b"\x93NUMPY\x01\0", b"\x89HDF\r\n\x1a\n", b"%!PS-Adobe")
        path.write_bytes(drawn.choice(heads) + drawn.randbytes(drawn.randrange(3000)))
    flag, given = drawn.choice(["--labels", "--roi"]), folder / f"map.{suffix}"
    return Row(f"{flag}, bytes of {suffix}", (flag, str(given)), (flag, "cannot be read"))


def no_map(drawn: random.Random, folder: Path, model: Path) -> Row:
    path = no_file(drawn, folder, "map." + drawn.choice(["png", "tif", "npy", "zarr", "h5"]))
    flag = drawn.choice(["--labels", "--roi"])
    return Row(f"{flag}, {path}", (flag, str(path)), ())


def wrong_zarr(drawn: random.Random, folder: Path, model: Path) -> Row:
    path = folder / "map.zarr"
    zarr.create_array(path, data=good_map(), chunks=(32, 32))
    kind = drawn.choice(["chunk", "chunk", "metadata", "metadata", "no metadata", "pipe", "group", "folder"])
    metadata = path / "zarr.json"
    if kind == "chunk":
        chunk = drawn.choice(sorted((path / "c").rglob("[01]/[01]")))
        chunk.write_bytes(drawn.choice([b"", b"x" * 40, chunk.read_bytes()[:-3]]))
    elif kind == "metadata":
        content = json.loads(metadata.read_text())
        key, value = drawn.choice(
            [
                ("shape", [-1, 64]),
                ("shape", "x"),
                ("data_type", "float1"),
                ("codecs", [{"name": "none"}]),
                ("codecs", 3),
            ]
        )
        metadata.write_text(json.dumps({**content, key: value}))
    elif kind in ("no metadata", "pipe", "folder"):
        metadata.unlink()
        if kind == "pipe":
            os.mkfifo(metadata)
        elif kind == "folder":
            metadata.mkdir()
    else:
        shutil.rmtree(path)
        zarr.open_group(path, mode="w")
    return Row(f"labels, Zarr, {kind}", ("--labels", str(path)), ("--labels", str(path)))


# ---- model folders --------------------------------------------------------------------------------

CARD: dict[str, tuple[Any, ...]] = {
    "pixel_size_um": (10**400, 0, -1, float("nan"), float("inf"), "0.5", None, [], 1e300),
    "patch_size": (0, -16, 15, 1.5, "16", True, None, 10**18, 10**400),
    "labels": (0, "labels", [1], [{}], [{"name": ""}], [{"name": "a\nb"}], [{"name": "a"}] * 65, [{"name": 3}]),
    "latents_gain": (0, -1, float("nan"), 1e9, "1", None),
    "defaults": (3, {"steps": 0}, {"steps": "many"}, {"stepz": 3}, {"guidance": -1}, {"batch_size": 0}, {"out": "x"}),
    "condition": ("smell", 3, None, []),
    "role": ("actor", None, {}),
    "space": ("pixel", 3),
    "has_null": ("yes", 1),
    "class_means": ("0.5", 3, [1.5], [float("nan")], [0.5] * 65, ["x"]),
    "label_count": (-1, "5", 65),
    "label_scale": (0, float("nan")),
    "label_weights": ([[1.0, 0.0]], [[1.0], "x"], [[float("nan")]], 3, [[1.0, 1.0, 1.0]] * 3),
    "latents_std": (0, [], [1.0, 0], [1.0] * 3, float("nan")),
    "image_channels": (0, "3"),
}
SCHEDULER: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (0, -1, 1.5, "1000", None, 10**12, float("nan")),
    "beta_schedule": ("cosine", 3, None),
    "beta_start": (10**400, 0, float("nan"), "0.1", [0.1]),
    "trained_betas": ([], [0.0], [1.0], [-0.1], [float("nan")], 3, [[0.1]], [0.99] * 1000, ["a"], [2.0]),
    "prediction_type": ("noise", 1, None),
    "timestep_spacing": ("wide", 7),
    "variance_type": ("none at all", 3),
    "eta_variance": ("none at all", 3, None),
    "clip_sample": ("no", 1),
    "clip_sample_range": (0, -1, float("nan")),
    "steps_offset": (-1, 0.5, "1"),
    "timestep_shift": (0, -3, "3", None, float("nan")),
    "network_timestep_scale": (0, float("inf")),
    "rescale_betas_zero_snr": (True,),
}
UNET: dict[str, tuple[Any, ...]] = {
    "dim": (10**400, 0, -8, 7, "8", 10**9, float("nan"), None, [8]),
    "dim_mults": ([], [0, 1], [1] * 3000, "12", 3),
    "channels": (0, 3, -4, "4"),
    "num_classes": (0, 4, 10**8),
    "resnet_block_groups": (0, 3, -1),
    "block_per_layer": (0, 10**6, -1, 1.5),
    "_class_name": ("Transformer", 3, None, [], "nn.Module"),
    "surprise": (1,),
}
JSON_TEXT = {
    "deep": '{"a": ' * 100_000 + "1" + "}" * 100_000,
    "rather deep": '{"a": ' * 200 + "1" + "}" * 200,
    "cut": '{"a": 1',
    "a list": "[1]",
    "nothing": "",
    "no text": "\udcff",
    "many digits": '{"patch_size": ' + "9" * 6000 + "}",
    "too large": '{"a": "' + "x" * 5_000_000 + '"}',
}
FILES = ("card.json", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json")


def copied(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder / "model"))


def edited(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def wrong_fact(drawn: random.Random, folder: Path, model: Path) -> Row:
    """A key of the card, the scheduler or the network with a value that it cannot have."""
    file, table = drawn.choice([(FILES[0], CARD), (FILES[2], SCHEDULER), (FILES[3], UNET)])
    key, values = drawn.choice(list(table.items()))
    value, broken = drawn.choice(values), copied(model, folder)
    edited(broken / file, lambda content: content.update({key: value}))
    return Row(
        f"{file}, {key} {str(value)[:40]}", ("--model", str(broken)), (str(broken), key) if table is not UNET else ()
    )


def wrong_json(drawn: random.Random, folder: Path, model: Path) -> Row:
    broken, file = copied(model, folder), drawn.choice(FILES)
    what = drawn.choice([*JSON_TEXT, "pipe", "missing", "folder"])
    path = broken / file
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what != "missing":
        path.write_bytes(JSON_TEXT[what].encode("utf-8", "surrogateescape"))
    return Row(f"{file}, {what}", ("--model", str(broken)), (str(broken),))


def wrong_index(drawn: random.Random, folder: Path, model: Path) -> Row:
    broken, part = copied(model, folder), drawn.choice(["unet", "vae"])
    value = drawn.choice([3, "x", [], {}, ["a"], None, [1, 2, 3]])
    edited(broken / FILES[1], lambda content: content.update({part: value}))
    return Row(f"model_index.json, {part} {value}", ("--model", str(broken)), (str(broken), part))


def wrong_weights(drawn: random.Random, folder: Path, model: Path) -> Row:
    """The header of a weights file, or its values."""
    broken, part = copied(model, folder), drawn.choice(["unet", "vae"])
    path = broken / part / WEIGHTS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, values = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    names = sorted(name for name in header if name != "__metadata__")
    one, other = drawn.sample(names, 2)
    begin, _ = header[one]["data_offsets"]
    kind = drawn.choice(list(CHANGES))
    if kind in ("NaN", "infinity"):
        dtype = {"F16": "<e", "F32": "<f"}[header[one]["dtype"]]
        values[begin : begin + struct.calcsize(dtype)] = struct.pack(dtype, float("nan" if kind == "NaN" else "inf"))
    elif kind == "cut":
        values = values[: drawn.randrange(len(values))]
    elif kind == "longer":
        values += b"\0" * 7
    elif kind == "no JSON":
        content = content[:8] + b"[" * length
    elif kind == "lies about its length":
        content = struct.pack("<Q", drawn.choice([0, 2**62, len(content)])) + content[8:]
    else:
        CHANGES[kind](header, one, other)
    if kind not in ("no JSON", "lies about its length"):
        text = json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + bytes(values)
    path.write_bytes(content)
    said = (
        (str(path), one) if kind in ("NaN", "infinity", "integers", "no type", "negative", "shape") else (str(broken),)
    )
    return Row(f"{part} weights, {kind}, {one}", ("--model", str(broken)), said)


def change(key: str, value: Callable[[dict, str], Any]) -> Callable[[dict, str, str], None]:
    return lambda header, one, other: header[one].update({key: value(header, other)})


CHANGES: dict[str, Callable[[dict, str, str], None]] = {
    "overlap": change("data_offsets", lambda header, other: header[other]["data_offsets"]),
    "negative": change("data_offsets", lambda header, other: [-8, 0]),
    "one offset": change("data_offsets", lambda header, other: [0]),
    "shape": change("shape", lambda header, other: [1, 1, 1, 1, 999]),
    "huge shape": change("shape", lambda header, other: [10**100] * 4),
    "negative shape": change("shape", lambda header, other: [-1, -1]),
    "integers": change("dtype", lambda header, other: "I32"),
    "no type": change("dtype", lambda header, other: "X7"),
    "missing": lambda header, one, other: header.pop(one) and None,
    "renamed": lambda header, one, other: header.update({"x" * 9000: header.pop(one)}),
    **{kind: change("", lambda header, other: None) for kind in ("NaN", "infinity", "cut", "longer")},
    **{kind: change("", lambda header, other: None) for kind in ("no JSON", "lies about its length")},
}
FAMILIES = (
    wrong_option,
    unknown_option,
    wrong_job,
    no_job,
    wrong_array,
    wrong_values,
    wrong_bytes,
    no_map,
    wrong_zarr,
    wrong_fact,
    wrong_json,
    wrong_index,
    wrong_weights,
    wrong_fact,
)
