"""Where the report of an output lies, and whether it may be written there: known before anything is sampled."""

from __future__ import annotations

from pathlib import Path

from engine.job import RunOptions

MARK = '<meta name="generator" content="slidefield'  # of our reports: a file that has it may be replaced
HEAD = 1024  # bytes at the beginning of a report that the mark lies in


def report_path(out: Path) -> Path:
    """The report's file, beside the output.

    >>> report_path(Path("runs/field.zarr"))
    PosixPath('runs/field-report.html')
    """
    named = out if out.name not in ("", "..") else out.resolve()
    return named.with_name(f"{named.stem}-report.html")


def check_report(options: RunOptions) -> None:
    """Refuse a report, where one is wanted, that would replace a file that is none.

    Raises:
        ValueError: naming the file.
    """
    file = report_path(Path(options.out))
    if options.report and file.exists() and not is_report(file):
        raise ValueError(
            f"the report would replace {file}, which is not one of ours; remove it yourself, leave out `report`, or "
            "choose another `out`"
        )


def is_report(file: Path) -> bool:
    """Whether a file is a report that this program wrote."""
    try:
        with file.open("rb") as stream:
            return MARK.encode() in stream.read(HEAD)
    except OSError:
        return False
