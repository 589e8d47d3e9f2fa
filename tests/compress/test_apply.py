import json
import math
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

from safetensors.torch import load_file, save_file  # noqa: E402

import tiny_model  # noqa: E402
from nearpeak.compress import apply, dequantized, estimate  # noqa: E402
from nearpeak.errors import NearpeakError, UnknownName, UsageError  # noqa: E402

QUANTIZED = 3 * 7  # layers times projections


def _logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


def _tokens():
    return tiny_model.batch(tiny_model.text(), 2, seed=5)


def _ours(source, out):
    """The source's architecture with the weights that our own reader finds in ``out``."""
    config = transformers.AutoConfig.from_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(dequantized(out))
    return model.eval()


@pytest.mark.parametrize(("bits", "group"), [(4, 128), (4, 32), (4, -1), (8, 128), (8, -1), (2, 64)])
def test_transformers_loads_exactly_the_weights_that_were_meant(tiny_llama, tmp_path, bits, group):
    report = apply(tiny_llama, tmp_path / "out", bits=bits, group=group)
    assert len(report.layers) == QUANTIZED
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    theirs, ours = _logits(loaded, _tokens()), _logits(_ours(tiny_llama, tmp_path / "out"), _tokens())
    assert torch.equal(theirs, ours)
    state, meant = loaded.state_dict(), dequantized(tmp_path / "out")
    assert all(torch.equal(state[name], weight) for name, weight in meant.items())


def test_a_finer_quantization_is_nearer_to_the_original(tiny_llama, tmp_path):
    original = load_file(tiny_llama / "model.safetensors")
    errors, losses = {}, {}
    tokens = tiny_model.text()
    held_out = tiny_model.batch(tokens[len(tokens) * 9 // 10 :], 32, seed=6)
    for bits, group in [(2, 128), (4, -1), (4, 128), (4, 32), (8, 128)]:
        out = tmp_path / f"{bits}-{group}"
        report = apply(tiny_llama, out, bits=bits, group=group)
        meant = dequantized(out)
        for layer in report.layers:
            weight = original[f"{layer.name}.weight"].double()
            error = (weight - meant[f"{layer.name}.weight"].double()).norm() / weight.norm()
            assert layer.error == pytest.approx(float(error), rel=1e-6)
        errors[bits, group] = sum(layer.error for layer in report.layers) / len(report.layers)
        with torch.no_grad():
            losses[bits, group] = float(_ours(tiny_llama, out)(input_ids=held_out, labels=held_out).loss)
    order = [(2, 128), (4, -1), (4, 128), (4, 32), (8, 128)]
    assert sorted(order, key=lambda key: -errors[key]) == order
    assert errors[4, 128] == pytest.approx(0.1, rel=0.3)  # Gaussian weights: 0.1
    assert losses[2, 128] > losses[4, 128] > losses[8, 128] - 0.01
    assert losses[2, 128] < math.log(256)


def test_the_config_is_the_contract_and_validates(tiny_llama, tmp_path):
    from compressed_tensors.quantization import QuantizationConfig

    for group, strategy in ((128, "group"), (-1, "channel")):
        out = tmp_path / f"out{group}"
        apply(tiny_llama, out, group=group)
        config = json.loads((out / "config.json").read_text())
        written = config.pop("quantization_config")
        assert config == json.loads((tiny_llama / "config.json").read_text())
        valid = QuantizationConfig.model_validate(written)
        weights = valid.config_groups["group_0"].weights
        assert (weights.num_bits, weights.symmetric, weights.strategy) == (4, True, strategy)
        assert weights.group_size == (group if group > 0 else None)
        assert valid.ignore == ["lm_head", "model.embed_tokens"]
        assert valid.format == "pack-quantized"
        allowed = {"num_bits", "type", "symmetric", "strategy", "group_size", "dynamic"}
        assert set(written["config_groups"]["group_0"]["weights"]) == allowed


def test_shards_index_and_companions_are_written(sharded_llama, tiny_llama, tmp_path):
    report = apply(sharded_llama, tmp_path / "out")
    out = tmp_path / "out"
    names = {str(path.relative_to(sharded_llama)) for path in sharded_llama.rglob("*") if path.is_file()}
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == names | {"nearpeak_report.json"}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    stored = {name: path.name for path in out.glob("*.safetensors") for name in load_file(path)}
    assert index["weight_map"] == stored
    tensors = [t for path in out.glob("*.safetensors") for t in load_file(path).values()]
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors)
    apply(tiny_llama, tmp_path / "single")
    whole, parts = dequantized(tmp_path / "single"), dequantized(out)
    assert set(whole) == set(parts)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / "out.partial").exists()
    assert report.resumed == 0


def test_the_estimate_is_the_truth_to_the_byte(sharded_llama, tmp_path):
    for bits, group in ((4, 128), (8, -1)):
        out = tmp_path / f"{bits}"
        predicted = estimate(sharded_llama, out, bits=bits, group=group)
        assert not out.exists()
        assert not (tmp_path / f"{bits}.partial").exists()
        report = apply(sharded_llama, out, bits=bits, group=group)
        files = [path for path in out.rglob("*") if path.is_file() and path.name != "nearpeak_report.json"]
        assert predicted.written == predicted.remaining == report.written == sum(p.stat().st_size for p in files)
        assert predicted.read == sum(path.stat().st_size for path in sharded_llama.glob("*.safetensors"))


def test_the_report_lists_every_matrix(sharded_llama, tmp_path):
    report = apply(sharded_llama, tmp_path / "out", ignore=["re:.*layers.1.mlp"])
    written = json.loads((tmp_path / "out" / "nearpeak_report.json").read_text())
    assert written["layers"] == [
        {"name": layer.name, "bits": 4, "group": 128, "error": layer.error} for layer in report.layers
    ]
    assert {kept["name"]: kept["reason"] for kept in written["kept"]} == {
        "lm_head": "output head",
        "model.embed_tokens": "embedding",
        **{f"model.layers.1.mlp.{part}_proj": "ignored on request" for part in ("gate", "up", "down")},
    }
    matrices = {
        name.removesuffix(".weight")
        for path in sharded_llama.glob("*.safetensors")
        for name, tensor in load_file(path).items()
        if tensor.dim() == 2
    }
    assert {entry["name"] for entry in written["layers"] + written["kept"]} == matrices
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert set(ignored) == {kept["name"] for kept in written["kept"]}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert torch.equal(_logits(theirs, _tokens()), _logits(_ours(sharded_llama, tmp_path / "out"), _tokens()))


def test_a_mixture_of_experts_keeps_its_router_and_loads(tmp_path):
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=128,
        moe_intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        num_experts=4,
        num_experts_per_tok=2,
    )
    model = transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "moe")
    report = apply(tmp_path / "moe", tmp_path / "out")
    assert len(report.layers) == 4 + 4 * 3
    assert "model.layers.0.mlp.gate" in {kept.name for kept in report.kept}
    shutil.copytree(tmp_path / "moe", tmp_path / "dense")
    save_file(dequantized(tmp_path / "out"), tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    tokens = torch.arange(32)[None]
    dense, packed = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.bfloat16).eval()
        for name in ("dense", "out")
    )
    assert torch.equal(_logits(dense, tokens), _logits(packed, tokens))
    assert not torch.equal(_logits(dense, tokens), _logits(model.eval(), tokens))


def test_a_weight_that_is_not_finite_is_refused_by_name(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "bad")
    tensors = load_file(tmp_path / "bad" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 7] = float("nan")
    save_file(tensors, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NearpeakError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .*NaN"):
        apply(tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_does_not_read_back_is_never_delivered(tiny_llama, tmp_path, monkeypatch):
    import nearpeak.compress.pack_quantized as pack_quantized
    import nearpeak.compress.packing as packing

    def flipped(packed, bits, columns):
        codes = packing.unpack(packed, bits, columns)
        codes[0, 0] ^= 1
        return codes

    monkeypatch.setattr(pack_quantized, "unpack", flipped)
    with pytest.raises(NearpeakError, match="does not read back"):
        apply(tiny_llama, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert len(apply(tiny_llama, tmp_path / "out").layers) == QUANTIZED


def test_an_out_dir_that_cannot_be_is_refused_before_anything_is_written(tiny_llama, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    for out, message in [
        (tmp_path / "taken", "exists"),
        (tmp_path / "file", "exists"),
        (tmp_path / "file" / "out", "not a folder"),
        (tmp_path / "nowhere" / "out", "not a folder"),
        (tiny_llama / "out", "inside the source"),
    ]:
        with pytest.raises(UsageError, match=message):
            apply(tiny_llama, out)
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "file"}


def test_a_folder_that_cannot_be_written_is_refused(tiny_llama, tmp_path, monkeypatch):
    def no_mkdir(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", no_mkdir)
    with pytest.raises(UsageError, match=r"cannot be written to.*choose another out_dir"):
        apply(tiny_llama, tmp_path / "out")


def test_a_disk_too_small_is_refused_before_anything_is_written(tiny_llama, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(UsageError, match=r"would be written and 0\.00 GB are free"):
        apply(tiny_llama, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_arguments_out_of_range_are_refused(tiny_llama, tmp_path):
    for arguments in ({"bits": 5}, {"group": 48}, {"ignore": ["re:.*nothing"]}):
        with pytest.raises(UsageError):
            apply(tiny_llama, tmp_path / "out", **arguments)
    with pytest.raises(UnknownName, match=r"known: rtn|did you mean rtn"):
        apply(tiny_llama, tmp_path / "out", technique="rtm")
    assert not list(tmp_path.iterdir())


def test_its_own_result_is_refused_as_a_source(tiny_llama, tmp_path):
    apply(tiny_llama, tmp_path / "out")
    with pytest.raises(UsageError, match=r"quantized already .compressed-tensors"):
        apply(tmp_path / "out", tmp_path / "twice")
    with pytest.raises(UsageError, match="not a pack-quantized checkpoint"):
        dequantized(tiny_llama)


def test_progress_names_each_tensor_and_ends_at_the_total(sharded_llama, tmp_path):
    seen = []
    apply(sharded_llama, tmp_path / "out", progress=seen.append)
    assert len(seen) == len({step.tensor for step in seen})
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == seen[-1].total
