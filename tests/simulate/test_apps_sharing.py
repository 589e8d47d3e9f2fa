"""Apps that share one device, simulated: schedules by hand, conservation, and whom each policy serves."""

import json
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearpeak.errors import UnknownName, UsageError
from nearpeak.simulate.apps import TOPIC, read_workflow, share
from nearpeak.simulate.sharing import POLICIES, App, partition

CHAT = App("chat", 25e-3, 8e-3, 16, requests=6, think=0.3, first_goal=0.2, step_goal=64e-3)
IMAGE = App("image", 0.0, 25e-3, 6, 2, requests=16, step_goal=70e-3)
CAPTION = App("caption", 4e-3, 1.5e-3, 24, requests=14, period=0.2, goal=0.16)
MIX = (CHAT, IMAGE, CAPTION)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_app_by_itself_takes_what_it_takes_alone(policy):
    ran = share([CHAT], policy, 1)
    assert np.allclose(ran.end[0] - ran.due[0], CHAT.alone)
    assert np.allclose(np.diff(ran.due[0]), CHAT.alone + CHAT.think)
    assert ran.attainment == {"chat": 1.0}
    paired = share([IMAGE], policy, 2)
    assert np.allclose(paired.end[0] - paired.due[0], IMAGE.alone)
    assert np.allclose(share([IMAGE], policy, 1).latency["image"], 2 * IMAGE.alone)
    assert paired.use == pytest.approx(1)


def test_greedy_makes_small_units_wait_for_large_ones():
    large, small = App("large", 0.0, 10.0, 5), App("small", 0.0, 1.0, 3)
    greedy = share([large, small], "greedy", 1)
    # large, small, large, small, large, small, large, large
    assert greedy.end[1].tolist() == [33.0]
    assert greedy.end[0].tolist() == [53.0]
    own = share([large, small], "partitioned", 2)
    assert own.end[1].tolist() == [3.0]
    assert own.end[0].tolist() == [50.0]


def test_slo_aware_runs_who_has_least_to_spare_and_gives_up_on_the_late():
    urgent, patient = App("urgent", 0.0, 1.0, 4, goal=5.0), App("patient", 0.0, 1.0, 4, goal=100.0)
    hopeless, free = App("hopeless", 0.0, 1.0, 4, goal=3.0), App("free", 0.0, 1.0, 4)
    ran = share([free, hopeless, patient, urgent], "slo-aware", 1)
    order = sorted(range(4), key=lambda i: float(ran.end[i][0]))
    assert [ran.apps[i].name for i in order] == ["urgent", "patient", "hopeless", "free"]
    assert ran.attainment == {"hopeless": 0.0, "patient": 1.0, "urgent": 1.0}


def test_first_and_later_steps_have_goals_of_their_own():
    for first, step, met in ((1.5, 2.0, 1.0), (0.5, 2.0, 0.0), (1.5, 0.5, 0.0)):
        app = App("a", 1.0, 1.0, 5, first_goal=first, step_goal=step)
        assert share([app], "greedy", 1).attainment == {"a": met}


def test_apps_begin_when_those_before_them_have_ended():
    apps = (
        App("image", 0.0, 1.0, 3, after=("outline",)),
        App("outline", 1.0, 1.0, 2, requests=2, after=("research",)),
        App("research", 2.0, 1.0, 5),
        App("caption", 0.0, 0.1, 2, requests=20, period=0.5, goal=inf),
    )
    for policy in POLICIES:
        ran = share(apps, policy, 2)
        assert ran.due[1][0] == ran.end[2][-1]
        assert ran.due[0][0] == ran.end[1][-1]
        assert ran.due[3].tolist() == [0.5 * i for i in range(20)]
        assert ran.mean_attainment == 1.0


apps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.1, 1.0, 3.0]), st.integers(1, 5), st.integers(1, 3),
        st.integers(1, 6), st.sampled_from([0.0, 2.0]), st.sampled_from([inf, 1.0, 8.0]),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(deadline=None)
@given(apps, st.integers(1, 4), st.sampled_from(POLICIES), st.booleans())
def test_all_work_is_done_once_and_slots_never_run_two_units(drawn, slots, policy, chained):
    made = [
        App(f"a{i}", f, s, n, w, r, p, goal=g, after=(f"a{i - 1}",) if chained and i else ())
        for i, (f, s, n, w, r, p, g) in enumerate(drawn)
    ]
    ran = share(made, policy, slots)
    span = max(float(e.max()) for e in ran.end)
    assert ran.use * slots * span == pytest.approx(sum(a.work for a in made))
    assert ran.use <= 1 + 1e-9
    for app, due, first, end in zip(made, ran.due, ran.first_end, ran.end, strict=True):
        assert np.isfinite(end).all()
        assert (np.diff(end) >= app.alone - 1e-9).all()
        assert (end - due >= app.alone - 1e-9).all()
        assert (first >= due + app.first - 1e-9).all()
    again, same = (share(made, policy, slots, 0.3, seed=1).end for _ in range(2))
    assert all((a == b).all() for a, b in zip(again, same, strict=True))


def test_heavy_apps_have_slots_of_their_own():
    assert partition(MIX, 2).tolist() == [[False, True], [True, False], [False, True]]
    assert partition(MIX, 4).sum(0).tolist() == [1] * 4
    assert partition(MIX, 4).sum(1).tolist() == [1, 2, 1]
    assert partition(MIX, 1).all()
    # Whoever is alone on a slot does not notice the others.
    assert share(MIX, "partitioned", 3).latency["caption"] == pytest.approx(CAPTION.alone)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_starves_captions_and_goals_bring_them_back(seed):
    greedy, own, aware = (share(MIX, p, 2, 0.15, 1.2, seed) for p in POLICIES)
    assert min(greedy.attainment, key=greedy.attainment.get) == "caption"
    assert aware.attainment["caption"] >= greedy.attainment["caption"] + 0.2
    assert greedy.mean_attainment < own.mean_attainment < aware.mean_attainment
    assert aware.mean_attainment > 0.95
    # Slots of one's own lie idle: the heavy app takes longer for it than for the whole device.
    assert own.latency["image"] > 1.2 * aware.latency["image"]


def test_units_slow_each_other_down():
    alone, beside = (share([IMAGE], "greedy", 2, contention=c).latency["image"] for c in (1.0, 1.5))
    assert alone < beside <= 1.5 * alone + 1e-9


def test_bad_workflows_are_refused(tmp_path):
    with pytest.raises(UnknownName, match="policy"):
        share(MIX, "fair")
    with pytest.raises(UnknownName, match="talk"):
        share([App("a", 0.0, 1.0, 1, after=("talk",))], "greedy")
    with pytest.raises(UsageError, match="waits for itself"):
        share([App("a", 0.0, 1.0, 1, after=("b",)), App("b", 0.0, 1.0, 1, after=("a",))], "greedy")
    with pytest.raises(UsageError, match="a name of its own"):
        share([CHAT, CHAT], "greedy")
    for wrong in ({"step": -1.0}, {"steps": 0}, {"requests": 0}, {"first": float("nan")}, {"width": 0}):
        with pytest.raises(UsageError, match="b"):
            App(**{"name": "b", "first": 0.0, "step": 1.0, "steps": 1} | wrong)
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps([{"name": "a", "first": 0, "step": "one", "steps": 1}]))
    for path in (file, tmp_path / "none.json"):
        with pytest.raises(UsageError, match="array of apps"):
            read_workflow(str(path))


def test_the_topic_takes_a_workflow_of_ones_own(tmp_path):
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps([
        {"name": "plan", "first": 1, "step": 0.1, "steps": 20},
        {"name": "draw", "first": 0, "step": 0.5, "steps": 10, "width": 2, "requests": 4, "after": ["plan"]},
        {"name": "hear", "first": 0.05, "step": 0.01, "steps": 20, "requests": 15, "period": 2, "goal": 1},
    ]))  # fmt: skip
    options = {o.name: o.default for o in TOPIC.options}
    own, bundled = (TOPIC.explain(**options | {"workflow": w}) for w in (str(file), None))
    assert own.figures == {"best_policy": "slo-aware", "worst_served_app": "hear"}
    assert bundled.figures["worst_served_app"] == "caption"
    assert {r["app"] for r in bundled.tables[0].rows} == {"research", "chat", "image", "caption"}
    with pytest.raises(UsageError, match="jitter"):
        TOPIC.explain(**options | {"jitter": -1.0})
