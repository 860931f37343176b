"""The memory model: what one rank is expected to hold at most, term by term.

Every factor is a count of what can be in memory together, or an allowance on the high side; none was fitted to a
measured run. The terms add up although they are not all at their most at the same time.
"""

from __future__ import annotations

import resource
from pathlib import Path

from engine.pipeline.level_plans import decode_covers
from engine.pipeline.prepared import Prepared
from engine.storage.readers import reads_in_boxes

ITEM = 4  # bytes of a float32
PROCESS_BYTES = 700 * 2**20  # Python, torch and MPI of one rank
ADDRESSES = 2**30  # bytes; of libraries that are mapped, and of threads' stacks and heaps, beside what is held


def peak_memory() -> int:
    """Bytes that this process has held at most until now, without those of a GPU."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_memory(bytes_per_rank: int, ranks_per_node: int) -> None:
    """Refuse a plan that does not fit into this node's memory.

    Args:
        ranks_per_node: Number of ranks on this node.
    Raises:
        ValueError: naming what is needed and what there is.
    """
    need, have = bytes_per_rank * ranks_per_node, available_memory()
    if have is not None and need > have:
        raise ValueError(
            f"the plan needs {need / 2**30:.1f} GiB on this node ({ranks_per_node} ranks) "
            f"but {have / 2**30:.1f} GiB are free; "
            "use more nodes, fewer ranks a node, a smaller `shard` or `batch_size`, or a smaller `size`"
        )
    limit, soft = resource.getrlimit(resource.RLIMIT_AS)[0], bytes_per_rank + ADDRESSES
    if limit != resource.RLIM_INFINITY and soft > limit:
        raise ValueError(
            f"a rank needs {soft / 2**30:.1f} GiB of addresses but `ulimit -v` allows {limit / 2**30:.1f} GiB: "
            "libraries and threads would not fit; raise it, or limit the memory of the job instead"
        )


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes free on this node, by the kernel and this process's control groups; None where unknown.

    Args:
        root: Where ``proc`` and ``sys`` lie.
    """
    limits = []
    for line in lines_of(root / "proc" / "meminfo"):
        if line.startswith("MemAvailable"):
            limits.append(int(line.split()[1]) * 1024)
    for line in lines_of(root / "proc" / "self" / "cgroup"):
        _, controllers, group = line.split(":", 2)
        mount = root / "sys" / "fs" / "cgroup"
        if not controllers:
            limits += free_in_groups(mount, group, ("memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            limits += free_in_groups(mount / "memory", group, ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    return max(min(limits), 0) if limits else None


def free_in_groups(mount: Path, group: str, names: tuple[str, str]) -> list[int]:
    """Bytes free by the limit of a control group, and of each that it lies in.

    Args:
        mount: Where the groups lie. In a container that may be the process's own group, whatever its name.
        names: The files of the limit and of what is used.
    """
    parts = [part for part in group.split("/") if part not in ("", "..")]
    free = []
    for depth in range(len(parts), -1, -1):
        folder = mount.joinpath(*parts[:depth])
        limit, used = (next(iter(lines_of(folder / name)), "") for name in names)
        if limit.isdigit() and used.isdigit():
            facts = dict(line.split(maxsplit=1) for line in lines_of(folder / "memory.stat") if " " in line)
            cached = int(facts.get("inactive_file", 0)) + int(facts.get("active_file", 0))
            free.append(int(limit) - int(used) + cached)
    return free


def lines_of(path: Path) -> list[str]:
    """The lines of a file of the kernel's; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def memory_bytes(prepared: Prepared) -> int:
    """Bytes that one rank is expected to hold at most, everything included."""
    return (
        PROCESS_BYTES
        + network_bytes(prepared)
        + input_bytes(prepared)
        + canvas_bytes(prepared)
        + estimate_bytes(prepared)
        + network_activation_bytes(prepared)
        + decoder_activation_bytes(prepared)
        + decoded_bytes(prepared)
        + random_cover_bytes(prepared)
    )


def network_bytes(prepared: Prepared) -> int:
    """The weights, in every form they pass through."""
    copies = 4  # as stored, in float32, as rewritten for inference, and cast; a file may be of half the size of float32
    files = [file for card in prepared.cards for file in card.folder.rglob("*.safetensors")]
    return copies * sum(file.stat().st_size for file in files)


def input_bytes(prepared: Prepared) -> int:
    """The inputs, and the known image and mask that cannot be read by box: in memory until they are copied."""
    job = prepared.job
    whole = [name for name in (job.image, job.mask) if name and not reads_in_boxes(Path(name))]
    picture = job.size[0] * job.size[1] * prepared.card.image_channels
    return prepared.inputs.nbytes + len(whole) * picture


def shard_shape(prepared: Prepared) -> tuple[int, int]:
    """Rows and columns of the largest shard, in latents."""
    rows, columns = (min(a, b) for a, b in zip(prepared.ownership.sides, prepared.ownership.shape, strict=True))
    return rows, columns


def canvas_bytes(prepared: Prepared) -> int:
    """The latents of the shards that the rank owns, in every form that is held."""
    rows, columns = shard_shape(prepared)
    shards = -(-prepared.ownership.count // prepared.rank_count)
    history = 4 if prepared.job.solver == "plms" else 1  # of levels before: three, and the one that is made; or one
    forms = 3 + history  # x, the history, the fused estimate, and the x that the step makes of them
    in_checkpoint = 1 + history  # x and the history of the level before, while a checkpoint of them is still written
    kept = (1 + history) * (prepared.plane is not None)  # of the level before, while a plane keeps it
    known = 2 * bool(prepared.job.known_image)  # known latents and the mask of an in-painting; of a variation no more
    return ITEM * prepared.card.channels * (forms + in_checkpoint + kept + known) * shards * rows * columns


def estimate_bytes(prepared: Prepared) -> int:
    """The estimates of a level: those made here, and those that travel and are fused."""
    card, job = prepared.card, prepared.job
    uneven = 2  # a rank may have more windows than its share, and of each it holds more than is used
    copies = 4  # as evaluated, packed to be sent, as received, and laid side by side to be fused
    used = uneven * estimated_latents(prepared) // prepared.rank_count
    batch = card.patch**2 * int(job.batch_size or 1)
    return ITEM * card.schedule.output_channels(card.channels) * copies * (used + batch)


def estimated_latents(prepared: Prepared) -> int:
    """Number of latents in all windows of a level together, about."""
    job, (height, width) = prepared.job, prepared.ownership.shape
    windows_per_latent = {"strided": (prepared.card.patch / (job.stride or prepared.card.patch)) ** 2, "random": 2.5}
    return int(height * width * windows_per_latent.get(job.cover, 1))


def network_activation_bytes(prepared: Prepared) -> int:
    """The activations of one evaluation of a batch of windows."""
    per_value = 600  # bytes a value of the latents: 150 float32 values in feature maps and skip connections
    return per_value * prepared.card.channels * prepared.card.patch**2 * int(prepared.job.batch_size or 1)


def decoder_activation_bytes(prepared: Prepared) -> int:
    """The activations of decoding one window."""
    channels = 64  # feature maps of full size that are alive together
    side = 2 * prepared.card.patch * prepared.card.factor  # px: a window, doubled for what its layers keep beside them
    return channels * ITEM * side**2


def decoded_bytes(prepared: Prepared) -> int:
    """The pixels of a round of decoding: the windows decoded here, those that travel, and the shard that they make."""
    card, ownership, size = prepared.card, prepared.ownership, prepared.rank_count
    rows, columns = shard_shape(prepared)
    value = ITEM * card.image_channels * card.factor**2
    shards = 3 * rows * columns  # the weighted sum, the mean, and the shard that is still written
    if card.factor == 1:
        return value * shards
    cover, _ = decode_covers(prepared)
    middle = ownership.shard((ownership.shards.counts[0] // 2) * ownership.columns + ownership.columns // 2)
    of_shard = len(cover.overlapping(middle))
    share = -(-min(size, ownership.count) * of_shard // size)
    kept = share if 1 < size < ownership.count else 0  # beside a share of its own; one rank has each window once
    travelling = share + of_shard if size > 1 else 0  # packed to be sent, and received for the shard written here
    return value * (shards + (share + kept + travelling) * cover.patch**2)


def random_cover_bytes(prepared: Prepared) -> int:
    """The random cover, which every rank draws for the whole canvas."""
    order, winner = 8, 4  # bytes a latent: int64, its place in the random order; int32, the window it belongs to
    height, width = prepared.ownership.shape
    return (order + winner) * height * width if prepared.job.cover == "random" else 0
