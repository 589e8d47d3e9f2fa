import itertools
from functools import partial

import numpy as np
import pytest
from scipy import sparse

from nearpeak.errors import UnknownName, UsageError
from nearpeak.search.solvers import bandits
from nearpeak.search.solvers import neighbourhood as nb
from nearpeak.search.solvers.integer_problems import PROBLEMS, assignment, cover, knapsack, placement
from nearpeak.search.solvers.integer_program import FEASIBLE, IntegerProgram, read, solve
from nearpeak.search.solvers.large_neighbourhood import (
    CONFIGURATIONS,
    TOPIC,
    Configuration,
    hill_climbing,
    primal_gap,
    search,
    search_in_parallel,
    simulated_annealing,
)

pytest.importorskip("highspy")

SMALL = {
    "placement": partial(placement, items=9, places=3),
    "assignment": partial(assignment, items=24, places=3),
    "knapsack": partial(knapsack, items=40, dimensions=5),
    "cover": partial(cover, clients=20, sites=8),
}


def _state(program, seed=0):
    """A first solution, the relaxation, and three more solutions."""
    first = solve(program, solutions=1, seed=seed)
    relaxed = solve(program.relaxed())
    others = [solve(nb.random_objective(nb.State(program, relaxed.x, relaxed.value, first.x, first.x[None]), rng),
                    nodes=1).x for rng in map(np.random.default_rng, range(3))]  # fmt: skip
    return nb.State(program, relaxed.x, relaxed.value, first.x, np.vstack([first.x, *others]))


# Programs and the solver


@pytest.mark.parametrize("seed", range(3))
def test_the_solver_finds_what_enumeration_finds(seed):
    program = knapsack(seed, items=12, dimensions=3)
    x = np.array(list(itertools.product((0.0, 1.0), repeat=12)))
    fits = (x @ program.rows.toarray().T <= program.row_upper + 1e-9).all(1)
    found = solve(program)
    assert found.status == "optimal"
    assert found.value == pytest.approx((x @ program.cost)[fits].min())
    assert found.bound == pytest.approx(found.value, rel=1e-6)
    assert solve(program.relaxed()).value <= found.value
    assert solve(program, start=np.zeros(12)).value == found.value


def test_no_solution_is_said_and_not_made_up():
    program = knapsack(0, items=12, dimensions=3)
    found = solve(program.with_row(np.ones(12), 13.0, np.inf))
    assert (found.x, found.value, found.status) == (None, np.inf, "infeasible")
    found = search(program.with_row(np.ones(12), 13.0, np.inf), CONFIGURATIONS[0], 5)
    assert (found.x, found.status) == (None, "infeasible")


def test_violations_of_rows_bounds_and_integrality_are_seen():
    program = assignment(0, items=6, places=2)
    x = solve(program).x
    assert program.violation(x) == 0
    for wrong in (np.zeros(12), x * 0.5, np.where(x == 1, 2, x)):
        assert program.violation(wrong) >= 0.5


def test_a_file_is_read_as_it_is_written(tmp_path):
    (tmp_path / "p.lp").write_text(
        "maximize obj: 3 x + 2 y + z + 4\nsubject to\n c1: x + y + z <= 4.5\n c2: x - y >= -1\n"
        "bounds\n x <= 2.5\n z <= 0.5\ngenerals x y\nend\n"
    )
    program = read(tmp_path / "p.lp")
    # x = 2 and y = 2 take four of the 4.5; z, a real number, the rest.
    assert solve(program).value == pytest.approx(-(3 * 2 + 2 * 2 + 0.5 + 4))
    assert program.integer.tolist() == [True, True, False]
    with pytest.raises(UsageError, match="no file"):
        read(tmp_path / "absent.mps")
    (tmp_path / "bad.mps").write_text("nonsense")
    with pytest.raises(UsageError, match="cannot read"):
        read(tmp_path / "bad.mps")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cost": np.ones(3)}, "cost must hold 2"),
        ({"lower": np.array([np.nan, 0])}, "NaN at 0"),
        ({"lower": np.array([0.0, 3.0])}, "variable 1 must be at least 3"),
        ({"cost": np.array([np.inf, 0])}, "finite"),
    ],
)
def test_a_contradictory_program_is_refused(change, says):
    good = {
        "cost": np.ones(2), "rows": sparse.csr_array(np.ones((1, 2))), "row_lower": np.zeros(1),
        "row_upper": np.ones(1), "lower": np.zeros(2), "upper": np.ones(2), "integer": np.ones(2, bool),
    }  # fmt: skip
    with pytest.raises(UsageError, match=says):
        IntegerProgram(**{**good, **change})


# Bandits

POLICIES = {
    "epsilon-greedy": partial(bandits.epsilon_greedy, epsilon=0.1),
    "softmax": partial(bandits.softmax, temperature=0.1),
    "ucb1": partial(bandits.ucb1, alpha=0.5),
    "thompson": bandits.thompson,
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_bandit_loses_less_than_half_of_what_chance_loses(policy):
    chances = np.array([0.2, 0.3, 0.4, 0.5, 0.8])
    shares = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        pulls, rewards = np.zeros(5), np.zeros(5)
        for _ in range(1000):
            arm = policy(pulls, rewards, rng)
            pulls[arm] += 1
            rewards[arm] += rng.random() < chances[arm]
        shares.append(chances.max() - pulls @ chances / 1000)
    assert np.mean(shares) < 0.5 * (chances.max() - chances.mean())


def test_bandits_follow_their_formulas():
    pulls, rewards = np.array([10.0, 20.0, 5.0]), np.array([5.0, 16.0, 1.0])
    draws = np.array([
        [policy(pulls, rewards, np.random.default_rng(seed)) for seed in range(4000)]
        for policy in (partial(bandits.softmax, temperature=0.5), partial(bandits.epsilon_greedy, epsilon=0.3))
    ])  # fmt: skip
    shares = np.stack([(draws == arm).mean(1) for arm in range(3)], axis=1)
    weights = np.exp(rewards / pulls / 0.5)
    np.testing.assert_allclose(shares[0], weights / weights.sum(), atol=0.03)
    np.testing.assert_allclose(shares[1], [0.1, 0.8, 0.1], atol=0.03)
    best = int(np.argmax(rewards / pulls + np.sqrt(2 * np.log(35) / pulls)))
    assert bandits.ucb1(pulls, rewards, np.random.default_rng(0)) == best
    assert bandits.ucb1(np.array([3.0, 0.0, 9.0]), np.array([3.0, 0.0, 9.0]), np.random.default_rng(0)) == 1


# Neighbourhoods


@pytest.mark.parametrize("kind", SMALL)
def test_a_neighbourhood_only_holds_solutions_of_the_program(kind):
    state, offered = _state(SMALL[kind](1)), set()
    program = state.program
    for name, operator in nb.OPERATORS.items():
        narrowed = operator(state, np.random.default_rng(0))
        if narrowed is None:
            continue
        offered.add(name)
        m = program.rows.shape[0]
        assert (narrowed.lower >= program.lower).all()
        assert (narrowed.upper <= program.upper).all()
        assert (narrowed.rows[:m] != program.rows).nnz == 0
        assert (narrowed.row_lower[:m] >= program.row_lower).all()
        assert (narrowed.row_upper[:m] <= program.row_upper).all()
        assert (narrowed.integer == program.integer).all()
        # It is another problem than the whole one.
        same = narrowed.rows.shape[0] == m and (narrowed.cost == program.cost).all()
        assert not same or (narrowed.upper - narrowed.lower).sum() < (program.upper - program.lower).sum()
    # Where the relaxation is whole already, RENS, DINS and proximity have nothing to offer.
    assert len(offered) >= 12


def test_mutation_and_rins_keep_their_share():
    state = _state(SMALL["assignment"](0))
    for share in (0.25, 0.75):
        kept = nb.mutation(state, np.random.default_rng(0), share)
        fixed = kept.lower == kept.upper
        assert fixed.sum() == int(share * 72)
        assert (kept.lower[fixed] == state.current[fixed]).all()
    agreed = np.abs(state.current - state.relaxation) < 1e-6
    kept = nb.rins(state, np.random.default_rng(0), 0.5)
    assert ((kept.lower == kept.upper) <= agreed).all()
    assert (kept.lower == kept.upper).sum() == agreed.sum() // 2


def test_crossover_keeps_what_two_solutions_share():
    state = _state(SMALL["assignment"](0))
    kept = nb.crossover(state, np.random.default_rng(0))
    fixed = kept.lower == kept.upper
    others = state.pool[(state.pool != state.current).any(1)]
    assert any(np.array_equal(fixed, other == state.current) for other in others)
    alone = nb.State(state.program, state.relaxation, state.bound, state.current, state.current[None])
    assert nb.crossover(alone, np.random.default_rng(0)) is None


def test_rens_and_dins_stay_by_the_relaxation():
    program = IntegerProgram(
        np.array([-1.0, -1.0]), sparse.csr_array(np.array([[3.0, 2.0]])), np.array([-np.inf]), np.array([12.5]),
        np.zeros(2), np.full(2, 9.0), np.ones(2, bool),
    )  # fmt: skip
    state = nb.State(program, np.array([1.3, 4.0]), -6.0, np.array([3.0, 4.0]), np.zeros((1, 2)))
    near = nb.rens(state, np.random.default_rng(0))
    assert (near.lower.tolist(), near.upper.tolist()) == ([1, 4], [2, 4])
    narrowed = nb.dins(state, np.random.default_rng(0))  # |3 - 1.3| = 1.7: from -0.4 to 3.0
    assert (narrowed.lower.tolist(), narrowed.upper.tolist()) == ([0, 4], [3, 4])


def test_local_branching_limits_flips_and_proximity_improves():
    state = _state(SMALL["assignment"](0))
    value, ones = state.program.value(state.current), state.current.sum()
    near = solve(nb.local_branching(state, np.random.default_rng(0), 0.1), nodes=200).x
    assert np.abs(near - state.current).sum() <= 2 * 0.1 * ones + 1e-6
    found = solve(nb.proximity(state, np.random.default_rng(0), 0.3), nodes=500)
    assert state.program.value(found.x) <= value - 0.3 * (value - state.bound) + 1e-6
    assert found.value == pytest.approx(np.abs(found.x - state.current).sum())


# Search


def test_annealing_accepts_less_as_it_cools_and_climbing_nothing_worse():
    rng = np.random.default_rng(0)
    shares = [
        np.mean([simulated_annealing(100.5, 100.0, progress, rng) for _ in range(4000)]) for progress in (0, 0.3, 1)
    ]
    assert shares[0] == pytest.approx(np.exp(-0.5), abs=0.03)
    assert shares[0] > shares[1] > shares[2] == 0
    assert simulated_annealing(-101, -100, 1.0, rng)
    assert [hill_climbing(v, 100, 0, rng) for v in (99, 100, 101)] == [True, True, False]


@pytest.mark.parametrize("kind", SMALL)
def test_a_search_reaches_the_optimum_of_small_programs_from_a_poor_start(kind):
    program = SMALL[kind](2)
    optimum = solve(program, time_limit=60).value
    worst = solve(nb.random_objective(_state(program), np.random.default_rng(1)), nodes=1).x
    found = search(program, CONFIGURATIONS[0], 3000, rounds=20, nodes=10, start=worst, seed=3)
    assert program.violation(found.x) <= FEASIBLE
    assert found.value == program.value(found.x)
    assert primal_gap(found.value, optimum) < 0.01


def test_one_seed_gives_one_search():
    program = placement(0, items=12, places=3)
    runs = [search(program, CONFIGURATIONS[2], 5000, rounds=6, nodes=2, seed=s) for s in (1, 1, 2)]
    keys = [(one.value, tuple(one.pulls.items()), tuple(v for _, v in one.trace)) for one in runs]
    assert keys[0] == keys[1] != keys[2]
    assert sum(runs[0].pulls.values()) == 6


def test_a_bandit_is_paid_for_the_operator_that_works():
    """Of two arms one keeps all but a tenth of a poor solution, one has never anything to offer."""
    program = SMALL["assignment"](0)
    narrow = Configuration("two", bandits.thompson, operators=("mutation-50", "crossover"))
    state = _state(program)
    found = search(program, narrow, 3000, rounds=20, nodes=1, start=state.current, seed=0)
    assert found.pulls["mutation-50"] > found.pulls["crossover"]
    assert found.rewards["mutation-50"] > found.rewards["crossover"]


def test_two_processes_return_both_searches_the_best_first():
    program = placement(1, items=30, places=6)
    found = search_in_parallel(program, CONFIGURATIONS[:2], 5.0)
    assert {one.configuration for one in found} == {c.name for c in CONFIGURATIONS[:2]}
    assert found[0].value <= found[1].value
    assert found[0].bound == found[1].bound <= found[0].value
    for one in found:
        assert program.violation(one.x) <= FEASIBLE
        values = [v for _, v in one.trace]
        assert values == sorted(values, reverse=True)


def test_what_makes_no_sense_is_refused():
    program = SMALL["knapsack"](0)
    with pytest.raises(UsageError, match="above 0 seconds"):
        search(program, CONFIGURATIONS[0], 0)
    with pytest.raises(UsageError, match="start is not feasible"):
        search(program, CONFIGURATIONS[0], 5, start=np.ones(40))
    with pytest.raises(UsageError, match="at least one configuration"):
        search_in_parallel(program, (), 5)


def test_the_topic_solves_a_file(tmp_path):
    (tmp_path / "p.lp").write_text("minimize obj: x + y\nsubject to\n c: 2 x + 2 y >= 3\ngenerals x y\nend\n")
    defaults = {option.name: option.default for option in TOPIC.options}
    file = {"file": str(tmp_path / "p.lp"), "processes": 1, "alone": True}
    answer = TOPIC.explain(**{**defaults, **file})
    assert answer.figures["value"] == answer.figures["value_of_highs_alone"] == 2
    assert answer.figures["status"] == "optimal"
    with pytest.raises(UnknownName, match="placement"):
        TOPIC.explain(**{**defaults, "problem": "placemnt"})


@pytest.mark.slow
def test_a_pair_of_configurations_beats_each_and_the_solver(request):
    """Twelve programs; minutes of a machine with two free cores. NEARPEAK_SECONDS shortens the 60 s of each."""
    import os

    seconds = float(os.environ.get("NEARPEAK_SECONDS", "60"))
    rows = []
    for kind, seed in itertools.product(PROBLEMS, range(3)):
        program = PROBLEMS[kind](seed)
        plain = solve(program, time_limit=seconds, threads=2)
        pair = search_in_parallel(program, CONFIGURATIONS[:2], seconds)
        single = [search_in_parallel(program, [c], seconds, seed=i)[0] for i, c in enumerate(CONFIGURATIONS[:2])]
        assert all(program.violation(one.x) <= FEASIBLE for one in (*pair, *single))
        values = np.array([plain.value, pair[0].value, *(one.value for one in single)])
        rows.append((*(primal_gap(v, values.min()) for v in values), primal_gap(plain.value, plain.bound)))
        print(f"{kind:>10} {seed}  HiGHS, pair, first, second: {values.round(1).tolist()}  own gap {rows[-1][-1]:.4f}",
              flush=True)  # fmt: skip
    plain, pair, first, second, own = np.array(rows).T
    assert (pair <= np.minimum(first, second) + 1e-9).sum() >= 9
    hardest = np.argsort(own)[-3:]
    assert (pair[hardest] < plain[hardest]).all()
