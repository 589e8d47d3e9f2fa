"""Plans for traffic with goals on percentiles: closed forms over every Setup, then simulation of those that may hold.

Stage one prices one instance of every layout, format and batch. At a given rate of requests each needs at least so many
replicas that its fastest batch within the goals serves them: a bound from below, since a percentile is never kept more
easily than the mean. Stage two simulates from the cheapest on. A candidate that breaks a goal comes back with a replica
more. All meet the same requests (common random numbers), first a few of them, which most of the hopeless fail; then
replications, until the goals are kept or broken with the stated confidence. So the first that holds is the best.
"""

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nearpeak.cost import largest_batch, platform_of, predict
from nearpeak.cost.money import GRID_CARBON, LIFETIME
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.plan import space
from nearpeak.plan.planner import MOST_BATCH, base_setup, check_lengths, stacked
from nearpeak.plan.space import Fleet, Variant
from nearpeak.setup import Pool, Setup
from nearpeak.simulate.deploy import deploy, knee
from nearpeak.simulate.loop import Feed
from nearpeak.simulate.results import FIGURES, Result
from nearpeak.simulate.serving import Deployment, feed, serve
from nearpeak.workload import Architecture
from nearpeak.workload.traffic import Trace, Traffic

Array = NDArray[np.float64]
Objective = Literal["cost", "energy", "carbon"]
FIRST = 3
MOST_REPLICATIONS = 12
"""Replications that a candidate is given at first, and at most where it lies near a goal."""
PILOT = 2000
"""Requests of the first look at a candidate."""
HOPELESS = 4.0
"""Times the allowed share of requests above a limit at which the first look ends a candidate's case."""
STUDENT = (12.7, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)
"""Two-sided 95 % quantiles of Student's t for 1 to 11 degrees of freedom."""
FURTHER = 3
"""Times the fewest replicas that a layout gets more of: with four times what the mean needs, a queue is no cause."""
STRETCH = 200
"""Requests of a trace that stay together where it is resampled."""
BUDGET = 2048
"""Most tokens of a step: what vLLM takes by default where latency counts."""
RATES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Of the planned rate, at which a plan is looked at once more."""


@dataclass(frozen=True)
class Limit:
    """A figure's percentile (``of`` is 50, 90, 95, 99, or None for the mean) must be at most so many seconds."""

    figure: str
    of: float | None
    seconds: float

    def __post_init__(self) -> None:
        if self.figure not in FIGURES:
            raise UsageError(f"unknown figure {self.figure!r}; choose one of {', '.join(FIGURES)}")
        if self.of is not None and not 0 < self.of < 100:
            raise UsageError(f"p{self.of:g} is no percentile; give one between 0 and 100, such as 99")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"a limit of {self.seconds} s on {self}; give seconds above 0")

    def __str__(self) -> str:
        return f"{'mean' if self.of is None else f'p{self.of:g}'} {self.figure}"

    def value(self, result: Result) -> float:
        """What a run shows, seconds; nan where nothing was served, 0 of TPOT where all answers have one token."""
        if self.figure == "tpot" and result.completed and not result.sketches["tpot"].n:
            return 0.0
        return result.sketches[self.figure].mean if self.of is None else result.percentile(self.figure, self.of)


@dataclass(frozen=True)
class Trial:
    """A deployment that was simulated.

    Attributes:
        setup: a single configuration. techniques: names. hourly: dollars per hour, nan where no price is known.
        limits: on its figures. results: of each replication; of one that was hopeless, of the first requests alone.
    """

    setup: Setup
    techniques: tuple[str, ...]
    hourly: float
    limits: tuple[Limit, ...]
    results: tuple[Result, ...]

    @property
    def values(self) -> Array:
        """Seconds, ``[replications, limits]``."""
        return np.array([[limit.value(result) for limit in self.limits] for result in self.results])

    @property
    def means(self) -> Array:
        """Of each limit's figure, seconds."""
        return np.asarray(self.values.mean(axis=0))

    @property
    def halves(self) -> Array:
        """Half the 95 % intervals of these means, seconds; infinite with one replication."""
        n = len(self.results)
        if n < 2:
            return np.full(len(self.limits), np.inf)
        return np.asarray(STUDENT[min(n - 2, len(STUDENT) - 1)] * self.values.std(axis=0, ddof=1) / np.sqrt(n))

    @property
    def verdict(self) -> Literal["holds", "breaks", "open"]:
        """Whether all limits are kept, or one is broken, with 95 % confidence."""
        allowed = np.array([limit.seconds for limit in self.limits])
        if any(result.rejected for result in self.results):
            return "breaks"
        if (self.means + self.halves <= allowed).all():
            return "holds"
        return "breaks" if (self.means - self.halves > allowed).any() else "open"

    @property
    def tokens(self) -> float:
        """Tokens of answers per second."""
        return float(np.mean([result.token_rate for result in self.results]))

    def per_million(self) -> dict[str, float]:
        """Dollars, joules and grams of CO2 (operation and making) per million tokens of answers."""
        node = self.setup.node
        shared = node.overhead_power / node.count * float(self.setup.devices)
        watts = float(np.mean([result.joules / result.span for result in self.results])) + shared
        made = (node.device.embodied_carbon or 0.0) / LIFETIME * float(self.setup.devices)
        return {
            "dollars": self.hourly / 3600 / self.tokens * 1e6,
            "joules": watts / self.tokens * 1e6,
            "grams_co2": (watts * GRID_CARBON + made) / self.tokens * 1e9,
        }


@dataclass(frozen=True)
class ServingPlans:
    """The answer.

    Attributes:
        trials: those that hold, the best first. nearest: the one that broke its goals least, where none holds.
        priced: Setups priced in stage one. simulated: deployments simulated. requests: requests simulated.
        seconds: of the whole search. confirmed: the best under other seeds. rate: requests/s asked for.
        sensitivity: the best at other rates: the rate's factor, each limit's seconds, and whether all hold.
        knee: requests/s at which the best saturates.
        left_out: devices that could not be considered, and why.
    """

    trials: tuple[Trial, ...]
    nearest: Trial | None
    priced: int
    simulated: int
    requests: int
    seconds: float
    rate: float
    confirmed: Trial | None = None
    sensitivity: tuple[dict[str, Any], ...] = ()
    knee: float = float("nan")
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layout:
    """One instance of every pool, and the fewest replicas that the closed forms allow."""

    setup: Setup
    techniques: tuple[str, ...]
    replicas: int
    first: int
    price: float
    most: int

    def at(self, more: int) -> Setup:
        """With ``more`` replicas than the fewest; of disaggregated pools both grow in proportion."""
        setup = self.setup
        replicas = self.replicas + more
        decode = replace(setup.decode, replicas=replicas)
        if setup.prefill is None:
            return replace(setup, decode=decode)
        first = math.ceil(self.first * replicas / self.replicas)
        return replace(setup, decode=decode, prefill=replace(setup.prefill, replicas=first))


def deployed(setup: Setup, longest: int) -> Deployment:
    """What is simulated of a Setup, for requests of at most ``longest`` tokens: as many at once as its batch says."""
    return deploy(
        setup, most=int(np.asarray(setup.decode.batch)) * int(np.asarray(setup.decode.dp)), longest=max(longest, 32)
    )


def plan_serving(
    model: Architecture,
    fleets: Sequence[Fleet],
    replications: Callable[[int], Feed],
    limits: Sequence[Limit],
    objective: Objective = "cost",
    engines: Sequence[str] = ("vllm",),
    techniques: Sequence[str] | None = None,
    accuracy: float = 0.0,
    top: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> ServingPlans:
    """The best deployments that keep limits on percentiles under traffic.

    Args:
        replications: the requests of a seed; all candidates meet those of seed 0, 1, 2, ...
        objective: dollars, joules or grams of CO2 per token of an answer.
        techniques: names to choose from, all if None. accuracy: share of the model's quality that must remain.
        top: deployments to find, each another layout, format or device.
        progress: told of deployments simulated, and still to simulate at least.

    Raises:
        UsageError: no limits; lengths beyond the model's context; requests that all come at once; an unknown objective.
        NearpeakError: no price is known for any device and the goal is money.
    """
    if objective not in get_args(Objective):
        raise UsageError(f"unknown goal {objective!r} under traffic; choose one of {', '.join(get_args(Objective))}")
    if not limits:
        raise UsageError("no goals; give at least one limit, such as a p99 of the time to the first token")
    began = time.perf_counter()
    feeds = [replications(seed) for seed in range(MOST_REPLICATIONS + 2 * FIRST)]
    sample = feeds[0]
    isl, osl = float(sample.isl.mean()), float(sample.osl.mean())
    check_lengths(model, max(1.0, isl), max(1.0, osl))
    between = float(sample.arrival[-1] - sample.arrival[0])
    if not between > 0:
        raise UsageError("all requests arrive at once, so that there is no rate to plan for; give traffic over time")
    rate = len(sample.isl) / between
    longest = max(int((requests.isl + requests.osl).max()) for requests in feeds)
    if longest > model.context:
        raise UsageError(
            f"a request of {longest} tokens is longer than the {model.context} of {model.name}, which no deployment "
            "serves; leave such requests out, or give shorter lengths or less spread"
        )
    left_out: dict[str, str] = {}
    layouts, priced = [], 0
    for fleet, engine in itertools.product(fleets, engines):
        price = fleet.node.device.price_per_hour
        if price is None and objective == "cost":
            name = fleet.node.device.name
            left_out[name] = f"no price is catalogued for {name}; give one with --price {name}=DOLLARS"
            continue
        base = replace(base_setup(model, fleet.node, engine, isl, osl), chunk=BUDGET)
        try:
            found, n = _layouts(base, fleet, limits, rate, techniques, accuracy)
        except UsageError as error:
            left_out[fleet.node.device.name] = str(error)
            continue
        layouts += found
        priced += n
    if not layouts and left_out:
        raise NearpeakError("; ".join(left_out.values()))
    race = _Race(feeds, tuple(limits), longest)
    trials, nearest = race.run(layouts, objective, top, progress)
    trials, confirmed = race.confirmed_first(trials)
    plans = ServingPlans(
        tuple(trials), None if trials else nearest, priced, race.simulated, race.requests, 0.0, rate,
        confirmed=confirmed, left_out=left_out,
    )  # fmt: skip
    if trials:
        plans = race.examined(plans)
    return replace(plans, seconds=time.perf_counter() - began)


def _layouts(
    base: Setup, fleet: Fleet, limits: Sequence[Limit], rate: float, techniques: Sequence[str] | None, accuracy: float
) -> tuple[list[_Layout], int]:
    """Stage one: each layout and variant with the fewest replicas that may do."""
    variants = [v for v in space.variants(base, techniques) if v.quality >= accuracy]
    rows = space.layouts(base.model, fleet.node, base.engine, fleet.most)
    found: list[_Layout] = []
    priced = 0
    for split in (False, True):
        kept = [v for v in variants if (v.setup.prefill is not None) == split]
        if not kept:
            continue
        block = _block(kept, rows, split)
        allowed = np.broadcast_to(space.whole_blocks(block), block.shape)
        priced += int(allowed.sum())
        predicted = predict(platform_of(block), block)
        shape = block.shape
        ok = allowed & np.broadcast_to(predicted.memory.fits, shape)
        if predicted.prefill_memory is not None:
            ok = ok & predicted.prefill_memory.fits
        for limit in limits:
            # The mean is a bound for percentiles above the middle; a wait of a queue is left to the simulation.
            figure = predicted.tpot if limit.figure == "tpot" else predicted.times.prompt
            if limit.of is None or limit.of >= 50:
                ok = ok & (figure <= limit.seconds)
        served = np.where(ok, np.broadcast_to(predicted.request_rate, shape), 0.0)
        best = served.argmax(axis=-1)
        fastest = np.take_along_axis(served, best[..., None], -1)[..., 0]
        load = np.take_along_axis(np.broadcast_to(predicted.load, shape), best[..., None], -1)[..., 0]
        for index in zip(*(a.tolist() for a in np.nonzero(fastest > 0)), strict=True):
            at = (*index, int(best[index]))
            found += _layout(block, kept, fleet, at, rate, float(fastest[index]), float(load[index]))
    return found, priced


def _block(kept: list[Variant], rows: Pool, split: bool) -> Setup:
    """One instance of every layout (pairs of them where prefill is split off), variant and batch."""
    every = stacked(kept)
    most = largest_batch(every, space.reshaped(rows, (-1, 1, 1))).max()
    batch = space.batches(int(min(MOST_BATCH, max(1, most))))
    decode = replace(space.reshaped(rows, (1, -1, 1, 1)), batch=batch)
    if not split:
        return replace(every, decode=decode, prefill=None)
    flat = space.picked(rows, np.asarray(rows.pp) == 1)
    decode = replace(space.reshaped(flat, (1, -1, 1, 1)), batch=batch)
    return replace(every, decode=decode, prefill=space.reshaped(flat, (-1, 1, 1, 1)))


def _layout(
    block: Setup, kept: list[Variant], fleet: Fleet, index: tuple[int, ...], rate: float, fastest: float, load: float
) -> Iterator[_Layout]:
    setup, variant = block.at(index), kept[index[2]]
    replicas = max(1, math.ceil(rate / fastest))
    # One prefill instance is busy for ``load`` of the time that one decode instance is fed.
    first = 0 if setup.prefill is None else max(1, math.ceil(rate / fastest * load))
    price = fleet.node.device.price_per_hour
    names = tuple(t.name for t in variant.techniques)
    made = _Layout(setup, names, replicas, first, math.nan if price is None else price, fleet.most)
    if float(made.at(0).devices) <= fleet.most:
        yield made


class _Race:
    """Stage two: deployments on common random numbers, from the most promising on. ``feeds``: requests by seed."""

    def __init__(self, feeds: Sequence[Feed], limits: tuple[Limit, ...], longest: int) -> None:
        self.feeds, self.limits, self.longest = feeds, limits, longest
        self.tables: dict[int, Deployment] = {}
        self.simulated = self.requests = 0

    def run(
        self, layouts: list[_Layout], objective: Objective, top: int, progress: Callable[[int, int], None] | None
    ) -> tuple[list[Trial], Trial | None]:
        """The best ``top`` layouts that hold, and the one that came nearest."""
        waiting = [(self.promise(layout, objective, 0), n, 0) for n, layout in enumerate(layouts)]
        heapq.heapify(waiting)
        held: list[tuple[float, int, Trial]] = []
        nearest: tuple[float, Trial] | None = None
        while waiting:
            promise, n, more = heapq.heappop(waiting)
            if len(held) >= top and promise >= sorted(held)[top - 1][0]:
                break
            trial = self.trial(layouts[n], more)
            self.simulated += 1
            if progress is not None:
                progress(self.simulated, self.simulated + len(waiting))
            if trial.verdict == "holds":
                held.append((self.score(trial, objective), n, trial))
                continue
            excess = float(np.max(trial.means / [limit.seconds for limit in self.limits]))
            if excess == excess and (nearest is None or excess < nearest[0]):  # nan: it served nothing
                nearest = (excess, trial)
            if any(result.rejected for result in trial.results):
                continue  # for want of memory in an instance, which others beside it do not change
            step = self.step(layouts[n], more, trial)
            further = more + step <= FURTHER * layouts[n].replicas + 1
            if further and float(layouts[n].at(more + step).devices) <= layouts[n].most:
                heapq.heappush(waiting, (self.promise(layouts[n], objective, more + step), n, more + step))
        best = [trial for _, _, trial in sorted(held, key=lambda x: x[:2])][:top]
        return best, None if nearest is None else nearest[1]

    def step(self, layout: _Layout, more: int, trial: Trial) -> int:
        """Replicas to add next: one, or where requests came faster than they were served, what that rate asks for.

        The rate of a run that fills up is below that in between: a tenth more is granted it.
        """
        first = trial.results[0]
        if not first.saturated or first.offered_span <= 0:
            return 1
        served, asked = first.busy_rate, first.offered / first.offered_span
        replicas = layout.replicas + more
        return max(1, int(replicas * asked / (1.1 * served)) - replicas)

    def promise(self, layout: _Layout, objective: Objective, more: int) -> float:
        """What a layout costs at the least: dollars per hour; of devices that wait, watts or kg of CO2 a second."""
        setup = layout.at(more)
        if objective == "cost":
            return float(setup.devices) * layout.price
        device = setup.node.device
        watts = (device.idle_power or 0.0) + setup.node.overhead_power / setup.node.count
        if objective == "energy":
            return float(setup.devices) * watts
        return float(setup.devices) * (watts * GRID_CARBON + (device.embodied_carbon or 0.0) / LIFETIME)

    def score(self, trial: Trial, objective: Objective) -> float:
        """What a trial that holds is ranked by, in the unit of ``promise``."""
        if objective == "cost":
            return trial.hourly
        per = trial.per_million()
        return trial.tokens * (per["joules"] / 1e6 if objective == "energy" else per["grams_co2"] / 1e9)

    def deployment(self, layout: _Layout, setup: Setup) -> Deployment:
        """The deployment of a setup; step times of a layout are priced once, whatever its replicas."""
        if id(layout) not in self.tables:
            self.tables[id(layout)] = deployed(setup, self.longest)
        made = self.tables[id(layout)]
        pools = (setup.decode,) if setup.prefill is None else (setup.decode, setup.prefill)
        counts = [int(np.asarray(pool.replicas)) for pool in pools]
        instances = tuple(replace(one, count=n) for one, n in zip(made.instances, counts, strict=True))
        return replace(made, instances=instances)

    def trial(self, layout: _Layout, more: int, seeds: Sequence[int] = range(MOST_REPLICATIONS)) -> Trial:
        """Simulate until the verdict is clear, or the seeds are used up."""
        setup = layout.at(more)
        hourly = layout.price * float(setup.devices)
        deployment = self.deployment(layout, setup)
        columns: tuple[Any, ...] = tuple(column[:PILOT] for column in self.feeds[seeds[0]])
        pilot = Feed(*columns)
        first = self.simulate(deployment, pilot)
        made = Trial(setup, layout.techniques, hourly, self.limits, (first,))
        if first.rejected or any(self.hopeless(limit, first) for limit in self.limits):
            return made
        results: list[Result] = []
        for seed in seeds:
            results.append(self.simulate(deployment, self.feeds[seed]))
            made = replace(made, results=tuple(results))
            if len(results) >= FIRST and made.verdict != "open":
                break
        return made

    def hopeless(self, limit: Limit, result: Result) -> bool:
        """Whether so many of the first requests are above a limit that the rest cannot save it."""
        allowed = 0.5 if limit.of is None else 1 - limit.of / 100
        return result.sketches[limit.figure].above(limit.seconds) > min(0.95, HOPELESS * allowed)

    def simulate(self, deployment: Deployment, requests: Feed) -> Result:
        """One run."""
        self.requests += len(requests.isl)
        return serve(deployment, requests, keep=True)

    def again(self, trial: Trial) -> Trial:
        """A trial under seeds that the search has not seen."""
        deployment = deployed(trial.setup, self.longest)
        return replace(
            trial, results=tuple(self.simulate(deployment, requests) for requests in self.feeds[MOST_REPLICATIONS:])
        )

    def confirmed_first(self, trials: list[Trial]) -> tuple[list[Trial], Trial | None]:
        """The trials from the first on that holds under other seeds as well, and that one under them.

        Those before it held by luck. Where none holds again, all of them, and the first under the other seeds.
        """
        first = None
        for n, trial in enumerate(trials):
            again = self.again(trial)
            if again.verdict == "holds":
                return trials[n:], again
            first = first or again
        return trials, first

    def examined(self, plans: ServingPlans) -> ServingPlans:
        """The best plan at other rates, and at its knee."""
        deployment = deployed(plans.trials[0].setup, self.longest)
        rows = []
        for factor in RATES:
            requests = self.feeds[0]
            faster = requests._replace(arrival=requests.arrival / factor)
            result = self.simulate(deployment, faster)
            values = {f"{limit}": limit.value(result) for limit in self.limits}
            holds = all(limit.value(result) <= limit.seconds for limit in self.limits) and not result.rejected
            rows.append({"rate": plans.rate * factor, "factor": factor} | values | {"holds": holds})
        return replace(plans, sensitivity=tuple(rows), knee=knee(deployment, self.feeds[0]), requests=self.requests)


def replications_of(trace: Trace) -> Callable[[int], Feed]:
    """The requests of a trace as replications: seed 0 is the trace itself, the others resample stretches of it.

    Of a short trace a tenth is a stretch: one that held all of it would be the same under every seed.
    """
    stretch = min(STRETCH, max(1, len(trace.arrival) // 10))

    def of(seed: int) -> Feed:
        drawn = trace if seed == 0 else trace.resampled(seed, stretch)
        return feed(drawn.arrival, drawn.isl, drawn.osl, **({} if drawn.marks is None else vars(drawn.marks)))

    return of


def replications_drawn(traffic: Traffic, requests: int) -> Callable[[int], Feed]:
    """Requests drawn from a traffic, other ones for each seed."""

    def of(seed: int) -> Feed:
        drawn = traffic.sample(requests, seed)
        return feed(drawn.arrival, drawn.isl, drawn.osl)

    return of


def serving_record(plans: ServingPlans) -> dict[str, Any]:
    """The answer as plain values."""

    def trial(one: Trial | None) -> dict[str, Any] | None:
        if one is None:
            return None
        setup = one.setup
        pools = {"decode": setup.decode} | ({} if setup.prefill is None else {"prefill": setup.prefill})
        return {
            "model": setup.model.name, "engine": setup.engine, "device": setup.node.device.name,
            "devices": int(setup.devices), "mode": setup.mode, "techniques": list(one.techniques),
            "pools": {name: {n: int(a) for n, a in pool.arrays().items()} for name, pool in pools.items()},
            "dollars_per_hour": one.hourly, "per_million_tokens": one.per_million(),
            "limits": [
                {"limit": str(limit), "allowed": limit.seconds, "mean": float(mean), "half_interval": float(half)}
                for limit, mean, half in zip(one.limits, one.means, one.halves, strict=True)
            ],
            "replications": len(one.results), "verdict": one.verdict,
        }  # fmt: skip

    return {
        "rate": plans.rate, "priced": plans.priced, "simulated": plans.simulated, "requests": plans.requests,
        "seconds": plans.seconds, "plans": [trial(one) for one in plans.trials], "nearest": trial(plans.nearest),
        "confirmed": trial(plans.confirmed), "sensitivity": list(plans.sensitivity), "knee_rate": plans.knee,
        "left_out": plans.left_out,
    }  # fmt: skip
