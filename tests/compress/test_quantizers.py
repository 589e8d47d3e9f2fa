import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from nearpeak.compress.quantizers import (  # noqa: E402
    BITS,
    GROUPS,
    Scheme,
    code_range,
    dequantize,
    is_finite,
    quantize,
    relative_error,
    scales,
)
from nearpeak.compress.rtn import nearest  # noqa: E402
from nearpeak.errors import UsageError  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
QUOTIENT = 128 * 2.0**-23  # rounding of w / s in float32, in steps
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

schemes = st.builds(Scheme, st.sampled_from(BITS), st.sampled_from(GROUPS))


@st.composite
def weights(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.integers(1, 5)), 128 * draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.sampled_from([1e-2, 1.0, 30.0]))
    weight = torch.randn(shape, generator=generator) * size
    weight[torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.99]))] = 0
    return weight.to(dtype)


@settings(deadline=None, max_examples=60)
@given(weights(), schemes)
def test_no_weight_moves_by_more_than_half_a_step_and_the_rounding_of_the_scale(weight, scheme):
    codes, scale = nearest(weight, scheme)
    half = (2**scheme.bits - 1) / 2
    absmax = weight.double().abs().view(*scale.shape, -1).amax(dim=-1)
    rounded = torch.where(absmax > 0, (absmax / half / scale.double() - 1).abs(), 0)
    normal = absmax / half >= torch.finfo(weight.dtype).smallest_normal
    assert (rounded[normal] <= 1.01 * ROUNDING[weight.dtype]).all()
    step, rounded = (x.repeat_interleave(weight.shape[1] // x.shape[1], dim=1) for x in (scale.double(), rounded))
    moved = (weight.double() - codes.double() * step).abs()
    assert (moved <= step * (0.5 + rounded * half + QUOTIENT)).all()
    low, high = code_range(scheme.bits)
    assert codes.min() >= low
    assert codes.max() <= high


@settings(deadline=None, max_examples=60)
@given(weights(), schemes)
def test_no_other_code_is_nearer(weight, scheme):
    codes, scale = nearest(weight, scheme)
    step = scale.double().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    low, high = code_range(scheme.bits)
    moved = (weight.double() - codes.double() * step).abs()
    for other in (codes.double() - 1, codes.double() + 1):
        inside = (other >= low) & (other <= high)
        assert (moved[inside] <= (weight.double() - other * step).abs()[inside] + 2 * QUOTIENT * step[inside]).all()


def _peer(scheme):
    ct = pytest.importorskip("compressed_tensors.quantization")
    strategy = {"strategy": "channel"} if scheme.group == -1 else {"strategy": "group", "group_size": scheme.group}
    return ct.QuantizationArgs(num_bits=scheme.bits, type="int", symmetric=True, **strategy)


@settings(deadline=None, max_examples=40)
@given(weights(), schemes)
def test_scales_equal_those_of_compressed_tensors(weight, scheme):
    args = _peer(scheme)
    from compressed_tensors.quantization.utils import calculate_qparams

    low, high = weight.view(len(weight), scheme.groups(weight.shape[1]), -1).aminmax(dim=-1)
    expected, _ = calculate_qparams(low, high, args)
    assert torch.equal(scales(weight, scheme), expected)


@settings(deadline=None, max_examples=40)
@given(weights(), schemes)
def test_codes_and_the_way_back_equal_those_of_compressed_tensors(weight, scheme):
    args = _peer(scheme)
    from compressed_tensors.quantization.lifecycle.forward import dequantize as peer_dequantize
    from compressed_tensors.quantization.lifecycle.forward import quantize as peer_quantize

    scale = scales(weight, scheme)
    codes = quantize(weight, scale, scheme.bits)
    expected = peer_quantize(weight.float(), scale.float(), torch.zeros_like(scale.float()), args, dtype=torch.int8)
    assert torch.equal(codes, expected)
    assert torch.equal(dequantize(codes, scale), peer_dequantize(codes, scale, args=args))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_of_zeros_stays_zero(dtype):
    weight = torch.zeros(2, 64, dtype=dtype)
    weight[0, 32:] = 1
    codes, scale = nearest(weight, Scheme(4, 32))
    assert (scale > 0).all()
    assert torch.equal(dequantize(codes, scale)[0, :32], weight[0, :32])
    assert torch.equal(dequantize(codes, scale)[1], weight[1])


def test_blocks_of_rows_change_nothing():
    weight = torch.randn(3000, 512, generator=torch.Generator().manual_seed(1))  # more than one block
    scheme = Scheme(4, 128)
    codes, scale = nearest(weight, scheme)
    assert torch.equal(scale, scales(weight, scheme))
    assert torch.equal(codes, quantize(weight, scale, 4))
    expected = torch.linalg.norm((weight - dequantize(codes, scale)).double()) / torch.linalg.norm(weight.double())
    assert relative_error(weight, codes, scale) == pytest.approx(float(expected), rel=1e-6)


def test_relative_error_of_uniform_weights_is_that_of_uniform_rounding():
    weight = torch.rand(256, 4096, generator=torch.Generator().manual_seed(2)) * 2 - 1
    codes, scale = nearest(weight, Scheme(8, -1))
    # step s = 2/255, rounding error uniform in +-s/2: s / sqrt(12), over a root mean square of 1/sqrt(3)
    assert relative_error(weight, codes, scale) == pytest.approx((2 / 255) / 12**0.5 * 3**0.5, rel=0.01)
    assert relative_error(torch.zeros(2, 32), *nearest(torch.zeros(2, 32), Scheme(4, 32))) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_weight_that_is_not_finite_is_found(value, dtype):
    weight = torch.randn(33, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert is_finite(weight)
    weight[17, 5] = value
    assert not is_finite(weight)


@pytest.mark.parametrize(("bits", "group", "named"), [(3, 128, "bits=3"), (16, 128, "bits=16"), (4, 100, "group=100")])
def test_a_scheme_that_engines_do_not_load_is_refused(bits, group, named):
    with pytest.raises(UsageError, match=named):
        Scheme(bits, group)
