"""One evaluation: the parts that are asked for and can be done, one after the other, on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine import __version__
from engine.distributed.ranks import AgreedError, Ranks
from engine.embedding.extractors import FeatureExtractor
from engine.evaluation.crops import Crops
from engine.evaluation.gathered import Features, features_of, shared
from engine.evaluation.inputs import Cropping, Given
from engine.evaluation.measures import Evaluation, Measure, Neighbour, Table
from engine.messages import did_you_mean, shortened
from engine.storage.plane_swap import Seen

Result = Measure | Table | Neighbour
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What changes the numbers of an evaluation, and how it runs.

    Args:
        few: Whether the Frechet distance is taken of fewer crops than features, too.
        expert: Folder of an expert, which judges classes; None: there is none.
        lpips: TorchScript of two batches -> distances; None: there is none.
        scheduler: Address of a dask cluster; None: threads of this process.
        steps: Of trainings of judges; None: each one's own.
        repeats: Number of seeds that are trained.
        ignored: Label of pixels that judges of label maps leave out, such as unknown ones; None: there is none.
        pictures: Number of nearest neighbours that are shown.
    """

    cropping: Cropping = field(default_factory=Cropping)
    features: str = "embedded"
    few: bool = False
    expert: Path | None = None
    lpips: Path | None = None
    scheduler: str | None = None
    steps: int | None = None
    repeats: int = 1
    ignored: int | None = None
    pictures: int = 8
    batch_size: int = 32
    device: str = "auto"


class Evaluator:
    """The sets of an evaluation, and their features, which are made when they are first asked for."""

    def __init__(
        self, ranks: Ranks, sets: dict[str, Given], settings: Settings, extractor: FeatureExtractor, tell: Tell
    ) -> None:
        self.ranks, self.sets, self.settings, self.extractor, self.tell = ranks, sets, settings, extractor, tell
        self.seen = Seen(*(given.path for given in sets.values()))
        self.made: dict[str, tuple[Features, Features | None]] = {}
        self.failed: dict[str, AgreedError] = {}  # features that could not be made, which is not tried again
        self.trial: tuple[int, bool] | None = None  # number of the extractor's features, and whether it has logits
        self.left_out: dict[str, str] = {}  # why, by name
        self.warnings: list[str] = []

    def leave_out(self, name: str, why: str) -> None:
        """Keep that something cannot be measured, and say so."""
        self.left_out[name] = why
        self.tell(f"left out: {name}: {why}")

    def warn(self, line: str) -> None:
        """Keep what is to be known before numbers are believed, and say so."""
        self.warnings.append(line)
        self.tell(f"warning: {line}")

    def crops(self, role: str) -> Crops:
        crops = self.sets[role].crops
        assert crops is not None, role
        return crops

    def count(self, role: str) -> int:
        count = self.sets[role].count
        assert count is not None, role
        return count

    def dimensions(self, role: str) -> int:
        """Number of features of a set, known before they are made. Collective."""
        given = self.sets[role]
        if given.statistics is not None:
            return given.statistics.dimensions
        if given.crops is None:
            return int(self.ranks.on_root(lambda: given.read_features().shape[1]))
        return self.tried(given.crops)[0]

    def has_logits(self) -> bool:
        """Whether the extractor gives class logits. Collective."""
        return self.tried(self.crops("generated"))[1]

    def tried(self, crops: Crops) -> tuple[int, bool]:
        """What one crop's features are like. Collective, at the first call."""
        if self.trial is None:

            def one() -> tuple[int, bool]:
                features, logits = self.extractor(crops.pixels(range(1)), crops.named)
                return features.shape[1], logits is not None

            self.trial = self.ranks.on_root(one)
        return self.trial

    def features_facts(self) -> dict[str, Any]:
        """What an evaluation says of the features that it made, or was given; empty: none."""
        if not self.made:
            return {}
        features, _ = next(iter(self.made.values()))
        given = any(self.sets[role].crops is None for role in self.made)
        names = {"name": "given"} if given else {"name": self.extractor.name, "hash": self.extractor.hash}
        return {**names, "dimensions": features.dimensions}

    def features(self, role: str) -> Features:
        """Collective, at the first call."""
        return self._of(role)[0]

    def logits(self, role: str) -> Features | None:
        """Class logits of a set; None: the extractor has none. Collective, at the first call."""
        return self._of(role)[1]

    def _of(self, role: str) -> tuple[Features, Features | None]:
        if role in self.failed:
            raise self.failed[role]
        if role not in self.made:
            try:
                self.made[role] = self._make(self.sets[role])
            except AgreedError as problem:
                self.failed[role] = problem
                raise
        return self.made[role]

    def _make(self, given: Given) -> tuple[Features, Features | None]:
        if given.crops is None:
            rows = self.ranks.agree(given.read_features)
            return self.ranks.agree(lambda: shared(rows, self.ranks, str(given.path))), None
        self.tell(f"features of {given.name}: {len(given.crops)} crops of {given.crops.side} px")
        return features_of(self.ranks, given.crops, self.extractor, self.settings.batch_size)


@dataclass(frozen=True)
class Part:
    """Some measures that belong together.

    Args:
        lacks: Function that says why they cannot be taken of these sets; empty: they can. Collective.
        take: Function that takes them. Collective.
        long: Whether they take minutes, and must be asked for.
    """

    lacks: Callable[[Evaluator], str]
    take: Callable[[Evaluator], Sequence[Result]]
    long: bool = False


def chosen(parts: dict[str, Part], asked: Sequence[str] | None, evaluator: Evaluator) -> list[str]:
    """Names of the parts to take: those that are asked for, else all that can be done and are not long. Collective.

    Raises:
        AgreedError: one that is asked for is not known, or cannot be taken.
    """
    unknown = next((name for name in asked or () if name not in (*parts, "all")), None)
    if unknown is not None:
        near = did_you_mean(unknown, parts)
        raise AgreedError(f"`metrics` {shortened(unknown)} is not known; {near or 'known: ' + ', '.join(parts)}")
    everything = asked is None or "all" in asked
    if everything:
        wanted = [name for name in parts if asked or not parts[name].long]
    else:
        wanted = [name for name in parts if name in (asked or ())]
    names = []
    for name in wanted:
        why = why_not(parts[name], evaluator)
        if why and not everything:
            raise AgreedError(f"`metrics` {name}: {why}")
        if why:
            evaluator.leave_out(name, why)
        else:
            names.append(name)
    return names


def why_not(part: Part, evaluator: Evaluator) -> str:
    """Why a part cannot be taken; empty: it can. Collective."""
    try:
        return part.lacks(evaluator)
    except AgreedError as problem:
        return str(problem)


def evaluate(
    evaluator: Evaluator, parts: dict[str, Part], names: Sequence[str], asked: Sequence[str] | None
) -> Evaluation:
    """Take measures. Collective; the same on every rank.

    Args:
        asked: Names that were asked for; of others what cannot be taken is left out.
    Raises:
        AgreedError: a part that was asked for cannot be taken, or none can.
    """
    began = time.monotonic()
    results: list[Result] = []
    for name in names:
        evaluator.tell(name)
        try:
            results += parts[name].take(evaluator)
        except AgreedError as problem:
            if asked is not None and "all" not in asked:
                raise
            evaluator.leave_out(name, str(problem))
    if not results:
        raise AgreedError(f"nothing could be measured: {next(iter(evaluator.left_out.values()))}")
    settings, sets = evaluator.settings, evaluator.sets
    options = asdict(settings.cropping) | {"few": settings.few, "metrics": list(names)}
    return Evaluation(
        generated=sets["generated"].facts(),
        reference=sets["reference"].facts() if "reference" in sets else {},
        train=sets["train"].facts() if "train" in sets else {},
        features=evaluator.features_facts(),
        options=options,
        measures=tuple(result for result in results if isinstance(result, Measure)),
        tables=tuple(result for result in results if isinstance(result, Table)),
        neighbours=tuple(result for result in results if isinstance(result, Neighbour)),
        left_out=dict(evaluator.left_out),
        warnings=tuple(evaluator.warnings),
        version=__version__,
        seconds=time.monotonic() - began,
    )
