"""What the published systems' own code computes, computed here from their own checkpoints.

Folders in ``$SLIDEFIELD_GOLDEN`` (default: ``../shared/golden``), one a test: every one whose name begins with that of
a system is converted by the real command and compared with the arrays in its ``io.npz``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT

from engine.diffusion.conditions import ClassMap, Condition, EmbeddingGrid, LabelMap, SemanticMap
from engine.diffusion.denoiser import Denoiser
from engine.diffusion.solvers import Step, ddim, ddpm
from engine.distributed.canvas import Canvas
from engine.distributed.exchange import Exchange
from engine.distributed.launch import world
from engine.distributed.planner import Planner
from engine.models.card import ModelCard, read_card
from engine.models.convert.__main__ import main
from engine.models.files import read_parts
from engine.models.folder import Model, load_model
from engine.pipeline.decode import Decoder, ShardWriter, decode_canvas
from engine.pipeline.sampler import sample
from engine.pipeline.sampling_round import network_of
from engine.planning.cover import Cover, RandomCover, StackedCover, shifted, strided
from engine.planning.decode_cover import gaussian_pixel_cover
from engine.planning.ownership import DecodeRounds, Ownership
from engine.planning.plan import LabelsAndCosts, Plan, Planning, plan_level, run_in_lockstep
from kernels.step import predicted_std

pytestmark = pytest.mark.runs
GOLDEN = Path(os.environ.get("SLIDEFIELD_GOLDEN", ROOT.parent / "shared" / "golden"))
SYSTEMS = {
    "diffinfinite-image": "diffinfinite-image",
    "diffinfinite-mask": "diffinfinite-labels",
    "large-image-diffusion": "large-image-diffusion",
    "sdm-nuclei": "sdm",
    "feature-aligned": "feature-aligned",
}
EVALUATION, DECODE, TRAJECTORY = 1e-5, 1e-4, 1e-4


@dataclass(frozen=True)
class Golden:
    """A converted checkpoint and what its system's own code computed with it."""

    folder: Path
    card: ModelCard
    model: Model
    io: dict[str, np.ndarray]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.io[name]))

    def evaluate(self, x: str, t: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.network(self.tensor(x), t, inputs)

    def check(self, tensor: torch.Tensor, name: str, bound: float = EVALUATION) -> None:
        expected = self.tensor(name)
        assert tensor.shape == expected.shape
        assert relative(tensor, expected) <= bound, name


def relative(tensor: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over norm."""
    return float((tensor.double() - expected.double()).norm() / expected.double().norm())


def folders(system: str) -> list[Path]:
    return sorted(f for f in GOLDEN.glob(f"{system}*") if f.is_dir())


def goldens(system: str) -> Callable:
    """One test a folder of a system; where there is none, one that says so."""
    params = [pytest.param((system, folder), id=folder.name) for folder in folders(system)]
    absent = pytest.param((system, None), id=f"{system} absent")
    return pytest.mark.parametrize("golden", params or [absent], indirect=True)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """From a system and a folder to its model folder, converted once a session by the real command."""
    made: dict[Path, Path] = {}

    def convert(system: str, folder: Path) -> Path:
        if folder not in made:
            out = tmp_path_factory.mktemp("models") / folder.name
            assert main([SYSTEMS[system], str(folder), "--out", str(out)]) == 0
            made[folder] = out
        return made[folder]

    return convert


@pytest.fixture
def golden(request: pytest.FixtureRequest, converted: Callable[[str, Path], Path]) -> Golden:
    system, folder = request.param
    if folder is None:
        pytest.skip(f"{GOLDEN / system} is not here: the outputs of the system's own code")
    pytest.importorskip("diffusers")
    torch.set_num_threads(1)
    model = converted(system, folder)
    with np.load(folder / "io.npz", allow_pickle=False) as arrays:
        return Golden(folder, read_card(str(model)), load_model(model), dict(arrays))


def guided(null: torch.Tensor, conditional: torch.Tensor, weight: float) -> torch.Tensor:
    return null + weight * (conditional - null)


# What a configuration says that weights cannot, of the systems whose trainings write none.
UNSAID = {
    "sdm": ("image_size", "num_head_channels", "num_heads", "num_heads_upsample", "use_new_attention_order")
    + ("noise_schedule", "diffusion_steps", "predict_xstart", "rescale_timesteps"),
    "feature-aligned": ("sample_size", "attention_head_dim", "norm_num_groups"),
}


@pytest.mark.parametrize("system", ["diffinfinite-image", "diffinfinite-mask", "sdm-nuclei", "feature-aligned"])
def test_a_checkpoint_as_it_lies_becomes_the_same_model(system, tmp_path, converted):
    """No system but Large-Image-Diffusion writes a configuration beside its checkpoint."""
    if not folders(system):
        pytest.skip(f"{GOLDEN / system} is not here: a checkpoint as the system writes it")
    pytest.importorskip("diffusers")
    for folder in folders(system):
        with_config = read_parts(converted(system, folder))
        checkpoint = next(path for path in sorted(folder.iterdir()) if path.suffix == ".pt")
        alone = tmp_path / folder.name / checkpoint.name
        alone.parent.mkdir()
        shutil.copyfile(checkpoint, alone)
        settings = json.loads(next(folder.glob("*.json")).read_text())
        told = [f"{key}={settings[key]}" for key in UNSAID.get(SYSTEMS[system], ()) if key in settings]
        out = alone.parent / "model"
        options = ["--set", ",".join(told)] if told else []
        assert main([SYSTEMS[system], str(alone), "--out", str(out), *options]) == 0
        assert read_parts(out).scheduler == with_config.scheduler
        said = set(read_parts(out).configs["unet"]) & set(with_config.configs["unet"]) - {"dropout"}
        assert said
        for key in said:
            assert read_parts(out).configs["unet"][key] == with_config.configs["unet"][key], key
        assert load_model(out).network is not None


@goldens("diffinfinite-image")
def test_diffinfinites_image_network(golden):
    mask, t = golden.tensor("mask").float(), golden.tensor("t")
    label = mask.amax((1, 2, 3)).long()
    eps = golden.evaluate("x", t, label=label, mask=(mask > 0).float())
    null = golden.evaluate("x", t, label=torch.zeros_like(label), mask=torch.zeros_like(mask))
    golden.check(eps, "eps")
    eps_cfg = guided(null, eps, float(golden.io["cond_scale"]) + 1)
    golden.check(eps_cfg, "eps_cfg")

    schedule, x = golden.card.schedule, golden.tensor("x")
    assert schedule.clip == 1
    pairs = [schedule.to_denoised(schedule.alpha_bar[int(level)]) for level in t]
    from_x, from_output = (torch.tensor(column)[:, None, None, None] for column in zip(*pairs, strict=True))
    # from their eps: at t = 999 errors of eps are multiplied by 1 / sqrt(alpha_bar), 20,000 and more
    x0 = from_x * x.double() + from_output * golden.tensor("eps_cfg").double()
    golden.check(x0.clamp(-1, 1).float(), "x0_clipped")


@goldens("diffinfinite-mask")
def test_diffinfinites_label_network(golden):
    t, classes = golden.tensor("t"), golden.tensor("classes")
    eps = golden.evaluate("x", t, label=classes)
    null = golden.evaluate("x", t, label=torch.full_like(classes, -1))
    golden.check(eps, "eps")
    golden.check(null, "eps_null")
    golden.check(guided(null, eps, float(golden.io["cond_scale"]) + 1), "eps_cfg")


@goldens("large-image-diffusion")
def test_large_image_diffusions_tokens_and_network(golden):
    ssl = golden.tensor("ssl")
    region = golden.tensor("ssl_region") if "ssl_region" in golden.io else None
    assert golden.card.embedding_width == ssl.shape[1]
    assert golden.card.region_width == (0 if region is None else region.shape[1])
    tokens = golden.model.embed(ssl, region)
    golden.check(tokens, "context")
    index = golden.tensor("t").long() - 1  # theirs counts from 1
    golden.check(golden.evaluate("x", index, tokens=tokens), "eps")


@goldens("large-image-diffusion")
def test_large_image_diffusions_autoencoder(golden):
    from engine.models.folder import load_part

    z = golden.tensor("z")
    with torch.inference_mode():
        golden.check(golden.model.decode(z), "decoded", DECODE)
        vae = load_part(golden.card.folder / "vae")
        golden.check(vae.decode(z, force_not_quantize=True).sample, "decoded_no_quantize", DECODE)
    assert golden.tensor("decoded").shape[-1] == z.shape[-1] * golden.card.factor


@goldens("sdm-nuclei")
def test_the_nuclei_network(golden):
    y = golden.tensor("y")
    assert golden.card.semantic_channels == y.shape[1]
    golden.check(golden.evaluate("x", golden.tensor("t"), map=y), "output")


@goldens("feature-aligned")
def test_the_feature_aligned_network(golden):
    embeddings = golden.tensor("text_embeddings")
    tokens = golden.model.embed(embeddings, None)[golden.tensor("classes")]
    golden.check(golden.evaluate("x", golden.tensor("t"), tokens=tokens), "eps")
    assert not golden.card.has_null


# ---- whole trajectories, by the engine's own loop ---------------------------------------------------


def on_canvas(images: np.ndarray) -> np.ndarray:
    """(images, C, h, w) -> (C, images h, w): as a set lies on its canvas."""
    return np.concatenate(list(images), axis=1)


def apart(canvas: torch.Tensor, count: int) -> torch.Tensor:
    return torch.stack(canvas.chunk(count, dim=1))


def shards_of(latents: np.ndarray, ownership: Ownership) -> dict[int, torch.Tensor]:
    boxes = map(ownership.shard, range(ownership.count))
    return {s: torch.from_numpy(latents[:, w.y0 : w.y1, w.x0 : w.x1].copy()) for s, w in enumerate(boxes)}


def asking(condition: Condition, cover: Cover) -> LabelsAndCosts:
    def ask(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        present = condition.label_bits(cover, ids)
        return present, condition.costs(present)

    return ask


def trajectory(
    golden: Golden,
    start: np.ndarray,
    condition: Condition,
    cover: Callable[[int], Cover],
    timesteps: Sequence[int],
    table: list[Step],
) -> torch.Tensor:
    """The canvas (C, H, W) after a run on one rank, from given noise and windows, cut into shards of odd sizes."""
    ownership = Ownership(start.shape[1:], (13, 21), 1)
    canvas = Canvas(world(), ownership, len(start), 0)
    canvas.x = shards_of(start, ownership)
    network, card = network_of(golden.model), golden.card
    denoise = Denoiser(
        [network], condition, card.schedule, timesteps, batch_size=3, guided_channels=card.guided_channels
    )

    def part(level: int) -> Planning[Plan]:
        return plan_level(0, cover(level), ownership, asking(condition, cover(level)))

    assert sample(canvas, Planner(world(), part, len(table)), denoise, table)
    whole = torch.empty(start.shape)
    for shard, w in enumerate(map(ownership.shard, range(ownership.count))):
        whole[:, w.y0 : w.y1, w.x0 : w.x1] = canvas.x[shard]
    return whole


def alpha_bars(golden: Golden, timesteps: Sequence[int]) -> list[float]:
    return [golden.card.schedule.alpha_bar[t] for t in timesteps]


def one_window_each(images: np.ndarray) -> Callable[[int], Cover]:
    """The cover of a set of images no larger than a window."""
    count, _, height, width = images.shape
    return lambda level: StackedCover(
        width, height, lambda image: shifted((height, width), width, 0, 0, image), range(count)
    )


def first_wins(windows: np.ndarray, side: int, shape: tuple[int, int]) -> list[RandomCover]:
    """Windows in the order visited -> the covers of levels; a level ends when every latent has been written."""
    covers, corners, winner = [], [], np.full(shape, -1, np.int32)
    for y, x in windows.tolist():
        view = winner[y : y + side, x : x + side]
        view[view < 0] = len(corners)
        corners.append((y, x))
        if (winner >= 0).all():
            starts = np.array(corners, np.int64)
            covers.append(RandomCover(side, starts, winner))
            corners, winner = [], np.full(shape, -1, np.int32)
    assert not corners
    return covers


@goldens("diffinfinite-image")
def test_diffinfinites_random_patches(golden):
    io = golden.io
    side, pairs = int(io["traj_patch"]), io["traj_times"].tolist()
    labels = io["traj_mask"][0, 0, :: golden.card.factor, :: golden.card.factor].astype(np.uint8)
    covers = first_wins(io["traj_windows"], side, labels.shape)
    timesteps = [t for t, _ in pairs]
    table = ddim(alpha_bars(golden, timesteps), 0.0, golden.card.schedule.rederive_noise)
    assert len(covers) == len(timesteps) - 1, "they stop one level early"
    run = len(covers)
    condition = LabelMap(float(io["cond_scale"]) + 1, labels)
    latents = trajectory(golden, io["traj_xT"][0], condition, lambda i: covers[i], timesteps[:run], table[:run])
    golden.check(latents[None], "traj_final", TRAJECTORY)


@goldens("diffinfinite-image")
def test_diffinfinites_labels_each_by_itself(golden):
    x, labels = golden.io["x"], on_canvas(golden.io["multi_mask"])[0].astype(np.uint8)
    t, after = golden.io["multi_t"].tolist()
    table = ddim(alpha_bars(golden, [t, after]), 0.0, golden.card.schedule.rederive_noise)[:1]
    condition = LabelMap(float(golden.io["cond_scale"]) + 1, labels)
    latents = trajectory(golden, on_canvas(x), condition, one_window_each(x), [t], table)
    golden.check(apart(latents, len(x)), "multi_next", TRAJECTORY)


@goldens("large-image-diffusion")
def test_large_image_diffusions_large_image(golden):
    io, side, stride = golden.io, int(golden.io["pano_window"]), int(golden.io["pano_stride"])
    start, grid = io["pano_xT"][0], int(io["pano_grid"])
    embeddings = io["pano_embeddings"].reshape(grid, grid, -1)
    condition = EmbeddingGrid(1 + float(io["pano_guidance"]), None, embeddings, None, side, "corner")
    total = golden.card.schedule.num_train_timesteps
    timesteps = list(range(total, 0, -int(io["pano_timestep_stride"])))  # theirs count from 1
    levels = [t - 1 for t in timesteps]
    table = ddim(alpha_bars(golden, levels), float(io["pano_eta"]), golden.card.schedule.rederive_noise)
    cover = strided(start.shape[1:], side, stride, "uniform")
    latents = trajectory(golden, start, condition, lambda level: cover, levels, table)
    golden.check(latents[None], "pano_final", TRAJECTORY)

    ownership = Ownership(start.shape[1:], (13, 21), 1)
    canvas = Canvas(world(), ownership, len(start), 0)
    canvas.x = shards_of(io["pano_final"][0], ownership)
    factor = golden.card.factor
    image = np.zeros(io["pano_image"].shape[1:], np.uint8)

    def write(shard: int, pixels: torch.Tensor) -> None:
        w = ownership.shard(shard).scaled(factor)
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)  # theirs are cut off, ours (to_uint8) rounded
        image[w.y0 : w.y1, w.x0 : w.x1] = levels.permute(1, 2, 0).numpy()

    shard_writer = ShardWriter(world(), write)
    decoder = Decoder(golden.model.decode, cover, gaussian_pixel_cover(cover, factor), factor, channels=3)
    rounds = DecodeRounds(range(ownership.count), 1)
    decode_canvas(canvas, decoder, rounds, shard_writer, lambda windows: None, lambda: False)
    shard_writer.finish()
    shard_writer.check()
    difference = image.astype(int) - io["pano_image"][0]
    golden.check(torch.from_numpy(image)[None], "pano_image", DECODE)
    assert abs(difference).max() <= 1


@goldens("sdm-nuclei")
def test_the_nuclei_systems_ancestral_step(golden):
    io, schedule = golden.io, golden.card.schedule
    for index, t in enumerate(io["t"].tolist()):
        x, y = io["x"][index : index + 1], on_canvas(io["y"][index : index + 1])
        condition = semantic(y, float(io["guidance_s"]))
        cover = one_window_each(x)(0)
        guided = golden.card.guided_channels
        denoise = Denoiser([network_of(golden.model)], condition, schedule, [t], batch_size=2, guided_channels=guided)
        ownership = Ownership(x.shape[2:], x.shape[2:], 1)
        canvas = Canvas(world(), ownership, x.shape[1], 0)
        canvas.x = {0: torch.from_numpy(x[0])}
        (plan,) = run_in_lockstep([plan_level(0, cover, ownership, asking(condition, cover))])
        exchange = Exchange(canvas, plan, 2 * x.shape[1])
        exchange.start()
        denoise(plan, exchange, 0)
        out = exchange.estimates[0]
        clipped = out[: len(x[0])].clamp(-1, 1)
        now, after = schedule.alpha_bar[t], schedule.alpha_bar[t - 1] if t else 1.0
        step = ddpm([now, after], schedule.variance)[0]
        tensors = {"pred_xstart": clipped, "mean": torch.from_numpy(x[0]) * step.a + clipped * step.b}
        if t and step.log_variance:
            tensors["log_variance"] = 2 * predicted_std(out[len(x[0]) :], step.log_variance).log()
        elif t:
            tensors["log_variance"] = torch.full_like(clipped, 2 * math.log(step.d))
        for name, tensor in tensors.items():
            expected = golden.tensor(name)[index]
            assert relative(tensor.float(), expected.expand_as(tensor)) <= EVALUATION, (name, t)


def semantic(y: np.ndarray, guidance: float) -> SemanticMap:
    """The condition of a map (K, H, W) of a whole canvas."""
    return SemanticMap(guidance, None, lambda w: y[:, w.y0 : w.y1, w.x0 : w.x1], len(y))


@goldens("sdm-nuclei")
def test_the_nuclei_systems_ddim(golden):
    io = golden.io
    start, timesteps = io["ddim_xT"], sorted(io["ddim_timesteps"].tolist(), reverse=True)
    condition = semantic(on_canvas(io["y"]), float(io["guidance_s"]))
    table = ddim(alpha_bars(golden, timesteps), 0.0, golden.card.schedule.rederive_noise)
    assert golden.card.schedule.timesteps(len(timesteps)).tolist() == timesteps
    pixels = trajectory(golden, on_canvas(start), condition, one_window_each(start), timesteps, table)
    golden.check(apart(pixels, len(start)), "ddim_final", TRAJECTORY)


@goldens("feature-aligned")
def test_the_feature_aligned_systems_ddim(golden):
    io = golden.io
    start, timesteps = io["ddim_xT"], io["ddim_timesteps"].tolist()
    labels = np.full((len(start) * start.shape[2], start.shape[3]), int(io["ddim_class"]), np.uint8)
    condition = ClassMap(1.0, labels, golden.card.has_null, io["text_embeddings"])
    table = ddim(alpha_bars(golden, timesteps), 0.0, golden.card.schedule.rederive_noise)
    pixels = trajectory(golden, on_canvas(start), condition, one_window_each(start), timesteps, table)
    golden.check(apart(pixels, len(start)), "ddim_final", TRAJECTORY)
