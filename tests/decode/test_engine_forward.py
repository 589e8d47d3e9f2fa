"""The forward pass over many requests' tokens, and the cache that stays dense."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from nearpeak.decode.comparison import random_llama  # noqa: E402
from nearpeak.decode.forward import packed, read  # noqa: E402
from nearpeak.decode.slots import Slots  # noqa: E402
from nearpeak.errors import NearpeakError  # noqa: E402

torch.set_num_threads(1)  # more of them stall one another on a machine that others use
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def tiny_gpt(hidden: int = 128, layers: int = 3, context: int = 256):
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "n_embd": hidden, "n_layer": layers, "n_head": 2, "n_positions": context}
    config = transformers.GPT2Config(**sizes, initializer_range=hidden**-0.5, **NO_IDS)
    return transformers.GPT2LMHeadModel(config).eval()


def small(family: str, **more):
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = getattr(transformers, f"{family}Config")(**sizes, **heads, **NO_IDS, **more)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


MODELS: dict[str, Callable] = {
    "llama": lambda: random_llama(256, 3, 512),
    "gpt2": tiny_gpt,
    "qwen3": lambda: small("Qwen3", head_dim=24),
}


@pytest.mark.parametrize("family", MODELS)
def test_logits_of_a_prompt_in_chunks_equal_those_of_the_whole(family: str) -> None:
    model = MODELS[family]()
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(256, (200,), generator=draw)
    other = torch.randint(256, (90,), generator=draw)
    with torch.inference_mode():
        own = model(input_ids=ids[None], use_cache=False).logits[0]
    with packed(model):
        whole = read(model, [ids], [(200,)])[0]
        chunked = [read(model, [ids], [(size,)] * (200 // size) + [(200 % size,)])[0] for size in (16, 64, 77)]
        # Another request's prompt is read in the same steps, and goes on one token at a time, as a decode does.
        beside = read(model, [ids, other], [(50, 40), *[(3, 1)] * 50])[0]
    scale = float(own.abs().max())
    assert whole.shape == own.shape
    for found in (whole, *chunked, beside):
        assert float((found - own).abs().max()) <= 1e-5
    assert float((own[1:] - own[:-1]).abs().max()) > 0.1 * scale  # else the comparison would say nothing


def test_a_model_is_as_it_was_after_the_context_and_after_an_error() -> None:
    model = MODELS["llama"]()
    before = model.config._attn_implementation
    with packed(model):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before
    with pytest.raises(KeyError), packed(model):
        raise KeyError
    assert model.config._attn_implementation == before


def test_models_that_keep_more_than_keys_and_values_are_refused() -> None:
    torch.manual_seed(0)
    alibi = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=128, hidden_size=64, n_layer=2, n_head=4, **NO_IDS)
    ).eval()
    with pytest.raises(NearpeakError, match="other logits when requests share a step"), packed(alibi):
        pass
    capped = small("Gemma2", head_dim=16)
    with pytest.raises(NearpeakError, match="softcap"), packed(capped):
        pass
    windowed = small("Mistral", sliding_window=32)
    with packed(windowed), pytest.raises(NearpeakError, match="sliding window of 32"):
        read(windowed, [torch.arange(40)], [(40,)])


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), min_size=1, max_size=60))
def test_rows_stay_dense_and_keep_what_they_hold_with_one_move_a_leaving_request(events: list[int | None]) -> None:
    """None: a request joins; a number: the one in that row (modulo) leaves."""
    slots, held, left, length = Slots(8, 6), [], 0, 6
    for number, event in enumerate(events):
        if event is None and len(held) < slots.rows:
            row, mark = slots.take(), float(number + 1)
            assert row == len(held)
            at, where = torch.full((length,), row), torch.arange(length)
            slots.write(0, at, where, torch.full((length, 2, 3), mark), torch.full((length, 2, 5), -mark))
            held.append(mark)
        elif event is not None and held:
            row = event % len(held)
            slots.leave(row, length)
            last = held.pop()
            if row < len(held):
                held[row] = last
            left += 1
        assert slots.used == len(held)
        assert slots.moves <= left
    if slots.keys:
        keys, values = slots.keys[0][: slots.used], slots.values[0][: slots.used]
        wanted = torch.tensor(held)[:, None, None, None]
        assert torch.equal(keys, wanted.expand_as(keys))
        assert torch.equal(values, -wanted.expand_as(values))
        assert slots.memory == 8 * 6 * 2 * (3 + 5) * 4


def test_chunks_of_a_step_do_not_see_one_another() -> None:
    model = MODELS["llama"]()
    draw = torch.Generator().manual_seed(2)
    first, second, third = (torch.randint(256, (n,), generator=draw) for n in (30, 20, 20))
    with packed(model):
        one = read(model, [first, second], [(10, 20), (20, 0)])[0]
        two = read(model, [first, third], [(10, 20), (20, 0)])[0]
    assert np.allclose(one, two, atol=1e-5)
