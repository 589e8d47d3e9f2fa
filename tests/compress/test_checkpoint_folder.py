import json

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from nearpeak.compress.checkpoint import INDEX, index, read_checkpoint  # noqa: E402
from nearpeak.errors import NearpeakError, UsageError  # noqa: E402

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path):
    safetensors_torch.save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / A)
    safetensors_torch.save_file({"b.weight": torch.zeros(3)}, tmp_path / B)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    _write_index(tmp_path, {"a.weight": A, "b.weight": B})
    return tmp_path


def _write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_sharded_folder_is_read(folder):
    checkpoint = read_checkpoint(folder)
    assert [shard.name for shard in checkpoint.shards] == [A, B]
    assert [(name, tensor.shape, shard.name) for name, tensor, shard in checkpoint.tensors()] == [
        ("a.weight", (2, 2), A),
        ("b.weight", (3,), B),
    ]
    assert index({shard.name: shard.tensors for shard in checkpoint.shards}) == {
        "metadata": {"total_size": 28},
        "weight_map": {"a.weight": A, "b.weight": B},
    }


def test_a_change_of_any_part_changes_the_fingerprint(folder):
    before = read_checkpoint(folder).fingerprint()
    assert read_checkpoint(folder).fingerprint() == before
    safetensors_torch.save_file({"b.weight": torch.ones(3)}, folder / B)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    after = read_checkpoint(folder).fingerprint()
    assert {name for name in before if before[name] != after[name]} == {B, "config.json"}


def test_companions_are_carried_and_other_weights_are_not(folder):
    for name in ("tokenizer.json", "sub/notes.txt", ".cache/x.json", "pytorch_model.bin", "original/consolidated.pth"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "consolidated.safetensors").write_bytes(b"not read")
    checkpoint = read_checkpoint(folder)
    assert [str(path) for path in checkpoint.companions] == ["sub/notes.txt", "tokenizer.json"]
    left_out = ["consolidated.safetensors", "original/consolidated.pth", "pytorch_model.bin"]
    assert [str(path) for path in checkpoint.left_out] == left_out


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a.weight": A}, None),  # the second file is not named: it is left out
        ({"a.weight": A, "b.weight": A}, r"b\.weight in model-00001.*its file has it not"),
        ({"a.weight": A, "b.weight": B, "c": B}, "c in model-00002.*its file has it not"),
        ({"a.weight": A, "c": B}, "b.weight in model-00002.*the index does not|c in model-00002"),
        ({"a.weight": A, "b.weight": "model-3.safetensors"}, "lacks model-3.safetensors.*finish the download"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_disagrees_with_the_files_is_refused(folder, weight_map, message):
    _write_index(folder, weight_map)
    if message is None:
        assert [str(path) for path in read_checkpoint(folder).left_out] == [B]
    else:
        with pytest.raises(NearpeakError, match=message):
            read_checkpoint(folder)


def test_a_truncated_shard_is_refused_by_name(folder):
    (folder / B).write_bytes((folder / B).read_bytes()[:-3])
    with pytest.raises(NearpeakError, match=B):
        read_checkpoint(folder)


def test_what_is_no_checkpoint_is_refused(folder, tmp_path_factory):
    with pytest.raises(UsageError, match="not a folder"):
        read_checkpoint(folder / "nowhere")
    with pytest.raises(UsageError, match=r"no config\.json"):
        read_checkpoint(tmp_path_factory.mktemp("empty"))
    safetensors_torch.save_file({}, folder / "model.safetensors")
    with pytest.raises(UsageError, match="both"):
        read_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    (folder / INDEX).unlink()
    with pytest.raises(UsageError, match="neither"):
        read_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(NearpeakError, match="not JSON"):
        read_checkpoint(folder)
