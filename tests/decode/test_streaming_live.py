"""Row 116, for real: layers from disk under a cap on memory."""

import gc
import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from nearpeak.decode import layer_streaming  # noqa: E402
from nearpeak.decode.layer_streaming import compare, save_random_gpt, stored_tensors, streamed  # noqa: E402
from nearpeak.errors import NearpeakError, UsageError  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_gpt(tmp_path_factory.mktemp("gpt"), 24, 128)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def whole(folder: Path) -> int:
    return sum(s.size for s in stored_tensors(folder).values())


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(100, (batch, length), generator=torch.Generator().manual_seed(1))


def test_reading_ahead_hides_a_slow_disk_and_changes_no_bit(folder: Path):
    """A disk that is held to the pace of the layers, so that reading and computing could overlap wholly."""
    ids = tokens(2, 48)
    pilot = compare(folder, 0.25 * whole(folder), ids, 1)
    found = compare(folder, 0.25 * whole(folder), ids, 3, bandwidth=whole(folder) / pilot.resident)
    assert pilot.identical
    assert found.identical
    assert found.streamed.held <= 0.25 * whole(folder)
    assert found.streamed.buffers == 2
    assert found.waited <= 0.8 * found.fetch
    assert found.prefetch <= 0.9 * found.serial


def test_decoding_with_a_cache_streams_too(folder: Path):
    from transformers import AutoModelForCausalLM

    ids = tokens(2, 9)
    expected = AutoModelForCausalLM.from_pretrained(folder).generate(ids, max_new_tokens=5, do_sample=False)
    with streamed(folder, 0.25 * whole(folder)) as got:
        assert torch.equal(got.model.generate(ids, max_new_tokens=5, do_sample=False), expected)
        assert got.clock.passes == 5


def test_a_grouped_gated_model_with_rotations_streams_too(tmp_path: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=100, bos_token_id=None, eos_token_id=None)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    found = compare(tmp_path, whole(tmp_path), tokens(2, 17), 1)
    assert found.identical
    assert found.streamed.buffers == 2


def test_a_cap_that_is_too_small_says_what_would_do(folder: Path):
    with pytest.raises(UsageError, match="give at least") as refused, streamed(folder, 1e5):
        pass
    least = float(str(refused.value).rsplit(" ", 1)[1])
    with streamed(folder, least) as got:
        assert got.held == least
    with pytest.raises(UsageError), streamed(folder, least - 1):
        pass
    with streamed(folder, least - 1, prefetch=False) as got:
        assert got.buffers == 1


def test_damaged_checkpoints_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(NearpeakError, match="no safetensors"), streamed(tmp_path, 1e9):
        pass
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layer": 25}))
    with pytest.raises(NearpeakError, match=r"has no transformer\.h\.24"), streamed(tmp_path, 1e9):
        pass
    (tmp_path / "config.json").write_text(json.dumps(config))
    with streamed(tmp_path, 0.25 * whole(folder)) as got, torch.inference_mode():
        os.truncate(tmp_path / "model.safetensors", 1_000_000)
        with pytest.raises(NearpeakError, match="could not be read"):
            [got.model(input_ids=tokens(1, 4), use_cache=False) for _ in range(3)]


def test_the_topic_answers():
    given = {o.name: o.default for o in layer_streaming.TOPIC.options} | {"hidden": 64, "layers": 8, "repeats": 1}
    found = layer_streaming.TOPIC.explain(**given | {"cap": 0.5})
    assert found.figures["identical_logits"]
    assert found.figures["held_memory"] <= found.figures["cap_memory"]
    with pytest.raises(UsageError):
        layer_streaming.TOPIC.explain(**given | {"bandwidth": 0.0})


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see what a process holds")
def test_a_model_of_300_mb_runs_in_a_quarter_of_its_memory(tmp_path: Path):
    big, peak = save_random_gpt(tmp_path, 24, 512), 0
    gc.collect()
    before = resident_bytes()
    with streamed(big, 0.25 * whole(big)) as got, torch.inference_mode():
        for layer in got.model.transformer.h:
            layer.register_forward_hook(lambda *_: seen.append(resident_bytes()))
        seen: list[int] = []
        got.model(input_ids=tokens(1, 16), use_cache=False)
        got.model(input_ids=tokens(1, 16), use_cache=False)
        peak = max(seen) - before
    assert len(seen) == 48
    assert peak < 0.25 * whole(big)


@pytest.mark.slow
def test_reading_ahead_from_the_disk_itself(tmp_path: Path):
    """Layers wait at most 0.8 of the time that reading takes when nothing overlaps; logits are the same to the bit.

    On a disk that takes as long as the layers do, so does the whole pass.
    """
    big = save_random_gpt(tmp_path, 24, 512)
    found = compare(big, 0.25 * whole(big), tokens(4, 16), 5)
    assert found.identical
    assert found.waited <= 0.8 * found.fetch
    slower = compare(big, 0.25 * whole(big), tokens(4, 16), 5, bandwidth=whole(big) / found.resident)
    assert slower.prefetch <= 0.8 * slower.serial
