import threading

import numpy as np
import pytest
import torch

from engine.distributed.canvas import Canvas
from engine.distributed.launch import world
from engine.models.networks.autoencoder import PatchAutoencoder
from engine.pipeline.background_task import BackgroundTask
from engine.pipeline.decode import Decoder, ShardWriter, decode_canvas, to_uint8
from engine.planning.decode_cover import decode_cover, pixel_cover
from engine.planning.ownership import DecodeRounds, Ownership


def decoded(latents, network, overlap, patch=24):
    """Decode by windows, as a run does, on one rank."""
    shape = latents.shape[1:]
    ownership = Ownership(tuple(shape), (32, 32), 1)
    cover = decode_cover(ownership.shape, patch, overlap)
    canvas = Canvas(world(), ownership, len(latents), 0)
    boxes = {shard: ownership.shard(shard) for shard in range(ownership.count)}
    canvas.x = {shard: latents[:, w.y0 : w.y1, w.x0 : w.x1] for shard, w in boxes.items()}
    fused = {}
    shard_writer = ShardWriter(canvas.ranks, fused.__setitem__)
    pixels = pixel_cover(cover, network.factor, overlap)
    decoder = Decoder(network.decode, cover, pixels, network.factor, channels=3)
    rounds = DecodeRounds(range(ownership.count), 1)
    assert decode_canvas(canvas, decoder, rounds, shard_writer, lambda windows: None, lambda: False)
    shard_writer.finish()
    shard_writer.check()
    whole = torch.zeros(3, *(n * network.factor for n in shape))
    for shard, pixels in fused.items():
        box = ownership.shard(shard).scaled(network.factor)
        whole[:, box.y0 : box.y1, box.x0 : box.x1] = pixels
    return whole


def test_decoding_by_windows_shows_no_seam_where_they_overlap():
    torch.manual_seed(0)
    network = PatchAutoencoder(latent_channels=4, channels=(8, 8), blocks=(1, 1)).eval()
    for weights in network.parameters():
        torch.nn.init.normal_(weights, 0, 0.15)
    latents = torch.randn(4, 75, 101)
    with torch.inference_mode():
        whole = network.decode(latents[None])[0]
    by_windows = decoded(latents, network, overlap=4 * network.margin)
    assert float((by_windows - whole).abs().max()) < 1e-3 * float(whole.abs().max())
    cut = decoded(latents, network, overlap=0)
    assert float((cut - whole).abs().max()) > 0.05 * float(whole.abs().max()), "a check that cannot fail"


def test_a_pixel_depends_on_no_latent_beyond_the_margin():
    torch.manual_seed(0)
    network = PatchAutoencoder(latent_channels=2, channels=(8, 8), blocks=(1, 2)).eval()
    for weights in network.parameters():
        torch.nn.init.normal_(weights, 0, 0.2)
    z = torch.randn(1, 2, 41, 41, requires_grad=True)
    network.decode(z)[0, :, 80:84, 80:84].sum().backward()
    reached = (z.grad[0].abs().sum(0) > 0).nonzero()
    assert int((reached - 20).abs().max()) <= network.margin


def test_pixels_are_rounded_to_the_nearest_and_clipped():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 1 / 127.5 - 1, 1.4 / 127.5 - 1]).view(1, 1, -1)
    assert to_uint8(values).ravel().tolist() == [0, 0, 128, 255, 255, 1, 1]
    assert to_uint8(values).dtype == np.uint8


def test_what_goes_wrong_in_a_thread_is_kept_and_raised_where_it_is_asked_for():
    task, gate, done = BackgroundTask(world(), "test"), threading.Event(), []

    def fails():
        gate.wait(30)
        raise OSError(28, "No space left on device", "shard")

    task.check()
    task.start(fails)
    assert not task.done()
    task.check()  # nothing is known yet
    gate.set()
    task.start(lambda: done.append(1))  # waits, and does not raise: one rank alone must not leave
    task.wait()
    assert done == [1]
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            task.check()
