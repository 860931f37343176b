"""Embeddings on a grid over the canvas, by a function of position, or one for every image of a set."""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path

import numpy as np

from engine.inputs.input_file import InputFile
from engine.inputs.position_function import EmbeddingFunction, function_hash
from engine.inputs.stored_grid import GridRows, StoredGrid
from engine.inputs.values import Inputs
from engine.job import SampleJob
from engine.models.card import ModelCard
from engine.options import names_function
from engine.planning.geometry import Box, Frames
from engine.storage.readers import read_array, read_rows

READ_BYTES = 2**24  # bytes of embeddings that are checked at once


def read_embeddings(job: SampleJob, card: ModelCard, frames: Frames) -> Inputs:
    """The embeddings that a job names, and those of the larger region around each.

    Raises:
        ValueError: embeddings of another extractor or number, or such as the model has no token for.
    """
    hashes: dict[str, str] = {}
    grids: dict[str, StoredGrid | EmbeddingFunction] = {}
    widths = {"embeddings": card.embedding_width, "region_embeddings": card.region_width}
    chosen = {"embeddings": "rows", "region_embeddings": "region_rows"}
    for option, width in widths.items():
        value, rows = getattr(job, option), getattr(job, chosen[option])
        if value is None and rows is not None:
            raise ValueError(
                f"`{chosen[option]}` {rows} are rows of `{option}`, and there are none; pass `{option}` FILE"
            )
        if value is None:
            continue
        if not width:
            raise ValueError(f"`{option}` {value} is given but the model has no such token; leave it out")
        if names_function(value):
            function = grids[option] = EmbeddingFunction(value, option, frames.corner, card.factor, width)
            function.read(Box(0, 0, card.patch, card.patch))  # what it returns is checked
            hashes[f"{option}_hash"] = function_hash(value, option)
            continue
        file = InputFile(Path(value), f"`{option}`", read_rows)
        check_embeddings(file, width)
        stored = StoredGrid(file, rows_in_file(file, chosen[option], rows, job, card), width, bool(job.count))
        grids[option], hashes[f"{option}_hash"] = stored, checked_hash(stored)
    return Inputs(hashes, None, grid=grids["embeddings"], region=grids.get("region_embeddings"))


def check_embeddings(file: InputFile, width: int) -> None:
    """Refuse what holds no embeddings of a width.

    Raises:
        ValueError: naming the file, and what it holds.
    """
    if file.array.dtype.kind != "f":
        raise ValueError(f"{file} holds {file.array.dtype}; embeddings are finite floating-point numbers")
    shape = file.array.shape
    if shape[-1] != width:
        raise ValueError(
            f"{file} has shape {shape}: {shape[-1]} numbers each, but the model takes {width}; "
            "give embeddings of the extractor that the model was trained with"
        )


def checked_hash(grid: StoredGrid) -> str:
    """sha256 of the shape and the values of a grid, whatever file they lie in: what ``digest_of`` makes of the array.

    Raises:
        ValueError: a value that is not finite, naming its row.
    """
    total = hashlib.sha256(f"{grid.shape} {grid.dtype}".encode())
    height, width = grid.rows.shape
    step = max(READ_BYTES // (4 * grid.width * width), 1)
    for y in range(0, height, step):
        numbers = grid.rows.of(y, y + step, 0, width)
        values = grid.read(numbers)
        if not (finite := np.isfinite(values).all(-1)).all():
            raise ValueError(
                f"{grid.file} has values that are not finite in row {numbers[~finite][0]}; "
                "embeddings are finite floating-point numbers: compute it again"
            )
        total.update(values.tobytes())
    return total.hexdigest()


# ---- which rows -----------------------------------------------------------------------------


def rows_in_file(file: InputFile, option: str, chosen: int | str | None, job: SampleJob, card: ModelCard) -> GridRows:
    """Which row of a file lies in which cell of the job's grid, or is which image's.

    Args:
        option: The job's field that chooses rows.
        chosen: Its value: the first row's number, a file of the rows' numbers, or None: all rows of the file.
    Raises:
        ValueError: another number of embeddings than the grid has cells, or rows that the file does not have.
    """
    if isinstance(chosen, str):
        numbers = row_numbers(chosen, option, file)
        shape = numbers.shape if numbers.ndim == 2 else None
        grid = grid_of(numbers.size, shape, f"`{option}` {chosen}", option, job, card)
        if numbers.ndim == 1 and job.grid_order == "columns":
            return GridRows(grid, numbers=numbers.reshape(grid[::-1]).T)
        return GridRows(grid, numbers=numbers.reshape(grid))
    leading, by_columns = file.array.shape[:-1], job.grid_order == "columns"
    held = prod(leading)
    if chosen is None:
        shape = (leading[0], leading[1]) if len(leading) == 2 else None
        return GridRows(grid_of(held, shape, str(file), option, job, card), 0, by_columns)
    grid = grid_of(None, None, str(file), option, job, card)
    last = chosen + grid[0] * grid[1] - 1
    if last >= held:
        raise ValueError(
            f"`{option}` {chosen} asks for rows {chosen} to {last} but {file} holds {held}, 0 to {held - 1}; "
            "choose a first row before, or give the file that has them"
        )
    return GridRows(grid, chosen, by_columns)


def row_numbers(path: str, option: str, file: InputFile) -> np.ndarray:
    """int64: the numbers of rows that a file lists, in one dimension or two.

    Raises:
        ValueError: no whole numbers, or one that is no row of the embeddings.
    """
    numbers = np.asarray(read_array(Path(path), f"`{option}`"))
    if numbers.dtype.kind not in "iu" or numbers.ndim > 2:
        raise ValueError(
            f"`{option}` {path} has shape {numbers.shape} of {numbers.dtype}; "
            "pass whole numbers, a list of them or one for each cell of the grid"
        )
    held = prod(file.array.shape[:-1])
    if (wrong := (numbers < 0) | (numbers >= held)).any():
        raise ValueError(
            f"`{option}` {path} names row {numbers[wrong][0]} but {file} holds {held}, 0 to {held - 1}; "
            "number rows from 0, or give the file that has them"
        )
    return numbers.astype(np.int64)


def grid_of(
    count: int | None, shape: tuple[int, int] | None, what: str, option: str, job: SampleJob, card: ModelCard
) -> tuple[int, int]:
    """Rows and columns of the job's embeddings; of a set, its images in one column.

    Args:
        count: Number of embeddings that are given; None: as many as it takes.
        shape: The grid that they lie on; None: they are listed.
        what: Name of the file, for messages.
        option: The job's field that chooses rows, for messages.
    Raises:
        ValueError: they are of another number, or the job is of another size.
    """
    if shape is not None and job.grid_order == "columns":
        raise ValueError(
            f"`grid_order` columns is for embeddings that are listed, and {what} lies on a grid of "
            f"{shape[0]} x {shape[1]}; leave it out"
        )
    longer = f"`{option}`, the first row's number" if not what.startswith(f"`{option}`") else "fewer of them"
    if job.count is not None:
        return grid_of_set(count, shape, what, longer, job)
    pitch = job.pitch or card.patch * card.factor
    rows, columns = (-(-n // pitch) for n in job.size)
    given = job.grid or shape or (rows, columns)
    if count is not None and count != given[0] * given[1]:
        way = f" or, for some of them, {longer}" if count > given[0] * given[1] else ""
        raise ValueError(
            f"{what} holds {count} embeddings, not {given[0]} x {given[1]}; pass `grid` HxW of that many{way}"
        )
    if given != (rows, columns):
        raise ValueError(
            f"{what} is a grid of {given[0]} x {given[1]} "
            f"but {job.size[0]} x {job.size[1]} px take {rows} x {columns}, one every {pitch} px; "
            f"pass `size` {given[0] * pitch}x{given[1] * pitch}, or another `pitch`"
        )
    return rows, columns


def grid_of_set(
    count: int | None, shape: tuple[int, int] | None, what: str, longer: str, job: SampleJob
) -> tuple[int, int]:
    """The images of a set in one column, each with its embedding.

    Raises:
        ValueError: there are not as many embeddings as images, or they lie on a grid.
    """
    assert job.count is not None
    if job.grid_order == "columns":
        raise ValueError(f"`grid_order` columns is for a grid, and a set of {job.count} has none; leave it out")
    if job.grid is not None:
        grid = f"{job.grid[0]}x{job.grid[1]}"
        raise ValueError(f"`grid` {grid} is for one image; a set of {job.count} takes one row an image")
    if shape is not None or (count is not None and count != job.count):
        held = f"lies on a grid of {shape[0]} x {shape[1]}" if shape else f"holds {count} embeddings"
        way = f"; for some of them, pass {longer}" if count is not None and count > job.count else ""
        raise ValueError(f"{what} {held}; a set of {job.count} takes one row an image{way}")
    return job.count, 1
