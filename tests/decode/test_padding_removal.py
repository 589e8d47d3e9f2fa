"""Batches without padding: the same states, fewer rows through the linear layers, and the time that this saves."""

import numpy as np
import pytest

from nearpeak.errors import UnknownName, UsageError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from nearpeak.decode import packing  # noqa: E402
from nearpeak.decode.attention_hook import attending  # noqa: E402


def llama():
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=160,
        vocab_size=200, max_position_embeddings=128,
    )  # fmt: skip
    return transformers.LlamaModel(shape).eval()


def electra():
    torch.manual_seed(0)
    shape = transformers.ElectraConfig(
        hidden_size=64, embedding_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160,
        vocab_size=200, max_position_embeddings=128,
    )  # fmt: skip
    return transformers.ElectraModel(shape).eval()


MODELS = {"bert": lambda: packing.encoder(3, 128, 64), "electra": electra, "llama": llama}


def batch(lengths, longest, vocab, seed):
    ids = torch.randint(vocab, (len(lengths), longest), generator=torch.Generator().manual_seed(seed))
    return ids, (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mix", packing.MIXES)
@pytest.mark.parametrize("seed", range(3))
def test_kept_positions_are_those_of_the_padded_run(name, mix, seed):
    model = MODELS[name]()
    ids, kept = batch(packing.lengths_of(mix, 7, 48, seed), 48, 200, seed)
    with torch.inference_mode():
        padded = model(input_ids=ids, attention_mask=kept, use_cache=False).last_hidden_state
        packed = packing.packed_states(model, ids, kept)
    assert packed.shape[0] == kept.sum() < kept.numel()
    assert padded.std() > 0.5
    assert (packed - padded[kept.bool()]).abs().max() <= 1e-5
    # What stands at the dropped places has no effect.
    with torch.inference_mode():
        other = packing.packed_states(model, torch.where(kept.bool(), ids, 1), kept)
    assert torch.equal(packed, other)
    assert model.config._attn_implementation == "sdpa"


def test_linear_layers_meet_kept_tokens_only():
    model = packing.encoder(2, 128, 64)
    rows = []
    for part in model.modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(lambda _, given, out: rows.append(given[0].numel() // given[0].shape[-1]))
    ids, kept = batch([5, 60, 17], 60, 1000, 0)
    packing.packed_states(model, ids, kept)
    assert rows == [5 + 60 + 17] * (2 * 6)


def test_a_mask_of_any_shape_is_packed_and_restored():
    kept = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]])
    layout = packing.Layout.of(kept)
    x = torch.arange(16.0).reshape(2, 4, 2)
    assert layout.pack(x).flatten().tolist() == [2, 3, 4, 5, 8, 9, 14, 15]
    assert torch.equal(layout.restore(layout.pack(x)), x * kept[..., None])
    for wrong in (torch.ones(3), torch.tensor([[1, 1], [0, 0]])):
        with pytest.raises(UsageError, match="token in each row"):
            packing.Layout.of(wrong)


def test_what_is_not_packed_is_refused():
    model = llama()
    _, kept = batch([5, 9], 9, 200, 0)
    layout = packing.Layout.of(kept, True)
    with pytest.raises(UsageError, match="not packed"):
        packing.attend(None, *[torch.ones(1, 2, 14, 8)] * 3, None, layout=layout, sliding_window=4)
    with pytest.raises(UnknownName, match="mix of lengths"):
        packing.lengths_of("none", 3, 8, 0)
    with pytest.raises(UsageError, match="multiple of 64"):
        packing.encoder(1, 100, 8)
    with pytest.raises(RuntimeError), attending(model, packing.HOOK, packing.attend):
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa"


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_time_falls_with_the_kept_tokens():
    model = packing.encoder(1, 256, 128)
    for _ in range(3):  # other processes may take the cores in the middle of one of the two
        few, most = (packing.compare(model, np.array([128] + [n] * 7), 7) for n in (16, 112))
        if few.ratio < 0.7 * most.ratio:
            break
    assert few.error <= 1e-5
    assert few.ratio < 0.7 * most.ratio
    for found in (few, most):
        assert found.predicted == pytest.approx(found.ratio, rel=0.35)
        assert found.predicted_padded == pytest.approx(found.padded, rel=0.6)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("mix", packing.MIXES)
def test_the_saved_time_is_predicted(mix):
    found = packing.compare(packing.encoder(2, 256, 128), packing.lengths_of(mix, 16, 128, 0), 41)
    assert found.ratio < 0.9
    assert found.predicted == pytest.approx(found.ratio, rel=0.15)
