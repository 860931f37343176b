"""Prepare a run on rank 0: check everything before anything is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from engine.inputs.continued import add_continued, continued_region
from engine.inputs.labels import label_count
from engine.inputs.read import read as read_inputs
from engine.inputs.semantic import styles_of
from engine.job import RunOptions, SampleJob
from engine.models.card import ModelCard, read_card
from engine.pipeline.accept import check_accept, rule_hash
from engine.pipeline.label_stage import label_stage, with_default_labels
from engine.pipeline.memory import check_memory, memory_bytes
from engine.pipeline.output_checks import (
    check_log,
    check_not_read,
    check_place,
    differing,
    least_disk_bytes,
    output_state,
    placed,
    store_state,
)
from engine.pipeline.plane_labels import label_plane_identity
from engine.pipeline.prepared import Prepared
from engine.pipeline.preview import check_preview
from engine.pipeline.report_file import check_report
from engine.planning.decode_cover import unbounded_decoder
from engine.planning.geometry import Frames
from engine.planning.plane import Cone, Request, cone_of, corners_of, offsets
from engine.storage.files import checksum
from engine.storage.plane_levels import windows_as_json


def prepare(
    job: SampleJob, options: RunOptions, rank_count: int, ranks_per_node: int, request: Request | None = None
) -> Prepared:
    """Check a job against its model, inputs, output and machine; writes nothing. Rank 0 calls this.

    What takes no time is checked first: the model's card, then the settings, then the files, which may be large. The
    output comes after them, because it is this job's only if the files' hashes say so, and the machine last, because a
    finished output asks nothing of it.

    Args:
        rank_count: Number of ranks that the work is planned for.
        ranks_per_node: Number of ranks on this node.
        request: What is asked of a plane, which then gives the job its size; None: the job has one of its own.
    Raises:
        ValueError: anything that would stop the run, with the way out.
    """
    check_ranks(options)
    options, store = placed(options, rank_count)
    card = read_card(job.model)
    if not card.decodes:
        raise ValueError(f"`model` {job.model} has no autoencoder; convert the checkpoint again with --vae DIR")
    job = with_default_labels(job, card).resolved(card)
    cards = style_cards(job, card)
    cone = None if request is None else cone_of_request(job, card, request)
    job = job if cone is None else replace(job, size=cone.canvas.scaled(card.factor).shape)

    if cone is None and options.region is not None and job.continue_ is None:
        raise ValueError(
            "`region` is of a `plane`, or of an image that is continued: add `plane` or `continue_`, or `size`"
        )
    corner, region = (0, 0) if cone is None else cone.corner, None
    if job.continue_ is not None:
        region = continued_region(job, options, card)
        job = replace(job, size=region.shape)
        corner = (region.y0 // card.factor, region.x0 // card.factor)
    inputs = read_inputs(job, card, Frames(job.size, card.factor, card.patch, job.count, corner))
    inputs = inputs if region is None else add_continued(inputs, job, region)
    one_class_each = card.condition in ("class", "label-map") and job.labels is None and job.label is not None
    check_accept(job.accept, label_count(card, inputs.table), one_class_each, job.size, card.pixel_size_um)
    stage = None
    if request is None:  # a plane has a plane of labels
        stage = prepare_label_stage(job, options, card, rank_count, ranks_per_node)
    identity = job.identity(card, {**inputs.hashes, **model_hashes(job, cards, stage), **rule_hash(job.accept)})
    if request is not None and cone is not None:
        identity |= label_plane_identity(job, card)
        identity |= {"corner": list(cone.corner), "region": list(corners_of(request.region)), "hold": request.hold}
        cone_hash = checksum({"needed": list(map(windows_as_json, cone.needed))})
        identity |= {"keep_levels": options.keep_levels, "cone": cone_hash}
    plane = None if request is None else request.plane
    prepared = Prepared(
        job, options, cards, rank_count, inputs, identity, "absent", stage, store=store, cone=cone, plane=plane
    )

    if not options.dry_run:  # a dry run is told of no output and needs no machine
        prepared = with_output_state(prepared)
        check_preview(options)
        check_report(options)
        if prepared.state != "finished":
            check_machine(prepared, ranks_per_node)
    return replace(prepared, inputs=inputs.unread())  # small: it is sent to all ranks


def cone_of_request(job: SampleJob, card: ModelCard, request: Request) -> Cone:
    """What a request takes of a job's plane."""
    lattices = offsets(job.seed, job.levels, card.patch, request.hold)
    return cone_of(request.region, card.factor, decoder_lattice(job, card), lattices, card.patch, request.known)


def decoder_lattice(job: SampleJob, card: ModelCard) -> tuple[int, int]:
    """Side and stride of the decoder's windows on a plane, in latents."""
    return unbounded_decoder(card.factor, card.patch, job.decode_weights, job.decode_overlap, job.stride)


def check_ranks(options: RunOptions) -> None:
    """Refuse a number of ranks that nothing is planned for: a run has those that it was started on.

    Raises:
        ValueError: with the command that starts so many.
    """
    if options.ranks is not None and not options.dry_run:
        raise ValueError(
            f"`ranks` {options.ranks} is what `dry_run` plans for, and a run has the ranks that it is started on: "
            f"leave `ranks` out and start mpiexec -n {options.ranks} python -m engine.sample ..."
        )


def style_cards(job: SampleJob, card: ModelCard) -> tuple[ModelCard, ...]:
    """The cards of a job's styles, of the same network as the model.

    Raises:
        ValueError: a style that cannot take the model's place.
    """
    if not job.style:
        return (card,)
    for name in styles_of(job):
        if not Path(name).is_dir():
            raise ValueError(f"`style` {name} is not there; pass model folders, separated by commas")
    cards = tuple(read_card(name) for name in styles_of(job))
    for name, other in zip(styles_of(job), cards, strict=True):
        if replace(other, folder=card.folder, hash="", defaults={}) != replace(card, hash="", defaults={}):
            raise ValueError(f"`style` {name} is another kind of model than {card.folder}; give one trained alike")
    return cards


def prepare_label_stage(
    job: SampleJob, options: RunOptions, card: ModelCard, rank_count: int, ranks_per_node: int
) -> Prepared | None:
    """The run that samples the label map, where a label model does; its output is not looked at yet."""
    if not job.label_model:
        return None
    label_job, label_options = label_stage(job, options, card)
    stage = prepare(label_job, replace(label_options, dry_run=True), rank_count, ranks_per_node)
    return replace(stage, options=label_options)


def model_hashes(job: SampleJob, cards: tuple[ModelCard, ...], stage: Prepared | None) -> dict[str, str]:
    """The hashes of what comes from other models than the job's own: a sampled label map, and the styles."""
    hashes = {}
    if stage is not None:
        text = json.dumps(stage.identity, sort_keys=True)
        hashes["labels_hash"] = f"sampled {hashlib.sha256(text.encode()).hexdigest()}"
    if job.style:
        hashes["style_hash"] = " ".join(card.hash for card in cards)
    return hashes


def with_output_state(prepared: Prepared) -> Prepared:
    """The same, knowing the state of the output, and of the label map's where the image is resumed.

    Where the image is begun anew, a label map that lies among its private files goes with them.
    """
    options, identity = prepared.options, prepared.identity
    if prepared.plane is not None and differing(Path(options.out), identity):
        options = replace(options, overwrite=True)  # a request that never came to its end
    prepared = store_state(replace(prepared, state=output_state(options, identity)))
    state, stage = prepared.state, prepared.label_stage
    if state == "replace":
        check_not_read(prepared.job, Path(options.out))
    if stage is not None and state == "unfinished":
        stage = replace(stage, state=label_stage_state(stage))
    return replace(prepared, label_stage=stage)


def label_stage_state(stage: Prepared) -> str:
    """The state of the label map's output: what is damaged among private files is made anew."""
    try:
        return output_state(stage.options, stage.identity)
    except ValueError:
        return "replace"


def check_machine(prepared: Prepared, ranks_per_node: int) -> None:
    """Refuse a run that does not fit into this node's memory, or whose files cannot be written.

    Raises:
        ValueError: naming what is needed and what there is.
    """
    check_memory(memory_bytes(prepared), ranks_per_node)
    check_log(prepared.options)
    resumed = prepared.state in ("unfinished", "damaged")  # most of it may be on the disk already
    check_place(prepared.options, 0 if resumed else least_disk_bytes(prepared), prepared.plane)
