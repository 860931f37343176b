"""What an evaluation would take: crops and memory of a rank, before any is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.evaluation.gathered import BLOCK
from engine.evaluation.run import Evaluator
from engine.evaluation.segmentation import training_bytes

MIB = 2**20


def memory_of(evaluator: Evaluator, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Bytes that a rank holds, term by term, beside Python, torch, the extractor's own and a picture decoded whole."""
    ranks = evaluator.ranks.size
    widths = {role: evaluator.dimensions(role) for role in evaluator.sets}
    width = max(widths.values())
    for role, given in evaluator.sets.items():
        if given.count is not None:
            yield f"features of {given.name}", -(-given.count // ranks) * widths[role] * 4
    if (reference := evaluator.sets.get("reference")) is not None and reference.count is not None:
        yield "halves of the reference", -(-reference.count // ranks) * width * 4
    most = max((-(-given.count // ranks) for given in evaluator.sets.values() if given.count is not None), default=0)
    yield "features about their mean", most * width * 8
    yield "means and covariances", 4 * width * width * 8
    yield "a block of neighbours", BLOCK * (2 * width * 4 + 3 * BLOCK * 8)
    side = max((given.crops.side for given in evaluator.sets.values() if given.crops is not None), default=0)
    if "downstream" in names:
        yield "crops that are trained on", training_bytes(side)
    yield "a batch of crops", evaluator.settings.batch_size * side * side * 3


def dry_run(evaluator: Evaluator, names: Sequence[str]) -> str:
    """What is said of an evaluation that is not made."""
    ranks = evaluator.ranks.size
    lines = [f"{ranks} rank{'s' if ranks > 1 else ''}; measures: {', '.join(names)}"]
    for given in evaluator.sets.values():
        if given.crops is not None:
            crops = given.crops
            lines.append(f"{given.name}: {len(crops)} crops of {crops.side} px, {-(-len(crops) // ranks)} a rank")
        elif given.rows is not None:
            lines.append(f"{given.name}: features of {given.rows} crops")
    total = 0
    for name, size in memory_of(evaluator, names):
        total += size
        lines.append(f"  {name:<28} {size / MIB:8.1f} MiB a rank")
    lines.append(f"  {'all of them at once':<28} {total / MIB:8.1f} MiB a rank")
    return "\n".join(lines)
