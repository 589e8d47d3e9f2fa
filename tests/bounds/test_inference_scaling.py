"""Costs of test-time scaling, against a simulation of every token of every trial."""

import numpy as np
import pytest

from nearpeak.bounds.inference_scaling import best_under, cost
from nearpeak.errors import UsageError
from nearpeak.hardware import device
from nearpeak.workload import Architecture, Attention, Block, Dense, parameters, read

B200 = device("b200_sxm")
INTENSITY = B200.rates["bf16"] / B200.memory_bandwidth
SIZES = tuple(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "8B", "32B"))


def simulate(layers, heads, kv_heads, dim, window, active, prompt, length, trials, budget, block):
    """FLOP in matrices and attention, and bytes of cache, token by token; entries are counted as they are read.

    A trial without a budget reads its window: the prompt's entries once for all trials. With one, blocks are scored,
    and the trials' choices are distinct as far as there are distinct entries.
    """
    matrices = attention = elements = 0.0
    for made in range(1, length + 1):
        context = prompt + made
        span = min(context, window) if window else context
        of_prompt, own = max(0, span - made), min(made, span)
        held = of_prompt + trials * own
        matrices += trials * 2 * active
        if budget and span > budget:
            attention += layers * trials * heads * (4 * dim * budget + 2 * dim * span / block)
            elements += layers * kv_heads * dim * (2 * min(held, trials * budget) + held / block)
        else:
            attention += layers * trials * heads * 4 * dim * span
            elements += layers * kv_heads * dim * 2 * held
    return matrices, attention, 2 * elements


def test_two_hundred_settings_agree_with_a_token_by_token_simulation():
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(200):
        kv_heads = int(rng.choice([1, 2, 8]))
        heads, dim = kv_heads * int(rng.choice([1, 4, 8])), int(rng.choice([64, 128]))
        layers, window = int(rng.integers(2, 49)), int(rng.choice([0, 0, 512, 2048]))
        shape = Attention(heads, kv_heads, dim, dim, window=window)
        model = Architecture("any", "llama", 1024, 32000, (Block(shape, Dense(4096), layers),), 1 << 20)
        prompt, length = int(np.exp(rng.uniform(3, 9))), int(np.exp(rng.uniform(3, 9.5)))
        trials, budget = int(2 ** rng.integers(0, 7)), int(rng.choice([0, 128, 1024, 4096]))
        found = cost(model, prompt, length, trials, budget)
        active = parameters(model).active
        told = simulate(layers, heads, kv_heads, dim, window, active, prompt, length, trials, budget, 16)
        whole = told[0] + told[1] + INTENSITY * told[2]
        worst = max(worst, abs(float(found.equivalent(INTENSITY) - found.prefill) / whole - 1))
        assert float(found.parameters) == pytest.approx(told[0], rel=1e-9)
    assert worst < 0.02


def test_dense_attention_costs_what_the_papers_formula_says():
    model, p, n = read("Qwen/Qwen3-8B"), 1000.0, 8.0
    length = np.array([1e3, 1e4, 1e5])
    found = cost(model, p, length, n)
    heads, kv_heads, dim, layers = 32, 8, 128, 36
    kv = 2 * kv_heads * dim * layers  # elements of a token; r = heads / kv_heads query heads share each
    np.testing.assert_allclose(found.parameters, 2 * parameters(model).active * n * length)
    paper = 2 * (heads / kv_heads) * n * kv * length * p + (heads / kv_heads) * n * kv * length**2
    np.testing.assert_allclose(found.attention, paper, rtol=2e-3)
    np.testing.assert_allclose(found.cache, 2 * kv * length * p + n * kv * length**2, rtol=2e-3)


def test_attention_is_over_half_of_the_cost_of_long_chains():
    for name in SIZES:
        assert float(cost(read(name), 512, 32768).attention_share(INTENSITY)) > 0.5
    small, large = (
        float(cost(read(f"Qwen/Qwen3-{s}"), 512, 32768).attention_share(INTENSITY)) for s in ("0.6B", "32B")
    )
    assert small > large


def test_the_prompts_cache_is_read_once_for_all_trials():
    model = read("Qwen/Qwen3-8B")
    one, many = (cost(model, 1e6, 10, n) for n in (1, 64))
    assert float(many.cache / one.cache) == pytest.approx(1.0, rel=1e-3)
    assert float(many.attention / one.attention) == pytest.approx(64)


def test_a_budget_bounds_what_grows_and_pays_for_its_scores():
    model, lengths = read("Qwen/Qwen3-8B"), np.array([1e4, 1e5, 1e6])
    sparse = cost(model, 512, lengths, budget=1024, block=1e9)
    np.testing.assert_allclose(sparse.cache / lengths, 36 * 2048 * 2 * 1024, rtol=0.1)
    scored = cost(model, 512, lengths, budget=1024, block=16)
    assert (scored.cache > sparse.cache).all()
    assert (scored.cache < cost(model, 512, lengths).cache).all()
    np.testing.assert_allclose(cost(model, 512, 4096, budget=10_000).cache, cost(model, 512, 4096).cache)


def test_the_best_model_grows_when_memory_is_counted():
    # One fixed family of curves: accuracy saturates with the length, at a ceiling that grows with the model.
    ceiling = dict(zip(SIZES, (0.25, 0.50, 0.75, 0.80), strict=True))
    lengths, trials = np.meshgrid(2.0 ** np.arange(9, 16), 2.0 ** np.arange(6))
    names, scores, flop, counted = [], [], [], []
    for name in SIZES:
        found = cost(read(name), 512, lengths.ravel(), trials.ravel())
        once = ceiling[name] * (1 - np.exp(-lengths / 6000))
        scores.append((1 - (1 - once) ** (trials**0.5)).ravel())
        names += [SIZES.index(name)] * lengths.size
        flop.append(found.flop)
        counted.append(found.equivalent(INTENSITY))
    size, score, flop, counted = np.array(names), *(np.concatenate(x) for x in (scores, flop, counted))
    shares = np.linspace(0.05, 0.6, 40)  # the same share of candidates is affordable under either cost
    by_flop = size[best_under(flop, score, np.quantile(flop, shares))]
    by_both = size[best_under(counted, score, np.quantile(counted, shares))]
    assert (by_both >= by_flop).mean() > 0.9
    assert by_both.mean() > by_flop.mean() + 0.2


def test_the_best_under_a_cap_is_the_cheapest_of_the_most_accurate():
    found = best_under([3.0, 1.0, 2.0, 9.0], [0.5, 0.4, 0.5, 0.9], [0.5, 1.5, 4.0, 10.0])
    assert found.tolist() == [-1, 1, 2, 3]


def test_reading_the_weights_is_shared_by_the_questions_that_decode_together():
    model = read("Qwen/Qwen3-8B")
    alone, many = (cost(model, 512, 1000, together=q) for q in (1, 100))
    assert float(alone.weights) == pytest.approx(1000 * 2 * parameters(model).active)
    assert float(many.weights) == pytest.approx(float(alone.weights) / 100)
    assert float(cost(model, 512, 1000).weights) == 0


def test_a_table_of_accuracies_is_searched(run_topic, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "model,trials,length,budget,accuracy\n"
        "Qwen/Qwen3-0.6B,1,32768,0,0.3\nQwen/Qwen3-8B,1,12000,0,0.35\nQwen/Qwen3-8B,1,32768,1024,0.6\n"
    )
    told = run_topic("test-time", models=(), gpu="b200_sxm", accuracy=str(path))
    memory, flop = told.tables
    assert flop.rows[0]["model"] == "Qwen/Qwen3-0.6B"
    assert memory.rows[0]["model"] == memory.rows[-1]["model"] == "Qwen/Qwen3-8B"
    path.write_text("model,trials\nx,1\n")
    with pytest.raises(UsageError, match="lacks length, accuracy"):
        run_topic("test-time", models=(), gpu="b200_sxm", accuracy=str(path))


def test_nonsense_is_refused_by_name():
    model = read("Qwen/Qwen3-0.6B")
    for name, kwargs in (("length", {"length": 0}), ("budget", {"budget": -1}), ("trials", {"trials": np.nan})):
        with pytest.raises(UsageError, match=name):
            cost(model, **({"prompt": 10, "length": 10} | kwargs))
