from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.diffusion.conditions import LabelMap, SemanticMap
from engine.diffusion.denoiser import Denoiser
from engine.diffusion.schedule import Schedule, betas
from engine.models.folder import load_model
from engine.planning.cover import shifted, windows_of
from engine.planning.geometry import Box
from engine.planning.ownership import Ownership
from engine.planning.plan import plan_level, run_in_lockstep

SCHEDULE = Schedule(tuple(np.cumprod(1 - betas("squaredcos_cap_v2", 1000))), "v_prediction")


def estimates_of(network, labels, guidance, batch_size=5, windows=None, dtype=torch.float32, **settings):
    condition = LabelMap(guidance, labels)
    cover = shifted(labels.shape, 16, 0, 0)

    def ask(ids):
        label_bits = condition.label_bits(cover, ids)
        return label_bits, condition.costs(label_bits)

    (plan,) = run_in_lockstep([plan_level(0, cover, Ownership(labels.shape, (64, 64), 1), ask)])
    if windows is not None:
        order = np.array([plan.window_ids.tolist().index(index) for index in windows])
        plan = replace(plan, window_ids=plan.window_ids[order], label_bits=plan.label_bits[order])
    x = torch.randn(len(cover), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    denoise = Denoiser([network], condition, SCHEDULE, [500], batch_size, dtype=dtype, **settings)
    given = Given(plan, x)
    denoise(plan, given, 0)
    return given.estimates, denoise, plan


class Given:
    """Windows of given latents."""

    def __init__(self, plan, x):
        self.plan, self.x, self.estimates = plan, x, {}

    def read(self, slots, batch, dtype):
        slots = [*slots, *slots[-1:] * (batch - len(slots))]
        return self.x[self.plan.window_ids[slots]].to(dtype).contiguous(memory_format=torch.channels_last)

    def put(self, slot, estimate):
        self.estimates[int(self.plan.window_ids[slot])] = estimate


class Recorder(torch.nn.Module):
    """Answers with the label that it was asked for, and remembers the questions."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x, t, inputs):
        label, mask = inputs["label"], inputs["mask"]
        self.asked += list(zip(label.tolist(), mask.amax((1, 2, 3)).tolist(), strict=True))
        assert len(x) == 5
        return label.float()[:, None, None, None].expand_as(x)


def test_guidance_is_null_plus_weight_times_the_difference_each_latent_by_its_label():
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (3, 4)).numpy().astype(np.uint8).repeat(12, 0).repeat(12, 1)
    network = Recorder()
    estimates, denoise, plan = estimates_of(network, labels, 2.5)
    for index, denoised in estimates.items():
        w = Box(*windows_of(plan.cover, np.array([index]))[0].tolist())
        x = torch.randn(len(plan.cover), 4, 16, 16, generator=torch.Generator().manual_seed(0))[index]
        output = 2.5 * torch.from_numpy(labels[w.y0 : w.y1, w.x0 : w.x1].astype(np.float32))
        from_x, from_output = SCHEDULE.to_denoised(SCHEDULE.alpha_bar[500])
        kept = Box(*plan.cover.core(np.array([index]))[0].tolist()).within(w)
        expected = (x * from_x + output * from_output)[(slice(None), *kept)]
        torch.testing.assert_close(denoised[(slice(None), *kept)], expected)
    assert denoise.evaluations == plan.evaluations
    assert all(mask == (label > 0) for label, mask in network.asked if label == 0 or mask)


def test_chances_of_labels_are_weighed_by_what_a_latent_is_asked_for():
    labels = np.zeros((36, 48), np.uint8)
    labels[:, 20:] = 2
    rows = [[1.0, 2.0, 1.0, 1.0], [1.0] * 4, [0.5, 1.0, 1.0, 4.0]]
    as_they_are, _, plan = estimates_of(Recorder(), labels, 1.0)
    weighed, _, _ = estimates_of(Recorder(), labels, 1.0, label_weights=rows)
    mixed = 0
    for index, (y0, x0, y1, x1) in enumerate(windows_of(plan.cover, np.arange(len(plan.cover))).tolist()):
        kept = Box(*plan.cover.core(np.array([index]))[0].tolist()).within(Box(y0, x0, y1, x1))
        chances = ((as_they_are[index].clamp(-1, 1) + 1) / 2).clamp(min=1e-6).double()
        factors = torch.tensor(rows)[torch.from_numpy(labels[y0:y1, x0:x1].astype(np.int64))].permute(2, 0, 1)
        expected = chances * factors / (chances * factors).sum(0) * 2 - 1
        inside = (slice(None), *kept)
        torch.testing.assert_close(weighed[index][inside], expected.float()[inside])
        mixed += len(np.unique(labels[y0:y1, x0:x1])) == 2
    assert mixed, "no window is asked for two labels"


def test_a_windows_bits_do_not_depend_on_what_lies_beside_it(tiny_model):
    torch.set_num_threads(1)
    network = load_model(tiny_model).network
    labels = np.random.default_rng(0).integers(0, 5, (5, 6)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    whole, _, plan = estimates_of(network, labels, 2.0)
    for chosen in ([3], list(range(2, len(plan.cover))), list(range(len(plan.cover)))[::-1]):
        part, _, _ = estimates_of(network, labels, 2.0, windows=chosen)
        for index in chosen:
            assert torch.equal(part[index], whole[index])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_unknown_label_is_never_guided(tiny_model, guidance):
    network = load_model(tiny_model).network
    labels = np.zeros((32, 32), np.uint8)
    estimates, denoise, plan = estimates_of(network, labels, guidance)
    assert denoise.evaluations == len(plan.cover)
    again, _, _ = estimates_of(network, labels, 9.0)
    assert all(torch.equal(estimates[i], again[i]) for i in estimates)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_of_the_networks_alone(dtype):
    third = torch.full((), 1 / 3, dtype=dtype)
    asked = []

    def network(x, t, inputs):
        asked.extend((x.dtype, inputs["mask"].dtype))
        return third.expand_as(x)

    estimates, _, plan = estimates_of(network, np.ones((32, 32), np.uint8), 1.0, dtype=dtype)
    x = torch.randn(len(plan.cover), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    from_x, from_output = SCHEDULE.to_denoised(SCHEDULE.alpha_bar[500])
    assert set(asked) == {dtype}
    assert all(torch.equal(estimates[i], x[i] * from_x + third.float() * from_output) for i in estimates)


@pytest.mark.parametrize(("latents", "guided_channels"), [(1, 2), (3, None), (1, None)])
def test_a_grey_model_of_the_nuclei_system_is_guided_in_its_variance_too(latents, guided_channels):
    """The system guides the first three channels of the output, whichever they are, or as many as there are."""
    torch.manual_seed(0)
    given, x = torch.rand(2, 16, 16), torch.randn(1, latents, 16, 16)
    weights = torch.randn(2 * latents, 2)

    def network(x, t, inputs):
        return torch.cat([x, x], 1) + torch.einsum("ok,bkhw->bohw", weights, inputs["map"])

    theirs, null = network(x, 0, {"map": given[None]})[0], network(x, 0, {"map": 0 * given[None]})[0]
    theirs[:3] = null[:3] + 1.5 * (theirs[:3] - null[:3])

    condition = SemanticMap(1.5, None, lambda window: given.numpy(), 2)
    cover = shifted((16, 16), 16, 0, 0)
    ask = lambda ids: (np.ones(len(ids), np.uint64), np.full(len(ids), 2))  # noqa: E731
    (plan,) = run_in_lockstep([plan_level(0, cover, Ownership((16, 16), (64, 64), 1), ask)])
    windows = Given(plan, x.expand(len(cover), -1, -1, -1))
    Denoiser([network], condition, SCHEDULE, [500], 3, guided_channels=guided_channels)(plan, windows, 0)
    agree = [torch.allclose(e[latents:], theirs[latents:], atol=1e-5) for e in windows.estimates.values()]
    assert all(agree) == (latents == 3 or guided_channels == 2)
    from_x, from_output = SCHEDULE.to_denoised(SCHEDULE.alpha_bar[500])
    expected = x[0] * from_x + theirs[:latents] * from_output
    assert all(torch.allclose(e[:latents], expected, atol=1e-5) for e in windows.estimates.values())
