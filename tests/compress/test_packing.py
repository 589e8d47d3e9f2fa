import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from nearpeak.compress.packing import pack, unpack, words  # noqa: E402
from nearpeak.compress.quantizers import BITS, code_range  # noqa: E402
from nearpeak.errors import UsageError  # noqa: E402


@st.composite
def coded(draw):
    bits = draw(st.sampled_from(BITS))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 80))
    low, high = code_range(bits)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(low, high + 1, (rows, columns), generator=generator).to(torch.int8), bits


@settings(deadline=None)
@given(coded())
def test_unpack_undoes_pack(case):
    codes, bits = case
    packed = pack(codes, bits)
    assert packed.shape == (codes.shape[0], words(codes.shape[1], bits))
    assert torch.equal(unpack(packed, bits, codes.shape[1]), codes)


@settings(deadline=None)
@given(coded())
def test_a_row_is_a_little_endian_stream_of_bits(case):
    codes, bits = case
    packed = pack(codes, bits)
    for row, stored in zip(codes.tolist(), packed, strict=True):
        stream = sum((code + 2 ** (bits - 1)) << k * bits for k, code in enumerate(row))
        assert stored.numpy().tobytes() == stream.to_bytes(4 * len(stored), "little")


@settings(deadline=None)
@given(coded())
def test_words_equal_those_of_compressed_tensors(case):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes, bits = case
    assert torch.equal(pack(codes, bits), helpers.pack_to_int32(codes, bits))
    assert torch.equal(unpack(pack(codes, bits), bits, codes.shape[1]), codes)


def test_widths_whose_packing_differs_between_versions_are_refused():
    for bits in (1, 3, 5, 6, 7, 16):
        with pytest.raises(UsageError, match=f"bits={bits}"):
            pack(torch.zeros(1, 32, dtype=torch.int8), bits)
        with pytest.raises(UsageError, match=f"bits={bits}"):
            unpack(torch.zeros(1, 1, dtype=torch.int32), bits, 32)


def test_words_that_do_not_fit_the_columns_are_refused():
    with pytest.raises(UsageError, match="3 words cannot hold 32 codes of 4 bits, which take 4"):
        unpack(torch.zeros(1, 3, dtype=torch.int32), 4, 32)
