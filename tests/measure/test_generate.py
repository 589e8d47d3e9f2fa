import json
import shutil
import socket
import subprocess
import sys

import pytest
from measurements_by_hand import BRIEF

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.measure import (
    Effort,
    Prediction,
    Store,
    compare,
    generate,
    planned,
    prefill_and_decode,
    prove,
    runtime,
)


@pytest.fixture
def copied(untrained_llama, tmp_path):
    """A copy of the untrained llama to be damaged."""
    return shutil.copytree(untrained_llama, tmp_path / "copy")


def configured(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_prefill_and_decode_are_measured_and_told_apart(untrained_llama):
    measured = prefill_and_decode(planned(untrained_llama, 3, 40, 8), BRIEF)
    assert len(measured.ttft.seconds) == len(measured.tpot.seconds) == 2
    assert len(measured.ttft.cold) == 1
    assert measured.weights == sum(
        4 * n for n in (2 * 128 * 32, 2 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32), 32)
    ) + 4 * 4 * 2  # the rotary frequencies are buffers: 4 of fp32, now and as they were  # fmt: skip
    assert not measured.all_logits
    m = measured.measurement
    assert m.what["model"] == "untrained-llama"
    assert m.what["dtype"] == "fp32"
    assert {"ttft", "tpot"} <= set(m.figures)
    assert str(untrained_llama.parent) not in repr(m)


def test_the_model_is_fed_isl_tokens_and_then_one_at_a_time_with_its_cache(untrained_llama, monkeypatch):
    fed = []
    loaded = generate.load

    def spied(run):
        model = loaded(run)
        forward = model.forward

        def spy(input_ids, past_key_values, use_cache, logits_to_keep):
            held = 0 if past_key_values is None else past_key_values.get_seq_length()
            fed.append((tuple(input_ids.shape), held, logits_to_keep))
            return forward(
                input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep
            )

        model.forward = spy
        return model

    monkeypatch.setattr(generate, "load", spied)
    prefill_and_decode(planned(untrained_llama, 2, 10, 4), Effort(warmup=0, repeats=1, most=1))
    assert fed == [((2, 10), 0, 1), ((2, 1), 10, 1), ((2, 1), 11, 1), ((2, 1), 12, 1)]


def test_one_token_has_no_decode(untrained_llama):
    measured = prefill_and_decode(planned(untrained_llama, 1, 5, 1), BRIEF)
    assert measured.tpot is None
    assert "tpot" not in measured.measurement.figures


def test_nothing_reaches_for_the_network(untrained_llama, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was reached for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    prefill_and_decode(planned(untrained_llama, 1, 4, 2), BRIEF)


def test_threads_are_set_for_the_run_and_restored(untrained_llama, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(runtime, "available_cores", lambda: 64)
    before = torch.get_num_threads()
    seen = []
    monkeypatch.setattr(generate, "load", lambda run: seen.append(torch.get_num_threads()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prefill_and_decode(planned(untrained_llama, 1, 4, 2, threads=before + 1), BRIEF)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_random_weights_need_no_weights(copied):
    (copied / "model.safetensors").unlink()
    run = planned(copied, 1, 4, 2, random_weights=True, dtype="bf16")
    assert prefill_and_decode(run, BRIEF).measurement.what["random_weights"]
    with pytest.raises(NearpeakError, match="transformers cannot load"):
        prefill_and_decode(planned(copied, 1, 4, 2), BRIEF)


def test_half_the_dtype_is_half_the_weights(untrained_llama):
    full = prefill_and_decode(planned(untrained_llama, 1, 4, 2), BRIEF)
    half = prefill_and_decode(planned(untrained_llama, 1, 4, 2, dtype="bf16"), BRIEF)
    buffers = 4 * 4 * 2
    assert half.weights - buffers == (full.weights - buffers) / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch 0"),
        ({"isl": 0}, "isl 0"),
        ({"osl": -1}, "osl -1"),
        ({"isl": 60, "osl": 5}, "60 . osl 5 = 65 tokens, but the model's context holds 64"),
        ({"device": "gpu"}, "allowed: auto, cpu"),
        ({"dtype": "fp8"}, "allowed: auto, fp64, fp32, bf16, fp16"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_loaded(untrained_llama, changes, message):
    sizes = {"batch": 1, "isl": 4, "osl": 2} | changes
    with pytest.raises(UsageError, match=message):
        planned(untrained_llama, **sizes)


def test_more_threads_than_cores_are_refused(untrained_llama):
    with pytest.raises(UsageError, match="threads 100000"):
        prefill_and_decode(planned(untrained_llama, 1, 4, 2, threads=100_000), BRIEF)


def test_no_folder_no_config_and_no_json_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match="not a folder"):
        planned(tmp_path / "absent", 1, 4, 2)
    with pytest.raises(UsageError, match=r"no readable config\.json \(it holds nothing\)"):
        planned(tmp_path, 1, 4, 2)
    for text in ("{", "[1]", '{"text_config": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UsageError, match="no JSON object"):
            planned(tmp_path, 1, 4, 2)


def test_a_config_without_a_dtype_asks_for_one(copied):
    configured(copied, dtype=None)
    with pytest.raises(UsageError, match="name one yourself: fp64, fp32, bf16, fp16"):
        planned(copied, 1, 4, 2)
    assert planned(copied, 1, 4, 2, dtype="float16").dtype == "fp16"


def test_a_nested_text_config_is_read(copied):
    configured(copied, max_position_embeddings=None, text_config={"max_position_embeddings": 7})
    with pytest.raises(UsageError, match="context holds 7"):
        planned(copied, 1, 6, 2)


def test_an_unknown_architecture_and_code_in_the_folder_are_refused(copied):
    configured(copied, model_type="from-the-future", architectures=["Future"])
    with pytest.raises(NearpeakError, match="transformers cannot load"):
        prefill_and_decode(planned(copied, 1, 4, 2), BRIEF)
    configured(copied, auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    (copied / "mine.py").write_text("raise SystemExit('code from the folder was run')")
    with pytest.raises(NearpeakError, match="transformers cannot load"):
        prefill_and_decode(planned(copied, 1, 4, 2), BRIEF)


def test_weights_that_are_cut_or_incomplete_are_refused(copied):
    from safetensors.torch import load_file, save_file

    path = copied / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NearpeakError, match="transformers cannot load"):
        prefill_and_decode(planned(copied, 1, 4, 2), BRIEF)
    path.write_bytes(whole)
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(NearpeakError, match=r"lack 1 tensors.*model\.layers\.1\.mlp\.up_proj\.weight"):
        prefill_and_decode(planned(copied, 1, 4, 2), BRIEF)


def test_weights_larger_than_the_free_memory_are_refused_before_loading(untrained_llama, monkeypatch):
    from nearpeak.measure import checkpoint

    monkeypatch.setattr(checkpoint, "memory_free", lambda device: 1000)
    with pytest.raises(NearpeakError, match="out of memory"):
        prefill_and_decode(planned(untrained_llama, 1, 4, 2), BRIEF)


def test_running_out_of_memory_while_running_names_the_way_out(untrained_llama):
    with pytest.raises(NearpeakError, match=r"try a smaller batch \(now 1000000000000\)"):
        prefill_and_decode(planned(untrained_llama, 10**12, 4, 2), BRIEF)


def test_other_runtime_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shape"), runtime.memory_errors("buy more"):
        raise RuntimeError("shape mismatch")


def test_a_model_without_a_kv_cache_is_refused(untrained_llama, monkeypatch):
    loaded = generate.load

    def uncached(run):
        model = loaded(run)
        forward = model.forward

        def without_cache(input_ids, past_key_values, use_cache, logits_to_keep):
            return forward(input_ids=input_ids, use_cache=False)

        model.forward = without_cache
        return model

    monkeypatch.setattr(generate, "load", uncached)
    with pytest.raises(NearpeakError, match="keeps no KV cache"):
        prefill_and_decode(planned(untrained_llama, 1, 4, 2), BRIEF)


def test_proving_predicts_first_and_keeps_both(untrained_llama, tmp_path, monkeypatch):
    order = []
    loaded = generate.load
    monkeypatch.setattr(generate, "load", lambda run: order.append("measure") or loaded(run))

    def predict(run):
        order.append("predict")
        assert (run.batch, run.isl, run.osl, run.dtype) == (2, 8, 4, "fp32")
        return {"ttft": Prediction(1e3, 1e2, 1e4, "datasheet")}

    store = Store(tmp_path / "m.duckdb")
    m = prove(planned(untrained_llama, 2, 8, 4), predict, store, BRIEF)
    assert order == ["predict", "measure"]
    assert store.list() == (m,)
    (row,) = compare(m)
    assert row.ratio < 0.1
    assert not row.inside


def test_without_torch_the_error_names_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from nearpeak.measure import microbenchmarks\n"
        "from nearpeak.errors import NearpeakError\n"
        "try: microbenchmarks()\n"
        "except NearpeakError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install nearpeak[torch]" in done.stdout
