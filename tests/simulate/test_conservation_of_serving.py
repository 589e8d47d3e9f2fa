"""Whatever the deployment and the traffic: requests, tokens and blocks are conserved at every event."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nearpeak.simulate import loop, state
from nearpeak.simulate.policies import POLICIES, policy
from nearpeak.simulate.serving import Deployment, Instances, Speculation, feed, serve
from nearpeak.simulate.steps import StepTable, constant_table


def sloped_table(batch: int) -> StepTable:
    """Steps that take longer with their batch, context and rows."""
    flat = constant_table(1e-2, batch)
    users, knots = np.arange(batch + 1), 16.0 * 2 ** np.arange(8)
    decode = 1e-2 + 1e-4 * users[:, None] + 1e-6 * knots * users[:, None]
    rows = 2e-3 + 1e-5 * np.arange(flat.rows.shape[1])
    return flat._replace(knots=knots, decode=decode[None], rows=rows[None], attend=decode[None] / 10)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Deployment, loop.Feed, int, int]:
    most, block = draw(st.integers(1, 6)), draw(st.sampled_from([4, 16]))
    split, stages = draw(st.booleans()), draw(st.sampled_from([1, 1, 2, 3]))
    blocks, count = draw(st.integers(8, 40)), draw(st.integers(1, 3))
    roles = ("decode", "prefill") if split else ("both",)
    rule = policy(
        draw(st.sampled_from(sorted(POLICIES))), budget=draw(st.integers(8, 64)), tile=draw(st.sampled_from([1, 8]))
    )
    deployment = Deployment(
        sloped_table(most), tuple(Instances(0, count, most, blocks, 1.0, role) for role in roles), rule,
        draw(st.sampled_from(["least-loaded", "round-robin", "random", "same-prefix"])), block, stages=stages,
        ahead=draw(st.booleans()), reserves=draw(st.booleans()), caching=draw(st.booleans()),
        speculation=draw(st.sampled_from([Speculation(), Speculation(3, 0.6)])),
        moving_fixed=1e-3, moving_token=1e-5,
    )  # fmt: skip
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    isl, osl = rng.integers(1, 4 * block * 3, n), rng.integers(1, 60, n)
    prefix = rng.integers(-1, 3, n)
    arrival = np.cumsum(rng.exponential(draw(st.sampled_from([1e-4, 0.05, 0.5])), n))
    shared = np.where(prefix >= 0, isl * rng.random(n), 0).astype(int)
    requests = feed(arrival, isl, osl, rng.integers(0, 3, n), prefix, shared)
    return deployment, requests, draw(st.sampled_from([0, 0, 3])), draw(st.integers(0, 99))


def check(s: state.State, deployment: Deployment, arrived: int) -> None:
    q, e, i, g = s.q, s.e, s.i, s.g[0]
    live = q[q["state"] != state.FREE]
    assert len(live) == g["in_system"]
    assert g["next_id"] == arrived
    waiting = q["state"] == state.WAITING
    assert waiting.sum() == i["waiting"].sum()
    running = np.isin(q["state"], (state.STARTED, state.DECODING))
    assert running.sum() == i["running"].sum() == e["running"].sum()
    assert (q["state"] == state.DECODING).sum() == e["decoding"].sum()
    assert (q["state"] == state.STARTED).sum() == e["started"].sum()
    assert (i["running"] <= i["most"]).all()
    assert (i["outstanding"].sum()) == g["in_system"]
    assert (i["free"] >= 0).all()
    assert (i["idle"] >= 0).all()
    for k in range(len(i)):
        mine = np.isin(q["engine"], np.flatnonzero(e["home"] == k)) & (running | (q["state"] == state.MOVING))
        own = 0
        for r in q[mine]:
            grown = e["steps"][r["engine"]] - r["join"] if r["state"] == state.DECODING else 0
            full = -(-(r["cached"] + grown) // deployment.block) - -(-r["cached"] // deployment.block)
            own += r["blocks"] + (full if r["state"] == state.DECODING and not deployment.reserves else 0)
        held = s.p[k]["held"].sum() // deployment.block
        assert own + held + i["free"][k] == i["blocks"][k]
        unused = s.p[k]["users"] == 0
        assert s.p[k]["held"][unused].sum() // deployment.block == i["idle"][k]
    for k in range(len(e)):
        members = q[(q["engine"] == k) & (q["state"] == state.DECODING)]
        assert e["contexts"][k] == (members["cached"] + e["steps"][k] - members["join"]).sum()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_requests_tokens_and_blocks_are_conserved_at_every_event(case: tuple[Deployment, loop.Feed, int, int]) -> None:
    deployment, requests, clients, seed = case
    s = state.fresh(deployment.instance_records(), deployment.stages, deployment.block, 3, clients, 0, 4, seed)
    rules, at, left = deployment.rules(clients, 0.01), 0, []
    for _ in range(100_000):
        reason, at = loop.advance(s, deployment.table, rules, requests, at, True, 1)
        if reason == loop.WANTS_ROOM:
            s = state.grown(s)
        n = int(s.g["out"][0])
        left.append(s.out[:n].copy())
        s.g["out"] = 0
        check(s, deployment, at)
        if reason == loop.ENDED:
            break
    gone = np.concatenate(left)
    assert sorted(gone["id"].tolist()) == list(range(len(requests.isl)))
    fits = requests.isl + requests.osl <= deployment.room
    done = gone[gone["rejected"] == 0]
    assert len(done) == fits.sum()
    assert s.g["tokens"][0] == requests.osl[fits].sum()
    assert (done["first"] > done["arrival"]).all()
    assert (done["finish"] >= done["first"]).all()
    assert (s.i["free"] + s.p["held"].sum(axis=1) // deployment.block == s.i["blocks"]).all()


@settings(max_examples=30, deadline=None)
@given(cases())
def test_one_run_and_one_seed_agree_to_the_bit(case: tuple[Deployment, loop.Feed, int, int]) -> None:
    deployment, requests, clients, seed = case
    one, other = (serve(deployment, requests, clients=clients, seed=seed) for _ in range(2))
    assert one.requests is not None
    assert other.requests is not None
    for name, column in one.requests.items():
        np.testing.assert_array_equal(column, other.requests[name])
