"""Search over labelled graphs: subtree features, the motif report, and fewer evaluations than evolution."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.search.history import History
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Categorical, Ordinal, Space
from nearpeak.search.strategies.graphs import (
    TOPIC,
    GraphBayes,
    GraphSpace,
    RegularizedEvolution,
    cells,
    evaluations_to,
    planted,
)
from nearpeak.search.study import run, tabled
from nearpeak.search.surrogates.weisfeiler_lehman import Graphs, fit, motifs, subtrees

CELLS = Path(__file__).parents[1] / "data" / "trained_cells.npz"
OPERATIONS = ("conv3", "conv1", "pool")


def _recorded():
    if not CELLS.exists():
        pytest.skip("no table of trained cells: python tools/record_cells.py tests/data/trained_cells.npz")
    with np.load(CELLS) as stored:
        points, losses = stored["points"].astype(float), stored["losses"].astype(float)
    return Space(cells(OPERATIONS, 3, 6).parameters, listed=points), losses


def test_every_small_cell_is_there_once():
    # The counts of NAS-Bench-101 for these three operations: 91 cells with up to two operations between.
    assert len(cells(OPERATIONS, 2).grid.points) == 91
    assert len(cells(OPERATIONS, 3, 9).grid.points) == 2532
    space = cells(("conv3", "pool"), 3)
    counts = subtrees(GraphSpace(space).graphs(space.grid.points)).counts
    assert len(np.unique(counts, axis=0)) > 0.98 * len(counts)


def test_features_are_what_a_person_counts():
    names = ("input", "conv", "pool", "output")
    edges = np.zeros((1, 4, 4), dtype=bool)
    for a, b in ((0, 1), (0, 2), (1, 2), (2, 3)):
        edges[0, a, b] = True
    found = subtrees(Graphs(np.asarray([[0, 1, 2, 3]]), edges, names), 2)
    count = {(int(d), n): c for d, n, c in zip(found.depth, found.names, found.counts[0], strict=True) if c}
    assert count == {
        **{(0, n): 1 for n in names},
        **{(1, n): 1 for n in ("input", "conv(input)", "pool(conv, input)", "output(pool)")},
        **{(2, n): 1 for n in ("input", "conv(input)", "pool(conv(input), input)", "output(pool(conv, input))")},
    }


def test_features_do_not_depend_on_the_order_of_nodes():
    rng = np.random.default_rng(0)
    edges = np.triu(rng.random((1, 5, 5)) < 0.6, 1)
    labels = rng.integers(0, 3, (1, 5))
    every = [(labels[:, list(p)], edges[:, list(p)][:, :, list(p)]) for p in permutations(range(5))]
    graphs = Graphs(np.vstack([a for a, _ in every]), np.vstack([b for _, b in every]), ("a", "b", "c"))
    counts = subtrees(graphs).counts
    assert (counts == counts[0]).all()
    one_less = edges.copy()
    one_less[0][tuple(np.argwhere(edges[0])[0])] = False
    both = Graphs(np.vstack([labels, labels]), np.vstack([edges, one_less]), ("a", "b", "c"))
    changed = subtrees(both).counts
    assert (changed[0] != changed[1]).any()


def test_nodes_that_do_no_work_are_left_out():
    space = Space(
        {name: Ordinal((0, 1)) for name in ("in_to_a", "in_to_b", "a_to_b", "a_to_out", "b_to_out")}
        | {node: Categorical(("conv", "pool")) for node in "ab"}
    )
    rows = space.rows(
        [
            {"in_to_a": 1, "in_to_b": 0, "a_to_b": 1, "a_to_out": 1, "b_to_out": 0, "a": "conv", "b": "pool"},
            {"in_to_a": 1, "in_to_b": 1, "a_to_b": 0, "a_to_out": 1, "b_to_out": 0, "a": "conv", "b": "conv"},
            {"in_to_a": 0, "in_to_b": 1, "a_to_b": 0, "a_to_out": 0, "b_to_out": 1, "a": "pool", "b": "conv"},
        ]
    )
    graphs = GraphSpace(space).graphs(rows)
    counts = subtrees(graphs).counts
    assert (counts == counts[0]).all()
    assert (graphs.labels >= 0).sum(axis=1).tolist() == [3, 3, 3]


def test_the_gradient_is_the_change_of_the_mean_and_its_deviation_that_of_the_posterior():
    space = cells(OPERATIONS, 2)
    found = subtrees(GraphSpace(space).graphs(space.grid.points))
    values, _ = planted(found, 0)
    rows = np.random.default_rng(0).choice(len(values), 30, replace=False)
    gp, _ = fit(found, rows, values[rows])
    report = motifs(gp, found)
    for i in (0, len(report.names) // 2, -1):
        before, _ = gp.predict(gp.x[:1])
        after, _ = gp.predict(gp.x[:1] + report.features[i])
        assert after - before == pytest.approx(report.gradient[i], rel=1e-6, abs=1e-9)
        direction = report.features[[i]]
        assert np.sqrt(gp.covariance(direction, direction)[0, 0]) == pytest.approx(report.sd[i], rel=1e-3, abs=1e-6)
    assert (np.diff(report.gradient) >= 0).all()


def test_a_planted_motif_ranks_among_the_first_three():
    space = cells(OPERATIONS, 3, 6)
    found = subtrees(GraphSpace(space).graphs(space.grid.points))
    places = []
    for seed in range(5):
        values, motif = planted(found, seed)
        rows = np.random.default_rng(seed).choice(len(values), 60, replace=False)
        report = GraphBayes().report(space, History.of(space.grid.points[rows], values[rows]))
        places.append(report.names.index(motif) + 1)
        noise = np.random.default_rng(seed).permutation(values[rows])
        shuffled = GraphBayes().report(space, History.of(space.grid.points[rows], noise))
        assert shuffled.gradient.min() > report.gradient.min()
    assert sum(place <= 3 for place in places) >= 4, places


def test_mutants_that_are_kept_hold_more_good_motifs():
    space = cells(OPERATIONS, 3, 6)
    found = subtrees(GraphSpace(space).graphs(space.grid.points))
    values, _ = planted(found, 1)
    rows = np.random.default_rng(0).choice(len(values), 40, replace=False)
    gp, depth = fit(found, rows, values[rows])
    phi = found.to(depth)[300:500]
    method = GraphBayes(pool=40, mutants=0.5)
    kept = method.steered(motifs(gp, found), phi, 20)
    assert (kept[:20] == np.arange(20)).all()
    assert len(kept) == 40
    assert gp.predict(phi[kept[20:]])[0].mean() < gp.predict(phi[20:])[0].mean() - 0.2 * np.std(values)
    assert (
        GraphBayes(pool=40, mutants=0.5, surplus=1).steered(motifs(gp, found), phi, 20)[20:] == np.arange(20, 40)
    ).all()


def test_graphs_take_fewer_evaluations_than_random_search_to_the_best_hundredth():
    space = cells(("conv3", "pool"), 3, 6)
    found = subtrees(GraphSpace(space).graphs(space.grid.points))
    took = {"graphs": [], "random": []}
    for seed in range(3):
        values, _ = planted(found, seed)
        for name, method in (("graphs", GraphBayes(pool=60)), ("random", RandomSearch())):
            took[name].append(
                evaluations_to(values, run(method, tabled(space, values), space, 30 if name == "graphs" else 200, seed))
            )
    assert np.median(took["graphs"]) <= np.median(took["random"]) / 2, took


def test_the_same_history_gives_the_same_proposals_and_batches_are_distinct():
    space = cells(OPERATIONS, 3, 6)
    values, _ = planted(subtrees(GraphSpace(space).graphs(space.grid.points)), 0)
    history = run(RandomSearch(), tabled(space, values), space, 14, 0)
    first, again = (GraphBayes(pool=60).propose(space, history, 3, np.random.default_rng(5)) for _ in range(2))
    assert (first == again).all()
    seen = np.vstack([history.points, first])
    assert len(np.unique(seen, axis=0)) == 17
    assert space.holds(first).all()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"x": Ordinal((0, 1))}, "a_to_b"),
        ({"a_to_b": Ordinal((0, 1, 2))}, "0 and 1"),
        ({"a_to_b": Ordinal((0, 1)), "b_to_a": Ordinal((0, 1))}, "cycle"),
    ],
)
def test_spaces_that_describe_no_graphs_are_refused(parameters, said):
    with pytest.raises(UsageError, match=said):
        GraphBayes().propose(Space(parameters), History.empty(len(parameters)), 1, np.random.default_rng(0))


def test_topic_reports_motifs():
    found = TOPIC.explain(table="", operations=("conv3", "pool"), edges=6, evaluations=14, seeds=1)
    assert len(found.tables) == 2
    assert "planted" in found.says[1]
    with pytest.raises(UsageError, match=r"nowhere\.npz"):
        TOPIC.explain(table="nowhere.npz", operations=OPERATIONS, edges=6, evaluations=14, seeds=1)


@pytest.mark.slow
def test_trained_cells_are_found_in_half_the_evaluations_of_random_search_and_fewer_than_evolution():
    space, losses = _recorded()
    methods = {"graphs": GraphBayes(), "evolution": RegularizedEvolution(), "random": RandomSearch()}
    limits = {"graphs": 150, "evolution": 400, "random": 600}
    medians = {}
    for name, method in methods.items():
        runs = [run(method, tabled(space, losses), space, limits[name], seed) for seed in range(20)]
        medians[name] = np.median([evaluations_to(losses, history) for history in runs])
    assert medians["graphs"] <= medians["random"] / 2, medians
    assert medians["graphs"] < medians["evolution"], medians


@pytest.mark.slow
def test_a_motif_planted_in_the_trained_cells_ranks_among_the_first_three():
    space, losses = _recorded()
    found = subtrees(GraphSpace(space).graphs(space.grid.points))
    share = (found.counts > 0).mean(axis=0)
    places = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        motif = int(rng.choice(np.flatnonzero((found.depth == 1) & (share > 0.05) & (share < 0.4))))
        values = losses - 2 * losses.std() * found.counts[:, motif]
        rows = rng.choice(len(values), 80, replace=False)
        report = GraphBayes().report(space, History.of(space.grid.points[rows], values[rows]))
        places.append(report.names.index(found.names[motif]) + 1)
    assert np.median(places) <= 3, places
