"""The trainings of the published systems: losses against the papers' formulas, ranks, resuming, what they leave."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from families import discs
from launching import ROOT, Running, launch, verify
from PIL import Image
from safetensors.torch import load_file
from test_convert import converted, nuclei, small_autoencoder

from engine.diffusion.schedule import Schedule, betas
from engine.distributed.ranks import AgreedError
from engine.models.card import read_card
from engine.models.files import WEIGHTS
from engine.models.folder import load_part
from engine.models.networks.mask_unet import LabelUNet, MaskUNet
from engine.training.alone import Alone
from engine.training.ema import Ema
from engine.training.loop import LoopSettings, Trainer
from engine.training.objectives import HISTORY, LossSecondMomentTimesteps, Objective
from engine.training.published.diffinfinite import scheduler_of
from engine.training.published.diffinfinite_labels import read_classes
from engine.training.published.labelled_images import LabelledImages
from engine.training.published.nuclei import semantic_map, shuffled, subsampled
from engine.training.rates import momentum_at, rate_at

GOLDEN = Path(os.environ.get("SLIDEFIELD_GOLDEN", ROOT.parent / "shared" / "golden"))
SMALL = ("--window", 16, "--model-channels", 32, "--channel-mult", "1,2", "--blocks", 1, "--attention", 8)
SMALL = (*SMALL, "--validation-windows", 8)


# ---- losses -------------------------------------------------------------------------------------


def hybrid(network, x0, t, y, noise, kind="squaredcos_cap_v2"):
    """float64, window by window: (eps - eps')^2, and the bound in bits with the mean detached (Nichol & Dhariwal)."""
    beta = betas(kind, 1000, 1e-4, 0.02)
    alpha_bar = np.cumprod(1 - beta)
    total = 0
    for i, step in enumerate(t.tolist()):
        ab, before, b = alpha_bar[step], alpha_bar[step - 1] if step else 1.0, beta[step]
        x = math.sqrt(ab) * x0[i] + math.sqrt(1 - ab) * noise[i]
        out = network(x[None], t[i : i + 1], y[i : i + 1])[0]
        eps, v = out[: len(x)], out[len(x) :]
        mse = ((noise[i] - eps) ** 2).mean()
        clean = (x - math.sqrt(1 - ab) * eps.detach()) / math.sqrt(ab)
        posterior = lambda z: (math.sqrt(before) * b * z + math.sqrt(1 - b) * (1 - before) * x) / (1 - ab)  # noqa: B023, E731
        small = b * (1 - before) / (1 - ab) if step else beta[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])
        log_variance = (v + 1) / 2 * math.log(b) + (1 - v) / 2 * math.log(small)
        mean = posterior(clean)
        if step:
            variance = log_variance.exp()
            bound = (
                (small + (posterior(x0[i]) - mean) ** 2) / (2 * variance) - 0.5 + 0.5 * (log_variance - math.log(small))
            )
        else:
            cdf = lambda z: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))  # noqa: E731
            low, high = (cdf((x0[i] + d / 255 - mean) / (0.5 * log_variance).exp()) for d in (-1, 1))
            of_level = torch.where(x0[i] > 0.999, 1 - low, torch.where(x0[i] < -0.999, high, high - low))
            bound = -of_level.clamp(min=1e-12).log()
        total = total + mse + bound.mean() / math.log(2)
    return total / len(t)


def test_the_loss_of_nuclei_and_its_gradients_are_those_of_the_papers_formula(tmp_path):
    golden = GOLDEN / "sdm-nuclei"
    if golden.is_dir():
        card, _ = converted("sdm", golden, tmp_path)
    else:  # the checkpoint's kind, of random weights
        nuclei(tmp_path / "made", learn_sigma=True, noise_schedule="cosine")
        card, _ = converted("sdm", tmp_path / "made", tmp_path)
    network = load_part(card.folder / "unet").train().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0, 1, 400, 999])
    x0 = torch.rand(4, 3, 32, 32, generator=generator) * 2.2 - 1.1
    x0 = x0.clamp(-1, 1)  # some values at the ends of the grey levels
    noise = torch.randn(4, 3, 32, 32, generator=generator)
    y = torch.randn(4, card.semantic_channels, 32, 32, generator=generator)
    objective = Objective(card.schedule, "hybrid")
    x = objective.noised(x0, t, noise)
    loss = objective(network(x, t, y), x0, x, t, noise)["loss"].mean()
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    expected = hybrid(network.double(), x0.double(), t, y.double(), noise.double())
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    largest = max(float(parameter.grad.abs().max()) for parameter in network.parameters())
    for name, parameter in network.named_parameters():
        scale = max(float(parameter.grad.abs().max()), 1e-3 * largest)  # some are 0 but for rounding
        assert float((ours[name] - parameter.grad).abs().max()) < 2e-3 * scale, name


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_has_no_error(prediction):
    schedule = Schedule.from_config({"beta_schedule": "linear", "prediction_type": prediction})
    objective, t = Objective(schedule), torch.tensor([0, 500, 999])
    x0, noise = torch.randn(2, 3, 4, 5, 6)
    x = objective.noised(x0, t, noise)
    assert float(objective(objective.target(x0, t, noise), x0, x, t, noise)["loss"].max()) == 0
    from_x, from_output = schedule.to_denoised(schedule.alpha_bar[500])
    torch.testing.assert_close((from_x * x + from_output * objective.target(x0, t, noise))[1], x0[1])


def test_timesteps_of_large_losses_are_drawn_oftener_and_weighted_less():
    sampler, rng = LossSecondMomentTimesteps(4), np.random.default_rng(0)
    assert set(sampler.draw([rng] * 9)[1]) == {1.0}
    for _ in range(HISTORY + 3):
        sampler.learn(np.arange(4), np.array([1.0, 1.0, 1.0, 5.0]))
    np.testing.assert_allclose(sampler.probabilities(), np.array([1, 1, 1, 5]) / 8 * 0.999 + 0.00025)
    t, weights = sampler.draw([rng] * 4000)
    assert np.mean(t == 3) == pytest.approx(5 / 8, abs=0.03)
    assert np.mean(weights) == pytest.approx(1, abs=0.03), "unbiased"
    again = LossSecondMomentTimesteps(4)
    again.load_state_dict(sampler.state_dict())
    assert (again.probabilities() == sampler.probabilities()).all()


def test_one_cycle_is_torchs_and_averages_are_the_published_ones():
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0, betas=(0.9, 0.99))
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1000)
    for step in range(999):
        assert rate_at("onecycle", step / 999) == pytest.approx(cycle.get_last_lr()[0], abs=5e-3)
        assert momentum_at(step / 999) == pytest.approx(optimizer.param_groups[0]["betas"][0], abs=1e-3)
        optimizer.step()
        cycle.step()
    assert [Ema(network, 0.9999, "plain").decay_now() for _ in range(2)] == [0.9999] * 2
    power = Ema(network, 0.995, "power", every=10)
    power.updates = 10
    assert power.decay_now() == 0
    power.updates = 110
    assert power.decay_now() == pytest.approx(1 - 1001 ** (-2 / 3))
    power.updates = 10**6
    assert power.decay_now() == 0.995


def test_a_resumed_log_has_no_steps_that_were_lost_and_ranks_of_other_steps_are_refused(tmp_path):
    trainer = Trainer(torch.nn.Linear(1, 1), LoopSettings(9, 0.0, 1, 1e-3), Alone(), tmp_path)
    (tmp_path / "training.jsonl").write_text('{"step": 3, "loss": 1}\n{"step": 7, "loss": 1}\n{"st')
    trainer.step = 5
    trainer.log().close()
    assert (tmp_path / "training.jsonl").read_text() == '{"step": 3, "loss": 1}\n'
    trainer.step = 0
    trainer.log().close()
    assert (tmp_path / "training.jsonl").read_text() == ""
    trainer.check_together([5, 5])
    with pytest.raises(ValueError, match="rank 1 is at step 0, others at 5"):
        trainer.check_together([5, 0])


# ---- nuclei -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """A dataset as the system has it: eight pictures of violet nuclei on pink, their instances and masks."""
    folder, rng = tmp_path_factory.mktemp("nuclei"), np.random.default_rng(0)
    for part in ("images", "inst_masks", "bin_masks"):
        (folder / part).mkdir()
    for i in range(8):
        instances = discs((48, 40), 13 + i % 3, 5).astype(np.uint16)
        colors = np.where((instances > 0)[..., None], [110, 50, 140], [235, 190, 215]) + rng.integers(
            -9, 9, (48, 40, 3)
        )
        Image.fromarray(colors.astype(np.uint8)).save(folder / "images" / f"p{i}.png")
        tifffile.imwrite(folder / "inst_masks" / f"p{i}.tif", instances)
        Image.fromarray(((instances > 0) * 255).astype(np.uint8)).save(folder / "bin_masks" / f"p{i}.png")
    return folder


def trained(ranks, data, out, *options):
    arguments = ("nuclei", "--data", data, "--out", out, *SMALL, *options)
    done = launch(ranks, *arguments, module="engine.train")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def weights_of(out):
    return load_file(out / "unet" / WEIGHTS)


@pytest.mark.runs
def test_nuclei_are_learned_and_the_model_samples(patches, tmp_path):
    options = ("--steps", 40, "--batch-size", 4, "--lr", 4e-3, "--ema", 0.9, "--every", 20, "--hold-out", 2)
    said = trained(2, patches, tmp_path / "m", *options, "--keep-every", 20, "--drop", 0.2, "--augment", "--preserve")
    assert "6 images, 2 held out" in said
    held = [float(line.split("loss ")[1].split()[0]) for line in said.splitlines() if "held out," in line]
    assert len(held) == 2
    assert held[1] < 0.7 * 1.0, "it was 1 before the first step"
    assert json.loads((tmp_path / "m" / "unet" / "best.json").read_text()) == {
        "step": 40,
        "loss": pytest.approx(held[1], abs=1e-3),
    }
    assert Image.open(tmp_path / "m" / "unet" / "samples.png").size == (4 * 16, 2 * 16)
    assert Image.open(tmp_path / "m" / "unet" / "loss.png").size[0] > 400
    instances = next((patches / "inst_masks").iterdir())
    for model in (tmp_path / "m", tmp_path / "m" / "checkpoints" / "step-000020"):
        card = read_card(str(model))
        assert (card.patch, card.semantic_channels, card.schedule.variance) == (16, 6, "learned_range")
        options = ("--model", model, "--instances", instances, "--size", "48x40", "--steps", 2, "--preview", "none")
        done = launch(2, *options, "--shard", 64, "--chunk", 32, "--batch-size", 1, "--out", model / "o.zarr")
        assert done.returncode == 0, done.stderr
        assert verify(model / "o.zarr")[0] == 0


@pytest.mark.runs
def test_the_same_weights_to_rounding_on_1_and_3_ranks_and_in_micro_batches(patches, tmp_path):
    options = ("--steps", 2, "--batch-size", 5, "--ema", 0.5, "--clip", 1.0, "--timesteps", "loss-second-moment")
    trained(1, patches, tmp_path / "1", *options)
    one = weights_of(tmp_path / "1")
    for name, ranks, more in (("3", 3, ()), ("parts", 1, ("--accumulate", 3))):
        trained(ranks, patches, tmp_path / name, *options, *more)
        other = weights_of(tmp_path / name)
        for key, tensor in one.items():
            moved = (tensor - other[key]).abs()
            assert float(moved.max()) <= 2 * 1e-4, key  # the optimiser's steps, where a gradient is nothing
            assert float(moved.mean()) < 2e-6, key


@pytest.mark.runs
def test_a_killed_training_resumes_to_the_same_weights(patches, tmp_path):
    options = ("--steps", 4, "--batch-size", 2, "--every", 2, "--hold-out", 1, "--dropout", 0.1)
    options += ("--prediction", "v", "--timesteps", "loss-second-moment")
    trained(1, patches, tmp_path / "whole", *options)
    out = tmp_path / "killed"
    run = Running(1, "nuclei", "--data", patches, "--out", out, *SMALL, *options, module="engine.train")
    assert run.wait_until((out / "unet" / "best.json").exists)
    run.kill()
    assert "resumed at step" in trained(1, patches, out, *options)
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(out)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    assert read_card(str(out)).schedule.prediction == "v_prediction"
    for other in (("--drop", 0.3), ("--loss", "mse"), ("--timesteps", "uniform"), ("--prediction", "x0")):
        done = launch(2, "nuclei", "--data", patches, "--out", out, *SMALL, *options, *other, module="engine.train")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"whose {other[0]} is" in done.stderr


@pytest.mark.runs
def test_training_starts_from_the_weights_of_a_model(patches, tmp_path):
    trained(1, patches, tmp_path / "all", "--steps", 2, "--lr", 1e-2, "--ema", 0)
    trained(1, patches, tmp_path / "tuned", "--steps", 1, "--lr", 1e-9, "--ema", 0, "--init", tmp_path / "all")
    start, tuned = weights_of(tmp_path / "all"), weights_of(tmp_path / "tuned")
    assert all(torch.allclose(tensor, tuned[key], atol=1e-7) for key, tensor in start.items())


def test_the_map_of_a_window_is_the_map_that_sampling_makes(patches):
    rng = np.random.default_rng(1)
    picture = np.moveaxis(np.asarray(Image.open(patches / "images" / "p1.png")), -1, 0)
    instances = tifffile.imread(patches / "inst_masks" / "p1.tif")
    made = semantic_map(picture, instances, None, 6, rng)
    assert made.shape == (6, 48, 40)
    assert made[:2][:, instances > 0].any()
    assert not made[:2][:, instances == 0].any()
    sort = lambda colors: np.sort(colors.reshape(3, -1), 1)  # noqa: E731
    np.testing.assert_allclose(sort(made[2:5]), sort(picture / np.float32(127.5) - 1), rtol=1e-6)
    kept = shuffled(picture, instances, rng)
    np.testing.assert_allclose(sort(kept[:, instances > 0]), sort(picture[:, instances > 0] / np.float32(127.5) - 1))
    assert (kept != picture / np.float32(127.5) - 1).any()


def test_a_share_of_the_pictures_is_the_same_for_every_run():
    names = [str(i) for i in range(50)]
    assert subsampled(names, 0.2) == subsampled(names, 0.2)
    assert len(subsampled(names, 0.2)) == 10
    assert len(subsampled(names, 0.001)) == 1


@pytest.mark.runs
def test_wrong_data_and_settings_are_refused_in_one_line(patches, tmp_path):
    lost, odd = (shutil.copytree(patches, tmp_path / name) for name in ("lost", "odd"))
    (lost / "inst_masks" / "p3.tif").unlink()
    tifffile.imwrite(odd / "inst_masks" / "p2.tif", np.zeros((20, 20), np.uint16))
    (tmp_path / "none").mkdir()
    trained(1, patches, tmp_path / "m", "--steps", 1)
    before = sha256_of(tmp_path / "m")
    maskless = shutil.copytree(patches, tmp_path / "maskless", ignore=shutil.ignore_patterns("bin_masks"))
    for part in ("MoNuSegTrainingData", "MoNuSegTestData"):
        shutil.copytree(patches, tmp_path / "split" / part)
    unmasked, deep = (shutil.copytree(patches, tmp_path / name) for name in ("unmasked", "deep"))
    for picture in (deep / "images").iterdir():
        Image.fromarray(np.full(Image.open(picture).size[::-1], 40000, np.uint16)).save(picture)
    damaged = shutil.copytree(tmp_path / "m", tmp_path / "damaged")
    (damaged / "unet" / "training.pt").write_bytes((damaged / "unet" / "training.pt").read_bytes()[:1000])
    (unmasked / "bin_masks" / "p4.png").unlink()
    stateless = shutil.copytree(tmp_path / "m", tmp_path / "stateless", ignore=shutil.ignore_patterns("training.pt"))
    out = ("--out", tmp_path / "new", *SMALL)
    for options, said in (
        (("--data", lost, *out), ["p3", "no map of it"]),
        (("--data", odd, *out), ["p2.png is 48 x 40 px", "20 x 20"]),
        (("--data", tmp_path / "none", *out), ["no folder images"]),
        (("--data", patches, *out, "--window", 48, "--attention", 24), ["smaller than a window of 48", "--window"]),
        (("--data", patches, *out, "--window", 17), ["--window 17", "multiples of 2"]),
        (("--data", patches, *out, "--hold-out", 7), ["--hold-out 7", "half"]),
        (("--data", unmasked, *out, "--preserve"), ["p4", "no mask of it"]),
        (("--data", deep, *out), ["png has", "uint16"]),
        (("--data", patches, "--out", patches / "m", *SMALL), ["lies in --data"]),
        (("--data", patches, "--out", patches / "images" / "p0.png", *SMALL), ["is a file"]),
        (("--data", patches, "--out", damaged, *SMALL), ["training.pt is damaged"]),
        (("--data", patches, *out, "--head-channels", 7), ["--head-channels 7", "64"]),
        (("--data", tmp_path / "split", *out, "--hold-out", 1), ["--hold-out 1", "MoNuSegTestData"]),
        (("--data", maskless, *out, "--preserve"), ["--preserve needs", "bin_masks"]),
        (("--data", patches, *out, "--every", 4, "--keep-every", 6), ["--keep-every 6", "--every 4", "multiple"]),
        (("--data", patches, *out, "--minutes", -1), ["--minutes", "-1 is below 0"]),
        (("--data", patches, "--out", stateless, *SMALL), ["converted", "into another folder", "with --init"]),
        (("--data", patches, *out, "--init", tmp_path / "none"), ["--init", "no model folder"]),
        (("--data", patches, *out, "--init", tmp_path / "m", "--blocks", 2), ["another shape", "num_res_blocks 1"]),
        (("--data", patches, "--out", tmp_path / "m", *SMALL, "--lr", 1), ["--lr is 0.0001, yours is 1.0"]),
        (("--data", patches, *out, "--lr", 1e30, "--steps", 9, "--batch-size", 1), ["not finite", "--lr"]),
    ):
        done = launch(1, "nuclei", *options, module="engine.train")
        assert done.returncode == 1, done.stdout
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 == len(done.stderr.splitlines()), done.stderr
        assert all(words in lines[0] for words in said), lines[0]
    assert sha256_of(tmp_path / "m") == before == sha256_of(stateless)


def sha256_of(model):
    return (model / "unet" / WEIGHTS).read_bytes()


# ---- DiffInfinite -------------------------------------------------------------------------------

IMAGE = ("--dim", 8, "--dim-mults", "1,2", "--window", 64, "--dropout", 0, "--validation-windows", 4)
LABELS = ("--dim", 8, "--dim-mults", "1,2", "--window", 32, "--dropout", 0, "--validation-windows", 4)


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    """Six pictures with label maps of 0, 1 and 2, two without, and a small autoencoder of Stable Diffusion's kind."""
    folder, rng = tmp_path_factory.mktemp("tissue"), np.random.default_rng(0)
    (folder / "more").mkdir()
    (folder / "data").mkdir()
    for i in range(8):
        labels = np.zeros((80, 72), np.uint8)
        labels[:, 20:] = 1 + i % 2
        colors = np.array([[240, 230, 240], [160, 60, 160], [230, 120, 150]])[labels] + rng.integers(-9, 9, (80, 72, 3))
        place = folder / ("data" if i < 6 else "more")
        Image.fromarray(colors.astype(np.uint8)).save(place / f"s{i}.jpg")
        if i < 6:
            Image.fromarray(labels).save(place / f"s{i}_mask.png")
    small_autoencoder(folder / "vae")
    return folder


def made(ranks, network, tissue, out, *options):
    arguments = (network, "--data", tissue / "data", "--vae", tissue / "vae", "--out", out, *options)
    done = launch(ranks, *arguments, module="engine.train")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("network", ["image", "mask"])
def test_the_loss_of_diffinfinite_and_its_gradients_are_those_of_the_papers_formula(tmp_path, network):
    golden, image = GOLDEN / f"diffinfinite-{network}", network == "image"
    if golden.is_dir():
        card, _ = converted(f"diffinfinite-{'image' if image else 'labels'}", golden, tmp_path)
        unet = load_part(card.folder / "unet").train().requires_grad_(True)
        schedule = card.schedule
    else:
        unet = MaskUNet(8, 5, (1, 2), 4, 2) if image else LabelUNet(8, 2, (1, 2), 4, 2)
        schedule = Schedule.from_config(scheduler_of())
    generator = torch.Generator().manual_seed(0)
    t, z = torch.tensor([0, 300, 999]), torch.randn(3, 4, 16, 16, generator=generator)
    noise = torch.randn(3, 4, 16, 16, generator=generator)
    label = torch.tensor([1, 0, 2]) if image else torch.tensor([1, -1, 0])
    mask = (torch.rand(3, 1, 16, 16, generator=generator) > 0.5).float() * (label > 0)[:, None, None, None]
    given = (label, mask) if image else (label,)
    objective = Objective(schedule)
    x = objective.noised(z, t, noise)
    loss = objective(unet(x, t, *given), z, x, t, noise)["loss"].mean()
    loss.backward()
    ours = {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}
    unet.zero_grad()
    edges = np.arange(1001) / 1000  # Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17
    curve = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    ab = torch.from_numpy(np.cumprod(1 - np.minimum(1 - curve[1:] / curve[:-1], 0.999)))[t][:, None, None, None]
    noisy = ab.sqrt() * z.double() + (1 - ab).sqrt() * noise.double()
    given = (label, mask.double()) if image else (label,)
    expected = ((unet.double()(noisy, t, *given) - noise.double()) ** 2).mean()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    largest = max(float(p.grad.abs().max()) for p in unet.parameters() if p.grad is not None)
    for name, parameter in unet.named_parameters():
        if name in ours:
            scale = max(float(parameter.grad.abs().max()), 1e-3 * largest)
            assert float((ours[name] - parameter.grad).abs().max()) < 2e-3 * scale, name


@pytest.mark.runs
@pytest.mark.parametrize(
    ("network", "small"),
    [("diffinfinite-image", IMAGE), pytest.param("diffinfinite-labels", LABELS, marks=pytest.mark.long)],
)
def test_diffinfinites_networks_are_learned_resume_and_sample(tissue, tmp_path, network, small):
    image, out = network.endswith("image"), tmp_path / "m"
    common = (*small, "--batch-size", 6, "--lr", 5e-3, "--every", 15, "--hold-out", 1, "--ema-every", 1)
    common += ("--average", "warm", "--ema", 0.8, "--prediction", "epsilon" if image else "v")
    common += ("--unlabelled", tissue / "more") if image else ("--label-count", 5)
    made(2, network, tissue, out, *common, "--steps", 30)
    said = made(1, network, tissue, out, *common, "--steps", 45)
    assert "resumed at step 30" in said
    records = [json.loads(line) for line in (out / "unet" / "training.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss held out" in record] == [15, 30, 45]
    assert records[-1]["loss held out"] < 0.9, "it was 1 before the first step"
    by_step = {record["step"]: record["loss"] for record in records if "loss" in record}
    assert 3 * by_step[45] - 2 * by_step[30] < 0.9, "the mean of the last 15 steps, of those of all"
    card = read_card(str(out))
    assert card.patch == small[small.index("--window") + 1] // 8
    assert card.schedule.prediction == ("epsilon" if image else "v_prediction")
    options = ("--model", out, "--size", "80x72", "--steps", 2, "--preview", "none", "--shard", 128, "--chunk", 64)
    options += ("--labels", tissue / "data" / "s1_mask.png") if image else ("--label", 0)
    done = launch(2, *options, "--out", tmp_path / "o.zarr")
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "o.zarr")[0] == 0


@pytest.mark.runs
def test_diffinfinites_weights_are_the_same_to_rounding_on_1_and_3_ranks(tissue, tmp_path):
    options = (*IMAGE, "--steps", 2, "--batch-size", 5, "--ema", 0, "--ema-every", 1, "--schedule", "constant")
    for ranks in (1, 3):
        made(ranks, "diffinfinite-image", tissue, tmp_path / f"{ranks}", *options)
    one, three = weights_of(tmp_path / "1"), weights_of(tmp_path / "3")
    for key, tensor in one.items():
        assert float((tensor - three[key]).abs().max()) <= 2e-4, key
        assert float((tensor - three[key]).abs().mean()) < 3e-6, key


def test_half_of_the_windows_have_no_label_and_the_others_each_label_as_often(tissue):
    images = LabelledImages(
        [tissue / "data" / f"s{i}.jpg" for i in range(6)], [], keep=[], side=64, unlabelled=0.5, ranks=Alone()
    )
    labels = []
    for position in range(400):
        example = images.example(position, np.random.default_rng(position))
        label, mask = int(example.inputs["label"]), example.inputs["mask"]
        labels.append(label)
        assert mask.shape == (1, 8, 8)
        assert mask.any() == (label > 0)
        assert example.x0.shape == (3, 64, 64)
        assert -1 <= example.x0.min() < example.x0.max() <= 1
    shares = np.bincount(labels) / len(labels)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.08)
    apart = LabelledImages(
        images.labelled, [tissue / "more" / "s6.jpg"], keep=[], side=64, unlabelled=1.0, ranks=Alone()
    )
    assert apart.unknown == [tissue / "more" / "s6.jpg"], "tissue that has a map is not taught as unknown"
    kept = LabelledImages(images.labelled, [], keep=[2], side=64, unlabelled=0.0, ranks=Alone())
    assert kept.count == 3
    assert np.unique(kept.map_of(tissue / "data" / "s0.jpg")).tolist() == [0, 2], "label 1 is one of the others"
    assert np.unique(kept.map_of(tissue / "data" / "s1.jpg")).tolist() == [0, 1]
    with pytest.raises(AgreedError, match="`keep` names label 9, which no picture"):
        LabelledImages(images.labelled, [], keep=[2, 9], side=64, unlabelled=0.0, ranks=Alone())


def test_classes_of_slides_are_read_by_the_longest_beginning(tmp_path):
    (tmp_path / "labels.csv").write_text("uuid,subtype\na1,squamous\na10,adeno\n")
    assert read_classes(tmp_path / "labels.csv", ["a1_7_mask", "a10_3_mask"]) == ([1, 0], ["adeno", "squamous"])
    with pytest.raises(ValueError, match=r"labels\.csv says no class of b2"):
        read_classes(tmp_path / "labels.csv", ["b2"])


@pytest.mark.runs
def test_wrong_data_of_diffinfinite_are_refused_in_one_line(tissue, tmp_path):
    odd = shutil.copytree(tissue / "data", tmp_path / "odd")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(odd / "s0_mask.png")
    codes = shutil.copytree(tissue / "data", tmp_path / "codes")
    Image.fromarray(np.full((80, 72), 9, np.uint8)).save(codes / "s0_mask.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("x")
    vae, out = ("--vae", tissue / "vae"), ("--out", tmp_path / "new")
    for options, said in (
        (("diffinfinite-image", "--data", odd, *vae, *out, *IMAGE), ["s0_mask.png", "(9, 9)", "80 x 72"]),
        (("diffinfinite-image", "--data", tissue / "data", *out, *IMAGE), ["--vae is not given"]),
        (("diffinfinite-image", "--data", tissue / "data", "--vae", odd, *out, *IMAGE), ["--vae", "no autoencoder"]),
        (("diffinfinite-image", "--data", tissue / "data", *vae, *out, *IMAGE, "--labels", "a,b"), ["names 2", "3"]),
        (("diffinfinite-image", "--data", tissue / "data", *vae, *out, *IMAGE, "--window", 80), ["window of 80"]),
        (("diffinfinite-labels", "--data", codes, *vae, *out, *LABELS), ["s0_mask.png", "label 9", "--label-count"]),
        (("diffinfinite-labels", "--data", odd, *vae, *out, *LABELS, "--label-count", 7), ["--label-count is 7"]),
        (
            ("diffinfinite-labels", "--data", tissue / "data", *vae, *out, *LABELS, "--hold-out", 5),
            ["hold-out 5", "half"],
        ),
        (
            ("diffinfinite-image", "--data", tissue / "data", *vae, "--out", tmp_path / "dim", *IMAGE, "--dim", 63),
            ["63"],
        ),
        (("diffinfinite-labels", "--data", tmp_path / "broken", *vae, *out, *LABELS), ["a.png", "cannot be read"]),
    ):
        done = launch(2, *options, module="engine.train")
        assert done.returncode == 1, done.stdout
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ")
        assert all(words in done.stderr for words in said), done.stderr
    assert not (tmp_path / "new").exists()
