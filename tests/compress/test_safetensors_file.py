import json

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from nearpeak.compress.safetensors_file import read_chunks, read_header, read_tensor, writing  # noqa: E402
from nearpeak.errors import NearpeakError  # noqa: E402

TENSORS = {
    "b.wide": torch.arange(6, dtype=torch.int64).view(2, 3),
    "a.odd": torch.arange(7, dtype=torch.int8),
    "c.half": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "d.single": torch.randn(4, generator=torch.Generator().manual_seed(1)),
    "e.empty": torch.empty(0, 4),
}
NAMES = {torch.int64: "I64", torch.int8: "I8", torch.bfloat16: "BF16", torch.float32: "F32"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors_torch.save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def _write(path, tensors=TENSORS, leave_out=()):
    with writing(path, {n: (NAMES[t.dtype], tuple(t.shape)) for n, t in tensors.items()}, {"format": "pt"}) as put:
        for name, tensor in tensors.items():
            if name not in leave_out:
                put(name, tensor)


def test_what_safetensors_wrote_is_read(file):
    described, metadata, _ = read_header(file)
    assert metadata == {"format": "pt"}
    assert set(described) == set(TENSORS)
    for name, tensor in TENSORS.items():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        assert b"".join(read_chunks(file, described[name])) == raw
        if tensor.dtype != torch.int8:
            assert torch.equal(read_tensor(file, described[name]), tensor)


def test_safetensors_reads_what_is_written(tmp_path):
    _write(tmp_path / "new.safetensors")
    read = safetensors_torch.load_file(tmp_path / "new.safetensors")
    assert set(read) == set(TENSORS)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


def test_every_tensor_is_aligned_to_its_type(tmp_path):
    _write(tmp_path / "new.safetensors")
    described, _, _ = read_header(tmp_path / "new.safetensors")
    assert all(described[name].start % tensor.element_size() == 0 for name, tensor in TENSORS.items())


def test_a_file_cut_anywhere_is_refused_with_both_sizes(file):
    whole = file.read_bytes()
    for length in (0, 5, 8, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(NearpeakError, match=rf"model\.safetensors .*bytes.* {length}\b"):
            read_header(file)
    for length in range(0, len(whole), 13):
        file.write_bytes(whole[:length])
        with pytest.raises(NearpeakError):
            read_header(file)


def test_a_file_longer_than_its_header_says_is_refused(file):
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(NearpeakError, match=f"should have {size} bytes by its header and has {size + 1}"):
        read_header(file)


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all!",
        b'["a list"]      ',
        json.dumps({"w": {"dtype": "F32", "shape": [2]}}).encode(),
        json.dumps({"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode(),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, header):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(NearpeakError, match=r"bad\.safetensors"):
        read_header(path)


def test_a_file_left_without_a_tensor_never_appears(tmp_path):
    with pytest.raises(NearpeakError, match=r"c\.half"):
        _write(tmp_path / "new.safetensors", leave_out=["c.half"])
    assert not (tmp_path / "new.safetensors").exists()


def test_a_tensor_of_another_size_is_refused(tmp_path):
    with (
        pytest.raises(NearpeakError, match="w takes 8 bytes, 12 were given"),
        writing(tmp_path / "new.safetensors", {"w": ("F32", (2,))}, {}) as put,
    ):
        put("w", torch.zeros(3))
    assert not (tmp_path / "new.safetensors").exists()
