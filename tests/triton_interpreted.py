"""Run by test_kernels.py under TRITON_INTERPRET=1: Triton against the oracles on random shapes, offsets and dtypes.

Equal means the same bits. Two things differ by up to 2 units in the last place (ulp), and are compared so: torch's
square root on a CPU is not correctly rounded (Intel's library; 1 ulp), Triton's is; the exponential of the learned
spread is each one's own. With a correctly rounded root in the oracle the noise has the same bits, which is tested.
"""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kernels import philox as oracle
from kernels.fuse import fuse
from kernels.gather import gather
from kernels.noise import draw
from kernels.step import learned_spread, level_step
from kernels.triton import fuse as triton_fuse
from kernels.triton import gather as triton_gather
from kernels.triton import philox as triton_philox
from kernels.triton import step as triton_step
from kernels.values import Field, Guidance, Lines, Rule, Winner

# Without shrinking, which would interpret a failing kernel for minutes.
few = settings(max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
positions = st.integers(-(2**62), 2**62) | st.integers(-70, 70)
sides = st.integers(1, 70)


def same(a, b):
    """Equal bits, but that any two values that are no numbers are equal."""
    kind = {4: torch.int32, 2: torch.int16}[a.element_size()]
    return a.shape == b.shape and bool(((a.view(kind) == b.view(kind)) | (a.isnan() & b.isnan())).all())


def ulps(a, b):
    """How far apart, in the spacing of float32 at the first."""
    return float(((a.double() - b.double()).abs() / torch.from_numpy(np.spacing(a.abs().numpy()))).max())


@triton.jit
def words_kernel(out, keys, y, x, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    found = triton_philox.words(tl.load(keys), tl.load(y + i), tl.load(x + i))
    for lane in tl.static_range(4):
        tl.store(out + lane * COUNT + i, found[lane].to(tl.int64))


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
    st.integers(1, 9), st.integers(1, 9), sides, sides, st.integers(1, 20), st.integers(0, 2), st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.randoms(), positions,
)  # fmt: skip
def test_gather_is_equal_in_every_dtype(channels, windows, height, width, patch, padding, last, dtype, rng, y0):
    canvas = torch.randn(channels, height, width, generator=torch.Generator().manual_seed(rng.randrange(99)))
    canvas[0, 0, 0], canvas[-1, -1, -1] = torch.nan, torch.inf
    corners = torch.tensor([[rng.randint(-9, height), rng.randint(-9, width)] for _ in range(windows)])
    origin = (y0, -y0)
    moved, batch = corners + torch.tensor(origin), windows + padding
    expected = gather(canvas, moved, patch, batch, dtype, origin=origin, channels_last=last)
    found = torch.zeros_like(expected)
    triton_gather.gather_into(found, canvas, corners)
    assert same(expected, found)


def weights_of(kind, windows, patch, shape, make):
    if kind == "lines":
        which = torch.randint(0, 3, (windows, 2), generator=make)
        return Lines(torch.rand(3, patch, generator=make), torch.rand(3, patch, generator=make), which)
    if kind == "winner":
        number = torch.randperm(windows, generator=make) + 50
        return Winner(torch.randint(50, 50 + windows, shape, generator=make, dtype=torch.int32), number)
    return None


@few
@given(
    st.sampled_from(["lines", "winner", "one"]), st.integers(1, 9), st.integers(1, 12), sides, sides,
    st.integers(1, 30), st.integers(0, 999), positions, st.sampled_from([torch.float32, torch.float16]),
)  # fmt: skip
def test_fusion_is_equal_in_float32(kind, channels, windows, height, width, patch, seed, y0, dtype):
    make = torch.Generator().manual_seed(seed)
    low = torch.tensor([y0, 7 - y0])
    span = torch.tensor([height, width]) + patch
    corners = (torch.rand(windows, 2, generator=make) * span).long() - patch
    cut = (torch.rand(windows, 4, generator=make) * (patch // 2 + 1)).long()
    keep = torch.cat([corners + cut[:, :2], corners + patch - cut[:, 2:]], 1)
    estimates = torch.randn(windows, channels, patch, patch, generator=make).to(dtype)
    weights = weights_of(kind, windows, patch, (height, width), make)
    box = (*low.tolist(), *(low + torch.tensor([height, width])).tolist())
    expected = fuse(estimates, corners + low, keep + low.repeat(2), box, weights)
    found = torch.full_like(expected, torch.nan)
    triton_fuse.fuse_into(found, estimates, corners, keep, weights)
    assert same(expected, found)


def updated(channels, height, width, guided, rule, seed=0):
    """What the oracle gives and what Triton gives: (x, history) each, and the inputs."""
    make = torch.Generator().manual_seed(seed)
    both = 2 * channels if rule.log_variance else channels
    x, previous = torch.randn(2, channels, height, width, generator=make)
    estimate, conditional = torch.randn(2, both, height, width, generator=make)
    labels = torch.randint(0, 4, (height, width), generator=make, dtype=torch.uint8)
    guidance = Guidance(conditional, labels, torch.tensor([0, 1, 2.5, 7])) if guided else None
    expected = level_step(x, estimate, previous, rule, guidance)
    history = None if expected[1] is None else expected[1].clone().fill_(torch.nan) if guided else expected[1]
    found = torch.full_like(x, torch.nan)
    triton_step.step_into(found, history, x, estimate, previous, rule, guidance)
    return expected, (found, history)


numbers = st.floats(-2, 2, width=32)


@few
@given(
    st.integers(1, 9), sides, sides, st.booleans(), st.booleans(), st.tuples(numbers, numbers, numbers, numbers),
    st.none() | st.floats(0.1, 1.5), st.integers(0, 99),
)  # fmt: skip
def test_step_without_noise_is_equal(channels, height, width, guided, keep, abce, clip, seed):
    a, b, c, e = abce
    rule = Rule((a, b, c, 0.0, e), clip, keep=keep)
    expected, found = updated(channels, height, width, guided, rule, seed)
    assert same(expected[0], found[0])
    assert (expected[1] is None) == (not keep)
    assert not keep or same(expected[1], found[1])


@pytest.mark.parametrize("guided", [False, True])
def test_step_with_noise_is_equal_where_the_root_is_correctly_rounded(guided):
    rule = Rule((0.9, 0.3, -0.2, 0.25, 0.05), 1.0, noise=Field(1, "step", 3, -40, 2**40))
    expected, found = updated(6, 20, 150, guided, rule)
    assert same(expected[0], found[0])


@few
@given(fields, st.booleans(), st.floats(-25, -1), st.floats(0.1, 12))
def test_step_with_learned_spread_is_within_2_ulp_of_its_largest_term(field, guided, least, span):
    rule = Rule((0.0, 0.0, 0.0, 0.0, 0.0), None, (least, least + span), field)
    expected, found = updated(3, 9, 33, guided, rule)
    assert float((expected[0] - found[0]).abs().max()) <= 2 * float(np.spacing(expected[0].abs().max().numpy()))


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


def test_spread_is_within_2_ulp_of_its_exponent_rounded():
    words = torch.linspace(-1.2, 1.2, 4096).reshape(1, 1, -1)
    out = torch.empty_like(words)
    spread_kernel[(1,)](out, words, -9.2, -4.5, COUNT=4096)
    assert ulps(learned_spread(words, (-9.2, -4.5)), out) <= 2


@triton.jit
def spread_kernel(out, words, least, most, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(out + i, triton_step.spread_of(tl.load(words + i), least, most))
