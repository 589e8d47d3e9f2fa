"""Small torch apps that share this machine's cores under the simulator's policies."""

from dataclasses import replace

import numpy as np
import pytest

from nearpeak.errors import NearpeakError
from nearpeak.simulate.sharing import POLICIES, App

torch = pytest.importorskip("torch")

from nearpeak.decode.apps import HABITS, calibrated, compare, live  # noqa: E402
from nearpeak.decode.stand_ins import Captions, Chat, Images  # noqa: E402

SHORT = {
    "chat": replace(HABITS["chat"], requests=2),
    "image": replace(HABITS["image"], requests=5),
    "caption": replace(HABITS["caption"], requests=5),
}


def small():
    return {"chat": Chat(hidden=64, layers=2), "image": Images(channels=8, size=8), "caption": Captions(hidden=64)}


def test_requests_make_the_same_whoever_runs_beside():
    apps = [
        App("chat", 1.0, 1.0, 5, requests=3),
        App("image", 0.0, 1.0, 4, 2, requests=3),
        App("caption", 1.0, 1.0, 6, requests=3),
    ]
    alone = [live([a], small(), "greedy", 1).made[0] for a in apps]
    for policy in POLICIES:
        ran = live(apps, small(), policy, 2)
        assert list(ran.made) == alone
        assert [len(x) for x in ran.firsts] == [3, 0, 3]
        assert [len(x) for x in ran.laters] == [15, 24, 18]
        assert all(np.isfinite(e).all() for e in ran.outcome.end)
    assert len({tokens for app in alone for tokens in app}) == 9
    assert [len(a[0]) for a in alone] == [6, 64, 7]


def test_a_cached_token_is_that_of_the_whole_sequence():
    chat = Chat(hidden=64, layers=2)
    with torch.inference_mode():
        for step in range(5):
            chat.run(7, step, 0)
        prompt = torch.randint(chat.vocab, (chat.prompt,), generator=torch.Generator().manual_seed(7))
        x = chat.embedding(torch.cat((prompt, torch.tensor(chat.made(7)[:-1]))))
        for block in chat.blocks:
            x = block(x, [])
        assert int((x[-1] @ chat.head.weight.T).argmax()) == chat.made(7)[-1]


def test_apps_wait_for_those_before_them():
    apps = [App("image", 0.0, 1.0, 3, 2, requests=2, after=("chat",)), App("chat", 1.0, 1.0, 4, requests=2)]
    ran = live(apps, small(), "slo-aware", 2).outcome
    assert ran.due[0][0] == ran.end[1][-1]


def test_a_failing_unit_ends_the_run():
    class Broken:
        def run(self, request, step, part):
            raise ValueError("no memory")

        def made(self, request):
            return ()

    with pytest.raises(NearpeakError, match="no memory") as raised:
        live([App("image", 0.0, 1.0, 3, 2, requests=2)], {"image": Broken()}, "greedy")
    assert isinstance(raised.value.__cause__, ValueError)


def test_goals_are_multiples_of_what_an_app_takes_alone():
    apps, contention = calibrated(small(), SHORT)
    chat, image, caption = apps
    assert contention >= 1
    assert chat.step_goal == pytest.approx(8 * contention * chat.step)
    assert chat.first_goal == pytest.approx(8 * contention * chat.first)
    assert image.step_goal == pytest.approx(4 * contention * image.step)
    assert caption.goal == pytest.approx(4 * contention * caption.alone)
    assert caption.period == pytest.approx(5 * caption.alone)


def checked(found, gain):
    greedy = {a: found.attainment("greedy", a) for a in HABITS}
    assert min(greedy, key=greedy.get) == "caption"
    assert found.attainment("slo-aware", "caption") >= greedy["caption"] + gain
    assert found.mean("greedy", live=False) < found.mean("slo-aware", live=False)
    assert found.made["greedy"] == found.made["partitioned"] == found.made["slo-aware"]


def test_sharing_by_goals_serves_captions_that_greedy_sharing_starves():
    # Five captions; the slow test compares each share with the simulated one. Where others take the cores for a moment
    # the run says nothing of the policies, so it may be made again, twice.
    for left in (2, 1, 0):
        try:
            checked(compare(SHORT), gain=0.2)
            break
        except AssertionError:
            if left == 0:
                raise


@pytest.mark.slow
def test_the_simulation_keeps_the_order_of_policies_and_their_attainment():
    found = compare(HABITS, rounds=3)
    checked(found, gain=0.2)
    for at in (True, False):
        assert sorted(POLICIES, key=lambda p: found.mean(p, at)) == list(POLICIES)
    for policy in POLICIES:
        for app in HABITS:
            lived, simulated = (found.attainment(policy, app, at) for at in (True, False))
            assert abs(lived - simulated) <= 0.15, (policy, app, lived, simulated)
