"""From a plan to a quantized checkpoint, and from a model to a measurement beside its prediction."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_a_plans_technique_is_carried_out(run, tiny_llama, tmp_path):
    asked = "plan Qwen/Qwen3-8B --gpus rtx_4090:1 --isl 100 --osl 100 --technique rtn-int4 --json"
    plan = run(*asked.split())
    assert plan.json["plans"][0]["techniques"] == ["rtn-int4"]
    (tmp_path / "plan.json").write_text(plan.out)
    applied = run("apply", tiny_llama, "--plan", tmp_path / "plan.json", "--out", tmp_path / "int4", "--json")
    assert applied.code == 0, applied.err
    config = json.loads((tmp_path / "int4" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert applied.json["written"] == applied.json["estimate"]["written"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bits", "5"), "5"),
        (("--group", "77"), "77"),
        (("--technique", "magic"), "magic"),
        (("--plan", "nothing.json"), "nothing.json"),
        (("--plan", "plan.json", "--bits", "8"), "--bits"),
    ],
)
def test_apply_refuses_what_it_cannot_do(run, tiny_llama, tmp_path, arguments, words):
    found = run("apply", tiny_llama, *arguments, "--out", tmp_path / "out")
    assert found.code == 2
    assert words in found.err
    assert not list(tmp_path.glob("out*"))


def test_apply_never_overwrites(run, tiny_llama, tmp_path):
    (tmp_path / "out").mkdir()
    found = run("apply", tiny_llama, "--out", tmp_path / "out")
    assert found.code == 2
    assert "exists" in found.err


def test_an_estimate_writes_nothing(run, tiny_llama, tmp_path):
    found = run("apply", tiny_llama, "--out", tmp_path / "out", "--estimate", "--json")
    assert found.json["written"] > 0
    assert not list(tmp_path.glob("out*"))


def test_a_measurement_stands_beside_its_prediction_and_is_kept(run, tiny_llama):
    found = run("prove", tiny_llama, "--batch", "2", "--isl", "32", "--osl", "8", "--json")
    assert found.code == 0, found.err
    figures = {f["figure"]: f for f in found.json["figures"]}
    assert {"ttft", "tpot"} <= figures.keys()
    for figure in figures.values():
        assert figure["predicted"]["low"] < figure["predicted"]["value"] < figure["predicted"]["high"]
        assert figure["measured_over_predicted"] == pytest.approx(
            figure["measured"]["value"] / figure["predicted"]["value"]
        )
    kept = run("measurements", "--json").json
    assert [m["id"] for m in kept] == [found.json["id"]]
    assert run("measurements", found.json["id"][:6], "--json").json["what"]["isl"] == 32


def test_prove_says_what_is_wrong_with_a_folder(run, tmp_path):
    found = run("prove", tmp_path)
    assert found.code == 2
    assert "config.json" in found.err
