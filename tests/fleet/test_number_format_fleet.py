"""Number formats under simulated traffic: no rule names a winner, the change is confirmed by random arrivals, and a
model's own divergence is measured.
"""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from nearpeak.bounds.number_format import SCHEMES, changes, schemes
from nearpeak.bounds.number_format import serve as closed_form
from nearpeak.case import setup
from nearpeak.errors import UnknownName, UsageError
from nearpeak.fleet import number_format, topics
from nearpeak.fleet.number_format import CANDIDATES, admitted, confirmed, deployed, simulated
from nearpeak.fleet.steady_state import lengths

LLAMA = "meta-llama/Meta-Llama-3.1-8B"
BATCH = np.array([1, 2, 4, 8, 11, 16, 23, 32, 64, 91, 128, 181, 256, 384])


@pytest.fixture(scope="module")
def found():
    """Schemes by device, simulated at every batch with the same requests."""

    def on(gpu, model=LLAMA, batch=BATCH):
        own = setup(model, gpu, 1, 512, 256)
        able = admitted(own, schemes(CANDIDATES)).schemes
        return own, [simulated(own, scheme, batch, lengths(own, 0.5)) for scheme in able]

    return {gpu: on(gpu) for gpu in ("a6000", "h100")}


def cheapest(served, cost):
    return min(served, key=cost).scheme.name


@pytest.mark.parametrize("gpu", ["a6000", "h100"])
def test_4_bit_weights_are_cheapest_for_one_request_and_8_bit_products_at_saturation(found, gpu):
    _, served = found[gpu]
    assert cheapest(served, lambda s: s.token[0]) == "w4a16-int"
    assert cheapest(served, lambda s: s.token.min()).startswith("w8a8")
    by_name = {s.scheme.name: s for s in served}
    assert by_name["w8a8-int"].token[0] > 1.2 * by_name["w4a16-int"].token[0]
    assert by_name["w4a16-int"].token.min() > 1.05 * by_name["w8a8-int"].token.min()


@pytest.mark.parametrize("gpu", ["a6000", "h100"])
def test_the_winner_changes_at_one_request_rate_that_random_arrivals_confirm(found, gpu):
    own, served = found[gpu]
    (turn,) = changes(served)
    assert (turn.before, turn.after[:4]) == ("w4a16-int", "w8a8")
    below, above = confirmed(own, turn, lengths(own, 0.5), 384, n=3000)
    assert below.before < below.after
    assert above.before > above.after
    closed = changes([closed_form(own, s.scheme, np.arange(1.0, 385.0)) for s in served])
    assert turn.request_rate == pytest.approx(closed[0].request_rate, rel=0.25)


def test_the_change_comes_later_where_arithmetic_outruns_bandwidth(found):
    rates = {gpu: changes(served)[0].batch for gpu, (_, served) in found.items()}
    assert rates["h100"] > 3 * rates["a6000"]


def test_no_rule_names_a_winner():
    """A device whose products in 8 bits are no faster changes who wins."""
    own = setup(LLAMA, "a6000", 1, 512, 256)
    device = own.node.device
    # Products of 8 bits at the rate of 16: nothing is left but bytes, and 4 bits win everywhere.
    slow = replace(device, rates={**device.rates, "int8": device.rates["bf16"]})
    equal = replace(own, node=replace(own.node, device=slow))
    served = [simulated(equal, s, np.array([1, 16, 256]), lengths(own, 0.5)) for s in schemes(CANDIDATES[1:])]
    assert cheapest(served, lambda s: s.token.min()) == "w4a16-int"
    assert changes(served) == ()
    source = inspect.getsource(number_format)
    assert not any(word in source for word in ('"h100_sxm"', '"rtx_a6000"', '== "w4a16-int"'))


def test_a_floor_and_a_missing_path_leave_schemes_out_with_the_reason():
    own = setup(LLAMA, "a6000", 1, 512, 256)
    plain = admitted(own, schemes(CANDIDATES))
    assert [s.name for s in plain.schemes] == ["w8a8-int", "w4a16-int"]
    assert "does not multiply fp8" in plain.left_out[0]
    strict = admitted(own, schemes(CANDIDATES), accuracy=0.96)
    assert [s.name for s in strict.schemes] == ["w8a8-int"]
    large = admitted(setup("Qwen/Qwen3-32B", "a6000", 1, 512, 256), schemes(("bf16", "w4a16-int")))
    assert [s.name for s in large.schemes] == ["w4a16-int"]
    assert "does not fit" in large.left_out[0]
    unmeasured = admitted(own, schemes(CANDIDATES), measured={}, divergence=0.1)
    assert not unmeasured.schemes
    assert "was not measured" in unmeasured.left_out[-1]
    with pytest.raises(UsageError, match="does not multiply fp8"):
        deployed(own, SCHEMES["w8a8-fp"], 8)


def test_fewer_bits_of_weights_leave_more_cache():
    own = setup(LLAMA, "a6000", 1, 512, 256)
    wide, narrow = (deployed(own, SCHEMES[n], 8).instances[0].blocks for n in ("w8a8-int", "w4a16-int"))
    assert narrow > wide
    # A T4 widens before it multiplies: its steps take longer, its cache is that of narrow weights.
    old = setup("Qwen/Qwen3-0.6B", "t4", 1, 512, 256)
    packed, plain = (deployed(old, SCHEMES[n], 8, 1024) for n in ("w4a16-int", "bf16"))
    assert packed.instances[0].blocks > plain.instances[0].blocks
    assert (packed.table.decode > plain.table.decode).all()


def test_a_person_gets_winners_and_the_rate_of_the_change():
    topic = topics()["number-format"]
    given = {o.name: o.default for o in topic.options} | {"model": LLAMA, "gpus": ("h100",), "most": 256}
    found = topic.explain(**given)
    assert found.tables[0].rows[0]["synchronous"] == "w4a16-int"
    assert found.tables[0].rows[0]["saturated"].startswith("w8a8")
    assert any("requests/s on" in line for line in found.says)
    floored = topic.explain(**given | {"accuracy": 0.98})
    assert floored.tables[0].rows[0] == {"gpu": "h100", "synchronous": "w8a8-fp", "saturated": "w8a8-fp"}
    with pytest.raises(UsageError, match="needs --checkpoint"):
        topic.explain(**given | {"divergence": 0.1})
    with pytest.raises(UsageError, match="is left out"):
        topic.explain(**given | {"accuracy": 0.999})


# What a model loses, measured on it.


@pytest.fixture(scope="module")
def language_model(tiny_llama):
    """A tiny trained model, and windows of text that it has not seen."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import tiny_model

    tokens = tiny_model.text()
    unseen = tokens[len(tokens) * 9 // 10 :]
    windows = torch.stack([unseen[i * 1000 : i * 1000 + tiny_model.CONTEXT] for i in range(40)])
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval(), windows


def test_divergence_of_all_three_formats_has_an_interval_that_tells_them_apart(language_model):
    from nearpeak.fleet.format_divergence import divergences

    model, windows = language_model
    kept = {name: p.clone() for name, p in model.named_parameters()}
    found = divergences(model, windows)
    assert set(found) == set(CANDIDATES)
    for one in found.values():
        assert 0 < one.low < one.mean < one.high < 2 * one.low
        assert one.tokens == windows.numel()
    # Without outliers, 8 bits lose less than 4.
    assert found["w8a8-int"].high < found["w4a16-int"].low
    assert found["w8a8-fp"].high < found["w4a16-int"].low
    assert all((p == kept[name]).all() for name, p in model.named_parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    own = setup(LLAMA, "h100", 1, 512, 256)
    limit = (found["w8a8-fp"].high + found["w4a16-int"].low) / 2
    left = admitted(own, schemes(CANDIDATES), measured=found, divergence=limit)
    assert [s.name for s in left.schemes] == ["w8a8-fp", "w8a8-int"]
    assert divergences(model, windows) == found


def test_the_divergence_is_the_definition(language_model):
    import torch

    from nearpeak.fleet.format_divergence import divergences, in_format, layer_matrices

    model, windows = language_model
    found = divergences(model, windows[:3], ["w4a16-int"])["w4a16-int"]
    with torch.no_grad():
        p = model(windows[:3]).logits.double().softmax(-1)
        with in_format(model, "w4a16-int"):
            q = model(windows[:3]).logits.double().softmax(-1)
            weight = next(iter(layer_matrices(model).values())).weight
            # 16 codes in each group of 128 inputs.
            assert max(len(group.unique()) for group in weight.reshape(-1, 128)) <= 16
    assert found.mean == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-3)


def test_8_bit_formats_round_activations_for_each_token(language_model):
    import torch

    from nearpeak.fleet.format_divergence import ROUNDINGS, in_format, layer_matrices

    model, windows = language_model
    for name in ("w8a8-int", "w8a8-fp"):
        _, rounded = ROUNDINGS[name]
        x = torch.randn(4, 7, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 7)[:, None]
        error = ((rounded(x) - x).norm(dim=-1) / x.norm(dim=-1)).flatten()
        assert (error > 1e-3).all()
        assert error.max() < 0.05  # the same for small and large tokens: each has a scale of its own
        assert error.max() < 2 * error.min()
        seen = []
        first = next(iter(layer_matrices(model).values()))
        with in_format(model, name):
            # Hooks run in order: this one sees what the rounding made.
            hook = first.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
            with torch.no_grad():
                model(windows[:1])
            hook.remove()
        row = seen[0][0, 5]
        assert len(row.unique()) <= 256


def test_an_outlier_hurts_integers_more_than_floats():
    """Why FP8 is the safer of the two where activations have outliers (arXiv 2411.02355)."""
    torch = pytest.importorskip("torch")
    from nearpeak.fleet.format_divergence import ROUNDINGS

    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 300.0
    rest = slice(1, None)
    error = {n: float((ROUNDINGS[n][1](x) - x)[:, rest].norm() / x[:, rest].norm()) for n in ("w8a8-int", "w8a8-fp")}
    assert error["w8a8-int"] > 5 * error["w8a8-fp"]


def test_nonsense_is_refused_by_the_measurement(language_model, tmp_path):
    import torch

    from nearpeak.fleet.format_divergence import divergences, in_format, of_checkpoint

    model, windows = language_model
    with pytest.raises(UnknownName, match="w3"), in_format(model, "w3"):
        pass
    with pytest.raises(UsageError, match="at least 2"):
        divergences(model, windows[:1])
    with pytest.raises(UsageError, match=r"nn\.Linear"), in_format(torch.nn.ReLU(), "w8a8-int"):
        pass
    with pytest.raises(UsageError, match="there is no file"):
        of_checkpoint(tmp_path, tmp_path / "text", CANDIDATES)


@pytest.mark.slow
def test_a_persons_own_checkpoint_sets_the_floor(tiny_llama, tmp_path):
    from pydoc_data.topics import topics as documentation

    text = tmp_path / "text"
    text.write_text("\n".join(documentation[name] for name in sorted(documentation))[-60_000:])
    topic = topics()["number-format"]
    given = {o.name: o.default for o in topic.options} | {
        "model": LLAMA, "gpus": ("h100",), "most": 64, "checkpoint": str(tiny_llama), "text": str(text),
    }  # fmt: skip
    measured = {row["format"]: row for row in topic.explain(**given).tables[-1].rows}
    assert set(measured) == set(CANDIDATES)
    assert all(0 < row["low"] < row["mean"] < row["high"] for row in measured.values())
    limit = (measured["w8a8-fp"]["high"] + measured["w4a16-int"]["low"]) / 2
    floored = topic.explain(**given | {"divergence": limit})
    assert "w4a16-int" not in floored.tables[0].rows[0]["synchronous"]
