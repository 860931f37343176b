"""Solvers against a problem whose answer is known: Gaussian data N(mean, spread^2), for which the exact estimate of
the clean value is linear in x, so that a whole run is an affine map that can be followed in float64."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.diffusion.schedule import Schedule, betas
from engine.diffusion.solvers import SOLVERS, asked_at, ddim, ddpm, dpmpp2m, euler, inversion, plms, steps_of
from engine.distributed.canvas import keep, weighted
from kernels.step import step as kernel_step

MEAN, SPREAD = 0.7, 0.4


def log_snr_levels(n, low=-4.0, high=3.0):
    """alpha_bar of n levels evenly spaced in log signal-to-noise ratio, and the last one's target."""
    lam = np.linspace(low, high, n + 1)
    alpha_bar = 1 / (1 + np.exp(-2 * lam))
    return alpha_bar[:-1], alpha_bar[-1]


def denoiser(alpha_bar):
    """Exact E[x0 | x] = k x + m for Gaussian data."""
    k = np.sqrt(alpha_bar) * SPREAD**2 / (alpha_bar * SPREAD**2 + 1 - alpha_bar)
    return k, MEAN - k * np.sqrt(alpha_bar) * MEAN


def exact_flow(x, start, end):
    """The probability flow of Gaussian data carries quantiles to quantiles."""
    s0 = np.sqrt(start * SPREAD**2 + 1 - start)
    s1 = np.sqrt(end * SPREAD**2 + 1 - end)
    return np.sqrt(end) * MEAN + (x - np.sqrt(start) * MEAN) * s1 / s0


def followed(x, alpha_bar, table):
    """Values of the canvas after a table of steps, with the exact estimates."""
    kept = []
    for ab, s in zip(alpha_bar, table, strict=True):
        k, m = denoiser(ab)
        denoised = k * x + m
        own = [s.keeps[0] * x + s.keeps[1] * denoised] if s.keeps else []
        x = s.a * x + (s.b + s.e) * denoised + sum(h * one for h, one in zip(s.history, kept, strict=True))
        kept = [*own, *kept][: s.depth]
    return x


def flow_error(solver, n):
    """Largest error of a run on the open interval (the last, exact, level to alpha_bar 1 is left out)."""
    alpha_bar, end = log_snr_levels(n)
    if solver is plms:
        alpha_bar = asked_at("plms", alpha_bar)
    table = solver([*alpha_bar, end])[: len(alpha_bar)]
    x0 = np.linspace(-2, 2, 9)
    return np.abs(followed(x0, alpha_bar, table) - exact_flow(x0, alpha_bar[0], end)).max()


@pytest.mark.parametrize(
    ("solver", "order"),
    [(lambda ab: ddim(ab, 0.0), 1), (euler, 1), (dpmpp2m, 2), (plms, 2)],
    ids=["ddim", "euler", "dpmpp2m", "plms"],
)
def test_solver_error_falls_with_its_order_when_steps_double(solver, order):
    errors = [flow_error(solver, n) for n in (40, 80, 160)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(rates - order) < 0.25), (errors, rates)


@pytest.mark.parametrize(
    "table_of", [lambda ab: ddim(ab, 1.0), lambda ab: ddim(ab, 0.5), ddpm], ids=["eta1", "eta.5", "ddpm"]
)
def test_stochastic_solvers_reach_the_datas_mean_and_variance_with_first_order(table_of):
    errors = []
    for n in (50, 100, 200):
        alpha_bar, end = log_snr_levels(n)
        mean, variance = np.sqrt(alpha_bar[0]) * MEAN, alpha_bar[0] * SPREAD**2 + 1 - alpha_bar[0]
        for ab, s in zip(alpha_bar, table_of([*alpha_bar, end])[:n], strict=True):
            k, m = denoiser(ab)
            gain = s.a + (s.b + s.e) * k
            mean, variance = gain * mean + (s.b + s.e) * m, gain**2 * variance + s.d**2
        errors.append(abs(variance - (end * SPREAD**2 + 1 - end)))
        assert abs(mean - np.sqrt(end) * MEAN) < 0.02
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(rates - 1) < 0.25), (errors, rates)


def test_euler_is_ddim_without_noise_in_other_coordinates():
    alpha_bar, _ = log_snr_levels(20)
    for a, b in zip(euler(alpha_bar), ddim(alpha_bar, 0.0, rederive_noise=True), strict=True):
        np.testing.assert_allclose([a.a, a.b], [b.a, b.b], atol=1e-12)


def test_the_last_level_ends_at_the_clean_estimate():
    alpha_bar = Schedule(tuple(np.cumprod(1 - betas("squaredcos_cap_v2", 1000)))).alpha_bar
    for name in SOLVERS:
        last = steps_of(name, [alpha_bar[t] for t in (999, 500, 20)][: 1 if name == "plms" else 3], 0.0, True)[-1]
        if name == "plms":  # of one level, it is ddim without clipping
            last = replace(last, b=last.e)
        assert abs(last.a) < 1e-12
        assert abs(last.b - 1) < 1e-12
        assert last.d == 0


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_an_estimate_is_kept_where_the_next_level_reads_it_and_nowhere_else(count):
    alpha_bar = tuple(np.cumprod(1 - betas("linear", 1000)))
    levels = Schedule(alpha_bar).timesteps(count)
    for name in SOLVERS:
        steps = steps_of(name, [alpha_bar[t] for t in asked_at(name, levels)], 0.0, False)
        assert [step.depth for step in steps] == [len(step.history) for step in steps[1:]] + [0]
        assert max(step.depth for step in steps) == {"dpmpp2m": min(count // 3, 1), "plms": min(count - 1, 3)}.get(
            name, 0
        )
        kept = 0
        for step in steps:
            assert len(step.history) == kept
            kept = min(kept + (step.keeps is not None), step.depth)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 999, 1000])
def test_levels_fall_strictly_whatever_their_number(spacing, steps):
    alpha_bar = tuple(np.cumprod(1 - betas("linear", 1000)))
    schedule = Schedule(alpha_bar, spacing=spacing, steps_offset=1)
    levels = schedule.timesteps(steps)
    assert len(levels) == steps
    assert (np.diff(levels) < 0).all()
    assert 0 <= levels.min() <= levels.max() <= 999
    assert all(np.isfinite([s.a, s.b, *s.history]).all() for s in dpmpp2m([alpha_bar[t] for t in levels]))


def run_ours(name, config, steps, eta, x, outputs, noises, diffusers_timesteps):
    schedule = Schedule.from_config(config)
    timesteps = asked_at(name, schedule.timesteps(steps))
    np.testing.assert_array_equal(timesteps, diffusers_timesteps)
    alpha_bar = [schedule.alpha_bar[t] for t in timesteps]
    table = steps_of(name, alpha_bar, eta, schedule.rederive_noise, final=schedule.final)
    history = []
    for ab, s, output, noise in zip(alpha_bar, table, outputs, noises, strict=True):
        from_x, from_output = schedule.to_denoised(ab)
        denoised = x * from_x + output * from_output
        kept, c = weighted(history, s.history)
        own = [keep(x, denoised, s.keeps)] if s.keeps else []
        x = kernel_step(x, denoised, kept, noise, (s.a, s.b, c, s.d, s.e), schedule.clip)
        history = [*own, *history][: s.depth]
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(
    ("ours", "theirs", "eta", "spacing", "clip"),
    [
        ("ddim", "DDIMScheduler", 0.0, "leading", False),
        ("ddim", "DDIMScheduler", 1.0, "trailing", True),
        ("ddim", "DDIMScheduler", 0.3, "leading", True),
        ("ddpm", "DDPMScheduler", 0.0, "trailing", True),
        ("dpmpp2m", "DPMSolverMultistepScheduler", 0.0, "leading", False),
        ("plms", "PNDMScheduler", 0.0, "leading", False),
    ],
)
@pytest.mark.parametrize("to_one", [True, False])
def test_solvers_agree_with_diffusers(ours, theirs, eta, spacing, clip, schedule, prediction, to_one, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    if not to_one and theirs in ("DDPMScheduler", "DPMSolverMultistepScheduler"):
        pytest.skip("theirs has no such setting")
    if not to_one and prediction == "sample":
        pytest.skip("their float32 alpha_bar leaves too few digits of the noise that is left")
    if ours == "plms" and prediction != "epsilon":
        pytest.skip("theirs keeps the network's output, latent diffusion's and ours the noise")
    steps = 20
    config = {
        "beta_schedule": schedule,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "clip_sample": clip,
        "steps_offset": 1 if spacing == "leading" else 0,
        "set_alpha_to_one": to_one,
    }
    unknown = {
        "DPMSolverMultistepScheduler": {"clip_sample", "set_alpha_to_one"},
        "DDPMScheduler": {"set_alpha_to_one"},
    }
    known = {
        k: v
        for k, v in config.items()
        if k not in unknown.get(theirs, ()) and not (ours == "plms" and k == "clip_sample")
    }
    extra = {"dpmpp2m": {"final_sigmas_type": "zero"}, "plms": {"skip_prk_steps": True}}.get(ours, {})
    scheduler = getattr(diffusers, theirs)(**known, **extra)
    scheduler.set_timesteps(steps)
    if ours == "dpmpp2m":  # its spacings differ by a level from the others': the update is what is compared
        monkeypatch.setattr(Schedule, "timesteps", lambda self, n: scheduler.timesteps.numpy())
    generator = torch.Generator().manual_seed(0)
    x = start = torch.randn(1, 3, 8, 8, generator=generator, dtype=torch.float64)
    levels = len(scheduler.timesteps)
    outputs = torch.randn(levels, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    noises = torch.randn(levels, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    for t, output, noise in zip(scheduler.timesteps, outputs, noises, strict=True):
        extra: dict = {}
        if ours == "ddim":
            extra = {"eta": eta, "variance_noise": noise if eta else None}
        if ours == "ddpm":
            monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, noise=noise, **k: noise)
        x = scheduler.step(output, t, x, **extra).prev_sample
    mine = run_ours(ours, config, steps, eta, start, outputs, noises, scheduler.timesteps.numpy())
    scale = float(x.abs().max())
    assert float((mine - x).abs().max()) < 2e-5 * scale


# ---- as the published systems have it -----------------------------------------------------------------


def test_the_noise_of_large_image_diffusion_is_that_of_one_timestep():
    """Their panorama, 50 levels of 1000: beta of the level's timestep times (1 - ab of 20 before) / (1 - ab)."""
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "rederive_noise": True}
    config |= {"timestep_spacing": "trailing", "eta_variance": "one_timestep"}
    beta = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    ab = np.cumprod(1 - beta)
    theirs = [beta[t - 1] * (1 - ab[t - 21]) / (1 - ab[t - 1]) if t > 20 else 0.0 for t in range(1000, 0, -20)]
    schedule = Schedule.from_config(config)
    timesteps = schedule.timesteps(50)
    alpha_bar, of_one = schedule.alpha_bars(timesteps), schedule.eta_betas(timesteps)
    ours = [step.d**2 for step in steps_of("ddim", alpha_bar, 1.0, True, betas=of_one)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-15)
    half = [step.d**2 for step in steps_of("ddim", alpha_bar, 0.5, True, betas=of_one)]
    np.testing.assert_allclose(half, np.array(theirs) / 2, rtol=1e-9, atol=1e-15)
    for step, after, variance in zip(
        steps_of("ddim", alpha_bar, 1.0, True, betas=of_one), alpha_bar[1:], theirs, strict=False
    ):
        kept = step.a * np.sqrt(1 - alpha_bar[alpha_bar.index(after) - 1])
        np.testing.assert_allclose(kept**2, 1 - after - variance, rtol=1e-9)
    posterior = [step.d**2 for step in steps_of("ddim", alpha_bar, 1.0, True)][:-1]
    ratios = np.array(posterior) / theirs[:-1]
    assert 16 < ratios.min() < ratios.max() < 19, "what eta 1 gave before"


def of_guided_diffusion(total, said):
    """guided-diffusion's timesteps for "ddimN" or "a,b,c", from the description of its respacing."""
    if said.startswith("ddim"):
        fits = [set(range(0, total, s)) for s in range(1, total + 1) if len(range(0, total, s)) == int(said[4:])]
        return sorted(fits[0], reverse=True)
    counts = [int(part) for part in said.split(",")]
    parts = np.array_split(np.arange(total), len(counts))
    taken = []
    for part, count in zip(parts, counts, strict=True):
        at, stride = 0.0, (len(part) - 1) / (count - 1) if count > 1 else 1
        for _ in range(count):
            taken.append(int(part[round(at)]))
            at += stride
    return taken[::-1]


@pytest.mark.parametrize("total", [1000, 500, 7])
def test_the_smallest_stride_is_taken_that_gives_exactly_so_many_levels(total):
    schedule = Schedule(tuple(np.linspace(0.9, 0.1, total)), spacing="smallest_stride")
    leading = Schedule(schedule.alpha_bar, spacing="leading")
    strides = {len(range(0, total, stride)) for stride in range(1, total + 1)}
    for steps in range(1, total + 1):
        if steps in strides:
            assert schedule.timesteps(steps).tolist() == of_guided_diffusion(total, f"ddim{steps}")
        else:
            with pytest.raises(ValueError, match=f"`steps` is {steps}, which no stride .* choose (\\d+) or"):
                schedule.timesteps(steps)
        if total % steps == 0:
            assert (schedule.timesteps(steps) == leading.timesteps(steps)).all(), "these jobs keep their bytes"
    if total == 1000:
        assert schedule.timesteps(6).tolist() == [835, 668, 501, 334, 167, 0]
        assert leading.timesteps(6).tolist() == [830, 664, 498, 332, 166, 0]


@pytest.mark.parametrize("said", ["10,15,20", "250", "1,1,1", "334,333,333", "7,1", "999"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "smallest_stride"])
def test_levels_in_sections_are_those_of_guided_diffusion(said, spacing):
    schedule = Schedule(tuple(np.linspace(0.9, 0.1, 1000)), spacing=spacing)
    sections = tuple(map(int, said.split(",")))
    assert schedule.timesteps(sum(sections), sections).tolist() == of_guided_diffusion(1000, said)


def test_more_levels_than_a_section_has_timesteps_are_refused():
    schedule = Schedule(tuple(np.linspace(0.9, 0.1, 1000)))
    with pytest.raises(ValueError, match="334 levels in part 2 of 3, which has 333"):
        schedule.timesteps(354, (10, 334, 10))


@pytest.mark.parametrize("back", [lambda ab: ddim(ab, 0.0), euler, dpmpp2m], ids=["ddim", "euler", "dpmpp2m"])
def test_an_inverted_canvas_comes_back_the_nearer_the_more_levels(back):
    schedule = Schedule(tuple(np.cumprod(1 - betas("scaled_linear", 1000, 0.0015, 0.0195)).tolist()))
    x0, errors = np.linspace(-0.5, 2, 9), []
    for steps in (25, 50, 100):
        alpha_bar = schedule.alpha_bars(schedule.timesteps(steps))
        noise = followed(x0, alpha_bar[::-1], inversion(alpha_bar[::-1]))
        assert np.ptp(noise) > 2 * np.ptp(x0), "as wide as noise is"
        errors.append(np.abs(followed(noise, alpha_bar, back(alpha_bar)) - x0).max())
    assert errors[0] < 0.3
    assert all(after < 0.7 * before for before, after in itertools.pairwise(errors)), errors


def test_an_inversion_leads_where_ddim_leads_back_from():
    """Where the network predicts one noise at every level, each level is the clean value with as much of that noise."""
    alpha_bar = np.array([0.9, 0.5, 0.2, 0.01])
    x0, noise = 0.3, -1.1
    x = x0
    for ab, s in zip(alpha_bar, inversion(alpha_bar), strict=True):
        denoised = (x - np.sqrt(1 - ab) * noise) / np.sqrt(ab)  # what the schedule makes of the network's output
        x = s.a * x + s.e * denoised
        assert s.b == s.d == 0
        assert not s.history
        np.testing.assert_allclose(x, np.sqrt(ab) * x0 + np.sqrt(1 - ab) * noise, rtol=1e-12)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("shift", [0.02, 0.5, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("steps", [1, 2, 25, 333, 1000])
def test_shifted_timesteps_are_as_many_inside_and_apart(spacing, shift, steps):
    schedule = Schedule.from_config({"timestep_spacing": spacing, "timestep_shift": shift})
    timesteps = schedule.timesteps(steps)
    assert len(timesteps) == steps
    assert (np.diff(timesteps) < 0).all()
    assert set(timesteps) <= set(range(1000))
    even = replace(schedule, timestep_shift=1.0).timesteps(steps)
    moved = timesteps - even
    assert (moved >= 0).all() if shift >= 1 else (moved <= 0).all()
    if steps in (25, 333):
        assert moved.any() == (shift != 1)
