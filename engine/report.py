"""``python -m engine.report OUT [--against REFERENCE] [--evaluation FILE.json]``: a page to look at, one file.

The page has the image and crops of it, the map that it was made from, the measures of an evaluation, where the time
went, how it was made and how it is made again. Nothing in it is fetched from elsewhere.
Exit status: 0 written, 1 refused or failed, which leaves an earlier report as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.command_line import Parser, on_one_rank, print_error


def parser() -> Parser:
    top = Parser(prog="python -m engine.report", description=__doc__)
    top.add_argument("out", type=Path, help="a finished output of engine.sample")
    text = "crops that are shown beside: another output, a slide, a picture, or a folder of pictures"
    top.add_argument("--against", type=Path, metavar="REFERENCE", help=text)
    text = "measures that are shown: what engine.evaluate wrote with --json"
    top.add_argument("--evaluation", type=Path, metavar="FILE.json", help=text)
    text = "the page (default: beside OUT, with -report.html)"
    top.add_argument("--html", type=Path, metavar="FILE", help=text)
    top.add_argument("--overwrite", action="store_true", help="replace an earlier report")
    return top


@on_one_rank
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = parser().parse_args(arguments)
        from engine.pipeline.report_file import report_path
        from engine.reporting.page import check_file, write_report  # zarr

        file = given.html or report_path(given.out)
        check_file(file, given.out, given.overwrite)
        write_report(given.out, file, against=given.against, evaluation=given.evaluation)
    except (ValueError, OSError, MemoryError) as error:
        print_error(error)
        return 1
    print(f"{file} reports it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
