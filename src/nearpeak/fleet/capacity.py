"""How many devices to hold in the next window: forecast a distribution, weigh idle hours against breaches.

After HARMONY (Luo et al., arXiv 2408.01000). Stage one (``load_forecast``) draws the coming window's load. Stage two,
here, makes three things of the draws ``d`` (devices that the load needs):

Correction. What the last windows turned out to be says how far the forecast is off. Standardized logarithms
``z = (log d - mean) / deviation`` of the outcomes are normal with unknown bias and variance under a
normal-inverse-gamma prior around (0, 1); each window updates it, and older windows are forgotten towards the prior
(Kulhavy and Zarrop, Int. J. Control 58, 1993). The draws are moved and stretched by draws of that posterior, so that
tails are those of its Student's t.

Decision. Of all capacities ``c`` the one that minimizes the posterior expectation of what idle devices and a breach
cost, ``E max(c - d, 0) + penalty P(d > c)``, in device windows. So a window that would be dear to cover may be given
up, and one that is cheap to cover is not: a fixed quantile or margin can do neither.

Penalty. The price of a breach follows from the promise: of all penalties, in each window the cheapest so far whose rate
of breaches is at most the promised one with ``CONFIDENCE``, under the Beta posterior of the windows seen (what each
would have held is known after the fact).

The scalers that it is compared with are tuned on the same windows, to the same promise at the fewest hours: a reactive
one (largest load of the last windows, and a headroom) and the forecast's median with a margin, relative or absolute.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.errors import UsageError
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive

if TYPE_CHECKING:
    from nearpeak.fleet.load_traces import Load

Array = NDArray[np.float64]

CONFIDENCE: Final = 0.65
"""How sure a penalty must be to keep the promise."""
DRAWS: Final = 1000
INTERVAL: Final = (0.05, 0.95)


@dataclass(frozen=True)
class Posterior:
    """Normal-inverse-gamma distributions of a forecast's bias and variance, in its standard deviations; ``[windows]``.

    The variance is ``beta / Gamma(alpha)``; the bias is normal around ``mean`` with ``variance / count``.
    """

    mean: Array
    count: Array
    alpha: Array
    beta: Array


def posterior(z: Array, memory: float = 288.0, prior: float = 36.0) -> Posterior:
    """What is known of bias and variance before each window, and after the last: ``[windows + 1]``.

    Args:
        z: standardized outcomes ``[windows]``. memory: windows in which an outcome's weight falls to 1/e.
        prior: windows that the prior, no bias and variance 1, weighs.
    """
    require_positive(memory=memory, prior=prior)
    start = np.array([prior, 0.0, prior, prior])
    keep, natural = np.exp(-1 / memory), start.copy()
    found = np.empty((z.size + 1, 4))
    found[0] = start
    for t, seen in enumerate(np.stack([np.ones_like(z), z, np.ones_like(z), z * z], 1)):
        natural = keep * natural + (1 - keep) * start + seen
        found[t + 1] = natural
    count, first, twice, second = found.T
    return Posterior(first / count, count, twice / 2, (second - first * first / count) / 2)


def corrected(draws: Array, outcome: Array, lead: int, seed: int, memory: float = 288.0, prior: float = 36.0) -> Array:
    """Draws of a forecast, each window's corrected by what windows turned out to be ``lead`` and more before it.

    Args:
        draws: ``[windows, draws]``, above 0. outcome: of the first windows, ``[at most windows]``, above 0.
    """
    y = np.log(draws)
    centre, deviation = y.mean(1, keepdims=True), np.maximum(y.std(1, keepdims=True), 1e-9)
    known = len(outcome)
    of = posterior((np.log(outcome) - centre[:known, 0]) / deviation[:known, 0], memory, prior)
    row = np.clip(np.arange(len(draws)) - lead + 1, 0, known)
    mean, count, alpha, beta = (x[row, None] for x in (of.mean, of.count, of.alpha, of.beta))
    rng = np.random.default_rng(seed)
    variance = beta / rng.standard_gamma(np.broadcast_to(alpha, draws.shape))
    bias = mean + np.sqrt(variance / count) * rng.standard_normal(draws.shape)
    return np.asarray(np.exp(centre + deviation * bias + np.sqrt(variance) * (y - centre)))


def decide(draws: Array, penalties: ArrayLike, most: int) -> NDArray[np.int64]:
    """Capacities of least expected cost, ``[penalties, windows]``, of 0 to ``most`` devices.

    Args:
        draws: devices that a window may need, ``[windows, draws]``. penalties: of a breach, in device windows.

    Raises:
        UsageError: a penalty is not above 0, or a draw no number of devices.
    """
    price = np.atleast_1d(np.asarray(penalties, float))
    require_positive(penalties=price, most=most)
    if not (np.isfinite(draws).all() and (draws >= 0).all()):
        raise UsageError("draws of load must be finite and not negative")
    windows, n = draws.shape
    # Draws by the smallest capacity that covers them; those that none covers are in the last column.
    cell = np.minimum(np.ceil(draws), most + 1).astype(np.int64) + (most + 2) * np.arange(windows)[:, None]
    size = windows * (most + 2)
    covered, load = (
        np.bincount(cell.ravel(), weights, size).reshape(windows, most + 2)[:, :-1].cumsum(1) / n
        for weights in (None, draws.ravel())
    )
    idle = np.arange(most + 1) * covered - load
    return np.stack([(idle + p * (1 - covered)).argmin(1) for p in price])


def within(breached: NDArray[np.bool_], sla: float, confidence: float = CONFIDENCE) -> NDArray[np.bool_]:
    """Whether the rate of breaches is at most ``sla`` with ``confidence`` after each of the windows (last axis), under
    the Beta posterior of Jeffreys' prior.
    """
    from scipy.special import betainc

    bad = breached.cumsum(-1)
    good = np.arange(1, breached.shape[-1] + 1) - bad
    return np.asarray(betainc(bad + 0.5, good + 0.5, sla) >= confidence)


def follow(capacities: NDArray[np.int64], demand: Array, sla: float, lead: int, tune: int) -> NDArray[np.int64]:
    """Capacities of the penalty that, ``lead`` windows before each, was cheapest among those that kept the promise; of
    the largest penalty where none had.

    Args:
        capacities: ``[penalties, demands + lead]``, penalties ascending. demand: devices needed ``[demands]``.
        tune: the first window that is decided; the earlier ones are only learnt from.

    Returns:
        ``[demands + lead - tune]``.
    """
    n = demand.size
    used = capacities[:, :n].cumsum(1)
    cost = np.where(within(demand > capacities[:, :n], sla), used, np.inf)
    best = np.where(np.isfinite(cost).any(0), cost.argmin(0), len(capacities) - 1)
    at = np.arange(tune, capacities.shape[1])
    return capacities[best[at - lead], at]


PENALTIES: Final = np.geomspace(1, 3000, 48)
"""Of a breach, in windows of the mean fleet."""
HOLDS: Final = np.array([1, 2, 3, 6, 12])
HEADROOMS: Final = np.linspace(0, 3, 301)
"""Margins that the other scalers are tuned over: shares of the load, or of its mean."""


def tuned(capacities: Array, demand: Array, sla: float) -> int:
    """Of policies ``[policies, windows]`` the one with the fewest device hours that breaches at most ``sla``.

    Raises:
        UsageError: none keeps to it.
    """
    kept = (demand > capacities).mean(1) <= sla
    if not kept.any():
        raise UsageError(
            f"no headroom up to {HEADROOMS[-1]:.0%} keeps breaches to {sla:g} of the windows: raise the SLA"
        )
    return int(np.where(kept, capacities.sum(1), np.inf).argmin())


def reactive(demand: Array, lead: int, hold: ArrayLike, headroom: ArrayLike) -> Array:
    """Devices that follow the load: the largest of the last ``hold`` windows seen, and a share of it more.

    As autoscalers do that wait before they scale down. ``[policies, windows - hold - lead + 1]``: the last windows.
    """
    holds, shares = np.atleast_1d(hold), np.atleast_1d(np.asarray(headroom, float))
    longest = int(holds.max())
    seen = np.lib.stride_tricks.sliding_window_view(demand[: demand.size - lead], longest)
    largest = np.stack([seen[:, longest - h :].max(1) for h in holds])
    return np.asarray(np.ceil(largest[:, None] * (1 + shares[:, None])).reshape(-1, len(seen)))


def with_margin(point: Array, mean: float) -> Array:
    """A point forecast plus a fixed margin, relative or of the mean load. ``[policies, windows]``."""
    return np.asarray(np.ceil(np.concatenate([point * (1 + HEADROOMS[:, None]), point + mean * HEADROOMS[:, None]])))


@dataclass(frozen=True, eq=False)
class Held:
    """What a scaler held in the windows of the test; arrays ``[windows]``."""

    name: str
    capacity: Array
    demand: Array

    @property
    def breach_share(self) -> float:
        """Share of the windows whose load needed more than it held."""
        return float((self.demand > self.capacity).mean())

    @property
    def unserved_share(self) -> float:
        """Share of the requests that came beyond what it held."""
        return float(np.maximum(self.demand - self.capacity, 0).sum() / self.demand.sum())

    def hours(self, window: float) -> float:
        """GPU hours; ``window`` in seconds."""
        return float(self.capacity.sum() * window / 3600)


@dataclass(frozen=True, eq=False)
class Result:
    """Scalers over the last quarter of a trace, ours first, and what ours says of the next window.

    Attributes:
        scalers: ours, the reactive one, the point forecast with a margin.
        coverage: share of the test's windows whose load lay in the 90 % interval.
        capacity, interval: devices for the window ``lead`` after the trace, and the 90 % interval of what it needs.
    """

    scalers: tuple[Held, ...]
    coverage: float
    capacity: int
    interval: tuple[float, float]


def parts(load: "Load") -> tuple[int, int]:
    """Windows that the forecaster learns, and the first of the test: half and three quarters of the trace."""
    return len(load.values) // 2, len(load.values) * 3 // 4


def compare(load: "Load", rate: float, sla: float, lead: int, draws: Array) -> Result:
    """Tune scalers on the third quarter of a trace and run them over the last.

    Args:
        rate: requests/s of one device. sla: largest share of windows in breach.
        lead: windows from the last one seen to the one decided for.
        draws: of requests/s, from half the trace on to ``lead`` windows after its end. ``[windows, draws]``.
    """
    learn, test = parts(load)
    need = load.requests / rate
    demand, tune, mean = need[learn:], test - learn, float(need[:test].mean())
    scaled = corrected(np.maximum(draws / rate, 1e-9), np.maximum(demand, 1e-9), lead, seed=0)
    policies = decide(scaled, mean * PENALTIES, int(np.ceil(3 * need[:test].max())))
    ours = follow(policies, demand, sla, lead, tune)
    ahead = demand.size - tune
    held = [Held("forecast distribution", ours[:ahead].astype(float), demand[tune:])]
    rivals = {
        "reactive": reactive(need, lead, HOLDS, HEADROOMS)[:, -demand.size :],
        "point forecast + margin": with_margin(np.median(draws[: demand.size], 1) / rate, mean),
    }
    for name, capacities in rivals.items():
        best = tuned(capacities[:, :tune], demand[:tune], sla)
        held.append(Held(name, capacities[best, tune:], demand[tune:]))
    low, high = np.quantile(scaled[tune:], INTERVAL, 1)
    inside = (low[:ahead] <= demand[tune:]) & (demand[tune:] <= high[:ahead])
    return Result(tuple(held), float(inside.mean()), int(ours[-1]), (float(low[-1]), float(high[-1])))


def _explain(
    trace: str | None, burst: str, days: float, mean: float, window: float, start_time: float, rate: float | None,
    model: str | None, gpu: str | None, devices: int, isl: float, osl: float, price: float | None, sla: float,
    seed: int,
) -> Explanation:  # fmt: skip
    from nearpeak.fleet import load_traces

    require_positive(window=window, sla=sla)
    if not sla < 1 or not (np.isfinite(start_time) and start_time >= 0):
        raise UsageError(f"sla must be below 1 and start time at least 0, not {sla:g} and {start_time:g}")
    if trace is None:
        load = load_traces.synthetic(burst, days, mean, window, seed)
    else:
        load = load_traces.read(Path(trace), window)
    rate, price = _device(rate, model, gpu, devices, isl, osl, price)
    from nearpeak.fleet.load_forecast import Shape, fit, forecast

    lead = 1 + int(np.ceil(start_time / load.window))
    learn, _ = parts(load)
    model_of_load = fit(load, learn, seed, Shape(lead=lead))
    at = np.arange(learn, len(load.values) + lead)
    found = compare(load, rate, sla, lead, forecast(model_of_load, load, at, DRAWS, seed, first=1)[..., 0])
    ours, *others = found.scalers
    hours = np.array([held.hours(load.window) for held in found.scalers])
    saved = {held.name: 1 - hours[0] / own for held, own in zip(others, hours[1:], strict=True)}
    return Explanation(
        {
            "recommended_devices": found.capacity,
            "needed_low_devices": found.interval[0],
            "needed_high_devices": found.interval[1],
            "interval_coverage_share": found.coverage,
            "breach_share": ours.breach_share,
            "requests_per_second_of_a_device": rate,
        },
        (
            Table.of(
                "The last quarter of the trace, by scaler",
                scaler=[held.name for held in found.scalers],
                gpu_hours=hours,
                dollars=hours * np.nan if price is None else hours * price,
                breach_share=[held.breach_share for held in found.scalers],
                unserved_share=[held.unserved_share for held in found.scalers],
                hours_per_needed_hour=[held.capacity.sum() / held.demand.sum() for held in found.scalers],
            ),
        ),
        (
            f"Hold {found.capacity} devices in the window that begins {(lead - 1) * load.window:g} s after the trace: "
            f"it needs {found.interval[0]:.3g} to {found.interval[1]:.3g} with 90 % probability.",
            "Against " + " and ".join(f"{name}: {share:+.1%} of the GPU hours saved" for name, share in saved.items())
            + f"; {ours.breach_share:.2%} of the windows in breach, {sla:.2%} promised.",
        ),
    )  # fmt: skip


def _device(
    rate: float | None, model: str | None, gpu: str | None, devices: int, isl: float, osl: float, price: float | None
) -> tuple[float, float | None]:
    """Requests/s of one device, at its batch knee where a model is given, and its dollars an hour."""
    from nearpeak.bounds.knee import advise, pace
    from nearpeak.case import setup
    from nearpeak.hardware import node_of

    if price is None and gpu is not None:
        price = node_of(gpu).device.price_per_hour
    if rate is not None:
        require_positive(rate=rate)
    elif model is None or gpu is None:
        raise UsageError(
            "give --rate, the requests/s that one device serves, or --model and --gpu to have it predicted"
        )
    else:
        own = setup(model, gpu, devices, isl, osl)
        rate = float(1 / pace(own, advise(own).cap).alone) / devices
    if price is not None:
        require_positive(price=price)
    return rate, price


TOPIC = Topic(
    "capacity",
    "How many devices should run in the next window, so that few idle and the promise holds?",
    "Luo et al., Adaptive Two-Stage Cloud Resource Scaling via Hierarchical Multi-Indicator Forecasting and Bayesian "
    "Decision-Making, 2024 (arXiv 2408.01000)",
    (
        Option("trace", str, "Arrivals (CSV or JSONL), or a CSV of load by window; a synthetic month if none.", None),
        Option("burst", str, "Bursts of the synthetic trace: flash, regime, scheduled or mixed.", "mixed"),
        Option("days", float, "Days of the synthetic trace.", 30.0),
        Option("mean", float, "Requests/s of the synthetic trace, bursts not counted.", 400.0),
        Option("window", float, "Seconds between two decisions.", 600.0),
        Option("start_time", float, "Seconds until a device that is asked for serves.", 0.0),
        Option("rate", float, "Requests/s that one device serves within its latency goals.", None),
        Option("model", str, "Instead of a rate: a bundled model's id, a folder, or a config.json.", None),
        Option("gpu", str, "The device (nearpeak hardware lists them); gives the price, too.", None),
        Option("devices", int, "Devices that share the model by tensor parallelism.", 1),
        Option("isl", float, "Tokens of a prompt, for a rate that is predicted.", 1000.0),
        Option("osl", float, "Tokens of an answer, likewise.", 200.0),
        Option("price", float, "Dollars of a device hour.", None),
        Option("sla", float, "Largest share of the windows whose load may exceed the capacity.", 0.01),
        Option("seed", int, "Of the synthetic trace, of training and of draws.", 0),
    ),
    _explain,
    "--rate 10 --price 2.5 --burst flash --seed 1",
)
