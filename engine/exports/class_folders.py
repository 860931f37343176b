"""A set of images as a folder a class, as the feature-aligned system writes them and its evaluator reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from engine.exports.pictures import write_one
from engine.storage.output import Output
from engine.storage.set_layout import SetLayout


def check_classes(output: Output) -> None:
    """Refuse an output whose images have no class each.

    Raises:
        ValueError: naming what it holds.
    """
    layout = output.layout
    if not isinstance(layout, SetLayout):
        raise ValueError(f"{output.path} holds one image; folders by class are made of sets (engine.sample --count N)")
    if layout.label is None or layout.label.name != "classes":
        held = layout.label.name if layout.label else "nothing"
        raise ValueError(f"{output.path} holds {held} beside its images, not classes; leave out `layout`")


def write_class_folders(output: Output, layout: SetLayout, folder: Path, suffix: str) -> None:
    """Write ``CLASS/image_N``, N counting the images of each class from 0, shard by shard."""
    entries = () if layout.label is None else layout.label.entries
    names = folder_names([name for name, _ in entries])
    written: Counter[str] = Counter()
    for box in layout.boxes():
        classes = output.read("classes", box)[:, 0, 0].tolist()
        for label, pixels in zip(classes, output.read("images", box), strict=True):
            name = names[label] if label < len(names) else f"class {label}"
            (folder / name).mkdir(exist_ok=True)
            write_one(folder / name, f"image_{written[name]}", pixels, suffix)
            written[name] += 1


def folder_names(names: list[str]) -> list[str]:
    """A folder's name for each class; one that is no name of a folder, or of several classes, is numbered.

    >>> folder_names(["tumor", "a/b", "tumor"])
    ['0 tumor', 'a_b', '2 tumor']
    """
    plain = [name.replace("/", "_").strip(".") for name in names]
    clear = Counter(name.lower() for name in plain)
    return [f"{i} {name}".strip() if clear[name.lower()] > 1 or not name else name for i, name in enumerate(plain)]
