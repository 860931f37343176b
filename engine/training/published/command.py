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
from engine.training.published import expert, feature_aligned, first_stage, large_image, nuclei
from engine.training.published.common import Task, Training
from engine.training.published.diffinfinite import DiffInfiniteSettings
from engine.training.published.diffinfinite_image import image_task
from engine.training.published.diffinfinite_labels import label_task
from engine.training.published.epochs import Facts

S = TypeVar("S")


def train_published(args: Namespace, settings: LoopSettings, ranks: Ranks, device: str) -> bool:
    """Train as a system's authors do; whether it came to its end. Collective.

    Args:
        args: Options of the command.
    """
    if args.network in OWN_WAYS:
        return OWN_WAYS[args.network](args, settings, ranks, device)
    task = TASKS[args.network](args, ranks, device)
    training = Training(task, args.out, settings, ranks, device)
    kept = {name: getattr(args, name) for name in (*names_of(SETTINGS[args.network]), *MORE) if hasattr(args, name)}
    training.trainer.extra = {"facts": Facts(kept), **training.trainer.extra}
    if args.activation_checkpointing:
        checkpoint_activations(task.network)
    return training.run(args.resume == "auto")


def nuclei_task(args: Namespace, ranks: Ranks, device: str) -> Task:
    settings = settings_of(nuclei.NucleiSettings, args)
    return ranks.agree(lambda: nuclei.task_of(args.data, settings, args.init, device, args.list))


def diffinfinite_image(args: Namespace, ranks: Ranks, device: str) -> Task:
    own: dict[str, Any] = {"keep": args.keep, "names": args.labels, "unlabelled_share": args.unlabelled_share}
    own |= {"listed": args.list, "table": args.labels_table, "labelled_share": args.labelled_share}
    own |= {"test_share": args.test_share}
    own |= {"vae": args.vae, "init": args.init, "ranks": ranks, "device": device}
    settings = settings_of(DiffInfiniteSettings, args)
    return image_task(args.data, args.unlabelled, args.out, settings, **own)


def diffinfinite_labels(args: Namespace, ranks: Ranks, device: str) -> Task:
    own: dict[str, Any] = {"count": args.label_count, "table": args.labels_table, "vae": args.vae, "init": args.init}
    own |= {"ranks": ranks, "device": device}
    settings = settings_of(DiffInfiniteSettings, args)
    return label_task(args.data, args.classes, args.out, settings, **own)


def large_image_task(args: Namespace, ranks: Ranks, device: str) -> Task:
    own: dict[str, Any] = {"embeddings": args.embeddings, "regions": args.region_embeddings}
    own |= {"magnification": args.magnification, "vae": args.vae, "init": args.init, "ranks": ranks, "device": device}
    settings = settings_of(large_image.LargeImageSettings, args)
    return large_image.large_image_task(args.data, args.out, settings, **own)


TASKS: dict[str, Callable[[Namespace, Ranks, str], Task]] = {
    "nuclei": nuclei_task,
    "diffinfinite-image": diffinfinite_image,
    "diffinfinite-labels": diffinfinite_labels,
    "large-image": large_image_task,
}


def train_expert(args: Namespace, settings: LoopSettings, ranks: Ranks, device: str) -> bool:
    own = settings_of(expert.ExpertSettings, args)
    training = expert.ExpertTraining(args.data, args.out, own, settings, args.init, ranks, device)
    return training.run(args.resume == "auto")


def train_aligned(args: Namespace, settings: LoopSettings, ranks: Ranks, device: str) -> bool:
    own = settings_of(feature_aligned.AlignedSettings, args)
    resume = args.resume == "auto"
    return feature_aligned.train_aligned(args.data, args.out, own, settings, args.init, ranks, device, resume)


# Trainings that are no ``Task``: their losses are others.
OWN_WAYS: dict[str, Callable[[Namespace, LoopSettings, Ranks, str], bool]] = {
    "first-stage": first_stage.train,
    "expert": train_expert,
    "feature-aligned": train_aligned,
}


# Settings of the trainings that are a ``Task``, and options beside them that a resumed training has to share.
SETTINGS = {
    "nuclei": nuclei.NucleiSettings,
    "diffinfinite-image": DiffInfiniteSettings,
    "diffinfinite-labels": DiffInfiniteSettings,
    "large-image": large_image.LargeImageSettings,
}
MORE = ("keep", "unlabelled_share", "labelled_share", "test_share", "label_count", "magnification")


def names_of(kind: Callable[..., Any]) -> list[str]:
    return [field.name for field in fields(kind)]  # type: ignore[arg-type]


def settings_of(kind: Callable[..., S], args: Namespace) -> S:
    """The options that a system's settings name."""
    return kind(**{name: getattr(args, name, None) for name in names_of(kind)})


def checkpoint_activations(network: nn.Module) -> None:
    """Let the stages of a network compute their activations again in the backward pass, rather than keep them."""
    for module in network.modules():
        if hasattr(module, "enable_gradient_checkpointing"):  # of diffusers
            module.enable_gradient_checkpointing()  # type: ignore[operator]
        if isinstance(module, Stage | ResnetBlock):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
