"""From the options of ``python -m engine.train SYSTEM`` to the training of a published system."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from engine.distributed.ranks import Ranks
from engine.models.networks.spade_unet import Stage
from engine.training.loop import LoopSettings
from engine.training.published.common import Training
from engine.training.published.nuclei import NucleiSettings, task_of


def train_published(args: Namespace, settings: LoopSettings, ranks: Ranks, device: str) -> bool:
    """Train as a system's authors do; whether it came to its end. Collective.

    Args:
        args: Options of the command.
    """
    own: dict[str, Any] = {field.name: getattr(args, field.name) for field in fields(NucleiSettings)}
    task = ranks.agree(lambda: task_of(args.data, NucleiSettings(**own), args.init, device))
    training = Training(task, args.out, settings, ranks, device)
    if args.activation_checkpointing:
        checkpoint_activations(task.network)
    return training.run(args.resume == "auto")


def checkpoint_activations(network: nn.Module) -> None:
    """Let the stages of a network compute their activations again in the backward pass, rather than keep them."""
    for module in network.modules():
        if isinstance(module, Stage):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
