"""``python -m engine.evaluate GENERATED --real REAL [--train TRAIN] [--json FILE]``: how good is what was generated?

Each of the three is an output of engine.sample (an image or a set), a slide or another large image, a folder of
images; or features of such in ``.npy`` or HDF5; or, for the Frechet distance alone, ``.npz`` with mu and sigma. Large
images are read by crops, never whole; under ``mpiexec -n N`` the ranks share them.

``--real`` are images that the model was not trained on, ``--train`` those that it was. Every measure stands beside the
same between halves of the reference, so that one sees what no difference is.
With ``--bank FILE.h5`` it measures nothing: it makes a bank of GENERATED's features, and ``engine.sample --accept
bank:FILE.h5`` keeps only images that are like it.
Exit status: 0 evaluated, 1 refused or failed; only the first leaves a file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.command_line import Parser, as_flags, comma_separated, converted, gives_help, positive
from engine.evaluation.names import METRICS, QUANTILE
from engine.messages import did_you_mean
from engine.options import number, whole
from engine.planning.names import LARGEST_LABEL

if TYPE_CHECKING:
    from engine.distributed.ranks import Ranks
    from engine.evaluation.measures import Evaluation
    from engine.evaluation.run import Evaluator, Settings

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
    add("--markdown", action="store_true", help="print tables in Markdown, for a model's card")
    text = "write mean and covariance of GENERATED's features here, as `mu` and `sigma` (.npz)"
    add("--statistics", type=Path, metavar="FILE.npz", help=text)
    add("--dry-run", action="store_true", help="say what it would take, and stop")
    add("--overwrite", action="store_true", help="replace FILE if it is there")
    images = top.add_argument_group("images").add_argument
    text = "side of a crop (default: images of sets and folders whole, where all have one size; else 256)"
    images("--crop", type=positive(int), metavar="PX", help=text)
    text = "crops drawn at random of every set (default: all that lie side by side)"
    images("--crops", type=positive(int), metavar="N", help=text)
    images("--seed", type=seed, default=0, metavar="N", help="of what is drawn (default: 0)")
    text = "resample slides and outputs to pixels of so many micrometres (default: as they are)"
    images("--pixel-size", type=positive(float), metavar="UM", help=text)
    text = "um, of sets that do not say their pixel size (generated, real, train), with commas"
    images("--pixel-size-of", type=pixel_sizes, default={}, metavar="SET=UM", help=text)
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
    features("--threads", type=threads, default=1, metavar="N", help=text)
    judges = top.add_argument_group("judges").add_argument
    text = "classes: an expert of engine.train expert"
    judges("--expert", type=Path, metavar="DIR", help=text)
    text = "variety: LPIPS as TorchScript of two batches in [-1, 1] (default: its formula on our own features)"
    judges("--lpips", type=Path, metavar="FILE", help=text)
    text = "areas: address of a dask cluster (default: threads of this process)"
    judges("--scheduler", metavar="ADDRESS", help=text)
    training = top.add_argument_group("training of judges").add_argument
    text = "steps of each training (default: those of each judge, as of 2 minutes)"
    training("--steps", type=positive(int), metavar="N", help=text)
    training("--repeats", type=positive(int), default=1, metavar="N", help="seeds that are trained (default: 1)")
    text = "pixels of this label neither train nor count, such as unknown ones (default: all do)"
    training("--ignore-label", type=label, metavar="N", help=text)
    bank = top.add_argument_group("bank").add_argument
    text = "make a bank of what GENERATED, which is then the reference, looks like"
    bank("--bank", type=Path, metavar="FILE.h5", help=text)
    bank("--bank-size", type=positive(int), metavar="N", help="crops in the bank (default: a tenth)")
    text = "share of images like these that is to be accepted (default: 0.95)"
    bank("--bank-quantile", type=share_of_all, metavar="Q", help=text)
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


def pixel_sizes(text: str) -> dict[str, float]:
    """Pixel sizes by set, for argparse.

    >>> pixel_sizes("real=0.5,train=0.25")
    {'real': 0.5, 'train': 0.25}
    """
    sizes: dict[str, float] = {}
    for part in comma_separated(text):
        name, equals, value = part.partition("=")
        if name not in SETS.values() or not equals or name in sizes:
            raise argparse.ArgumentTypeError(f"{text}: expected each of {', '.join(SETS.values())} once, as real=0.5")
        sizes[name] = positive(float)(value)
    return sizes


def label(text: str) -> int:
    return converted(whole(0, LARGEST_LABEL).read, text)


def share_of_all(text: str) -> float:
    return converted(number(0, 1).read, text)


def threads(text: str) -> int:
    return converted(whole(1, 1024).read, text)


def seed(text: str) -> int:
    return converted(whole(0, 2**32 - 1).read, text)


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
    ranks.on_root(lambda: check_places(args))
    ranks.on_root(lambda: check_bank(args))

    import torch

    from engine.evaluation.call import evaluate_bank, evaluate_parts, evaluator_of
    from engine.evaluation.dry_run import dry_run
    from engine.evaluation.frechet import statistics_of, write_statistics

    torch.set_num_threads(args.threads)
    paths = {role: getattr(args, name) for role, name in SETS.items() if getattr(args, name) is not None}
    evaluator = evaluator_of(ranks, paths, settings_of(args), lambda line: tell(ranks, line))
    names = ["bank"] if args.bank else names_of(evaluator, args)
    if args.dry_run:
        text = dry_run(evaluator, names)
        ranks.on_root(lambda: print(text, flush=True))
        return 0
    evaluation: Evaluation | None
    if args.bank:
        quantile = QUANTILE if args.bank_quantile is None else args.bank_quantile
        evaluation = evaluate_bank(evaluator, args.bank, args.bank_size, quantile)
    else:
        evaluation = evaluate_parts(evaluator, names, args.metrics) if names else None
    if args.statistics is not None:
        statistics = statistics_of(ranks, evaluator.features("generated"))
        ranks.on_root(lambda: write_statistics(args.statistics, statistics))
    if evaluation is not None:
        ranks.on_root(lambda: say(evaluation, args.json, args.markdown))
    return 0


def names_of(evaluator: Evaluator, args: argparse.Namespace) -> list[str]:
    """Names of the metrics to take; none where statistics alone are asked for. Collective."""
    from engine.evaluation.call import parts_of
    from engine.evaluation.cautions import too_few

    if args.statistics is not None and args.metrics is None and args.real is None and args.json is None:
        if line := too_few(evaluator, "fid"):
            evaluator.warn(line)
        return []
    return parts_of(evaluator, args.metrics)


def check_places(args: argparse.Namespace) -> None:
    """Refuse files that cannot be written, or must not be: what is there is replaced if it is of the same kind.

    Raises:
        ValueError: naming one.
    """
    from engine.evaluation.frechet import read_statistics
    from engine.evaluation.measures import read_evaluation
    from engine.storage.target_file import check_target, is_read_by

    kinds = {"json": ("evaluation", read_evaluation), "statistics": ("file of statistics", read_statistics)}
    places = {"json": args.json, "statistics": args.statistics, "bank": args.bank}
    for name, path in places.items():
        if path is None:
            continue
        check_apart(name, path, [args.generated, args.real, args.train])
        other = next((n for n, p in places.items() if n != name and p is not None and same(p, path)), None)
        if other is not None:
            raise ValueError(f"`{name}` and `{other}` are both {path}; name two files")
        if name != "bank":  # which has a check of its own
            kind, read = kinds[name]
            check_target(name, path, args.overwrite, kind, is_read_by(read))


def check_apart(option: str, path: Path, inputs: Sequence[Path | None]) -> None:
    """Refuse a file that is, or lies in, what is evaluated.

    Raises:
        ValueError: naming it.
    """
    for given in inputs:
        if given is not None and (same(given, path) or given.resolve() in path.resolve().parents):
            raise ValueError(f"`{option}` {path} is, or lies in, {given}, which is evaluated; choose another")


def same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def check_bank(args: argparse.Namespace) -> None:
    """Refuse a bank that cannot be written, and options that do not go with one.

    Raises:
        ValueError: naming it.
    """
    if args.bank is None:
        given = next((name for name in ("bank_size", "bank_quantile") if getattr(args, name) is not None), None)
        if given:
            raise ValueError(f"`{given}` is for a bank; add `bank` FILE.h5, or leave it out")
        return
    given = next((name for name in ("real", "train", "metrics", "statistics") if getattr(args, name) is not None), None)
    if given:
        raise ValueError(f"`bank` is made of {args.generated} alone, and measures nothing; leave out `{given}`")
    from engine.storage.bank_file import check_bank_place

    check_bank_place(args.bank, args.overwrite)


def settings_of(args: argparse.Namespace) -> Settings:
    from engine.evaluation.inputs import Cropping
    from engine.evaluation.run import Settings

    cropping = Cropping(args.crop, args.crops, args.seed, args.pixel_size, args.grey, args.pixel_size_of)
    names = ("steps", "repeats", "batch_size", "device", "expert", "lpips", "scheduler")
    others = {name: getattr(args, name) for name in names}
    others["ignored"] = args.ignore_label
    return Settings(cropping, args.features, args.few, **others)


def tell(ranks: Ranks, line: str) -> None:
    """Say what is done, on rank 0, where results do not go."""
    if ranks.rank == 0:
        print(as_flags(line), file=sys.stderr, flush=True)


def say(evaluation: Evaluation, path: Path | None, markdown: bool) -> None:
    """Write the measures, and print them: nobody who listens no more loses the file."""
    if path is not None:
        from engine.storage.files import write_json

        write_json(path, evaluation.as_json())
    print(evaluation.as_markdown() if markdown else evaluation.as_text(), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
