"""Run by test_kernels.py under TRITON_INTERPRET=1: Triton against the oracles on random shapes, offsets and dtypes.

Equal means the same bits. One operation differs by up to 2 units in the last place (ulp) and is compared so: the
exponential of the predicted std, for which torch and Triton have each their own.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kernels import philox as oracle
from kernels.fuse import fuse
from kernels.gather import gather
from kernels.noise import draw
from kernels.step import level_step, predicted_std
from kernels.triton import fuse as triton_fuse
from kernels.triton import gather as triton_gather
from kernels.triton import philox as triton_philox
from kernels.triton import step as triton_step
from kernels.values import Field, SeparableWeights, Update, WinnerMap

# Without shrinking, which would interpret a failing kernel for minutes.
few = settings(max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
positions = st.integers(-(2**62), 2**62) | st.integers(-70, 70)
sides = st.integers(1, 70)


def same(a, b):
    """Equal bits, but that any two values that are no numbers are equal."""
    kind = {4: torch.int32, 2: torch.int16}[a.element_size()]
    return a.shape == b.shape and bool(((a.view(kind) == b.view(kind)) | (a.isnan() & b.isnan())).all())


def ulps(a, b):
    """The largest difference, in units of the spacing of float32 at ``a``."""
    return float(((a.double() - b.double()).abs() / torch.from_numpy(np.spacing(a.abs().numpy()))).max())


@triton.jit
def words_kernel(out, keys, y, x, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    words = triton_philox.words(tl.load(keys), tl.load(y + i), tl.load(x + i))
    for lane in tl.static_range(4):
        tl.store(out + lane * COUNT + i, words[lane].to(tl.int64))


@few
@given(st.integers(0, 2**64 - 1), st.lists(st.tuples(positions, positions), min_size=8, max_size=8))
def test_philox_integers_are_equal_at_64_bit_positions(seed, places):
    y, x = torch.tensor(places).T.contiguous()
    out = torch.empty(4, 8, dtype=torch.int64)
    words_kernel[(1,)](out, triton_philox.stream_keys(Field(seed, "step", 3), 4, y.device), y, x, COUNT=8)
    mask = oracle.MASK
    counter = torch.stack([y & mask, (y >> 32) & mask, x & mask, (x >> 32) & mask])
    assert torch.equal(out, oracle.philox(counter, oracle.stream_key(seed, "step", 3, 0)))


def drawn(field, channels, height, width):
    out = torch.full((channels, height, width), torch.nan)
    triton_philox.draw_into(out, field)
    return out


fields = st.builds(
    Field, st.integers(0, 2**63 - 1), st.sampled_from(["initial", "step"]), st.just(5), positions, positions
)


@few
@given(fields, st.integers(1, 9), sides, sides)
def test_noise_is_equal_at_any_position(field, channels, height, width):
    assert same(draw(field, channels, height, width), drawn(field, channels, height, width))


def test_noise_is_equal_in_every_number_of_channels():
    for shape in [(4, 64, 200), (6, 33, 1), (1, 1, 130)]:
        field = Field(9, "step", 2, -(2**40), 2**33 - 5)
        assert same(draw(field, *shape), drawn(field, *shape))


@few
@given(
    st.integers(1, 9), st.integers(1, 9), sides, sides, st.integers(1, 20), st.integers(0, 2),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.randoms(), positions,
)  # fmt: skip
def test_gather_is_equal_in_every_dtype(channels, windows, height, width, patch, padding, dtype, rng, y0):
    canvas = torch.randn(channels, height, width, generator=torch.Generator().manual_seed(rng.randrange(99)))
    canvas[0, 0, 0], canvas[-1, -1, -1] = torch.nan, torch.inf
    corners = torch.tensor([[rng.randint(-9, height), rng.randint(-9, width)] for _ in range(windows)])
    origin = (y0, -y0)
    moved, batch = corners + torch.tensor(origin), windows + padding
    expected = gather(canvas, moved, patch, batch, dtype, origin=origin)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    out = torch.zeros_like(expected)
    triton_gather.gather_into(out, canvas, corners)
    assert same(expected, out)


def weights_of(kind, windows, patch, shape, make):
    if kind == "separable":
        return SeparableWeights(torch.rand(windows, patch, generator=make), torch.rand(windows, patch, generator=make))
    if kind == "winner":
        return WinnerMap(torch.randint(-1, windows, shape, generator=make, dtype=torch.int32))
    return None


@few
@given(
    st.sampled_from(["separable", "winner", "one"]), st.integers(1, 9), st.integers(1, 12), sides, sides,
    st.integers(1, 30), st.integers(0, 999), positions, st.sampled_from([torch.float32, torch.float16]),
)  # fmt: skip
def test_fusion_is_equal_in_float32(kind, channels, windows, height, width, patch, seed, y0, dtype):
    make = torch.Generator().manual_seed(seed)
    low = torch.tensor([y0, 7 - y0])
    span = torch.tensor([height, width]) + patch
    corners = (torch.rand(windows, 2, generator=make) * span).long() - patch
    cut = (torch.rand(windows, 4, generator=make) * (patch // 2 + 1)).long()
    used = torch.cat([corners + cut[:, :2], corners + patch - cut[:, 2:]], 1)
    estimates = torch.randn(windows, channels, patch, patch, generator=make).to(dtype)
    weights = weights_of(kind, windows, patch, (height, width), make)
    box = (*low.tolist(), *(low + torch.tensor([height, width])).tolist())
    expected = fuse(estimates, corners + low, used + low.repeat(2), box, weights)
    out = torch.full_like(expected, torch.nan)
    triton_fuse.fuse_into(out, estimates, corners, used, weights)
    assert same(expected, out)


def updated(channels, height, width, update, seed=0):
    """What the oracle gives, and what Triton gives."""
    make = torch.Generator().manual_seed(seed)
    x, previous = torch.randn(2, channels, height, width, generator=make)
    estimate = torch.randn(2 * channels if update.log_variance else channels, height, width, generator=make)
    expected = level_step(x, estimate, previous, update)
    out = torch.full_like(x, torch.nan)
    triton_step.step_into(out, x, estimate, previous, update)
    return expected, out


numbers = st.floats(-2, 2, width=32)


@few
@given(
    st.integers(1, 9), sides, sides, st.tuples(numbers, numbers, numbers, numbers),
    st.none() | st.floats(0.1, 1.5), st.integers(0, 99),
)  # fmt: skip
def test_step_without_noise_is_equal(channels, height, width, abce, clip, seed):
    a, b, c, e = abce
    expected, out = updated(channels, height, width, Update((a, b, c, 0.0, e), clip), seed)
    assert same(expected, out)


@few
@given(fields, st.integers(1, 9), st.none() | st.floats(0.1, 1.5))
def test_step_with_noise_is_equal(field, channels, clip):
    expected, out = updated(channels, 20, 150, Update((0.9, 0.3, -0.2, 0.25, 0.05), clip, noise=field))
    assert same(expected, out)


@few
@given(fields, st.integers(1, 9), st.floats(-25, -1), st.floats(0.1, 12))
def test_step_with_predicted_std_is_within_2_ulp_of_its_largest_term(field, channels, least, span):
    update = Update((0.0, 0.0, 0.0, 0.0, 0.0), None, (least, least + span), field)
    expected, out = updated(channels, 9, 33, update)
    assert float((expected - out).abs().max()) <= 2 * float(np.spacing(expected.abs().max().numpy()))


def test_step_stays_inside_a_canvas_that_fills_no_tile():
    x, estimate = torch.randn(2, 5, 33, 131)
    out = torch.full((7, 33, 131), torch.nan)
    triton_step.step_into(out[1:6], x, estimate, None, Update((1.0, 1.0, 0.0, 0.0, 0.0)))
    assert same(out[1:6], x + estimate)
    assert out[0].isnan().all()
    assert out[6].isnan().all()


@triton.jit
def exp_kernel(out, values, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(out + i, triton_step.exp(tl.load(values + i)))


def test_exponential_is_within_2_ulp():
    values = torch.linspace(-40, 40, 8192)
    out = torch.empty_like(values)
    exp_kernel[(1,)](out, values, COUNT=8192)
    assert ulps(torch.exp(values.double()).float(), out) <= 1
    assert ulps(torch.exp(values), out) <= 2


def test_predicted_std_is_within_2_ulp():
    predictions = torch.linspace(-1.2, 1.2, 4096).reshape(1, 1, -1)
    out = torch.empty_like(predictions)
    std_kernel[(1,)](out, predictions, -9.2, -4.5, COUNT=4096)
    assert ulps(predicted_std(predictions, (-9.2, -4.5)), out) <= 2


@triton.jit
def std_kernel(out, predictions, least, most, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(out + i, triton_step.std_of(tl.load(predictions + i), least, most))
