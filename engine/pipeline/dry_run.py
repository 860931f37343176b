"""The plan of a run as ``--dry-run`` prints it: how many windows, evaluations and bytes, before any is made."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.pipeline.level_plans import all_decode_plans, all_plans, level_condition
from engine.pipeline.memory import ITEM, memory_bytes
from engine.pipeline.prepared import Prepared
from engine.planning.plan import Plan


def plan_summary(prepared: Prepared) -> dict[str, Any]:
    """The plan as JSON values.

    Where the label map is still to be sampled, evaluations are the least that there can be: one a window.
    """
    summary: dict[str, Any] = {
        "latent_shape": [prepared.card.channels, *prepared.ownership.shape],
        "levels": len(prepared.timesteps),
        "shards": len(prepared.wanted),
        "files": prepared.layout.files(),
        "ranks": prepared.rank_count,
        "job": prepared.job.plain(),
    }
    if prepared.label_stage is not None:
        summary = {"label_map": plan_summary(prepared.label_stage), **summary, "evaluations_are": "at least"}
    windows, evaluations, exchanged = [], [], 0
    per_rank = np.zeros(prepared.rank_count, np.int64)
    for level in range(len(prepared.timesteps)):
        plans, condition = all_plans(prepared, level), level_condition(prepared, level)
        windows.append(plans[0].windows)
        evaluations.append(plans[0].evaluations)
        per_rank += [int(condition.costs(plan.label_bits).sum()) for plan in plans]
        exchanged += sum(level_bytes(prepared, plan) for plan in plans)
    if prepared.card.factor > 1:
        exchanged += sum(decode_bytes(prepared, plan) for plan in all_decode_plans(prepared))
    return {
        **summary,
        "windows_per_level": windows,
        "evaluations_per_level": evaluations,
        "evaluations": int(sum(evaluations)),
        "evaluations_per_rank": {"min": int(per_rank.min()), "max": int(per_rank.max())},
        "exchange_bytes": int(exchanged),
        "memory_bytes_per_rank": memory_bytes(prepared),
    }


def level_bytes(prepared: Prepared, plan: Plan) -> int:
    """Bytes that a rank is sent in a level: latents before the evaluations, estimates after them."""
    halo, estimates = plan.travelling()
    card = prepared.card
    return ITEM * (halo * card.channels + estimates * card.schedule.output_channels(card.channels))


def decode_bytes(prepared: Prepared, plan: Plan) -> int:
    """Bytes that a rank is sent in a round of decoding: latents before, decoded pixels after."""
    card = prepared.card
    halo, decoded = plan.travelling()
    return ITEM * (halo * card.channels + decoded * card.factor**2 * card.image_channels)
