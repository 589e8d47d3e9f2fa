"""Kernels that evolve: expressions, their fits, operators, and what the search gains."""

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search.bayesian import Bayesian
from nearpeak.search.history import History
from nearpeak.search.study import compare, cube, trial
from nearpeak.search.surrogates.kernel_evolution import (
    STRUCTURED,
    TOPIC,
    KernelEvolution,
    founders,
    grammar,
    language_model,
    prompt,
)
from nearpeak.search.surrogates.kernel_expressions import Composite, Layout, fit, parse, write
from nearpeak.search.surrogates.tournament import rbf_surrogate


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("se(x1)+per(x0)", "per(x0) + se(x1)"),
        ("(se(x0) + lin(x1)) * per(x0)", "lin(x1) * per(x0) + per(x0) * se(x0)"),
        ("rq(x)", "rq(x)"),
    ],
)
def test_expressions_are_read_and_written(text: str, normal: str) -> None:
    assert write(parse(text, 2)) == normal
    assert parse(normal, 2) == parse(normal, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("se(x2)", "x0 to x1"),
        ("per(x)", "x0 to x1"),
        ("se(x0) - se(x1)", "join"),
        ("cosine(x0)", "join"),
        ("se(x0) +", "no kernel"),
        ("se(x0)*se(x1)*se(x0)*se(x1)", "factors"),
        ("__import__('os')", "join"),
    ],
)
def test_what_is_no_kernel_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(text, 2)


@pytest.mark.parametrize("text", ["se(x) + per(x0) * lin(x1)", "rq(x) * m32(x2) + lin(x0)", "m52(x1) * per(x0)"])
def test_likelihood_has_the_gradient_it_says(text: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((20, 3))
    y = np.sin(9 * x[:, 0]) + x[:, 1] - 0.5
    layout = Layout(parse(text, 3), 3)
    theta = layout.prior[0] + 0.3 * rng.standard_normal(len(layout.prior[0]))
    gradient = layout.log_posterior(x, y, theta)[1]
    for i, step in enumerate(1e-5 * np.eye(len(theta))):
        up, down = (layout.log_posterior(x, y, theta + s)[0] for s in (step, -step))
        assert gradient[i] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("text", ["se(x) + per(x0) * lin(x1)", "rq(x0) * m32(x1) + per(x1)"])
def test_expressions_are_covariances(text: str) -> None:
    rng = np.random.default_rng(1)
    layout = Layout(parse(text, 2), 2)
    kernel = Composite(layout, layout.prior[0])
    x = rng.random((30, 2))
    matrix = kernel(x, x)
    assert matrix == pytest.approx(matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > -1e-9 * np.trace(matrix)
    assert kernel.diagonal(x) == pytest.approx(np.diag(matrix))


def test_the_criterion_finds_the_cycle() -> None:
    own = STRUCTURED["cycle"]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = rng.random((30, 2))
        found = {t: fit(parse(t, 2), x, own.function(x), rng).bic for t in ("per(x0) + se(x1)", "se(x)", "m52(x)")}
        assert min(found, key=lambda t: found[t]) == "per(x0) + se(x1)"
    theta = fit(parse("per(x0) + se(x1)", 2), x, own.function(x), rng).theta
    assert np.exp(theta[2]) % (1 / 7) == pytest.approx(0, abs=0.01) or np.exp(theta[2]) == pytest.approx(
        1 / 7, rel=0.05
    )


def test_a_grammar_breeds_kernels() -> None:
    population = [(t, float(i)) for i, t in enumerate(founders(3))]
    rng = np.random.default_rng(0)
    for _ in range(30):
        children = grammar(population, 3, 4, rng)
        assert len(children) == 4
        for child in children:
            assert write(parse(child, 3)) == child
        population = [(t, float(i)) for i, t in enumerate({*children, *(p for p, _ in population[:3])})]
    assert len({base for text, _ in population for base in text.split()}) > 5


def test_a_language_model_may_breed() -> None:
    asked: list[str] = []

    def complete(text: str) -> str:
        asked.append(text)
        return "Here are kernels:\nper(x0) + se(x1)\nper(x7)\nper(x0) * lin(x1)\nm52(x)\nse(x)"

    operator = language_model(complete)
    population = [("se(x)", 10.0), ("m52(x)", 12.0)]
    rng = np.random.default_rng(0)
    assert operator(population, 2, 2, rng) == ["per(x0) + se(x1)", "lin(x1) * per(x0)"]
    assert asked == [prompt(population, 2, 2)]
    assert "se(x)    (BIC 10.0)" in asked[0]
    only = language_model(lambda text: "no idea")(population, 2, 3, rng)
    assert len(only) == 3
    method = KernelEvolution(operator, initial=6, every=2)
    own = STRUCTURED["cycle"]
    history = trial(method, own, 10, 0)
    assert len(history) == 10
    kept = method.population(cube(2), history)
    assert any("per" in write(k.expression) for k in kept)


def test_a_fresh_object_goes_on_the_same() -> None:
    own, space = STRUCTURED["modulated"], cube(2)
    method = KernelEvolution(initial=6, every=2, survivors=3, children=2)
    history = trial(method, own, 11, 4)
    fresh = KernelEvolution(initial=6, every=2, survivors=3, children=2)
    both = [m.propose(space, history, 2, np.random.default_rng(9)) for m in (method, fresh)]
    assert (both[0] == both[1]).all()
    assert (both[0][0] != both[0][1]).any()


def test_failed_evaluations_are_left_out() -> None:
    space = cube(2)
    x = space.sample(12, np.random.default_rng(0))
    values = STRUCTURED["cycle"].function(x)
    values[::4] = np.nan
    point = KernelEvolution(initial=6).propose(space, History.of(x, values), 1, np.random.default_rng(0))
    assert space.holds(point).all()


def test_topic_shows_what_survives() -> None:
    found = TOPIC.explain(problem="cycle", evaluations=9, seeds=1)
    assert {"kernel", "regret_evolved", "regret_rbf", "regret_matern"} == set(found.figures)
    with pytest.raises(UsageError, match="more than 6"):
        TOPIC.explain(problem="cycle", evaluations=6, seeds=1)


def test_evolved_kernels_learn_a_cycle() -> None:
    """A small part of the row's check: one function, one seed, half of the budget."""
    own, method = STRUCTURED["cycle"], KernelEvolution()
    study = compare({"evolved": method, "rbf": Bayesian(rbf_surrogate)}, [own], 1, 22)
    assert study.final[0].mean() <= study.final[1].mean() + 1e-6
    kept = method.population(cube(2), trial(method, own, 22, 0))
    assert "per" in write(kept[0].expression)


@pytest.mark.slow
def test_evolved_kernels_beat_fixed_ones() -> None:
    """The row's check: 4 functions, 10 seeds, 50 evaluations."""
    methods = {"evolved": KernelEvolution(), "rbf": Bayesian(rbf_surrogate), "matern": Bayesian()}
    study = compare(methods, list(STRUCTURED.values()), 10, 50)
    median = np.median(study.final, axis=2)
    assert ((median[0] < median[1]) & (median[0] < median[2])).sum() >= 3
    own, periodic = STRUCTURED["cycle"], 0
    for seed in range(10):
        kept = methods["evolved"].population(cube(2), trial(methods["evolved"], own, 50, seed))  # type: ignore[attr-defined]
        periodic += "per" in write(kept[0].expression)
    assert periodic >= 9
