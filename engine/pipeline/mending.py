"""Is an output what it keeps in its ledger, and if not, what of it is made anew.

Every byte is a function of the job and its position, so that nothing but the damaged shards is written again. But a
shard of the image takes the sampling of the whole canvas: latents are not kept. Shards of the pyramid, and of labels
that come from a file, are made from what is there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.distributed.ranks import Ranks
from engine.pipeline.prepare import check_machine
from engine.pipeline.prepared import Prepared
from engine.storage.files import lock
from engine.storage.integrity import DamagedShard, damaged_shards
from engine.storage.metadata import damaged_metadata, restore_metadata
from engine.storage.output import Output
from engine.storage.remote_output import check_owner, provenance_in, publish
from engine.storage.remote_shards import RemoteShards

NAMED = 3  # most shards that a message names


def examined(ranks: Ranks, prepared: Prepared) -> Prepared:
    """Look at a finished output before it is called finished; other jobs are returned as they are. Collective.

    The files' sizes and the metadata are looked at; with `verify` and `mend`, and where these show damage, every shard
    is read. Metadata is mended here.

    Returns:
        The same job. Its state is `damaged` where shards are to be made anew.
    Raises:
        ValueError: shards are damaged that take sampling, and there is no `mend`.
    """
    if prepared.state != "finished":
        return prepared
    path, options = Path(prepared.options.out), prepared.options
    ranks.on_root(lambda: mend_metadata(path))
    ranks.on_root(lambda: mend_store(path))
    output = ranks.agree(lambda: Output(path, ranks.rank))
    damaged = look_at(ranks, output, read=options.verify or options.mend)
    if not damaged:
        return prepared
    if not (options.verify or options.mend):
        damaged = look_at(ranks, output, read=True)
    prepared = replace(prepared, state="damaged")

    def check() -> None:
        if takes_sampling(prepared, damaged) and not options.mend:
            raise ValueError(f"{path} is damaged: {named(damaged)}; {what_it_takes(output.provenance)}")
        check_machine(prepared, ranks.local_size)

    ranks.on_root(check)
    return prepared


def look_at(ranks: Ranks, output: Output, read: bool) -> list[DamagedShard]:
    """List an output's damaged shards; each rank looks at its share. Collective."""
    mine = ranks.agree(lambda: list(damaged_shards(output, read, ranks.rank, ranks.size)))
    return [shard for part in ranks.allgather(mine) for shard in part]


def mend_metadata(path: Path) -> None:
    """Restore what is damaged of the metadata, and say what that was. Rank 0 calls this."""
    if not any(damaged_metadata(path)):
        return
    with lock(path):
        for name in restore_metadata(path):
            print(f"{path / name} was damaged; it is mended", flush=True)


def mend_store(path: Path) -> None:
    """Put anew what an object store lacks of the metadata, and say what that was. Rank 0 calls this."""
    output = Output(path)
    if isinstance(output.shards, RemoteShards):
        check_owner(output.shards, provenance_in(output.shards), output.provenance["store_id"])
        for name in publish(output.shards, path, finished=True):
            print(f"{output.shards.where(name)} was damaged; it is mended", flush=True)


def takes_sampling(prepared: Prepared, damaged: list[DamagedShard]) -> bool:
    """Whether any of these shards is made by a model, not from what is there."""
    layout = prepared.layout
    sampled = {layout.image} | ({layout.labels} if prepared.label_stage is not None else set())
    return any(shard.array in sampled for shard in damaged)


def named(damaged: list[DamagedShard]) -> str:
    """Name the first of these shards, and count the others."""
    more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
    return ", ".join(map(str, damaged[:NAMED])) + more


def what_it_takes(provenance: dict[str, Any]) -> str:
    """Say how much work it is to sample an output again, and how to ask for that."""
    seconds, ranks = provenance.get("seconds", {}).get("all"), provenance.get("ranks")
    took = "" if seconds is None else f", which took {seconds:.0f} s on {ranks} ranks"
    return f"the same command with `mend` samples it again{took}, and writes the damaged shards alone"
