"""The folder of a dataset of nuclei, as the nuclei system reads it: images/, inst_masks/ and bin_masks/, by stems."""

from __future__ import annotations

from pathlib import Path

from engine.job import SampleJob

PARTS = {"instances": "inst_masks", "appearance": "images", "appearance_mask": "bin_masks"}
SPLITS = ("MoNuSegTrainingData", "MoNuSegTestData")
MASK_ENDING = "_mask.png"  # of the label map that lies beside an image


def dataset_of(job: SampleJob) -> Path | None:
    """The dataset's folder, where ``instances`` names one.

    Raises:
        ValueError: the folder above it was named, or one without instance maps.
    """
    path = Path(str(job.instances))
    if job.instances is None or not path.is_dir():
        return None
    if (path / PARTS["instances"]).is_dir():
        return path
    splits = [path / name for name in SPLITS if (path / name).is_dir()]
    if splits:
        raise ValueError(
            f"`instances` {path} holds {' and '.join(s.name for s in splits)}; pass `instances` {splits[0]}"
        )
    if any((path / part).is_dir() for part in PARTS.values()):
        raise ValueError(
            f"`instances` {path} holds no folder {PARTS['instances']} of instance maps; add it, or name one"
        )
    return None


def path_of(job: SampleJob, option: str) -> Path | None:
    """The file or folder of an option: as it is given, or in the dataset's folder; None: there is none.

    Args:
        option: "instances", "appearance" or "appearance_mask".
    """
    dataset, given = dataset_of(job), getattr(job, option)
    if dataset is not None and (option == "instances" or given is None):
        within = dataset / PARTS[option]
        return within if within.is_dir() else None
    return None if given is None else Path(given)
