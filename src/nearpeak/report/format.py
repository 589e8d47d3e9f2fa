"""How figures are written: SI prefixes, three significant digits. The only place that turns figures into text."""

import math
from collections.abc import Callable

DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
UNKNOWN = DASH
"""What stands where a figure is not known."""

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def digits(value: float) -> str:
    """Three significant digits, without an exponent below 1e15: 0.0123, 1.2, 45.6, 12345, 3.31e+300."""
    if value == 0:
        return "0"
    if not abs(value) < 1e15:
        return f"{value:.3g}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def si(value: float | None, unit: str = "") -> str:
    """A figure of 1 or more with its SI prefix: 4.8 TB/s, 989 TFLOP/s, 32.8 G."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    scale, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= 0.9995 * s), (1.0, ""))
    return f"{digits(value / scale)} {prefix}{unit}".rstrip()


def seconds(value: float | None) -> str:
    """A duration: 12.3 ms, 1.5 s."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    scale, prefix = next(((s, p) for s, p in _SMALL if abs(value) >= 0.9995 * s), _SMALL[-1])
    return "0 s" if value == 0 else f"{digits(value / scale)} {prefix}s"


def interval(low: float, high: float, write: Callable[[float], str]) -> str:
    """Two figures with their unit once where it is the same: 9.8 to 29.4 ms, with a dash."""
    first, second = write(low), write(high)
    number, _, unit = first.partition(" ")
    return f"{number}{DASH}{second}" if second.endswith(f" {unit}") and unit else f"{first} {DASH} {second}"


def rate(value: float | None, unit: str) -> str:
    """Things a second, without a prefix: 6,030 tokens/s, 10.8 requests/s."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = digits(value)
    if abs(value) >= 1000:
        step = 10 ** (math.floor(math.log10(abs(value))) - 2)
        text = f"{round(value / step) * step:,}"
    return f"{text} {unit}"


def size(value: float | None) -> str:
    """Bytes: 17.2 GB."""
    return si(value, "B")


def dollars(value: float | None) -> str:
    """Money: $0.37; whole dollars from a thousand on."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if abs(value) >= 1000:
        return f"${value:,.0f}"
    return f"${value:.2f}" if abs(value) >= 0.1 or value == 0 else f"${digits(value)}"


def share(value: float) -> str:
    """A share of the whole: 48 %."""
    return f"{100 * value:.0f} %"


def times(value: float) -> str:
    """A ratio: x0.61."""
    return f"x{digits(value)}"


def number(value: float | None) -> str:
    """A plain number: in full up to a million, then as the field writes counts: 311M, 30.5B."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    for scale, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= 0.9995 * scale:
            return digits(value / scale) + name
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1000 else digits(value)


BY_FIGURE: dict[str, Callable[[float | None], str]] = {
    "ttft": seconds,
    "tpot": seconds,
    "latency": seconds,
    "request_rate": lambda v: rate(v, "requests/s"),
    "goodput": lambda v: rate(v, "requests/s"),
    "tokens_per_second": lambda v: rate(v, "tokens/s"),
    "tokens_per_second_per_device": lambda v: rate(v, "tokens/s"),
    "power": lambda v: si(v, "W"),
    "joules_per_token": lambda v: f"{number(v)} J",
    "dollars_per_million_tokens": dollars,
    "kg_co2e_per_million_tokens": lambda v: f"{number(v)} kg",
    "seconds": seconds,
    "memory": size,
    "capacity": size,
    "host_memory": size,
    "bandwidth": lambda v: si(v, "B/s"),
    "bisection_bandwidth": lambda v: si(v, "B/s"),
    "devices_power": lambda v: si(v, "W"),
    "nodes_power": lambda v: si(v, "W"),
    "switches_power": lambda v: si(v, "W"),
    "price_per_hour": dollars,
    "tdp": lambda v: si(v, "W"),
    "idle_power": lambda v: si(v, "W"),
    "overhead_power": lambda v: si(v, "W"),
    "clock": lambda v: si(v, "Hz"),
    "base_clock": lambda v: si(v, "Hz"),
    "time": seconds,
    "bytes": size,
    "energy": lambda v: si(v, "J"),
    "share": lambda v: UNKNOWN if v is None else share(v),
    "ratio": lambda v: UNKNOWN if v is None else times(v),
    "intensity": lambda v: si(v, "FLOP/B"),
    "flop": lambda v: si(v, "FLOP"),
}
"""How a figure of this name is written."""

TITLES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "latency": "end-to-end latency",
    "request_rate": "requests",
    "tokens_per_second": "output, all devices",
    "tokens_per_second_per_device": "output per device",
    "power": "power",
    "joules_per_token": "energy per token",
    "dollars_per_million_tokens": "price per million tokens",
    "kg_co2e_per_million_tokens": "CO2e per million tokens",
}
"""Names of figures in words."""


def _writer(name: str) -> Callable[[float | None], str] | None:
    """How a figure is written by the longest end of its name that is known: ``kv_memory`` as ``memory``."""
    words = name.split("_")
    ends = ("_".join(words[first:]) for first in range(len(words)))
    return next((BY_FIGURE[end] for end in ends if end in BY_FIGURE), None)


def value(name: str, given: object) -> str:
    """Any value of a table, written by what its column or key is called."""
    if given is None:
        return UNKNOWN
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, int | float):
        if (by := _writer(name)) is not None:
            return by(given)
        if name.endswith("_flops"):
            return si(given, "FLOP/s")
        return str(given) if name in ("year", "row", "rank") else number(given)
    return str(given) if given or given == "" else UNKNOWN


def title(name: str) -> str:
    """A column's or key's name in words."""
    return TITLES.get(name, name.removesuffix("_flops").replace("_", " "))
