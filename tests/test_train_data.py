"""What trainings read and show: lists of pictures, tables of labels, threads that read ahead, TensorBoard."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, get_ident

import numpy as np
import pytest
import torch
from launching import launch
from PIL import Image

from engine.train import main
from engine.training.loop import AHEAD, Ahead
from engine.training.published.common import Example, Windows


class Together:
    """Lets callers go on when there are so many of them; the later ones at once."""

    def __init__(self, count):
        self.barrier, self.left = Barrier(count), iter(range(count))

    def __call__(self):
        if next(self.left, None) is not None:
            self.barrier.wait(timeout=60)


def test_batches_are_the_same_however_many_threads_read_them():
    readers, wait_for_three = set(), Together(3)

    def example(position, rng):
        readers.add(get_ident())
        wait_for_three()
        return Example(rng.random((3, 4, 4), np.float32), {"map": np.full((1, 4, 4), position, np.float32)})

    with ThreadPoolExecutor(3) as pool:
        threaded = Windows(example, 7, (4, 2, 2)).batch(range(5, 11), each=pool.map)
    alone = Windows(example, 7, (4, 2, 2)).batch(range(5, 11))
    assert len(readers) == 4  # three, and this one
    assert threaded.inputs["map"][:, 0, 0, 0].tolist() == [5, 6, 7, 8, 9, 10]
    assert torch.equal(threaded.seeds, alone.seeds)
    for name in ("x0", "noise", "latent_noise"):
        assert torch.equal(getattr(threaded, name), getattr(alone, name)), name


def test_steps_are_made_ahead_by_several_threads_in_order_and_no_more_than_are_kept():
    begun = []

    def make(step):
        begun.append(step)
        return step

    ahead = Ahead(make, 4, threads=8)
    assert [ahead.take() for _ in range(5)] == [4, 5, 6, 7, 8]
    ahead.end()
    assert max(begun) <= 8 + AHEAD - 1


@pytest.fixture(scope="module")
def nuclei_data(tmp_path_factory):
    """Six pictures of 24 px with two nuclei each."""
    folder, rng = tmp_path_factory.mktemp("nuclei"), np.random.default_rng(0)
    for part in ("images", "inst_masks"):
        (folder / part).mkdir()
    for number in range(6):
        instances = np.zeros((24, 24), np.int32)
        instances[2:9, 2:9], instances[12:20, 10:20] = 1, 2
        Image.fromarray(rng.integers(0, 255, (24, 24, 3)).astype(np.uint8)).save(folder / "images" / f"p{number}.png")
        Image.fromarray(instances).save(folder / "inst_masks" / f"p{number}.tiff")
    return folder


SMALL = ("--window", 16, "--model-channels", 32, "--channel-mult", 1, "--blocks", 1, "--attention", 16)


def nuclei(ranks, data, out, *options):
    small = (*SMALL, "--steps", 2, "--batch-size", 2, "--every", 1, "--validation-windows", 1)
    return launch(ranks, "nuclei", "--data", data, "--out", out, *small, *options, module="engine.train")


def test_figures_and_pictures_are_shown_in_tensorboard_where_it_is_installed(nuclei_data, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: `pip install tensorboard` shows its figures")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small = (*SMALL, "--steps", 2, "--batch-size", 2, "--every", 1, "--validation-windows", 1, "--alone")
    assert main(["nuclei", "--data", str(nuclei_data), "--out", str(tmp_path / "m"), *map(str, small)]) == 0
    events = EventAccumulator(str(tmp_path / "m" / "unet" / "tensorboard")).Reload()
    assert {"loss", "mse", "vb", "lr"} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("lr")] == pytest.approx([1e-4])
    assert [event.step for event in events.Images("samples")] == [1, 2]
