import pytest

pytest.importorskip("torch")

from nearpeak.compress.quantizers import Scheme
from nearpeak.compress.safetensors_file import Tensor, size
from nearpeak.compress.targets import select
from nearpeak.errors import UsageError

W4 = Scheme(4, 128)
PER_ROW = Scheme(4, -1)
LAYER = "model.layers.0."
CONFIG = {"num_hidden_layers": 2}


def _headers(shapes, dtype="BF16"):
    return {name: Tensor(dtype, shape, 0, size(dtype, shape)) for name, shape in shapes.items()}


def _dense(layer=LAYER):
    square = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    names = [*square, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    return {f"{layer}{name}.weight": (256, 256) for name in names} | {f"{layer}input_layernorm.weight": (256,)}


def _selected(shapes, ignore=(), config=CONFIG, scheme=W4):
    return select(_headers(shapes), config, scheme, ignore)


def test_projections_are_quantized_and_tables_head_norms_and_routers_kept():
    shapes = _dense() | {
        "model.embed_tokens.weight": (1000, 256),
        "lm_head.weight": (1000, 256),
        "model.norm.weight": (256,),
        f"{LAYER}mlp.gate.weight": (8, 256),
        f"{LAYER}mlp.shared_expert_gate.weight": (1, 256),
        f"{LAYER}self_attn.q_proj.bias": (256,),
    }
    chosen = _selected(shapes)
    assert set(chosen.linears) == {name.removesuffix(".weight") for name in _dense() if "norm" not in name}
    assert chosen.kept == {
        "lm_head": "output head",
        "model.embed_tokens": "embedding",
        f"{LAYER}mlp.gate": "router",
        f"{LAYER}mlp.shared_expert_gate": "router",
    }


def test_each_expert_is_a_linear_layer():
    shapes = {f"{LAYER}mlp.experts.{e}.{p}_proj.weight": (256, 256) for e in range(3) for p in ("gate", "up", "down")}
    assert len(_selected(shapes).linears) == 9


def test_towers_and_prediction_layers_behind_the_last_are_kept():
    extra = {
        "visual.blocks.0.attn.qkv.weight": (768, 256),
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight": (256, 256),
        "mtp.layers.0.self_attn.q_proj.weight": (256, 256),
        "model.layers.2.eh_proj.weight": (256, 512),
        "model.layers.2.self_attn.q_proj.weight": (256, 256),
    }
    kept = _selected(_dense() | extra).kept
    assert set(kept) == {name.removesuffix(".weight") for name in extra}
    assert kept["model.layers.2.self_attn.q_proj"] == "multi-token prediction"


def test_the_text_part_of_a_config_gives_the_number_of_layers():
    config = {"text_config": {"num_hidden_layers": 1}}
    assert "model.layers.1.mlp.down_proj" in _selected(_dense() | _dense("model.layers.1."), config=config).kept


def test_a_layer_of_no_known_kind_is_an_error_that_names_the_way_out():
    shapes = _dense() | {f"{LAYER}mixer.strange.weight": (256, 256)}
    message = r"layers\.0\.mixer\.strange\.weight \[256, 256\].*'re:\.\*\\\.\(strange\)\$'"
    with pytest.raises(UsageError, match=message):
        _selected(shapes)
    assert _selected(shapes, [r"re:.*\.(strange)$"]).kept == {f"{LAYER}mixer.strange": "ignored on request"}


def test_experts_in_one_tensor_are_an_error_unless_ignored():
    experts = f"{LAYER}mlp.experts."
    shapes = _dense() | {f"{experts}gate_up_proj": (8, 256, 512), f"{experts}down_proj": (8, 256, 256)}
    message = r"experts are stored fused .*gate_up_proj \[8, 256, 512\].*77%.*re:\.\*experts"
    with pytest.raises(UsageError, match=message):
        _selected(shapes)
    assert _selected(shapes, ["re:.*experts"]).kept == {f"{LAYER}mlp.experts": "ignored on request"}


def test_parameters_that_are_no_weights_are_kept_without_a_word_of_the_caller():
    shapes = _dense() | {f"{LAYER}mamba.A_log": (256, 16), f"{LAYER}mamba.conv1d.weight": (256, 1, 4)}
    assert _selected(shapes).kept == {
        f"{LAYER}mamba.A_log": "not the weight of a linear layer",
        f"{LAYER}mamba.conv1d": "convolution",
    }


FAMILIES = "llama qwen3 gemma3_text phi3 olmo2 cohere2 falcon gpt_neox opt qwen3_5_text"


@pytest.mark.parametrize("family", FAMILIES.split())
def test_linears_of_a_family_are_those_that_its_model_has(family):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.CONFIG_MAPPING[family](num_hidden_layers=4)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    chosen = _selected(
        {n: tuple(t.shape) for n, t in model.state_dict().items()}, config=config.to_dict(), scheme=PER_ROW
    )
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(chosen.linears) <= linears
    reasons = {chosen.kept.get(name) for name in linears - set(chosen.linears) - {"lm_head"}}
    assert reasons <= {"output head", "small gate of linear attention"}


def test_a_group_that_does_not_divide_names_the_layer_and_the_groups_that_do():
    shapes = _dense() | {f"{LAYER}mlp.down_proj.weight": (256, 352)}
    with pytest.raises(UsageError, match=r"group=128 .* 352 inputs of model\.layers\.0\.mlp\.down_proj.* do: -1, 32\b"):
        _selected(shapes)
    assert len(_selected(shapes, scheme=Scheme(4, 32)).linears) == len(_selected(shapes, scheme=Scheme(4, -1)).linears)


@pytest.mark.parametrize("part", ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"])
def test_a_part_of_a_fused_layer_cannot_be_kept_alone(part):
    with pytest.raises(UsageError, match=part):
        _selected(_dense(), [LAYER + part])


def test_one_expert_cannot_be_kept_alone():
    shapes = {f"{LAYER}mlp.experts.{e}.{p}_proj.weight": (256, 256) for e in range(3) for p in ("gate", "up", "down")}
    with pytest.raises(UsageError, match=r"mlp\.experts as one layer.*experts\.1"):
        _selected(shapes, [r"re:.*experts\.1\."])
    assert len(_selected(shapes | _dense(), [r"re:.*experts"]).linears) == 7


@pytest.mark.parametrize("pattern", ["model.layers.7.mlp.up_proj", "re:.*qqq", "re:("])
def test_an_ignore_that_names_nothing_is_an_error(pattern):
    with pytest.raises(UsageError, match="ignore="):
        _selected(_dense(), [pattern])


def test_a_tied_head_may_be_named():
    assert len(_selected(_dense(), ["lm_head"]).linears) == 7


@pytest.mark.parametrize("config", [{"quant_method": "fp8"}, {"quant_method": "mxfp4"}])
def test_a_quantized_source_is_refused_by_its_config(config):
    with pytest.raises(UsageError, match=f"quantized already .{config['quant_method']}"):
        _selected(_dense(), config={"quantization_config": config})


@pytest.mark.parametrize("tensor", [("q.weight", "F8_E4M3"), ("q.weight_scale_inv", "F32"), ("q.qweight", "I32")])
def test_a_quantized_source_is_refused_by_its_tensors(tensor):
    name, dtype = tensor
    with pytest.raises(UsageError, match="quantized already"):
        select(_headers(_dense()) | _headers({LAYER + name: (256, 256)}, dtype), CONFIG, W4)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(UsageError, match="nothing to quantize"):
        _selected({"model.embed_tokens.weight": (1000, 256)})


def test_integer_weights_are_refused():
    with pytest.raises(UsageError, match="stored as I32"):
        select(_headers(_dense(), "I32"), CONFIG, W4)
