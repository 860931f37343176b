"""From the options of ``python -m engine.train SYSTEM`` to the training of a published system."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch.utils.checkpoint import checkpoint

from engine.distributed.ranks import Ranks
from engine.models.networks.mask_unet import ResnetBlock
from engine.models.networks.spade_unet import Stage
from engine.training.loop import LoopSettings
from engine.training.published import diffinfinite, nuclei
from engine.training.published.common import Task, Training

S = TypeVar("S")


def train_published(args: Namespace, settings: LoopSettings, ranks: Ranks, device: str) -> bool:
    """Train as a system's authors do; whether it came to its end. Collective.

    Args:
        args: Options of the command.
    """
    task = TASKS[args.network](args, ranks, device)
    training = Training(task, args.out, settings, ranks, device)
    if args.activation_checkpointing:
        checkpoint_activations(task.network)
    return training.run(args.resume == "auto")


def nuclei_task(args: Namespace, ranks: Ranks, device: str) -> Task:
    settings = settings_of(nuclei.NucleiSettings, args)
    return ranks.agree(lambda: nuclei.task_of(args.data, settings, args.init, device, args.list))


def image_task(args: Namespace, ranks: Ranks, device: str) -> Task:
    own: dict[str, Any] = {"keep": args.keep, "names": args.labels, "unlabelled_share": args.unlabelled_share}
    own |= {"listed": args.list, "table": args.labels_table, "labelled_share": args.labelled_share}
    own |= {"test_share": args.test_share}
    own |= {"vae": args.vae, "init": args.init, "ranks": ranks, "device": device}
    settings = settings_of(diffinfinite.DiffInfiniteSettings, args)
    return diffinfinite.image_task(args.data, args.unlabelled, args.out, settings, **own)


def label_task(args: Namespace, ranks: Ranks, device: str) -> Task:
    own: dict[str, Any] = {"count": args.label_count, "table": args.labels_table, "vae": args.vae, "init": args.init}
    own |= {"ranks": ranks, "device": device}
    settings = settings_of(diffinfinite.DiffInfiniteSettings, args)
    return diffinfinite.label_task(args.data, args.classes, args.out, settings, **own)


TASKS: dict[str, Callable[[Namespace, Ranks, str], Task]] = {
    "nuclei": nuclei_task,
    "diffinfinite-image": image_task,
    "diffinfinite-labels": label_task,
}


def settings_of(kind: Callable[..., S], args: Namespace) -> S:
    """The options that a system's settings name."""
    return kind(**{field.name: getattr(args, field.name, None) for field in fields(kind)})  # type: ignore[arg-type]


def checkpoint_activations(network: nn.Module) -> None:
    """Let the stages of a network compute their activations again in the backward pass, rather than keep them."""
    for module in network.modules():
        if isinstance(module, Stage | ResnetBlock):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
