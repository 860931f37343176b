"""The windows of a job's levels and of its decoder, what each window is conditioned on, and who does which of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.diffusion.conditions import Condition
from engine.diffusion.latent_map import LatentMap
from engine.pipeline.prepared import Prepared
from engine.planning.counts import LevelCounts, count_decode
from engine.planning.cover import Cover, StackedCover, cover_of
from engine.planning.decode_cover import decoder_windows, gaussian_pixel_cover, pixel_cover
from engine.planning.geometry import Box
from engine.planning.ownership import DecodeRounds
from engine.planning.plan import LabelsAndCosts, Plan, Planning, plan_level


def level_cover(prepared: Prepared, level: int, images: Sequence[int] | None = None, round_index: int = 0) -> Cover:
    """The windows of a level.

    Args:
        images: Images of a set that are sampled; None: all.
        round_index: Round of rejection sampling; later rounds have windows of their own.
    """
    if prepared.cone is not None:
        return prepared.cone.lattice(level)
    job, card, frame = prepared.job, prepared.card, prepared.frames.frame
    stride, drawn = job.stride or card.patch, prepared.cover_level(level)

    def of_image(image: int) -> Cover:
        return cover_of(
            job.cover,
            frame,
            card.patch,
            job.seed,
            drawn,
            stride=stride,
            weights=job.weights,
            image=image,
            round_index=round_index,
        )

    return stacked(prepared, of_image, card.patch, 1, images)


def decode_covers(prepared: Prepared, images: Sequence[int] | None = None) -> tuple[Cover, Cover]:
    """The decoder's windows, in latents and, with their weights, in pixels."""
    job, card, frame = prepared.job, prepared.card, prepared.frames.frame
    latents = decoder_windows(frame, card.patch, job.decode_weights, job.decode_overlap, job.stride)
    if job.decode_weights == "gaussian":
        pixels = gaussian_pixel_cover(latents, card.factor)
    else:
        pixels = pixel_cover(latents, card.factor, int(job.decode_overlap or 0))
    return (
        stacked(prepared, lambda image: latents, latents.patch, 1, images),
        stacked(prepared, lambda image: pixels, latents.patch, card.factor, images),
    )


def stacked(
    prepared: Prepared, of_image: Callable[[int], Cover], patch: int, scale: int, images: Sequence[int] | None
) -> Cover:
    """The cover of the one image, or the covers of the images of a set, below one another.

    Args:
        of_image: Function that returns the cover of an image.
        patch: Side of a window, in latents.
        scale: Units of the covers in a latent: 1, or the pixels of one.
        images: Images of a set that have windows; None: all.
    """
    if prepared.job.count is None:
        return of_image(0)
    chosen = range(prepared.job.count) if images is None else np.array(images)
    return StackedCover(patch * scale, prepared.frames.frame[0] * scale, of_image, chosen)


# ---- what windows are conditioned on ------------------------------------------------------------


def level_condition(prepared: Prepared, level: int) -> Condition:
    """The job's condition, without guidance in levels that are not guided."""
    return prepared.condition.at_level(level, prepared.guided_levels)


def labels_and_costs(prepared: Prepared, level: int, cover: Cover) -> LabelsAndCosts:
    """A function from windows to their labels, as bits, and the evaluations that these take.

    A window outside the region of interest, or one that a plane's request does not need, has no label, and takes no
    evaluation.
    """
    condition, roi, cone = level_condition(prepared, level), prepared.inputs.roi, prepared.cone

    def ask(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked = np.ones(len(ids), bool)
        if roi is not None:
            asked = windows_touching(roi, cover, ids)
        if cone is not None:
            asked = cone.asked(level, cover.corners(ids))
        label_bits = np.zeros(len(ids), np.uint64)
        label_bits[asked] = condition.label_bits(cover, ids[asked])
        return label_bits, condition.costs_of(cover, ids, label_bits)

    return ask


def windows_touching(region: LatentMap, cover: Cover, ids: np.ndarray) -> np.ndarray:
    """bool (n,): whether the estimate of a window is used at any latent of a region.

    Args:
        region: 1 in the region and 0 elsewhere.
    """
    touching = np.empty(len(ids), bool)
    for n, (index, box) in enumerate(zip(ids.tolist(), cover.core(ids).tolist(), strict=True)):
        core = Box(*box)
        inside, weight = region[core.y0 : core.y1, core.x0 : core.x1] > 0, cover.weight(index, core)
        touching[n] = (inside if weight is None else inside & (weight > 0)).any()
    return touching


def outside_region(prepared: Prepared, shard: int) -> bool:
    """Whether a shard lies wholly outside the region of interest: nothing of it is decoded."""
    roi, w = prepared.inputs.roi, prepared.ownership.shard(shard)
    return roi is not None and not roi[w.y0 : w.y1, w.x0 : w.x1].any()


# ---- who does what ------------------------------------------------------------------------------


def rank_plan(
    prepared: Prepared,
    rank: int,
    level: int,
    run_ends: np.ndarray | None,
    images: Sequence[int] | None = None,
    round_index: int = 0,
) -> Planning[Plan]:
    """A rank's part of the plan of a level."""
    cover = level_cover(prepared, level, images, round_index)
    return plan_level(rank, cover, prepared.ownership, labels_and_costs(prepared, level, cover), run_ends)


def decode_counts(prepared: Prepared) -> list[LevelCounts]:
    """What every round of decoding the whole image takes, over all ranks."""
    cover, _ = decode_covers(prepared)
    shards = prepared.wanted
    if prepared.inputs.roi is not None:
        shards = np.array([shard for shard in shards if not outside_region(prepared, int(shard))])
    return list(count_decode(cover, prepared.ownership, DecodeRounds(shards, prepared.rank_count)))
