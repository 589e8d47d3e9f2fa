"""Several applications on one device: a chat, an image generator, live captions, an agent; who meets the goals.

Gu et al., "ConsumerBench: Benchmarking Generative AI Applications on End-User Devices", arXiv 2506.17538. Who runs next
is in ``sharing``; here are the events: a unit ends, a request arrives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.simulate.sharing import AT, FIRST, POLICIES, STEP, App, Flags, arrival, begin, choose, desk, end
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive

Array = NDArray[np.float64]


@njit(cache=True)
def _run(
    code: int, slots: int, contention: float, noise: Array, spec: Array, after: Flags, own: Flags, state: Array,
    log: Array,
) -> float:  # fmt: skip
    """Events until all apps have ended; returns the slot-seconds that units took."""
    until, runs = np.full(slots, np.inf), np.full(slots, -1)
    now, busy, drawn = 0.0, 0.0, 0
    while True:
        for slot in range(slots):
            if runs[slot] < 0:
                a = choose(code, slot, now, spec, own, state)
                if a >= 0:
                    took = (spec[a, STEP] if state[a, AT] > 0 else spec[a, FIRST]) * noise[drawn % noise.size]
                    if (runs >= 0).any():
                        took *= contention
                    drawn += 1
                    begin(a, spec, state)
                    runs[slot], until[slot] = a, now + took
                    busy += took
        now = min(until.min(), arrival(now, spec, state))
        if now == np.inf:
            return busy
        for slot in range(slots):
            if until[slot] <= now:
                end(runs[slot], now, spec, after, state, log)
                runs[slot], until[slot] = -1, np.inf


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of apps that shared a device.

    Attributes:
        apps: with their goals. policy: who ran next.
        due, first_end, end: of each app's requests, ``[app][request]``, seconds.
        use: share of the slots' time, from the first arrival to the last end, in which units ran.
    """

    apps: tuple[App, ...]
    policy: str
    due: tuple[Array, ...]
    first_end: tuple[Array, ...]
    end: tuple[Array, ...]
    use: float

    @classmethod
    def of(cls, apps: Sequence[App], policy: str, slots: int, log: Array, busy: float) -> "Outcome":
        """From a log (see ``Desk``) and the slot-seconds that units took."""
        due, first, over = (tuple(log[i, : a.requests, k] for i, a in enumerate(apps)) for k in range(3))
        span = max(float(e.max()) for e in over)
        return cls(tuple(apps), policy, due, first, over, busy / (slots * span))

    @property
    def attainment(self) -> dict[str, float]:
        """Share of the requests that met all their goals, of each app that has one."""
        return {
            app.name: float(
                (
                    (first - due <= app.first_goal)
                    & ((over - first) / app.steps <= app.step_goal)
                    & (over - due <= app.goal)
                ).mean()
            )
            for app, due, first, over in zip(self.apps, self.due, self.first_end, self.end, strict=True)
            if app.bound
        }

    @property
    def mean_attainment(self) -> float:
        """Over the apps that have a goal, each counting alike; 1 where none has one."""
        met = self.attainment
        return float(np.mean(list(met.values()))) if met else 1.0

    @property
    def latency(self) -> dict[str, float]:
        """Median seconds of each app's requests, from arrival to end."""
        return {a.name: float(np.median(e - d)) for a, d, e in zip(self.apps, self.due, self.end, strict=True)}


def share(
    apps: Sequence[App], policy: str, slots: int = 2, cv: float = 0.0, contention: float = 1.0, seed: int = 0
) -> Outcome:
    """Simulate apps that share a device; see ``desk`` for what is raised.

    Args:
        cv: coefficient of variation of a unit's time (lognormal). contention: how much longer a unit takes that begins
            beside others.
    """
    at = desk(apps, policy, slots)
    spread = np.sqrt(np.log1p(cv**2))
    noise = np.random.default_rng(seed).lognormal(-(spread**2) / 2, spread, 4096)
    busy = _run(POLICIES.index(policy), slots, contention, noise, at.spec, at.after, at.own, at.state, at.log)
    return Outcome.of(apps, policy, slots, at.log, busy)


def read_workflow(path: str) -> tuple[App, ...]:
    """Apps from a JSON file: an array of objects with the fields of ``App``, seconds on one slot.

    Raises:
        UsageError: no such file, or no such array.
    """
    import msgspec

    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=tuple[App, ...])
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"workflow {path!r}: {error}; an array of apps is needed, each with name, first, step, steps and, where "
            "wanted, width, requests, period, think, after, first_goal, step_goal and goal"
        ) from None


def content_creation(
    model: str, gpu: str, slots: int, image: float, caption: float, token: float, scale: float
) -> tuple[App, ...]:
    """An agent researches, then a person chats about it, then has pictures made; captions of a talk run all the time.

    A unit on one of several slots takes so many times what it takes on the whole device. A round of denoising is two
    units, with the caption and without (classifier-free guidance).

    Args:
        model, gpu: whose steps the agent and the chat take. image: seconds of a round of denoising. caption, token: of
            hearing a segment, and of a token of its captions. scale: of all goals, over those of ConsumerBench.
    """
    from nearpeak.case import setup
    from nearpeak.cost import decode, platform_of, prefill

    require_positive(slots=slots, image_step=image, caption_first=caption, caption_token=token, scale=scale)
    one = setup(model, gpu, 1, 1000, 100)
    at, single = platform_of(one), np.ones(())
    asked = {n: float(prefill(at, one, one.decode, single, np.asarray(float(n))).total) * slots for n in (200, 4000)}
    answered = {
        n: float(decode(at.in_graph(), one, one.decode, single, np.asarray(float(n))).total) * slots for n in asked
    }
    return (
        App("research", asked[4000], answered[4000], 200, requests=3),
        App("chat", asked[200], answered[200], 100, requests=8, think=5.0, after=("research",),
            first_goal=1.0 * scale, step_goal=0.25 * scale),
        App("image", 0.0, image * slots / 2, 20, 2, requests=8, after=("research",), step_goal=1.0 * scale),
        App("caption", caption * slots, token * slots, 30, requests=40, period=2.0, goal=2.0 * scale),
    )  # fmt: skip


def _explain(
    model: str, gpu: str, slots: int, image_step: float, caption_first: float, caption_token: float, scale: float,
    workflow: str | None, jitter: float, seed: int,
) -> Explanation:  # fmt: skip
    apps = (
        content_creation(model, gpu, slots, image_step, caption_first, caption_token, scale)
        if workflow is None
        else read_workflow(workflow)
    )
    if not (np.isfinite(jitter) and jitter >= 0):
        raise UsageError(f"jitter must be finite and not below 0, not {jitter:g}")
    found = {p: share(apps, p, slots, jitter, seed=seed) for p in POLICIES}
    best = max(found, key=lambda p: (found[p].mean_attainment, found[p].use))
    greedy, aware = found["greedy"].attainment, found["slo-aware"].attainment
    if not greedy:
        raise UsageError("no app of the workflow has a goal (first_goal, step_goal or goal); give one at least")
    worst = min(greedy, key=lambda a: greedy[a])
    return Explanation(
        {"best_policy": best, "worst_served_app": worst},
        (
            Table(
                "Requests that met their goals",
                tuple(
                    {
                        "policy": p,
                        "app": a.name,
                        "attained_share": found[p].attainment.get(a.name),
                        "median_latency": found[p].latency[a.name],
                        "slowdown_ratio": found[p].latency[a.name] / a.alone,
                    }
                    for p in POLICIES
                    for a in apps
                ),
            ),
            Table.of(
                "All apps",
                policy=POLICIES,
                attained_share=[found[p].mean_attainment for p in POLICIES],
                use_share=[found[p].use for p in POLICIES],
                seconds=[max(float(e.max()) for e in found[p].end) for p in POLICIES],
            ),
        ),
        (
            f"Greedy sharing serves {worst} worst: {100 * greedy[worst]:.3g} % of its requests meet their goals, "
            f"{100 * aware[worst]:.3g} % under slo-aware sharing.",
        ),
    )


TOPIC = Topic(
    "apps",
    "Who meets the goals when a chat, an agent, an image generator and live captions share one device?",
    "Gu et al., ConsumerBench: Benchmarking Generative AI Applications on End-User Devices, 2025 (arXiv 2506.17538)",
    (
        replace(MODEL, default="meta-llama/Meta-Llama-3.1-8B"),
        replace(GPU, default="rtx4090"),
        Option("slots", int, "Parts of the device, each of which runs one unit at a time.", 2),
        Option("image_step", float, "Seconds of a round of denoising on the whole device.", 0.2),
        Option("caption_first", float, "Seconds of hearing a segment of sound on the whole device.", 0.02),
        Option("caption_token", float, "Seconds of a token of captions on the whole device.", 0.003),
        Option("scale", float, "Of all goals, over ConsumerBench's: 1 s and 0.25 s a token, 1 s a round, 2 s.", 1.0),
        Option("workflow", str, "JSON file of other apps, with the fields of App.", None),
        Option("jitter", float, "Coefficient of variation of a unit's time.", 0.1),
        Option("seed", int, "Of the jitter.", 0),
    ),
    _explain,
    "--gpu rtx4090 --slots 2",
)
