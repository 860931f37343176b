"""The page: what an output shows and keeps, put into the template, and written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from engine import __version__
from engine.evaluation.measures import read_evaluation
from engine.pipeline.report_file import MARK, is_report, report_path
from engine.reporting.against import reference_of
from engine.reporting.measured import Evaluated, evaluated
from engine.reporting.provenance import (
    arrays_of,
    command_of,
    hash_rows,
    how_to_finish,
    job_rows,
    notebook_of,
    pixels_hash,
)
from engine.reporting.times import times_of
from engine.reporting.views import CROPS, view_of
from engine.storage.files import whole_file
from engine.storage.integrity import damaged_shards
from engine.storage.output import Output, output_to_read, provenance_of
from engine.storage.plane_swap import steady
from engine.storage.set_layout import SetLayout
from engine.storage.target_file import check_target

HERE = Path(__file__).parent
ROUND = (1, 2, 5)  # leading figures of the length of a scale bar
SCALE_BAR = 0.25  # share of the picture's width that it has at most


def write_report(
    out: Path, file: Path | None = None, *, against: Path | None = None, evaluation: Path | None = None
) -> Path:
    """Write the report of a finished output. One process calls this; nothing is held that is as large as the image.

    Args:
        file: HTML file; None: beside the output, ``report_path``.
        against: Another output, a slide, a picture or a folder of pictures whose crops are shown beside.
        evaluation: JSON file of ``engine.evaluate``, whose measures are shown.
    Returns:
        The file.
    Raises:
        ValueError: the output is none, unfinished or damaged, or one of the files is no such.
    """
    file = file or report_path(out)
    measures = None if evaluation is None else evaluated(read_evaluation(evaluation), out.resolve().name)
    page = steady(out, lambda: page_of(out, against, measures))
    with whole_file(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return file


def page_of(out: Path, against: Path | None, measures: Evaluated | None) -> str:
    """The page of a finished output; arguments as of ``write_report``, the measures read."""
    output = finished(out)
    view, um = view_of(output), output.provenance.get("pixel_size_um")
    reference = None if against is None else reference_of(against, view.side, CROPS, um)
    return rendered(
        **facts_of(output, out),
        view=view,
        reference=reference,
        evaluated=measures,
        times=times_of(output),
        scale=scale_bar(output.layout.size[1], um),
    )


def check_file(file: Path, out: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written, lies in the output, or is there and is not to be replaced.

    Raises:
        ValueError: naming the file.
    """
    if file.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"`html` {file} lies in {out}, which holds arrays alone; choose another `html`")
    check_target("html", file, overwrite, "report of ours", is_report)


def finished(out: Path) -> Output:
    """The finished output at a path; files are compared with the ledger by size: lost ones would read as black.

    Raises:
        ValueError: there is none, or it is unfinished or damaged, with the way out.
    """
    provenance = provenance_of(out)
    output = output_to_read(out)
    if not output.finished:
        mark = output.checkpoints.mark()
        level = f"at level {mark.level if mark else 0} of {provenance.get('levels', 0)}"
        raise ValueError(f"{out} is unfinished, {level}; finish it, then report it: {how_to_finish(provenance, out)}")
    damaged = next(damaged_shards(output, read=False), None)
    if damaged:
        raise ValueError(f"{out} is damaged ({damaged}); engine.verify names all, the same job with `mend` mends them")
    return output


def rendered(**values: Any) -> str:
    """The template with its values; every text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (HERE / "style.css").read_text(encoding="utf-8")
    return environment.get_template("template.html").render(**values, style=style, mark=MARK, version=__version__)


def facts_of(output: Output, out: Path) -> dict[str, Any]:
    """What the output says of itself: the values of the template that are no pictures."""
    facts, layout = output.provenance, output.layout
    job = facts["job"]
    um = facts.get("pixel_size_um")
    return {
        "name": out.resolve().name,
        "size": layout.size,
        "count": layout.count if isinstance(layout, SetLayout) else None,
        "channels": layout.channels,
        "um": um,
        "extent": None if um is None else [length_text(pixels * um) for pixels in layout.size],
        "model": Path(str(job.get("model"))).name,  # where it lay is said among the settings
        "seed": facts.get("seed"),
        "levels": facts.get("levels"),
        "sampling": sampling_words(job),
        "seconds": facts.get("seconds", {}),
        "rejected": [count for count in facts.get("rejected", [])[:-1] if count],
        "refused": next(iter(facts.get("rejected", [])[-1:]), 0),
        "ranks": facts.get("ranks"),
        "device": facts.get("device"),
        "versions": facts.get("versions", {}),
        "job_rows": job_rows(facts),
        "hash_rows": hash_rows(facts),
        "pixels_hash": pixels_hash(output),
        "command": command_of(facts, out.name),
        "notebook": notebook_of(facts, out.name),
        "arrays": arrays_of(facts),
    }


def sampling_words(job: Mapping[str, Any]) -> str:
    """How it was sampled.

    >>> sampling_words({"solver": "ddim", "guidance": [1.3, 2.0], "cover": "shifted"})
    'solver ddim, guidance 1.3 and 2 in turn, shifted cover'
    """
    guidance = job.get("guidance")
    weights = guidance if isinstance(guidance, list | tuple) else [1 if guidance is None else guidance]
    guided = "unguided" if list(weights) == [1] else "guidance " + " and ".join(f"{weight:g}" for weight in weights)
    return f"solver {job.get('solver')}, {guided}{' in turn' if len(weights) > 1 else ''}, {job.get('cover')} cover"


def length_text(um: float) -> str:
    """A length for people.

    >>> length_text(512), length_text(8192), length_text(64000)
    ('512 µm', '8.19 mm', '6.4 cm')
    """
    if um < 1000:
        return f"{um:.3g} µm"
    return f"{um / 1000:.3g} mm" if um < 2e4 else f"{um / 1e4:.3g} cm"


def scale_bar(width: int, um: float | None) -> tuple[str, float] | None:
    """The length of a scale bar below a picture, and its width in percent of it; None: the resolution is not known.

    >>> scale_bar(1024, 0.5)
    ('100 µm', 19.53125)
    """
    if um is None:
        return None
    most, ten = SCALE_BAR * width * um, 1e-3
    lengths = []
    while ten <= most:
        lengths += [figure * ten for figure in ROUND if figure * ten <= most]
        ten *= 10
    return (length_text(lengths[-1]), 100 * lengths[-1] / (width * um)) if lengths else None
