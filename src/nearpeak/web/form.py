"""What a person fills in on the page, checked: each mistake is told with the field that it is in."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.export import engines
from nearpeak.hardware import Price, node_of
from nearpeak.plan import Fleet, Goal, check_lengths
from nearpeak.plan.serving import Limit, Objective
from nearpeak.simulate.loop import Feed
from nearpeak.simulate.serving import feed
from nearpeak.workload import Architecture, Constant, Gamma, LogNormal, Trace, Traffic, from_config, read, resolve
from nearpeak.workload.traffic import parse_trace

MOST_DEVICES = 1024
"""Devices of a kind that a plan on the page may choose from."""
MOST_TOKENS = 10_000_000
"""Of a prompt or an answer in the mean: more than any model's context."""
MOST_SPREAD = 10
FEWEST = 20
"""Requests of a trace."""
MOST_REQUESTS = 200_000
"""Requests of a simulated run: each candidate of a plan meets several runs of as many."""


class FormError(UsageError):
    """Mistakes in the form, by field; the field is empty where a mistake belongs to none."""

    def __init__(self, errors: dict[str, str]) -> None:
        self.errors = errors
        super().__init__("; ".join(f"{field}: {text}" if field else text for field, text in errors.items()))


class Devices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of device: how many, and dollars per device and hour where they are not the catalogue's."""

    name: str
    least: int
    most: int
    price: float | None = None


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A limit: see ``plan.serving.Limit``."""

    figure: str
    of: float | None
    seconds: float


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form as the page sends it. The model is a bundled one's name, or a pasted config; never a path."""

    devices: list[Devices]
    goals: list[Wish]
    model: str = ""
    config: str = ""
    engine: str = "vllm"
    objective: Objective = "cost"
    accuracy: float = 0.0
    rate: float = 1.0
    burstiness: float = 1.0
    isl: float = 1.0
    osl: float = 1.0
    spread: float = 0.0
    trace: str = ""
    time_unit: float = 1.0
    speed_up: float = 1.0
    requests: int = 4000
    simulate: bool = True


DEFAULT = Form(
    model="Qwen/Qwen3-32B",
    devices=[Devices("h200_sxm", 1, 8), Devices("h100_sxm", 1, 8), Devices("l40s", 1, 8)],
    goals=[Wish("ttft", 99, 1.5), Wish("tpot", 99, 0.04)],
    accuracy=0.98,
    rate=5.0,
    isl=2000.0,
    osl=300.0,
    spread=0.7,
)
"""What the page starts with."""


@dataclass(frozen=True)
class Asked:
    """The form, understood.

    Attributes:
        source: what requests are drawn from. requests: of a run.
        isl, osl: tokens in the mean. rate: requests/s.
    """

    model: Architecture
    fleets: tuple[Fleet, ...]
    engine: str
    source: Traffic | Trace
    requests: int
    isl: float
    osl: float
    rate: float
    limits: tuple[Limit, ...]
    objective: Objective
    accuracy: float
    simulate: bool

    def replication(self, seed: int) -> Feed:
        """The requests of a seed: drawn, or a part of the trace."""
        drawn = self.source.sample(self.requests, seed)
        return feed(drawn.arrival, drawn.isl, drawn.osl)

    @property
    def goal(self) -> Goal:
        """What closed forms can say of the goals: the mean is within a limit on a percentile above the middle."""
        means = {
            figure: min(limit.seconds for limit in self.limits if limit.figure == figure and (limit.of or 50) >= 50)
            for figure in {limit.figure for limit in self.limits if (limit.of or 50) >= 50}
        }
        return Goal(self.objective, rate=self.rate, accuracy=self.accuracy, **means)


class _Fields:
    """Mistakes so far."""

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}

    @contextmanager
    def field(self, name: str) -> Iterator[None]:
        """Whatever is wrong in this block is wrong with the field."""
        try:
            yield
        except NearpeakError as error:
            self.errors.setdefault(name, str(error))

    def check(self) -> None:
        """Raise FormError if there is a mistake."""
        if self.errors:
            raise FormError(self.errors)


def decode(raw: Any, kind: type[Any] = Form) -> Any:  # noqa: ANN401 (plain JSON values; a struct of this kind)
    """JSON values as a struct.

    Raises:
        FormError: a field is missing, unknown, or of another type.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        place = re.sub(r"\[(\d+)\]", r".\1", path.strip("`").removeprefix("$")).lstrip(".")
        raise FormError({place: text.replace("`", "")}) from None


def understood(form: Form) -> Asked:
    """The form with its names looked up and its numbers checked.

    Raises:
        FormError: by field, all mistakes that can be told at once.
    """
    fields = _Fields()
    model, source = None, None
    with fields.field("config" if form.config else "model"):
        model = _model(form)
    with fields.field("engine"):
        if form.engine not in engines():
            raise UsageError(f"no launch files for {form.engine!r}; choose one of {', '.join(sorted(engines()))}")
    fleets = [fleet for at, row in enumerate(form.devices) if (fleet := _fleet(fields, at, row)) is not None]
    with fields.field("devices"):
        named = [fleet.node.device.name for fleet in fleets]
        if not form.devices:
            raise UsageError("no devices given; add at least one kind")
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise UsageError(f"{', '.join(twice)} is named twice; give each device one range")
    with fields.field("accuracy"):
        Goal(accuracy=form.accuracy)
    limits = [limit for wish in form.goals if (limit := _limit(fields, wish)) is not None]
    with fields.field("goals"):
        if not form.goals:
            raise UsageError("no goals; give at least one limit, such as a p99 of the time to the first token")
    with fields.field("requests"):
        if not 10 <= form.requests <= MOST_REQUESTS:
            raise UsageError(f"runs of {form.requests} requests; give 10 to {MOST_REQUESTS:,}")
    source = _source(fields, form)
    fields.check()
    assert model is not None  # else there is an error
    assert source is not None
    with fields.field("trace" if form.trace else "isl"):
        check_lengths(model, source.mean_isl, source.mean_osl)
    fields.check()
    rate, requests = form.rate, form.requests
    if isinstance(source, Trace):
        # Replications are to differ: each is at most half of the trace, from where its seed says.
        rate, requests = source.rate, max(1, min(requests, len(source.arrival) // 2))
    return Asked(
        model, tuple(fleets), form.engine, source, requests, source.mean_isl, source.mean_osl, rate, tuple(limits),
        form.objective, form.accuracy, form.simulate,
    )  # fmt: skip


def _model(form: Form) -> Architecture:
    if not form.config:
        if not form.model:
            raise UsageError("no model given; choose one, or paste its config.json")
        resolve(form.model)  # a name, never a path
        return read(form.model)
    if not form.model.isprintable() or len(form.model) > 200:  # it stands in scripts
        raise UsageError("the model's name is one line of at most 200 characters")
    try:
        config = json.loads(form.config)
    except json.JSONDecodeError as error:
        raise UsageError(f"this is no JSON: {error}") from None
    return from_config(config, form.model or "pasted config")


def _fleet(fields: _Fields, at: int, row: Devices) -> Fleet | None:
    node = None
    with fields.field(f"devices.{at}.name"):
        node = node_of(row.name)
    if row.price is not None:
        with fields.field(f"devices.{at}.price"):
            if not 0 < row.price < float("inf"):
                raise UsageError(f"a price of ${row.price} an hour; give dollars above 0, or leave it empty")
            if node is not None:
                price = Price(row.price, "today", "given on the page")
                node = replace(node, device=replace(node.device, prices=(price,)))
    with fields.field(f"devices.{at}.most"):
        if row.most > MOST_DEVICES:
            raise UsageError(f"{row.most} devices; give at most {MOST_DEVICES:,}")
        return None if node is None else Fleet(node, row.least, row.most)
    return None


def _limit(fields: _Fields, wish: Wish) -> Limit | None:
    of = "mean" if wish.of is None else f"{wish.of:g}"
    with fields.field(f"goals.{wish.figure}.{of}"):
        return Limit(wish.figure, wish.of, wish.seconds)
    return None


def _source(fields: _Fields, form: Form) -> Traffic | Trace | None:
    """What requests are drawn from, None where something is wrong with it."""
    if form.trace:
        return _trace(fields, form)
    for name in ("isl", "osl"):
        with fields.field(name):
            if not 1 <= (tokens := getattr(form, name)) <= MOST_TOKENS:
                raise UsageError(f"{name} {tokens:g} is no length; give 1 to {MOST_TOKENS:,} tokens")
    with fields.field("spread"):
        if not 0 <= form.spread <= MOST_SPREAD:
            raise UsageError(f"lengths that spread {form.spread} times their mean; give 0 (all alike) to {MOST_SPREAD}")
    with fields.field("rate"):
        Gamma(form.rate)
    with fields.field("burstiness"):
        Gamma(1.0, form.burstiness)
    if fields.errors.keys() & {"isl", "osl", "spread", "rate", "burstiness"}:
        return None
    isl, osl = (Constant(round(n)) if form.spread == 0 else LogNormal(n, form.spread) for n in (form.isl, form.osl))
    return Traffic(isl, osl, Gamma(form.rate, form.burstiness))


def _trace(fields: _Fields, form: Form) -> Trace | None:
    with fields.field("speed_up"):
        if not 0 < form.speed_up < float("inf"):
            raise UsageError(f"a trace played {form.speed_up} times as fast; give a number above 0")
    if "speed_up" in fields.errors:
        return None
    with fields.field("trace"):
        trace = parse_trace(form.trace.splitlines(), "given", form.time_unit / form.speed_up)
        if len(trace.arrival) < FEWEST:
            raise UsageError(f"{len(trace.arrival)} requests are too few to plan for; give at least {FEWEST}")
        if not trace.rate < float("inf"):
            raise UsageError(f"{len(trace.arrival)} requests in no time have no rate; give arrival times that differ")
        return trace
    return None
