import numpy as np
import torch
from tiny import make_tiny_model

import engine


def made(ranks, tmp_path_factory):
    """A tiny model that all ranks see."""
    return ranks.on_root(lambda: str(make_tiny_model(tmp_path_factory.mktemp("model"))))


def test_a_call_is_collective_and_every_rank_has_the_image(ranks, tmp_path_factory):
    pipe = engine.Pipeline.from_pretrained(made(ranks, tmp_path_factory))
    labels = np.arange(70 * 100).reshape(70, 100).astype(np.uint8) // 50 % 5
    options = {"size": (70, 100), "labels": labels, "steps": 2, "shard": 64, "chunk": 64, "progress": False}
    told, shown = [], []
    image = pipe(
        **options,
        comm=ranks.comm,
        on_level=lambda level, levels, preview: shown.append(preview()) or told.append(level),
    )
    assert told[:2] == [1, 2]
    assert (image.labels[...] == labels).all()
    digests = ranks.allgather((image.verify(), shown[0].tobytes()))
    assert len(set(digests)) == 1
    alone = pipe(**options, comm=ranks.comm.Split(ranks.rank))
    assert alone.verify() == image.verify(), "the bytes of one rank"


def test_an_error_is_everybodys_and_leaves_the_ranks_ready(ranks, tmp_path_factory):
    pipe = engine.Pipeline.from_pretrained(made(ranks, tmp_path_factory))
    problems = []
    for options in ({"labels": np.zeros((3, 3), np.uint8)}, {"label": 99}):
        try:
            pipe(size=(64, 64), steps=1, comm=ranks.comm, progress=False, **options)
        except ValueError as problem:
            problems.append(str(problem))
    assert len(problems) == 2
    assert len(set(ranks.allgather(tuple(problems)))) == 1
    assert pipe(size=(64, 64), steps=1, label=1, comm=ranks.comm, progress=False).state == "finished"


def test_ranks_that_are_given_different_arguments_all_say_so(ranks, tmp_path_factory):
    pipe = engine.Pipeline.from_pretrained(made(ranks, tmp_path_factory))
    options = {"size": (64, 64), "steps": 1, "comm": ranks.comm, "progress": False}
    last = ranks.rank == ranks.size - 1  # alone it is every rank
    array = np.zeros((64, 64), np.uint8)
    schedule = engine.Schedule.from_config({"prediction_type": "sample"})

    def in_memory(network=lambda x, t, inputs: x, **given):
        return engine.sample_latents(network, schedule, shape=(1, 16, 16), patch=8, steps=1, comm=ranks.comm, **given)

    for call, one, others, kind in (
        (pipe, {"seed": 1}, {}, None),
        (pipe, {"labels": array + 1}, {"labels": array}, None),
        (pipe, {"labels": array}, {"label": 0}, None),
        (pipe, {"on_level": lambda *_: None}, {}, None),
        (in_memory, {"seed": 1}, {}, None),
        (pipe, {"batch_size": 0}, {}, ValueError),
        (pipe, {"labels": torch.zeros(64, 64, requires_grad=True)}, {"labels": array}, ValueError),
        (pipe, {"stpes": 1}, {}, TypeError),
        (in_memory, {"network": 3}, {}, TypeError),
    ):
        if kind is None and ranks.size == 1:
            continue
        problem = None
        try:
            call(**(options if call is pipe else {}), **(one if last else others))
        except (ValueError, TypeError) as error:
            problem = error
        said = ranks.allgather((type(problem), str(problem)))
        assert len(set(said)) == 1, said
        assert said[0][0] is (kind or ValueError)
        assert kind or f"`{next(iter(one))}` is" in said[0][1]
    assert pipe(**options, label=np.int64(1)).state == "finished", "and the ranks are ready"


def test_the_loop_in_memory_is_the_same_on_any_number_of_ranks(ranks):
    schedule = engine.Schedule.from_config({"prediction_type": "epsilon"})

    def network(x, t, inputs):
        return torch.tanh(x) * 0.5 + x.roll(1, -1) * 0.1

    options = {"shape": (3, 90, 70), "patch": 16, "steps": 4, "seed": 2, "side": 32}
    together = engine.sample_latents(network, schedule, **options, comm=ranks.comm)
    alone = engine.sample_latents(network, schedule, **options, comm=ranks.comm.Split(ranks.rank))
    assert together.shape == (3, 90, 70)
    assert bool((together == alone).all())
