"""The cheapest mix: against brute force, against every single type, and against its requests served by events."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from nearpeak.errors import UsageError
from nearpeak.fleet import topics
from nearpeak.fleet.mix import Kind, drawn, kinds, plan, run
from nearpeak.fleet.mix_packing import cheapest, loads
from nearpeak.fleet.mix_rates import buckets, most_rates, served_rate, token_budget
from nearpeak.simulate.deploy import deploy
from nearpeak.simulate.serving import feed, serve

TRACES = Path(__file__).parents[3] / "shared" / "measurements" / "traces"
GPUS = ("l4", "a10g", "a100", "h100")
LLAMA = "meta-llama/Meta-Llama-3.1-8B"
PAPER_PRICES = (0.7, 1.01, 3.67, 7.516)
"""Dollars an hour of L4, A10G, A100-80GB and H100 in the paper (table 1)."""
SHAPES = {"chat": (150.0, 200.0, 1.0), "documents": (3000.0, 150.0, 0.5), "code": (2000.0, 20.0, 1.0)}
"""Mean prompt, mean answer, spread."""


def brute_force(load, price, slices=1):
    """The fewest dollars over every way to deal slices to types."""
    part = np.repeat(np.where(np.isfinite(load), load, 1e9), slices, axis=0) / slices
    deals = np.array(list(product(range(part.shape[1]), repeat=len(part))))
    filled = np.zeros((len(deals), part.shape[1]))
    for i, row in enumerate(part):
        filled[np.arange(len(deals)), deals[:, i]] += row[deals[:, i]]
    return float((np.ceil(filled - 1e-6) @ np.asarray(price)).min())


def test_the_published_example_comes_out():
    """``config/example.json`` of the authors' code and the result its README shows: 3 A10G, 1 A100-80GB, 6.7 $/h."""
    rate = 30.0 * np.array([[0.2, 0.1], [0.5, 0.2]]).ravel()
    served = np.stack([np.array([[2, 1], [5, 2]]).ravel(), np.array([[20, 20], [40, 20]]).ravel()], axis=1)
    found = cheapest(loads(rate, served), [1.01, 3.67])
    assert found.count.tolist() == [3, 1]
    assert found.price == pytest.approx(6.70)
    assert found.least == pytest.approx(6.70)


@pytest.mark.parametrize("seed", range(50))
def test_random_instances_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    types, slices = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    load = rng.lognormal(0.0, 1.0, (6 // slices, types))
    load[rng.random(load.shape) < 0.15] = np.inf
    load[:, -1] = np.where(np.isfinite(load).any(1), load[:, -1], 1.0)
    price = rng.uniform(0.5, 8.0, types)
    found = cheapest(load, price, slices)
    assert found.price == pytest.approx(brute_force(load, price, slices))
    np.testing.assert_allclose(found.share.sum(1), 1)
    held = np.where(found.share > 0, np.where(np.isfinite(load), load, 1e9) * found.share, 0).sum(0)
    assert (held <= found.count + 1e-5).all()
    for j in range(types):
        if np.isfinite(load[:, j]).all():
            assert found.price <= np.ceil(load[:, j].sum()) * price[j] + 1e-9


def lengths(name, rate, n, seed):
    return drawn(None, rate, n, seed, *SHAPES[name])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("tpot", "rate"), [(0.12, 4.0), (0.06, 16.0)])
def test_a_mix_of_four_types_equals_brute_force_beats_every_single_type_and_holds_its_targets(name, tpot, rate):
    asked = lengths(name, rate, 8000, 1)
    # Two by three buckets, one slice each: six slices.
    sizes = buckets(asked.isl, asked.osl, rate, [np.median(asked.isl)], np.quantile(asked.osl, [0.5, 0.9]))
    columns = kinds(LLAMA, GPUS, asked, tpot, prices=PAPER_PRICES)
    columns = [kind for kind in columns if kind.devices <= 2]
    mix = plan(columns, sizes, tpot, slices=1)
    assert sizes.rate.size <= 6
    load = loads(sizes.rate, mix.most)
    assert mix.packing.price == pytest.approx(brute_force(load, [k.price for k in columns]))
    singles = [own.price for own in mix.alone.values() if own is not None]
    assert singles
    assert mix.packing.price <= min(singles) + 1e-9
    assert run(mix, mix.packing, asked).within_share(tpot) >= 0.99


@pytest.mark.parametrize(("name", "ttft"), [("chat", 1.0), ("documents", 2.0), ("code", 2.0)])
def test_a_target_to_the_first_token_costs_more_and_is_nearly_held(name, ttft):
    """The closed form has the mean time to a first token under a rate, not its distribution: 95 %, not 99."""
    asked = lengths(name, 8.0, 8000, 4)
    columns = kinds(LLAMA, GPUS, asked, 0.12, prices=PAPER_PRICES)
    sizes = buckets(asked.isl, asked.osl, 8.0)
    lax, tight = plan(columns, sizes, 0.12), plan(columns, sizes, 0.12, ttft)
    assert tight.packing.price >= lax.packing.price - 1e-9
    assert run(tight, tight.packing, asked).within_share(0.12, ttft) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("trace", ["splitwise_conv.csv", "splitwise_code.csv", None])
@pytest.mark.parametrize("tpot", [0.12, 0.04])
def test_mixes_for_recorded_lengths_hold_their_targets_at_every_rate(trace, tpot):
    path = None if trace is None else TRACES / trace
    if path is not None and not path.is_file():
        pytest.skip("the recorded traces are not shipped")
    saved = []
    for rate in (1.0, 4.0, 16.0, 32.0):
        asked = drawn(path, rate, 20_000, 0, *SHAPES["chat"])
        columns = kinds(LLAMA, GPUS, asked, tpot, prices=PAPER_PRICES)
        mix = plan(columns, buckets(asked.isl, asked.osl, rate), tpot)
        singles = [own.price for own in mix.alone.values() if own is not None]
        assert mix.packing.price <= min(singles) + 1e-9
        assert mix.packing.least == pytest.approx(mix.packing.price)
        assert run(mix, mix.packing, asked, seed=3).within_share(tpot) >= 0.99
        saved += [1 - mix.packing.price / price for price in singles]
    # The paper: up to 77 % against a single type.
    assert max(saved) > 0.5


def test_the_simulator_sees_as_many_in_flight_as_the_closed_form_says():
    """With a rate at which 1 % of arrivals find the target's batch or more, and at 1.5 times it many do."""
    asked = lengths("documents", 1.0, 1, 0)
    (own,) = (kind.setup for kind in kinds(LLAMA, ("l4",), asked, 0.08) if kind.devices == 1)
    rng = np.random.default_rng(0)
    isl, osl = rng.integers(300, 500, 15_000), rng.integers(100, 200, 15_000)
    sizes = buckets(isl, osl, 1.0, [1e6], [1e6])
    rate = float(most_rates(own, sizes, 0.08, np.inf, 0.01, 256)[0])
    assert rate > 0.2
    within = []
    for times in (1.0, 2.0):
        arrival = np.cumsum(rng.exponential(1 / (rate * times), isl.size))
        found = serve(deploy(own, longest=2048), feed(arrival, isl, osl)).requests
        within.append(float((found["tpot"] <= 0.08).mean()))
    assert within[0] >= 0.99
    assert within[1] < 0.97


def test_a_queue_with_one_rate_is_an_m_m_1():
    """P(n or more in flight) = rho ** n."""
    found = served_rate(np.full((3, 400), 2.0), np.array([1, 5, 0]), 0.01)
    np.testing.assert_allclose(found, [2.0 * 0.01, 2.0 * 0.01**0.2, 0.0], rtol=1e-6)


def test_a_queue_with_a_rate_per_request_is_poisson():
    from scipy.stats import poisson

    rate = float(served_rate(np.arange(1.0, 200.0)[None], np.array([20]), 0.01)[0])
    assert poisson.sf(19, rate) == pytest.approx(0.01, rel=1e-4)


def test_buckets_keep_every_request_and_token():
    asked = lengths("chat", 3.0, 5000, 2)
    sizes = buckets(asked.isl, asked.osl, 3.0)
    count = np.bincount(sizes.of)
    assert sizes.rate.sum() == pytest.approx(3.0)
    assert (count * sizes.isl).sum() == pytest.approx(asked.isl.sum())
    assert (count * sizes.osl).sum() == pytest.approx(asked.osl.sum())
    assert (asked.isl + asked.osl <= sizes.longest[sizes.of]).all()


def test_a_tighter_target_means_fewer_tokens_a_step_and_lower_rates():
    asked = lengths("chat", 4.0, 2000, 3)
    (lax, tight) = (kinds(LLAMA, ("a100",), asked, tpot)[0] for tpot in (0.1, 0.03))
    assert int(lax.setup.chunk) > int(tight.setup.chunk)
    sizes = buckets(asked.isl, asked.osl, 4.0)
    rates = [most_rates(lax.setup, sizes, tpot, np.inf, 0.01, 256) for tpot in (0.1, 0.03, 0.02)]
    assert (rates[0] >= rates[1]).all()
    assert (rates[1] >= rates[2]).all()
    first = most_rates(lax.setup, sizes, 0.1, 0.05, 0.01, 256)
    assert (first <= rates[0]).all()
    assert (first < rates[0]).any()
    assert token_budget(lax.setup, 0.1, 8000) <= token_budget(lax.setup, 0.1, 100)


def test_what_cannot_be_served_is_refused_by_name():
    asked = lengths("chat", 4.0, 500, 0)
    sizes = buckets(asked.isl, asked.osl, 4.0)
    with pytest.raises(UsageError, match=r"served by none of .* within 0.001 s a token"):
        plan(kinds(LLAMA, ("l4",), asked, 0.001), sizes, 0.001)
    with pytest.raises(UsageError, match="2 prices for 1 devices"):
        kinds(LLAMA, ("l4",), asked, 0.1, prices=(1.0, 2.0))
    with pytest.raises(UsageError, match="no price"):
        kinds(LLAMA, ("rtx_a4000",), asked, 0.1)
    with pytest.raises(UsageError, match="fits a node of none of t4"):
        kinds("meta-llama/Meta-Llama-3.1-405B", ("t4",), asked, 0.1)
    with pytest.raises(UsageError, match="bucket 1"):
        cheapest(np.array([[1.0, 2.0], [np.inf, np.inf]]), [1.0, 1.0])
    with pytest.raises(UsageError, match="slices"):
        cheapest(np.ones((1, 2)), [1.0, 1.0], 0)
    with pytest.raises(UsageError, match="ascend"):
        buckets([10], [10], 1.0, [5, 5])
    mix = plan([Kind(kinds(LLAMA, ("h100",), asked, 0.1)[0].setup, 1.0)], sizes, 0.1)
    with pytest.raises(UsageError, match="sorted into buckets"):
        run(mix, mix.packing, lengths("chat", 4.0, 10, 0))


def test_a_person_gets_a_mix_with_its_evidence():
    topic = topics()["mix"]
    given = {o.name: o.default for o in topic.options} | {
        "model": LLAMA, "rate": 16.0, "tpot": 0.04, "prices": PAPER_PRICES, "requests": 4000,
    }  # fmt: skip
    found = topic.explain(**given)
    assert found.figures["within_targets_share"] >= 0.99
    assert found.figures["dollars_per_hour"] == pytest.approx(sum(r["dollars_per_hour"] for r in found.tables[0].rows))
    assert sum(r["request_rate"] for r in found.tables[0].rows) == pytest.approx(16.0)
    assert all(r["mix_saves_share"] >= -1e-9 for r in found.tables[1].rows)
    assert topic.explain(**given).figures == found.figures
