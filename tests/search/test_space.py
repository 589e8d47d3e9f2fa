"""Spaces: what can be chosen, what must hold, which configurations are neighbours."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearpeak.errors import UsageError
from nearpeak.search import Categorical, Float, Integer, Ordinal, Permutation, Simplex, Space

MIXED = Space(
    {
        "solver": Categorical(("sgd", "adam", "lion")),
        "momentum": Float(0.0, 0.99),
        "order": Permutation(4),
        "mix": Simplex(3),
        "rate": Float(1e-4, 1.0, log=True),
        "batch": Ordinal((16, 32, 64, 128)),
        "layers": Integer(1, 12),
    },
    constraints=("mix[0] <= 0.5", "momentum <= 0.9", "batch * layers <= 768"),
    conditions={"momentum": "solver == 'sgd'"},
)


def test_a_grid_is_the_product_filtered_by_the_constraints():
    space = Space(
        {"a": Integer(1, 9), "b": Ordinal((1, 2, 4, 8)), "c": Categorical(("x", "y"))},
        constraints=("a % b == 0", "c == 'x' or a * b < 20"),
    )
    by_hand = [
        {"a": a, "b": b, "c": c}
        for a, b, c in itertools.product(range(1, 10), (1, 2, 4, 8), "xy")
        if a % b == 0 and (c == "x" or a * b < 20)
    ]
    assert [space.describe(p) for p in space.grid.points] == by_hand


def test_a_million_configurations_are_listed_and_found_again():
    space = Space(
        {name: Integer(1, 16) for name in "abcde"} | {"f": Ordinal((1, 2, 4, 8, 16))},
        constraints=("a * b <= 64", "c <= d", "(a + e) % f == 0"),
    )
    grid = space.grid
    assert len(grid.points) > 500_000
    picked = np.random.default_rng(0).choice(len(grid.points), 1000)
    np.testing.assert_array_equal(grid.find(grid.points[picked]), picked)
    assert (grid.find(grid.points[picked] + np.array([20, 0, 0, 0, 0, 0])) == -1).all()


def test_neighbours_differ_in_one_parameter_and_meet_the_constraints():
    space = Space({"a": Integer(0, 5), "b": Integer(0, 5)}, constraints=("a + b <= 6",))
    grid = space.grid
    for i in range(len(grid.points)):
        apart = np.abs(grid.levels - grid.levels[i])
        anywhere = np.flatnonzero((apart > 0).sum(axis=1) == 1)
        assert set(grid.neighbours(i)) == set(anywhere)
        assert set(grid.neighbours(i, reach=1)) == set(np.flatnonzero(apart.sum(axis=1) == 1))


def test_an_inactive_parameter_has_one_configuration():
    space = Space(
        {"solver": Categorical(("sgd", "adam")), "nesterov": Integer(0, 3)}, (), {"nesterov": "solver == 'sgd'"}
    )
    assert len(space.grid.points) == 5
    assert space.describe(space.grid.points[-1]) == {"solver": "adam"}
    np.testing.assert_array_equal(space.grid.find(space.grid.points), np.arange(5))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), reach=st.floats(0.001, 1.0))
def test_samples_and_moves_stay_in_the_space_and_are_written_and_read_alike(seed, reach):
    rng = np.random.default_rng(seed)
    points = MIXED.sample(20, rng)
    moved = MIXED.moved(points, rng, reach)
    for rows in (points, moved):
        assert MIXED.holds(rows).all()
        sgd = rows[:, 0] == 0
        assert (np.isnan(rows[:, 1]) != sgd).all()
        np.testing.assert_allclose(MIXED.rows([MIXED.describe(r) for r in rows]), rows, rtol=1e-9, atol=1e-12)
    features = MIXED.encode(moved)
    assert features.shape == (20, len(MIXED.groups))
    assert ((features >= 0) & (features <= 1)).all()
    assert (moved != points).any(axis=1).mean() > 0.8


def test_draws_of_each_kind_are_uniform():
    rng = np.random.default_rng(0)
    assert np.allclose(np.bincount(Integer(3, 6).draw(40_000, rng)[:, 0].astype(int) - 3) / 40_000, 0.25, atol=0.01)
    assert abs(np.log10(Float(1e-4, 1, log=True).draw(40_000, rng)).mean() + 2) < 0.02
    assert np.allclose(Simplex(3).draw(40_000, rng).mean(axis=0), 1 / 3, atol=0.01)
    assert np.allclose(Permutation(4).draw(40_000, rng).mean(axis=0), 1.5, atol=0.03)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Space({}), "at least one parameter"),
        (lambda: Space({"a": Integer(1, 3)}, ("a > b",)), "names b"),
        (lambda: Space({"a": Integer(1, 3)}, ("a >",)), "no expression"),
        (lambda: Space({"a": Integer(1, 3)}, ("open('x')",)), "names|not understood"),
        (lambda: Space({"a": Integer(1, 3)}, ("a.real > 1",)), "not understood"),
        (
            lambda: Space({"a": Integer(1, 3), "b": Integer(1, 3)}, ("a > 2", "a + b < 3")).grid,
            "'a \\+ b < 3' together with 'a > 2'",
        ),
        (lambda: Space({"a": Float(0, 1)}, ("a > 2",)).sample(1, np.random.default_rng(0)), "'a > 2' holds in 0.00%"),
        (lambda: Space({"a": Integer(1, 3)}, (), {"b": "a > 1"}), "conditions on b"),
        (lambda: Space({"p": Permutation(3)}, ("p > 1",)), "p has 3 values: write p\\[0\\]"),
        (lambda: Space({"p": Permutation(3)}, ("p[3] > 1",)), "asks for a value that p does not have"),
        (lambda: Space({"a": Integer(1, 3)}, ("a in a",)), "needs values in brackets"),
        (lambda: Space({"a": Integer(1, 3)}, ("abs(a, a) > 1",)), "wrong number of arguments"),
        (lambda: Integer(3, 1), "empty"),
        (lambda: Float(0, 1, log=True), "above 0"),
        (lambda: Ordinal(()), "no values"),
        (lambda: Categorical(("x", "x")), "twice"),
        (lambda: Space({"a": Integer(1, 3)}).rows([{"a": 7}]), "a = 7"),
        (lambda: Space({"a": Integer(1, 3)}).rows([{}]), "without a"),
        (lambda: Space({"a": Integer(1, 3)}).rows([{"a": 1, "c": 2}]), "c in a configuration"),
        (lambda: Space({"a": Integer(1, 3)}, ("a > 1",)).rows([{"a": 1}]), "does not meet 'a > 1'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_a_constraint_that_divides_by_zero_does_not_hold():
    for zero in (Ordinal((0, 1, 2)), Integer(0, 2)):
        space = Space({"x": Ordinal((8, 16)), "v": zero}, ("x % v == 0",))
        assert len(space.grid.points) == 4
        assert not space.holds(np.array([[0.0, 0.0]])).any()


def test_functions_of_a_parameter_that_is_sometimes_inactive_are_asked_where_it_is_active():
    space = Space(
        {"m": Categorical(("a", "b")), "x": Ordinal((1, 4, 16)), "f": Integer(1, 20)},
        ("sqrt(x) * f > 10",),
        {"x": "m == 'a'"},
    )
    moved = space.moved(space.grid.points, np.random.default_rng(0))
    assert space.holds(moved).all()
    by_hand = sum(r * f > 10 for r in (1, 2, 4) for f in range(1, 21)) + 20
    assert len(space.grid.points) == by_hand


def test_a_grid_whose_numbering_does_not_fit_64_bits_finds_its_rows():
    many = {f"c{i}": Integer(0, 1) for i in range(70)} | {"z": Integer(0, 49)}
    points = np.random.default_rng(0).integers(0, 2, (500, 71)).astype(float)
    points[:, 70] = np.arange(500) % 50
    space = Space(many, listed=np.unique(points, axis=0))
    np.testing.assert_array_equal(space.grid.find(space.grid.points), np.arange(len(space.grid.points)))
