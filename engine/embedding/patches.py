"""The patches that embeddings are made of: those of a slide on a grid, or the pictures of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.inputs.dataset_folder import MASK_ENDING, PARTS
from engine.planning.geometry import Box
from engine.storage.slides import Slide, open_slide, pictures_in

SMALLEST_SCALE = 0.5  # slide pixels per patch pixel; more enlargement than that is a mistake
LONGEST_LIST = 2**28  # bytes of a file of names
MAPS = (PARTS["instances"], PARTS["appearance_mask"])


@dataclass(frozen=True)
class SlidePatches:
    """Square patches of a slide that lie side by side on a grid: plain values; each rank opens the slide itself.

    Args:
        path: The slide.
        side: Side of a patch, px.
        grid: Rows and columns.
        at: Row and column of the first patch's corner in the slide, px.
        scale: Slide pixels per patch pixel.
        pixel_size_um: Micrometres per pixel of the patches; None: it is not known.
    """

    path: Path
    side: int
    grid: tuple[int, int]
    at: tuple[int, int] = (0, 0)
    scale: float = 1.0
    pixel_size_um: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.grid

    def __len__(self) -> int:
        return self.grid[0] * self.grid[1]

    @cached_property
    def slide(self) -> Slide:
        return open_slide(self.path, "the slide")

    def box(self, number: int) -> Box:
        """Where a patch lies in the slide.

        >>> SlidePatches(Path("a"), 256, (2, 3), (10, 0), 1.5).box(4)
        Box(y0=394, x0=384, y1=778, x1=768)
        """
        row, column = divmod(number, self.grid[1])
        edges = [self.at[axis] + round(n * self.side * self.scale) for axis, n in ((0, row), (1, column))]
        ends = [self.at[axis] + round((n + 1) * self.side * self.scale) for axis, n in ((0, row), (1, column))]
        return Box(*edges, *ends)

    def read(self, number: int) -> np.ndarray:
        """uint8 (side, side, 3)."""
        return self.slide.read(self.box(number), self.side)

    def named(self, number: int) -> str:
        """A patch in a message."""
        row, column = divmod(number, self.grid[1])
        return f"the patch in row {row}, column {column}"

    def places(self) -> np.ndarray:
        """int64 (n, 2): row and column of each patch's corner in the slide, px."""
        boxes = (self.box(number) for number in range(len(self)))
        return np.array([(box.y0, box.x0) for box in boxes], np.int64)

    def facts(self) -> dict[str, Any]:
        """What the file of embeddings says of them."""
        return {
            "source": str(self.path.absolute()),
            "patch_px": self.side,
            "grid": list(self.grid),
            "at_px": list(self.at),
            "slide_px_per_patch_px": self.scale,
            "pixel_size_um": self.pixel_size_um,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return SlidePatches, (self.path, self.side, self.grid, self.at, self.scale, self.pixel_size_um)


@dataclass(frozen=True)
class FolderPatches:
    """Patches that are files of a folder.

    Args:
        names: Their paths below the folder, in order.
        grid: Rows and columns that they lie on, row by row; None: they are listed.
    """

    path: Path
    side: int
    names: Sequence[str]
    grid: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.grid or (len(self),)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> np.ndarray:
        """uint8 (side, side, 3).

        Raises:
            ValueError: the file is no picture of that size.
        """
        path = self.path / self.names[number]
        picture = open_slide(path, "the patch")
        if picture.size != (self.side, self.side):
            height, width = picture.size
            raise ValueError(
                f"{path} is {height} x {width} px and a patch {self.side} x {self.side}; "
                "pass `patch` with their side, or embed a large image by itself"
            )
        return picture.read(Box(0, 0, self.side, self.side), self.side)

    def named(self, number: int) -> str:
        return self.names[number]

    def places(self) -> Sequence[str]:
        return self.names

    def facts(self) -> dict[str, Any]:
        return {
            "source": str(self.path.absolute()),
            "patch_px": self.side,
            "grid": list(self.grid) if self.grid else None,
        }


Patches = SlidePatches | FolderPatches


def slide_patches(
    path: Path,
    side: int,
    grid: tuple[int, int] | None = None,
    at: tuple[int, int] = (0, 0),
    pixel_size_um: float | None = None,
    magnification: float | None = None,
) -> SlidePatches:
    """The patches of a slide, at its own resolution or another.

    Args:
        grid: Rows and columns; None: as many as there is room for.
        at: Row and column of the first patch's corner in the slide, px.
        pixel_size_um, magnification: What patches are to have; None: the slide's own.
    Raises:
        ValueError: no such slide, or patches beyond its edge, or a resolution that it does not know.
    """
    slide = open_slide(path, "the slide")
    scale = scale_of(slide, path, pixel_size_um, magnification)
    pitch = side * scale
    room = [max(int((length - start + 0.5) // pitch), 0) for length, start in zip(slide.size, at, strict=True)]
    size = f"{slide.size[0]} x {slide.size[1]} px"
    if grid is None and 0 in room:
        raise ValueError(
            f"{path} is {size}: from {at[0]},{at[1]} on there is no room for a patch of {pitch:g} px; "
            "choose a smaller `patch`, or another `at`"
        )
    rows, columns = grid or room
    if rows > room[0] or columns > room[1]:
        raise ValueError(
            f"`grid` {rows}x{columns} of patches of {pitch:g} px from {at[0]},{at[1]} on reaches beyond {path}, which "
            f"is {size}; there is room for {room[0]} x {room[1]}"
        )
    own = slide.pixel_size_um
    return SlidePatches(path, side, (rows, columns), at, scale, None if own is None else own * scale)


def scale_of(slide: Slide, path: Path, pixel_size_um: float | None, magnification: float | None) -> float:
    """Slide pixels per patch pixel.

    Raises:
        ValueError: the slide does not know its resolution, or it is much coarser.
    """
    if pixel_size_um is not None and magnification is not None:
        raise ValueError(f"both `pixel_size` {pixel_size_um:g} and `magnification` {magnification:g}; choose one")
    if pixel_size_um is None and magnification is None:
        return 1.0
    if pixel_size_um is not None:
        option, asked, own = "pixel_size", pixel_size_um, slide.pixel_size_um
    else:
        assert magnification is not None
        option, asked, own = "magnification", magnification, slide.magnification
    if own is None:
        raise ValueError(
            f"`{option}` {asked:g} is given but {path} does not say its own (as slides do that tiffslide or OpenSlide "
            "reads); leave it out to take pixels as they are"
        )
    scale = asked / own if option == "pixel_size" else own / asked
    if scale < SMALLEST_SCALE:
        raise ValueError(f"`{option}` {asked:g} would enlarge {path} {1 / scale:.1f} times: its own is {own:g}")
    return scale


def folder_patches(
    folder: Path, side: int, grid: tuple[int, int] | None = None, listed: Path | None = None
) -> FolderPatches:
    """The patches in a folder, in the order of their names or of a list.

    Args:
        grid: Rows and columns that they lie on, row by row; None: they are listed.
        listed: File of their names: .npy, or text with one a line; None: all pictures there are.
    Raises:
        ValueError: there are none, or another number than the grid has.
    """
    names = without_maps(pictures_in(folder)) if listed is None else read_names(listed)
    if not names:
        raise ValueError(f"{listed or folder} has no pictures; pass a slide, or a folder of PNG, JPEG or TIFF patches")
    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing is not None:
        raise ValueError(f"{listed} names {missing}, which is not in {folder}")
    if grid is not None and grid[0] * grid[1] != len(names):
        raise ValueError(
            f"`grid` {grid[0]}x{grid[1]} has {grid[0] * grid[1]} patches but {listed or folder} {len(names)}; "
            "pass `list` FILE with those of the grid, row by row"
        )
    return FolderPatches(folder, side, names, grid)


def without_maps(names: Sequence[str]) -> list[str]:
    """The pictures that are no maps of others: not ``_mask.png`` beside an image, nor what lies beside ``images/``.

    >>> without_maps(["a.jpg", "a_mask.png", "b_mask.png", "t/images/c.png", "t/inst_masks/c.tif"])
    ['a.jpg', 'b_mask.png', 't/images/c.png']
    """
    paths = [Path(name) for name in names]
    stems, folders = {path.with_suffix("") for path in paths}, {path.parent for path in paths}
    maps = {folder.parent / part for folder in folders if folder.name == PARTS["appearance"] for part in MAPS}
    return [
        path.as_posix()
        for path in paths
        if path.parent not in maps and not (path.name.endswith(MASK_ENDING) and image_of(path) in stems)
    ]


def image_of(mask: Path) -> Path:
    """An image of the name that a label map's ends with ``_mask.png``, without its suffix."""
    return mask.with_name(mask.name.removesuffix(MASK_ENDING))


def patches_of_file(facts: Mapping[str, Any], names: Sequence[str] | None, count: int, path: Path) -> Patches | None:
    """The patches that a file of embeddings was made of; None: they are not there any more.

    Args:
        facts, names: What the file says of them.
        count: Number of them.
        path: The file, for messages.
    Raises:
        ValueError: it says it in other words than ours.
    """
    try:
        source, side, grid = Path(facts["source"]), int(facts["patch_px"]), facts["grid"]
        if not source.exists():
            return None
        if names is not None:
            patches: Patches = FolderPatches(source, side, names, tuple(grid) if grid else None)
        else:
            (y, x), scale = facts["at_px"], float(facts["slide_px_per_patch_px"])
            patches = SlidePatches(source, side, tuple(grid), (y, x), scale, facts["pixel_size_um"])
        if len(patches) != count:
            raise ValueError(f"{len(patches)} patches for {count} embeddings")
        return patches
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not say what it was made of ({type(error).__name__}: {error})") from None


def read_names(path: Path) -> list[str]:
    """The names in a file: .npy, or text with one a line.

    Raises:
        ValueError: it is none such.
    """
    if not path.is_file():
        raise ValueError(f"`list` {path} is not there")
    try:
        if path.suffix == ".npy":
            names = np.load(path, allow_pickle=False)
            if names.dtype.kind != "U" or names.ndim != 1:
                raise ValueError(f"it holds {names.dtype} of shape {names.shape}")
            return names.tolist()
        if path.stat().st_size > LONGEST_LIST:
            raise ValueError(f"it is longer than {LONGEST_LIST} bytes")
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except ValueError as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"`list` {path} cannot be read ({why}); pass text with one name a line, or .npy of them"
        ) from None
