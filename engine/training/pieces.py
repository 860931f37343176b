"""``python -m engine.training.pieces pack WORK OUT | unpack OUT WORK``: trainings as a few small files, and back.

For a machine that gives back little: of each network its averaged weights in float16, in parts of at most ``PART``
bytes; everything else as text in ``run.json``; pictures as far as ``FILES`` allows. A training that is unpacked goes on
from its average, with an optimiser that begins anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from engine.models.files import WEIGHTS
from engine.storage.files import whole_file
from engine.training.loop import PROGRESS

PART = 15 * 2**20
FILES = 8
LOG = "train.log"  # a file of the script's that is one of them
RUN = "run.json"
TEXTS = ("*.json", "finished")


def pack(work: Path, out: Path) -> list[str]:
    """Write the files of ``work`` to ``out`` and return their names."""
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {}
    for path in sorted(work.rglob(WEIGHTS)):
        content = path.read_bytes()
        name = "-".join(path.parent.relative_to(work).parts)
        parts[name_of(path, work)] = [f"{name}.{i}" for i in range(-(-len(content) // PART))]
        for index, part in enumerate(parts[name_of(path, work)]):
            replace(out / part, content[index * PART : (index + 1) * PART])
    texts = {name_of(path, work): path.read_text() for ending in TEXTS for path in sorted(work.rglob(ending))}
    progress = {name_of(path.parent, work): known(path) for path in sorted(work.rglob("training.pt"))}
    replace(out / RUN, json.dumps({"parts": parts, "texts": texts, "progress": progress}).encode())
    names = [part for of_file in parts.values() for part in of_file] + [RUN]
    for picture in sorted(work.rglob("*.png"))[: max(FILES - len(names) - 1, 0)]:
        names.append("-".join(picture.relative_to(work).parts))
        replace(out / names[-1], picture.read_bytes())
    for path in out.iterdir():
        if path.name not in (*names, LOG):
            path.unlink()
    return names


def unpack(out: Path, work: Path) -> None:
    """Undo ``pack``: model folders, and beside each network its ``training.pt``."""
    run = json.loads((out / RUN).read_text())
    for name, text in run["texts"].items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name, parts in run["parts"].items():
        content = b"".join((out / part).read_bytes() for part in parts)
        replace(work / name, content)
        progress = run["progress"].get(name_of((work / name).parent, work))
        if progress is not None:
            weights = {key: tensor.float() for key, tensor in load(content).items()}
            state = {**progress, "network": weights, "ema": weights, "optimizer": None, "extra": {}}
            torch.save(state, (work / name).parent / "training.pt")


def known(path: Path) -> dict[str, Any]:
    """What is not tensors of a training's state."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    return {key: state[key] for key in PROGRESS}


def name_of(path: Path, work: Path) -> str:
    return path.relative_to(work).as_posix()


def replace(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def main(arguments: list[str]) -> int:
    if len(arguments) != 3 or arguments[0] not in ("pack", "unpack"):
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    source, target = Path(arguments[1]), Path(arguments[2])
    if arguments[0] == "pack":
        print("packed", *pack(source, target), flush=True)
    else:
        unpack(source, target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
