"""``python -m engine.evaluate GENERATED --real REAL [--train TRAIN] [--json FILE]``: how good is what was generated?

Each of the three is an output of engine.sample (an image or a set), a slide or another large image, a folder of
images; or features of such in ``.npy`` or HDF5; or, for the Frechet distance alone, ``.npz`` with mu and sigma. Large
images are read by crops, never whole; under ``mpiexec -n N`` the ranks share them.

``--real`` are images that the model was not trained on, ``--train`` those that it was. Every measure stands beside the
same between halves of the reference, so that one sees what no difference is.
Exit status: 0 evaluated, 1 refused or failed; only the first leaves a file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.command_line import Parser, as_flags, comma_separated, gives_help, positive
from engine.evaluation.names import METRICS
from engine.messages import did_you_mean
from engine.options import whole

if TYPE_CHECKING:
    from engine.distributed.ranks import Ranks
    from engine.evaluation.measures import Evaluation
    from engine.evaluation.run import Settings

SETS = {"generated": "generated", "reference": "real", "train": "train"}  # role -> argument


def parser() -> argparse.ArgumentParser:
    known = "".join(f"\n  {name:<12} {says}" for name, says in METRICS.items())
    top = Parser(
        prog="python -m engine.evaluate",
        description=f"{__doc__}\nmetrics:{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = top.add_argument
    add("generated", type=Path, metavar="GENERATED", help="what is judged")
    add("--real", type=Path, metavar="REAL", help="what it is compared with: images that were not trained on")
    add("--train", type=Path, metavar="TRAIN", help="what the model was trained on: is anything a copy?")
    text = "the measures to take, with commas, or all (default: all that the sets allow, but those that take minutes)"
    add("--metrics", type=metrics, metavar="LIST", help=text)
    add("--json", type=Path, metavar="FILE", help="write everything here, for engine.report too")
    add("--overwrite", action="store_true", help="replace FILE if it is there")
    images = top.add_argument_group("images").add_argument
    text = "side of a crop (default: images of sets and folders whole, where all have one size; else 256)"
    images("--crop", type=positive(int), metavar="PX", help=text)
    text = "crops drawn at random of every set (default: all that lie side by side)"
    images("--crops", type=positive(int), metavar="N", help=text)
    images("--seed", type=seed, default=0, metavar="N", help="of what is drawn (default: 0)")
    text = "resample slides and outputs to pixels of so many micrometres (default: as they are)"
    images("--pixel-size", type=positive(float), metavar="UM", help=text)
    images("--grey", action="store_true", help="compare in grey")
    features = top.add_argument_group("features").add_argument
    text = "embedded, a file of Inception's weights, a folder with a network, or a function (default: embedded)"
    features("--features", default="embedded", metavar="embedded|FILE|DIR|MODULE:FUNCTION", help=text)
    text = "take the Frechet distance of fewer crops than there are features, too"
    features("--few", action="store_true", help=text)
    text = "crops that the extractor is given at once (default: 32)"
    features("--batch-size", type=positive(int), default=32, metavar="N", help=text)
    features("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where networks run (default: auto)")
    text = "number of CPU threads a rank (default: 1)"
    features("--threads", type=int, choices=range(1, 1025), default=1, metavar="N", help=text)
    return top


def metrics(text: str) -> tuple[str, ...]:
    """Names of metrics, for argparse.

    >>> metrics("kid,fid")
    ('kid', 'fid')
    """
    names = comma_separated(text)
    unknown = next((name for name in names if name not in (*METRICS, "all")), None)
    if unknown is not None or not names:
        near = did_you_mean(unknown or "", METRICS) if unknown else ""
        raise argparse.ArgumentTypeError(f"{text}: {near or 'known: ' + ', '.join(METRICS)}")
    return names


def seed(text: str) -> int:
    try:
        return whole(0, 2**32 - 1).read(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"{text}: {problem}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, as the command line says. Collective over all ranks; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if gives_help(parser, arguments):
        return 0
    from engine.distributed.launch import run_main  # numpy, for which --help does not wait

    return run_main(lambda ranks: run(ranks, arguments))


def run(ranks: Ranks, arguments: list[str]) -> int:
    """One evaluation; the exit status. Collective."""
    args = ranks.agree(lambda: parser().parse_args(arguments))
    ranks.on_root(lambda: check_place(args.json, args.overwrite))
    evaluation = evaluation_of(ranks, args)
    ranks.on_root(lambda: say(evaluation, args.json))
    return 0


def check_place(path: Path | None, overwrite: bool) -> None:
    """Refuse a file that is there, or a folder that is not.

    Raises:
        ValueError: naming it.
    """
    if path is None:
        return
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(f"{path} is there already; choose another `json`, or pass `overwrite`")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder; make it, or choose another `json`")


def evaluation_of(ranks: Ranks, args: argparse.Namespace) -> Evaluation:
    """What the arguments ask for. Collective."""
    from engine.evaluation.inputs import open_sets

    paths = {role: getattr(args, name) for role, name in SETS.items() if getattr(args, name) is not None}
    settings = settings_of(args)
    sets = ranks.on_root(lambda: open_sets(paths, settings.cropping))

    import torch

    from engine.evaluation.extractors import feature_extractor
    from engine.evaluation.parts import PARTS
    from engine.evaluation.run import Evaluator, chosen, evaluate
    from engine.models.folder import device_of

    torch.set_num_threads(args.threads)
    device = ranks.agree(lambda: device_of(args.device, ranks.local_rank))
    extractor = ranks.agree(lambda: feature_extractor(args.features, device))
    evaluator = Evaluator(ranks, sets, settings, extractor, lambda line: tell(ranks, line))
    names = ranks.agree(lambda: chosen(PARTS, args.metrics, evaluator))
    ranks.agree(lambda: check_any(names))
    return evaluate(evaluator, PARTS, names)


def settings_of(args: argparse.Namespace) -> Settings:
    from engine.evaluation.inputs import Cropping
    from engine.evaluation.run import Settings

    cropping = Cropping(args.crop, args.crops, args.seed, args.pixel_size, args.grey)
    return Settings(cropping, args.features, args.few, batch_size=args.batch_size)


def check_any(names: Sequence[str]) -> None:
    """Refuse an evaluation without a measure.

    Raises:
        ValueError: there is none.
    """
    if not names:
        raise ValueError("nothing can be measured; pass `real`, images to compare with")


def tell(ranks: Ranks, line: str) -> None:
    """Say what is done, on rank 0, where results do not go."""
    if ranks.rank == 0:
        print(as_flags(line), file=sys.stderr, flush=True)


def say(evaluation: Evaluation, path: Path | None) -> None:
    """Print the measures, and write them."""
    print(evaluation.as_text(), flush=True)
    if path is not None:
        from engine.storage.files import write_json

        write_json(path, evaluation.as_json())


if __name__ == "__main__":
    raise SystemExit(main())
