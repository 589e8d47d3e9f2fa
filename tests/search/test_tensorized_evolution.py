import math
import random
import time
from statistics import mean, median

import numpy as np
import pytest

from nearpeak.errors import NearpeakError, UnknownName, UsageError
from nearpeak.search.populations import dominance
from nearpeak.search.populations.dominance import crowding, dominator_counts, nondominated, ranks
from nearpeak.search.populations.evolution import crossover, generator, mutation, reference_directions, repeated
from nearpeak.search.populations.hypervolume import hypervolume
from nearpeak.search.populations.multiobjective import (
    METHODS,
    TOPIC,
    best_volume,
    dtlz1,
    dtlz2,
    evolve,
    minimize_many,
    zdt1,
)
from nearpeak.search.populations.nsga3 import fill

BOX = [(0.0, 1.0)] * 12
WHOLE = best_volume("dtlz2", 3, 1.1)


def one_dtlz2(x):
    g = sum((v - 0.5) ** 2 for v in x[2:])
    a, b = x[0] * math.pi / 2, x[1] * math.pi / 2
    return ((1 + g) * math.cos(a) * math.cos(b), (1 + g) * math.cos(a) * math.sin(b), (1 + g) * math.sin(a))


def beats(a, b):
    less = False
    for x, y in zip(a, b, strict=True):
        if x > y:
            return False
        if x < y:
            less = True
    return less


class LoopNsga3:
    """NSGA-III individual by individual, as Deb and Jain write it: algorithms 1 to 4 and NSGA-II's sort."""

    def __init__(self, population, columns, seed):
        self.rng, self.columns, self.size = random.Random(seed), columns, population
        self.directions = [tuple(d) for d in reference_directions(3, population).tolist()]
        self.lengths = [math.sqrt(sum(v * v for v in d)) for d in self.directions]
        self.points = [[self.rng.random() for _ in range(columns)] for _ in range(population)]
        self.values = [one_dtlz2(x) for x in self.points]
        self.ideal, self.extremes = [math.inf] * 3, []

    def children(self):
        rng, order, made = self.rng, list(range(self.size)), []
        rng.shuffle(order)
        for first, second in zip(order[::2], order[1::2], strict=True):
            pair = (list(self.points[first]), list(self.points[second]))
            for j in range(self.columns):
                if rng.random() < 0.5:
                    u, a, b = rng.random(), pair[0][j], pair[1][j]
                    beta = (2 * u) ** (1 / 31) if u <= 0.5 else (1 / (2 - 2 * u)) ** (1 / 31)
                    c, d = ((a + b) + beta * (a - b)) / 2, ((a + b) - beta * (a - b)) / 2
                    if rng.random() < 0.5:
                        c, d = d, c
                    pair[0][j], pair[1][j] = min(max(c, 0.0), 1.0), min(max(d, 0.0), 1.0)
            for child in pair:
                for j in range(self.columns):
                    if rng.random() < 1 / self.columns:
                        x, u = child[j], rng.random()
                        if u < 0.5:
                            step = (2 * u + (1 - 2 * u) * (1 - x) ** 21) ** (1 / 21) - 1
                        else:
                            step = 1 - (2 * (1 - u) + 2 * (u - 0.5) * x**21) ** (1 / 21)
                        child[j] = min(max(x + step, 0.0), 1.0)
                made.append(child)
        return made

    def fronts(self, values):
        below, beaten = [[] for _ in values], [0] * len(values)
        for i in range(len(values)):
            for j in range(i + 1, len(values)):
                if beats(values[i], values[j]):
                    below[i].append(j)
                    beaten[j] += 1
                elif beats(values[j], values[i]):
                    below[j].append(i)
                    beaten[i] += 1
        front = [i for i, count in enumerate(beaten) if count == 0]
        while front:
            yield front
            after = []
            for i in front:
                for j in below[i]:
                    beaten[j] -= 1
                    if beaten[j] == 0:
                        after.append(j)
            front = after

    def scales(self, considered):
        worst = [max(f[j] for f in considered) - self.ideal[j] for j in range(3)]
        try:
            plane = np.linalg.solve(np.array(self.extremes) - self.ideal, np.ones(3))
        except np.linalg.LinAlgError:
            return worst
        if not all(np.isfinite(plane)) or any(p <= 0 for p in plane):
            return worst
        return [min(1 / p, w) for p, w in zip(plane, worst, strict=True)]

    def generation(self):
        made = self.children()
        points, values = self.points + made, self.values + [one_dtlz2(x) for x in made]
        kept, last, first = [], [], None
        for front in self.fronts(values):
            first = front if first is None else first
            if len(kept) + len(front) > self.size:
                last = front
                break
            kept += front
        self.ideal = [min(self.ideal[j], min(f[j] for f in values)) for j in range(3)]
        candidates = self.extremes + [values[i] for i in first]

        def reach(f, axis):
            return max((f[j] - self.ideal[j]) / (1.0 if j == axis else 1e-6) for j in range(3))

        self.extremes = [min(candidates, key=lambda f, axis=axis: reach(f, axis)) for axis in range(3)]
        scales = self.scales([values[i] for i in kept + last])
        niche, distance = {}, {}
        for i in kept + last:
            f = [(values[i][j] - self.ideal[j]) / scales[j] for j in range(3)]
            square, nearest, far = sum(v * v for v in f), 0, math.inf
            for r, (w, length) in enumerate(zip(self.directions, self.lengths, strict=True)):
                along = (f[0] * w[0] + f[1] * w[1] + f[2] * w[2]) / length
                if square - along * along < far:
                    nearest, far = r, square - along * along
            niche[i], distance[i] = nearest, far
        count = [0] * len(self.directions)
        for i in kept:
            count[niche[i]] += 1
        waiting = {}
        for i in last:
            waiting.setdefault(niche[i], []).append(i)
        while len(kept) < self.size:
            least = min(count[r] for r in waiting)
            r = self.rng.choice([r for r in waiting if count[r] == least])
            own = waiting[r]
            chosen = min(own, key=distance.__getitem__) if count[r] == 0 else self.rng.choice(own)
            own.remove(chosen)
            if not own:
                del waiting[r]
            kept.append(chosen)
            count[r] += 1
        self.points, self.values = [points[i] for i in kept], [values[i] for i in kept]


def loop_volume(population, generations, seed):
    loop = LoopNsga3(population, 12, seed)
    for _ in range(generations):
        loop.generation()
    return hypervolume(np.array(loop.values), [1.1] * 3).value


def our_volume(method, population, generations, seed, f=dtlz2, columns=12, corner=1.1):
    front = minimize_many(f, [(0, 1)] * columns, population, generations, method, seed)
    return hypervolume(front.values, [corner] * front.values.shape[1]).value


def loop_over_ours(population, repeats):
    loop, course = LoopNsga3(population, 12, 0), evolve(dtlz2, BOX, population, "nsga3", 0)
    for _ in range(3):
        next(course)
    ratios = []
    for _ in range(repeats):
        start = time.process_time()
        loop.generation()
        middle = time.process_time()
        for _ in range(5):
            next(course)
        ratios.append((middle - start) / ((time.process_time() - middle) / 5))
    return median(ratios)


def test_hypervolume_is_that_of_a_loop_written_nsga3():
    assert our_volume("nsga3", 56, 60, 0) == pytest.approx(loop_volume(56, 60, 0), rel=0.02)


@pytest.mark.slow
def test_hypervolume_is_that_of_a_loop_written_nsga3_over_five_seeds():
    loop = [loop_volume(92, 100, seed) for seed in range(5)]
    found = [our_volume("nsga3", 92, 100, seed) for seed in range(5)]
    assert mean(found) == pytest.approx(mean(loop), rel=0.02)
    assert min(found) > 0.98 * min(loop)


def test_a_generation_is_ten_times_as_fast_as_the_loops_at_a_small_population():
    assert loop_over_ours(300, 1) > 10


@pytest.mark.slow
def test_a_generation_is_twenty_times_as_fast_as_the_loops_at_population_2000():
    assert loop_over_ours(2000, 3) > 20


@pytest.mark.parametrize("method", METHODS)
def test_methods_find_the_front_of_dtlz2(method):
    found = [our_volume(method, 92, 100, seed) for seed in range(2)]
    start = our_volume(method, 92, 0, 0)
    assert start < 0.2 * WHOLE
    assert min(found) > 0.88 * WHOLE


@pytest.mark.parametrize("method", METHODS)
def test_methods_find_the_front_of_zdt1(method):
    assert our_volume(method, 60, 150, 1, zdt1, 10) > 0.97 * best_volume("zdt1", 2, 1.1)


def test_scaled_objectives_are_searched_as_well_as_equal_ones():
    def stretched(x):
        return dtlz2(x) * np.array([1.0, 100.0, 0.01])

    front = minimize_many(stretched, BOX, 92, 80, "nsga3", 0)
    assert hypervolume(front.values, [1.1, 110, 0.011]).value > 0.88 * WHOLE


@pytest.mark.parametrize("method", METHODS)
def test_four_objectives_go_the_other_way_through_ranks_and_counts(method):
    front = minimize_many(lambda x: dtlz2(x, 4), BOX, 84, 60, method, 0)
    found = hypervolume(front.values, [1.1] * 4, samples=20_000)
    # Of 84 directions in four objectives many meet the front outside the corner: MOEA/D keeps no second point there.
    share = 0.6 if method == "moead" else 0.75
    assert found.value > share * best_volume("dtlz2", 4, 1.1)


def test_many_local_fronts_are_passed():
    def reached(generations):
        front = minimize_many(dtlz1, [(0, 1)] * 5, 92, generations, "nsga3", 0)
        return hypervolume(front.values, [1.1] * 3).value

    assert reached(0) == 0
    assert reached(250) > 0.9 * best_volume("dtlz1", 3, 1.1)


@pytest.mark.parametrize("method", METHODS)
def test_discrete_columns_reach_the_enumerated_front(method):
    kinds = ["integer", "integer", "categorical", "integer"]
    bounds = [(1, 8), (0, 15), (0, 5), (-3, 3)]
    rate = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.5])

    def f(x):
        tile, unroll, kind, shift = x.T
        speed = rate[kind.astype(int)]
        return np.column_stack([100 / (tile * speed) + (unroll - 6) ** 2 + shift**2, tile * speed + 0.1 * unroll])

    grid = np.stack(np.meshgrid(*[np.arange(a, b + 1) for a, b in bounds], indexing="ij"), -1).reshape(-1, 4)
    best = hypervolume(f(grid.astype(float)), [200.0, 80.0]).value
    front = minimize_many(f, bounds, 60, 60, method, 0, kinds)
    assert (front.points == np.rint(front.points)).all()
    assert (front.points >= [a for a, _ in bounds]).all()
    assert (front.points <= [b for _, b in bounds]).all()
    # MOEA/D keeps a member a direction: with few different values several directions share one.
    share = 0.95 if method == "moead" else 0.995
    assert hypervolume(front.values, [200.0, 80.0]).value > share * best


@pytest.mark.parametrize("method", METHODS)
def test_constraints_hold_and_failures_are_survived(method):
    def fails(x):
        values = dtlz2(x)
        values[x[:, 5] > 0.7] = np.nan
        return values

    front = minimize_many(fails, BOX, 60, 40, method, 0, constraints=lambda x: x[:, :1] - 0.5)
    assert len(front.points) > 10
    assert (front.points[:, 0] <= 0.5).all()
    assert (front.points[:, 5] <= 0.7).all()
    assert np.isfinite(front.values).all()
    assert nondominated(front.values).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_front(method):
    one, two, other = (minimize_many(dtlz2, BOX, 40, 5, method, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.points, two.points)
    assert not np.array_equal(one.points, other.points)
    assert one.evaluations == 6 * (36 if method == "moead" else 40)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_code_runs_on_tensors(method):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    seen = []

    def f(x):
        seen.append(type(x))
        return dtlz2(x)

    front = minimize_many(f, BOX, 66, 50, method, 0, device="cpu")
    assert set(seen) == {torch.Tensor}
    assert hypervolume(front.values, [1.1] * 3).value > 0.8 * WHOLE


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(UnknownName, match="nsga2"):
        minimize_many(dtlz2, BOX, method="nsga2")
    with pytest.raises(UnknownName, match="ordinal"):
        minimize_many(dtlz2, [(0, 1)], kinds=["ordinal"])
    with pytest.raises(UsageError, match="column 1"):
        minimize_many(dtlz2, [(0, 1), (2, 1)])
    with pytest.raises(UsageError, match="whole"):
        minimize_many(dtlz2, [(0, 1.5)], kinds=["integer"])
    with pytest.raises(UsageError, match="population"):
        minimize_many(dtlz2, BOX, population=3)
    with pytest.raises(UsageError, match="shape"):
        minimize_many(lambda x: x[:, 0], BOX, 8, 1)
    with pytest.raises(NearpeakError, match="failed"):
        minimize_many(lambda x: dtlz2(x) * np.nan, BOX, 8, 1)
    with pytest.raises(NearpeakError, match="feasible"):
        minimize_many(dtlz2, BOX, 8, 1, constraints=lambda x: x[:, :1] + 1)


def compared_with_all(values):
    below = (values[None] <= values[:, None]).all(2) & (values[None] < values[:, None]).any(2)
    rank, front = np.full(len(values), -1), 0
    while (rank < 0).any():
        alive = rank < 0
        rank[alive & ~(below & alive[None]).any(1)] = front
        front += 1
    return rank


def samples():
    rng = np.random.default_rng(0)
    for m in (1, 2, 3, 4, 5):
        for n in (1, 2, 17, 200):
            yield rng.random((n, m)), rng.random((150, m))
            yield rng.integers(0, 5, (n, m)).astype(float), rng.integers(0, 5, (150, m)).astype(float)


@pytest.mark.parametrize("way", ["compiled", "numpy", "tensor"])
def test_ranks_and_counts_are_those_of_comparing_all_with_all(way, monkeypatch):
    if way == "numpy":
        monkeypatch.setattr(dominance, "compiled", lambda: None)
    make = pytest.importorskip("torch").as_tensor if way == "tensor" else np.asarray
    for values, queries in samples():
        assert np.array_equal(np.asarray(ranks(make(values))), compared_with_all(values))
        below = (values[None] <= queries[:, None]).all(2).sum(1)
        assert np.array_equal(np.asarray(dominator_counts(make(values), make(queries))), below)


def test_ranks_may_stop_early():
    values = np.random.default_rng(1).random((500, 4))
    whole, part = ranks(values), dominance._peeled(values, 100)
    told = part < 500
    assert told.sum() >= 100
    assert np.array_equal(part[told], whole[told])
    assert (whole[~told] > whole[told].max()).all()


def test_crowding_is_the_gap_between_neighbours():
    values = np.array([[0, 4.0], [1, 2.0], [3, 1.0], [4, 0.0], [4, 4.0]])
    distance = crowding(values, ranks(values))
    assert np.isinf(distance[[0, 3, 4]]).all()
    assert distance[1:3] == pytest.approx([3 / 4 + 3 / 4, 3 / 4 + 2 / 4])


def test_niches_fill_as_one_by_one():
    niche, distance = np.array([0, 0, 0, 1, 1, 2]), np.array([3.0, 1, 2, 5, 4, 1])
    taken = [set(fill(niche, distance, np.array([0, 1, 3]), count, generator(seed)).tolist())
             for count in (1, 3) for seed in range(20)]  # fmt: skip
    assert all(one == {1} for one in taken[:20])
    assert all(1 in three and len(three & {3, 4}) == 1 and len(three & {0, 2}) == 1 for three in taken[20:])


def test_variation_keeps_the_cube_and_the_mean():
    rng = generator(0)
    a, b = np.full((20_000, 2), 0.4), np.full((20_000, 2), 0.6)
    children = crossover(a, b, rng, eta=5.0)
    assert children.min() >= 0
    assert children.max() <= 1
    assert children.mean() == pytest.approx(0.5, abs=2e-3)
    assert children[:20_000] + children[20_000:] == pytest.approx(1.0)
    moved = mutation(np.full((20_000, 4), 0.9), rng) != 0.9
    assert moved.mean() == pytest.approx(0.25, abs=0.01)


def test_directions_are_a_lattice_on_the_simplex():
    assert len(reference_directions(3, 92)) == 91
    assert len(reference_directions(3, 10_000)) == 9870
    for m, count in ((2, 50), (4, 100), (8, 200), (10, 300)):
        made = reference_directions(m, count)
        assert len(made) <= count
        assert made.sum(1) == pytest.approx(1.0)
        assert made.min() >= 0
        assert len(np.unique(made.round(9), axis=0)) == len(made)


def test_copies_are_told():
    rows = np.random.default_rng(0).random((1000, 7))
    assert not repeated(rows).any()
    assert np.array_equal(repeated(np.concatenate([rows, rows[::2]])), np.arange(1500) >= 1000)


def test_the_topic_compares_methods():
    told = TOPIC.explain("dtlz2", ("nsga3", "hype"), 3, 7, 60, 10, 0)
    assert [row["method"] for row in told.tables[0].rows] == ["nsga3", "hype"]
    assert 0 < told.figures["hypervolume"] < told.figures["of_the_whole"]
    with pytest.raises(UnknownName, match="dtlz9"):
        TOPIC.explain("dtlz9", ("nsga3",), 3, 7, 60, 10, 0)
