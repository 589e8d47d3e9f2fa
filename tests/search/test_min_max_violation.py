import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search.solvers.min_max_violation import (
    TOPIC,
    fir,
    minimize_violation,
    relax,
    round_to_grid,
    uniform_grid,
)

VARIABLES, ROWS = 12, 16
LEVELS = np.arange(3.0)


def _instance(seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(ROWS, VARIABLES))
    return a, a @ rng.uniform(0, 2, VARIABLES)


def _is_optimal(a, b, violation):
    """Go through all 3^12 choices, and keep row by row those that would be better."""
    x = np.stack(np.meshgrid(*[LEVELS] * VARIABLES, indexing="ij"), -1).reshape(-1, VARIABLES)
    for row, target in zip(a, b, strict=True):
        x = x[np.abs(x @ row - target) < violation - 1e-9]
    return not len(x)


def _optima(seeds):
    grid = np.broadcast_to(LEVELS, (VARIABLES, 3))
    found = 0
    for seed in seeds:
        a, b = _instance(seed)
        choice = minimize_violation(a, b[None], grid, restarts=16, steps=60, seed=seed)
        assert choice.violation[0] == pytest.approx(np.abs(a @ choice.x[0] - b).max())
        assert np.isin(choice.x, LEVELS).all()
        found += _is_optimal(a, b, choice.violation[0])
    return found


def test_the_search_finds_the_optimum_of_twelve_variables():
    assert _optima(range(12)) >= 11


@pytest.mark.slow
def test_the_search_finds_the_optimum_of_95_in_100_instances():
    assert _optima(range(100)) >= 95


def test_descent_from_rounding_alone_does_not_find_them():
    """The instances are no walkover: the rounded relaxation is almost never the optimum."""
    grid = np.broadcast_to(LEVELS, (VARIABLES, 3))
    instances = [_instance(seed) for seed in range(4)]
    rounded = [minimize_violation(a, b[None], grid, steps=0).violation[0] for a, b in instances]
    assert sum(_is_optimal(a, b, v) for (a, b), v in zip(instances, rounded, strict=True)) <= 1


@pytest.mark.parametrize(
    ("passband", "stopband", "bits", "optimum"),
    [
        (0.1, 0.2, 6, 0.072858),
        (0.1, 0.2, 8, 0.021663),
        (0.2, 0.3, 8, 0.024162),
        (0.15, 0.2, 8, 0.076985),
        (0.1, 0.2, 10, None),
    ],
)
def test_the_ripple_of_20_taps_is_below_rounded_least_squares(passband, stopband, bits, optimum):
    a, b = fir(20, passband, stopband)
    levels = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) / 2 ** (bits - 1)
    squares = np.linalg.lstsq(a, b, rcond=None)[0]
    rounded = levels[np.abs(squares[:, None] - levels).argmin(1)]
    grid = np.broadcast_to(levels, (10, levels.size))
    found = minimize_violation(a, b[None], grid, restarts=16, steps=150, reach=2).violation[0]
    assert found < 0.85 * np.abs(a @ rounded - b).max()
    # Nor does it lose to the rounded optimum over real numbers, and it cannot pass that optimum's bound.
    signal = pytest.importorskip("scipy.signal")
    chebyshev = signal.remez(20, [0, passband, stopband, 0.5], [1, 0], fs=1)[:10]
    assert found <= np.abs(a @ levels[np.abs(chebyshev[:, None] - levels).argmin(1)] - b).max() + 1e-9
    assert found >= relax(a, b[None])[1][0]
    if optimum is not None:  # proven by HiGHS, as an integer program
        assert found == pytest.approx(optimum, rel=1e-4)


def test_the_relaxation_is_the_chebyshev_filter():
    from scipy.optimize import linprog

    for a, b in (fir(20, 0.1, 0.2), fir(21, 0.2, 0.25), _instance(0)):
        m, n = a.shape
        rows = np.vstack([np.c_[a, -np.ones(m)], np.c_[-a, -np.ones(m)]])
        best = linprog(np.r_[np.zeros(n), 1], rows, np.r_[b, -b], bounds=(None, None)).fun
        x, bound = relax(a, b[None], iterations=300)
        assert bound[0] <= best + 1e-9
        assert np.abs(a @ x[0] - b).max() == pytest.approx(best, rel=0.05)
        assert bound[0] == pytest.approx(best, rel=0.05)


def _language_model(torch, width=64, blocks=1, context=32, steps=100):
    """A byte-level transformer of some seconds' training, its batches of text and the linears' names."""
    from pydoc_data.topics import topics

    text = torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()))
    torch.manual_seed(0)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.between = torch.nn.RMSNorm(width), torch.nn.RMSNorm(width)
            self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
            self.out = torch.nn.Linear(width, width, bias=False)
            self.up = torch.nn.Linear(width, 2 * width, bias=False)
            self.down = torch.nn.Linear(2 * width, width, bias=False)

        def forward(self, x):
            q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.before(x)).chunk(3, dim=-1))
            seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).flatten(2))
            return x + self.down(torch.nn.functional.silu(self.up(self.between(x))))

    model = torch.nn.Sequential(
        torch.nn.Embedding(256, width), *(Block() for _ in range(blocks)), torch.nn.Linear(width, 256)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def batch(low, high, size):
        at = torch.randint(low, high - context - 1, (size,), generator=generator)
        return torch.stack([text[i : i + context + 1] for i in at.tolist()])

    cut = len(text) * 9 // 10
    for _ in range(steps):
        tokens = batch(0, cut, 32)
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 3.0  # a random model is at 5.5
    return model, batch(0, cut, 64)[:, :-1], batch(cut, len(text), 64)[:, :-1]


def _inputs(torch, model, tokens, keep):
    """What each linear sees, ``[keep, inputs]``."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, given, __, name=name: seen.__setitem__(name, given[0].flatten(0, -2)))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    chosen = torch.randperm(tokens.numel(), generator=torch.Generator().manual_seed(0))[:keep]
    return {name: given[chosen].numpy() for name, given in seen.items()}


def _ratios(weight, calibration, held_out, bits, steps):
    """Worst output error over round-to-nearest's, on the inputs that were seen and on others, and the rms's."""
    chosen, nearest = round_to_grid(weight, calibration, uniform_grid(weight, bits), steps=steps)
    worst, mean = ([f(held_out @ (x - weight).T) for x in (chosen.x, nearest.x)] for f in (_worst, _rms))
    return float(chosen.violation.max() / nearest.violation.max()), worst[0] / worst[1], mean[0] / mean[1]


def _worst(error):
    return np.abs(error).max()


def _rms(error):
    return np.sqrt((error**2).mean())


def test_layers_of_a_trained_model_round_with_a_smaller_worst_error():
    torch = pytest.importorskip("torch")
    model, calibration, held_out = _language_model(torch)
    seen, other = (_inputs(torch, model, tokens, 512) for tokens in (calibration, held_out))
    ratios = {
        (name, bits): _ratios(module.weight.detach().numpy(), seen[name], other[name], bits, 40)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        for bits in (3, 4)
    }
    assert len(ratios) == 10
    on_seen, on_other, rms = np.array(list(ratios.values())).T
    assert (on_seen < 0.9).all()
    # Inputs that were not seen gain in the mean everywhere; at worst only over all layers, and less.
    assert np.exp(np.log(on_other).mean()) < 1
    assert (rms < 1).all()


@pytest.mark.slow
def test_every_layer_of_a_trained_llama_rounds_with_a_smaller_worst_error():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import tiny_model

    model, tokens = tiny_model.train(100), tiny_model.text()
    cut = len(tokens) * 9 // 10
    seen = _inputs(torch, model.model, tiny_model.batch(tokens[:cut], 16, 1), 1024)
    other = _inputs(torch, model.model, tiny_model.batch(tokens[cut:], 16, 2), 2048)
    ratios = np.array([
        _ratios(module.weight.detach().numpy(), seen[name], other[name], bits, 60)
        for name, module in model.model.named_modules() if name in seen
        for bits in (3, 4)
    ])  # fmt: skip
    print(f"worst seen {ratios[:, 0].max():.3f}, geometric means {np.exp(np.log(ratios).mean(0)).round(3)}")
    assert len(ratios) == 42
    assert (ratios[:, 0] < 0.9).all()
    assert np.exp(np.log(ratios[:, 1]).mean()) < 1


def test_more_rounds_of_the_search_are_never_worse():
    a, b = _instance(3)
    grid = np.broadcast_to(LEVELS, (VARIABLES, 3))
    worst = [minimize_violation(a, b[None], grid, steps=steps, seed=5).violation[0] for steps in (0, 10, 40)]
    assert worst == sorted(worst, reverse=True)


def test_problems_that_share_a_matrix_are_solved_as_one_alone():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 8)), rng.normal(size=(3, 20))
    levels = np.sort(rng.normal(size=(3, 8, 4)), axis=-1)
    together = minimize_violation(a, b, levels, restarts=8, steps=80)
    alone = [minimize_violation(a, b[[i]], levels[[i]], restarts=8, steps=80).violation[0] for i in range(3)]
    np.testing.assert_allclose(together.violation, alone, rtol=0.02)
    np.testing.assert_allclose(np.take_along_axis(levels, together.index[..., None], -1)[..., 0], together.x)


def test_torch_makes_the_moves_of_numpy():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    a, b, levels = rng.normal(size=(40, 16)), rng.normal(size=(5, 40)), np.sort(rng.normal(size=(5, 16, 4)), axis=-1)
    start = rng.integers(4, size=(5, 16))
    ours = minimize_violation(a, b, levels, start=start, steps=40, restarts=3, reach=2)
    tensors = [torch.from_numpy(x) for x in (a, b, levels)]
    theirs = minimize_violation(*tensors, start=torch.from_numpy(start), steps=40, restarts=3, reach=2)
    np.testing.assert_array_equal(ours.index, theirs.index.numpy())
    grids = uniform_grid(levels[0], 3, 2), uniform_grid(tensors[2][0], 3, 2).numpy()
    np.testing.assert_allclose(*grids)


def test_a_grid_of_a_group_ends_at_its_extremes_and_spans_zero():
    weight = np.random.default_rng(0).normal(size=(3, 8))
    weight[1] = np.abs(weight[1])
    levels = uniform_grid(weight, 4, group=4)
    assert levels.shape == (3, 8, 16)
    np.testing.assert_allclose(levels[:, 0, 0], np.minimum(weight[:, :4].min(1), 0))
    np.testing.assert_allclose(levels[:, 7, -1], np.maximum(weight[:, 4:].max(1), 0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"b": np.zeros((1, 3))}, "needs b of"),
        ({"levels": np.zeros((2, 3))}, "needs b of"),
        ({"levels": np.zeros((4, 1))}, "two levels"),
        ({"reach": 0}, "two levels"),
        ({"a": np.full((5, 4), np.nan)}, "finite"),
    ],
)
def test_what_makes_no_sense_is_refused(change, says):
    good = {"a": np.ones((5, 4)), "b": np.zeros((1, 5)), "levels": np.broadcast_to(LEVELS, (4, 3))}
    with pytest.raises(UsageError, match=says):
        minimize_violation(**{**good, **change})


def test_the_topic_designs_a_filter_and_reads_a_matrix(tmp_path):
    defaults = {option.name: option.default for option in TOPIC.options}
    answer = TOPIC.explain(**{**defaults, "steps": 100, "restarts": 4})
    figures = answer.figures
    assert figures["bound_over_real_numbers"] < figures["worst_violation"]
    assert figures["worst_violation"] < figures["worst_violation_of_rounded_least_squares"]
    a, b = _instance(0)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    files = {"matrix": str(tmp_path / "a.npy"), "target": str(tmp_path / "b.npy"), "levels": (0.0, 1.0, 2.0)}
    answer = TOPIC.explain(**{**defaults, **files, "steps": 60})
    assert _is_optimal(a, b, answer.figures["worst_violation"])
    with pytest.raises(UsageError, match="both"):
        TOPIC.explain(**{**defaults, "matrix": files["matrix"]})
