"""A set of images as files, read one shard at a time."""

from __future__ import annotations

import csv
from pathlib import Path

from engine.exports.bar import with_bar
from engine.exports.nuclei_set import NucleiSet, names_of
from engine.exports.parts import parts_of_set
from engine.exports.pictures import write_condition, write_one
from engine.storage.output import Output
from engine.storage.set_layout import SetLayout


def write_set(output: Output, layout: SetLayout, folder: Path, suffix: str) -> None:
    """Write the files of a set of images, shard by shard."""
    names, parts = names_of(output, layout.count), parts_of_set(output)
    for part in parts:
        (folder / part.folder).mkdir()
    for box in with_bar(layout.boxes(), len(layout.boxes()), "shards"):
        for part in parts:
            for index, pixels in enumerate(part.make(output.read(part.array, box)), box.y0):
                write_one(folder / part.folder, names[index], pixels, suffix)
    if layout.label and layout.label.name == "classes":
        write_classes(output, folder / "classes.csv", names)
    if layout.label and layout.label.name == "nuclei":
        write_conditions(output, layout, folder, names)


def write_settings(output: Output, path: Path) -> None:
    """Write ``settings.csv``, of a set whose images have settings in turn: those of every image."""
    in_turn, layout = output.provenance.get("in_turn"), output.layout
    if not in_turn or not isinstance(layout, SetLayout):
        return
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["index", *in_turn[0]])
        table.writerows([index, *in_turn[index % len(in_turn)].values()] for index in range(layout.count))


def write_conditions(output: Output, layout: SetLayout, folder: Path, names: list[str]) -> None:
    """Write the condition of every image of nuclei, and its reference."""
    nuclei = NucleiSet(output)
    (folder / "cond").mkdir()
    for box in layout.boxes():
        for index, condition in enumerate(nuclei.conditions(output.read("nuclei", box), box.y0), box.y0):
            write_condition(folder / "cond", names[index], condition, nuclei.channels)
    nuclei.write_references(folder / "images", names)


def write_classes(output: Output, path: Path, names: list[str]) -> None:
    """Write ``classes.csv``: every pixel of an image has its class, so the first is read."""
    labels = (int(label) for box in output.layout.boxes() for label in output.read("classes", box)[:, 0, 0])
    lines = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    path.write_text("\n".join(["name,class", *lines]) + "\n")
