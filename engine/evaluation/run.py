"""One evaluation: the parts that are asked for and can be done, one after the other, on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine import __version__
from engine.distributed.ranks import Ranks
from engine.embedding.extractors import FeatureExtractor
from engine.evaluation.crops import Crops
from engine.evaluation.gathered import Features, features_of, shared
from engine.evaluation.inputs import Cropping, Given
from engine.evaluation.measures import Evaluation, Measure, Neighbour, Table

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
        self.made: dict[str, tuple[Features, Features | None]] = {}
        self.width: int | None = None  # of the extractor's features

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
        if self.width is None:
            crops = given.crops
            self.width = int(
                self.ranks.on_root(lambda: self.extractor(crops.pixels(range(1)), crops.named)[0].shape[1])
            )
        return self.width

    def features(self, role: str) -> Features:
        """Collective, at the first call."""
        return self._of(role)[0]

    def logits(self, role: str) -> Features | None:
        """Class logits of a set; None: the extractor has none. Collective, at the first call."""
        return self._of(role)[1]

    def _of(self, role: str) -> tuple[Features, Features | None]:
        if role not in self.made:
            given = self.sets[role]
            if given.crops is None:
                rows = self.ranks.agree(given.read_features)
                self.made[role] = self.ranks.agree(lambda: shared(rows, self.ranks, str(given.path))), None
            else:
                self.tell(f"features of {given.name}: {len(given.crops)} crops of {given.crops.side} px")
                grey, size = self.settings.cropping.grey, self.settings.batch_size
                self.made[role] = features_of(self.ranks, given.crops, self.extractor, size, grey)
        return self.made[role]


@dataclass(frozen=True)
class Part:
    """Some measures that belong together.

    Args:
        lacks: Function that says why they cannot be taken of these sets; empty: they can.
        take: Function that takes them. Collective.
        long: Whether they take minutes, and must be asked for.
    """

    lacks: Callable[[Evaluator], str]
    take: Callable[[Evaluator], Sequence[Result]]
    long: bool = False


def chosen(parts: dict[str, Part], asked: Sequence[str] | None, evaluator: Evaluator) -> list[str]:
    """Names of the parts to take: those that are asked for, else all that can be done and are not long.

    Raises:
        ValueError: one that is asked for cannot be taken.
    """
    wanted = list(parts) if asked == ("all",) else asked
    for name in asked or ():
        if name in parts and (why := parts[name].lacks(evaluator)):
            raise ValueError(f"`metrics` {name}: {why}")
    names = [name for name in parts if (name in wanted if wanted is not None else not parts[name].long)]
    for name in names:
        if why := parts[name].lacks(evaluator):
            evaluator.tell(f"left out: {name}: {why}")
    return [name for name in names if not parts[name].lacks(evaluator)]


def evaluate(evaluator: Evaluator, parts: dict[str, Part], names: Sequence[str]) -> Evaluation:
    """Take measures. Collective; the same on every rank."""
    began = time.monotonic()
    results: list[Result] = []
    for name in names:
        evaluator.tell(name)
        results += parts[name].take(evaluator)
    settings, sets = evaluator.settings, evaluator.sets
    made = next(iter(evaluator.made.values()), None)
    extractor = evaluator.extractor
    options = asdict(settings.cropping) | {"few": settings.few, "seed": settings.cropping.seed, "metrics": list(names)}
    return Evaluation(
        generated=sets["generated"].facts(),
        reference=sets["reference"].facts() if "reference" in sets else {},
        train=sets["train"].facts() if "train" in sets else {},
        features={"name": extractor.name, "hash": extractor.hash, "dimensions": made[0].dimensions} if made else {},
        options=options,
        measures=tuple(result for result in results if isinstance(result, Measure)),
        tables=tuple(result for result in results if isinstance(result, Table)),
        neighbours=tuple(result for result in results if isinstance(result, Neighbour)),
        version=__version__,
        seconds=time.monotonic() - began,
    )
