"""The default on small spaces with a few dozen evaluations: sub-spaces of measured kernels, 5 % of each evaluated."""

from pathlib import Path

import numpy as np
import pytest

from nearpeak.search.default import Default
from nearpeak.search.parameters import Ordinal
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.replay import Table, read_table, replay
from nearpeak.search.space import Space


def small_spaces(table: Table, count: int, rng: np.random.Generator) -> list[Table]:
    """Sub-spaces of 200 to 1,000 configurations: parameters are fixed, as in a random one, until so few are left."""
    assert table.space.grid is not None
    levels, names, found = table.space.grid.levels, list(table.space.parameters), []
    while len(found) < count:
        one = levels[rng.integers(len(levels))]
        kept, free = np.ones(len(levels), dtype=bool), set(range(len(names)))
        for j in rng.permutation(len(names)):
            if kept.sum() > 1_000:
                kept &= levels[:, j] == one[j]
                free.discard(int(j))
        free = {j for j in free if np.ptp(levels[kept, j]) > 0}
        if not 200 <= kept.sum() <= 1_000 or len(free) < 3 or np.isfinite(table.values[kept]).mean() < 0.5:
            continue
        parameters, columns = {}, []
        for j in sorted(free):
            present, place = np.unique(levels[kept, j], return_inverse=True)
            whole = table.space.parameters[names[j]]
            parameters[names[j]] = Ordinal(tuple(whole.values(whole.at(present)).tolist()))
            columns.append(place)
        points = np.column_stack(columns).astype(float)
        found.append(
            Table(table.name, table.about, Space(parameters, listed=points), table.values[kept], table.costs[kept])
        )
    return found


@pytest.mark.slow
def test_with_5_percent_of_the_evaluations_the_default_is_within_5_percent_far_more_often_than_random_search(
    measurements: Path,
) -> None:
    rng = np.random.default_rng(0)
    files = sorted((measurements / "kernels").glob("*.parquet"))
    tables = [small for file in files for small in small_spaces(read_table(file), 3, rng)]
    within = np.array(
        [
            [
                replay(small, max(12, len(small.values) // 20), seed, method()).best_after(small.optimum)[-1] <= 1.05
                for method in (Default, RandomSearch)
            ]
            for small in tables
            for seed in range(4)
        ]
    )
    ours, random = within.mean(axis=0)
    print(f"{len(tables)} spaces: default {ours:.3f}, random {random:.3f}")
    assert ours > 0.7
    assert ours > random + 0.2
