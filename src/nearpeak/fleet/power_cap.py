"""How many servers more than a breaker is rated for can stand behind it (Patel et al., POLCA, arXiv 2308.12908).

Servers that decode draw less than they are rated for, and rarely all prefill at once. POLCA adds servers to a row until
it needs its safety net, and keeps the power down by clocks in two steps: above a first threshold servers of low
priority are slowed a little; above a second one they are slowed more, and if that does not do, servers of high priority
are slowed a little. The power brake, which slows everything to a crawl, must never be pulled. ``power_row`` simulates
the row; here are the policies, and the search for the servers that they allow.
"""

from dataclasses import dataclass

from nearpeak.errors import UnknownName, UsageError
from nearpeak.fleet.power_row import HIGH, LOW, Arrivals, Controller, Phases, Run, diurnal, phases, run
from nearpeak.topic import GPU, MODEL, Explanation, Option, Table, Topic, require_positive

CLOCKS = (1.0, 1275 / 1410, 1305 / 1410, 1110 / 1410, 288 / 1410)
"""Clocks over boost: none; POLCA's base clock, its cap of high priority, its deep cap of low priority, and the power
brake, of an A100 with 1410 MHz at boost (Patel et al. 2023)."""
FREE, BASE, SHALLOW, DEEP, BRAKE = range(len(CLOCKS))
FIRST, SECOND = 0.80, 0.89
"""POLCA's thresholds, as shares of the breaker's power."""
POLICIES = {
    policy.name: policy
    for policy in (
        Controller(
            "dual-threshold",
            (FIRST, SECOND, SECOND),
            ((FREE, FREE), (BASE, FREE), (DEEP, FREE), (DEEP, SHALLOW)),
        ),
        Controller("cap-everyone", (SECOND,), ((FREE, FREE), (DEEP, DEEP))),
        Controller("no-cap", (), ((FREE, FREE),)),
    )
}
UNCONTROLLED = Controller("uncontrolled", (), ((FREE, FREE),), brake=False)
"""No caps and no brake: what latencies are compared with."""
HALVINGS = 7
SLOWDOWNS = {HIGH: 1.05, LOW: 1.5}
"""Most of the 99th percentile of latency over that without caps, by priority: POLCA's service levels."""


@dataclass(frozen=True)
class Row:
    """A row that is provisioned for ``servers``, and its traffic.

    Attributes:
        of: phases of a server. servers: that the breaker is rated for. low_share: of them, of low priority.
        arrivals: of more servers than will be tried.
    """

    of: Phases
    servers: int
    low_share: float
    arrivals: Arrivals

    @property
    def breaker(self) -> float:
        """Watts of all the servers that it is rated for, at their rated power."""
        return self.servers * self.of.rated_power

    @property
    def most(self) -> int:
        """Servers that there are arrivals for."""
        return int(self.arrivals.start.size - 1)

    def run(self, servers: int, policy: Controller, breaker: float | None = None) -> Run:
        """What so many servers do behind the breaker (or another one, in watts).

        Raises:
            UsageError: there are arrivals for fewer servers.
        """
        if not 1 <= servers <= self.most:
            raise UsageError(f"{servers} servers, but arrivals for 1 to {self.most}")
        return run(self.of, self.arrivals.first(servers), breaker or self.breaker, policy, self.low_share)


@dataclass(frozen=True)
class Trial:
    """A number of servers under a policy.

    Attributes:
        servers: in the row. brakes: how often the brake was pulled. peak: most power seen over the breaker's.
        over: seconds above the breaker. capped: share of the time in which the controller asked for lower clocks.
        slowdown: 99th percentile of latency over that of the same servers without caps, low and high priority.
    """

    servers: int
    brakes: int
    peak: float
    over: float
    capped: float
    slowdown: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Whether the brake stays untouched and both priorities keep their service levels."""
        return self.brakes == 0 and all(self.slowdown[p] <= SLOWDOWNS[p] for p in (LOW, HIGH))


def attempt(row: Row, servers: int, policy: Controller, free: Run | None = None) -> Trial:
    """Run so many servers under a policy. ``free``: the same without caps or brake, where it has been run already."""
    reference = free or row.run(servers, UNCONTROLLED)
    found = row.run(servers, policy)

    def slowdown(priority: int) -> float:
        if not (found.priority == priority).any():
            return 1.0
        return found.percentile(0.99, priority) / reference.percentile(0.99, priority)

    return Trial(
        servers, found.brakes, float(found.power.max() / row.breaker), found.over, float((found.stage > 0).mean()),
        (slowdown(LOW), slowdown(HIGH)),
    )  # fmt: skip


def most_servers(row: Row, policy: Controller) -> tuple[int, list[Trial]]:
    """The most servers that hold under a policy, by halving, and all that were tried.

    Servers see the same requests whatever their number, so that more of them only draw more. 0 where not even one
    holds.
    """
    low, high = 0, row.most + 1
    tried: list[Trial] = []
    while high - low > 1:
        middle = row.servers if not tried else (low + high) // 2
        trial = attempt(row, middle, policy)
        tried.append(trial)
        low, high = (middle, high) if trial.holds else (low, middle)
    return low, sorted(tried, key=lambda t: t.servers)


@dataclass(frozen=True)
class Demand:
    """Traffic of a server through the day, see ``power_row.diurnal``.

    Attributes:
        osl: mean tokens of an answer. valley: rate at night over that at the peak. spread: of prompts and answers.
        day: seconds. low_share: of the servers whose requests are of low priority.
    """

    osl: float
    valley: float = 0.5
    spread: float = 0.5
    day: float = 86400.0
    low_share: float = 0.5
    seed: int = 0


def row_of(of: Phases, servers: int, most: int, load: float, demand: Demand) -> Row:
    """A row whose servers get, at the peak of the day, a share ``load`` of the requests that they can serve.

    Args:
        servers: that the breaker is rated for. most: to draw arrivals for.

    Raises:
        UsageError: a number is not above 0, or the row's servers are more than ``most``.
    """
    require_positive(servers=servers, load=load)
    if most < servers:
        raise UsageError(f"arrivals for {most} servers, fewer than the row's {servers}")
    d = demand
    arrivals = diurnal(most, load * of.request_rate, d.valley, d.osl, d.spread, d.day, d.seed)
    return Row(of, servers, d.low_share, arrivals)


def load_at(of: Phases, servers: int, peak: float, demand: Demand, most_load: float = 0.95) -> float:
    """The load at which the row's own servers, uncapped, draw at most a share ``peak`` of the breaker.

    Raises:
        UsageError: the row draws more even without load, or less at ``most_load``.
    """

    def drawn(load: float) -> float:
        row = row_of(of, servers, servers, load, demand)
        return float(row.run(servers, POLICIES["no-cap"]).power.max() / row.breaker)

    low, high = 1e-3, most_load
    least, greatest = drawn(low), drawn(high)
    if not least <= peak <= greatest:
        raise UsageError(
            f"a peak of {peak:.0%} of the rated power is not between the {least:.0%} that the row draws almost without "
            f"load and the {greatest:.0%} at a load of {most_load:.0%}; give a peak between them, or a load"
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if drawn(middle) <= peak else (low, middle)
    return low


def _explain(
    model: str,
    gpu: str,
    isl: float,
    osl: float,
    slots: int,
    servers: int,
    extra: float,
    load: float | None,
    peak: float | None,
    policy: str,
    low_share: float,
    valley: float,
    spread: float,
    day: float,
    seed: int,
) -> Explanation:
    from nearpeak.case import setup
    from nearpeak.hardware import node_of

    if policy not in POLICIES:
        raise UnknownName("policy", policy, POLICIES)
    if not extra >= 0 or (load is None) == (peak is None):
        raise UsageError(f"extra must be 0 or more, not {extra:g}, and either load or peak is to be given")
    of = phases(setup(model, gpu, node_of(gpu).count, isl, osl), slots, CLOCKS)
    demand = Demand(osl, valley, spread, day, low_share, seed)
    busy = load if load is not None else load_at(of, servers, peak or 0.0, demand)
    more = round(servers * (1 + extra))
    row = row_of(of, servers, max(more, 2 * servers), busy, demand)
    own = row.run(servers, POLICIES["no-cap"])
    free = row.run(more, UNCONTROLLED)
    trials = {name: attempt(row, more, each, free) for name, each in POLICIES.items()}
    allowed, _ = most_servers(row, POLICIES[policy])
    table = Table(
        f"{more} servers behind a breaker for {servers}",
        tuple(
            {
                "policy": name,
                "brakes": t.brakes,
                "peak_share": t.peak,
                "over_time": t.over,
                "capped_share": t.capped,
                "high_p99_ratio": t.slowdown[HIGH],
                "low_p99_ratio": t.slowdown[LOW],
            }
            for name, t in trials.items()
        ),
    )
    phase = Table.of(
        "A server by clock, over what it is rated for",
        clock_share=of.clocks,
        prompt_power_ratio=of.prompt_power[:, -1] / of.rated_power,
        token_power_ratio=of.token_power[:, -1] / of.rated_power,
        prompt_time=of.prompt[:, -1],
        token_time=of.token[:, -1],
    )
    full = "" if busy < 1 else f" A load of {busy:.3g} is more than servers can do: queues grow all through the peak."
    return Explanation(
        {
            "breaker_power": row.breaker,
            "load_share": busy,
            "peak_share": float(own.power.max() / row.breaker),
            "requests": int(row.arrivals.start[more]),
            "high_p99_latency": free.percentile(0.99, HIGH) if low_share < 1 else None,
            "servers": servers,
            "allowed_servers": allowed,
            "extra_share": max(0, allowed - servers) / servers,
        },
        (table, phase),
        (
            f"Under {policy} {allowed} servers stand behind a breaker for {servers}, {allowed / servers - 1:+.0%}: no "
            f"brake, 99th percentiles of latency at most x{SLOWDOWNS[HIGH]:g} (high priority) and "
            f"x{SLOWDOWNS[LOW]:g} (low) of those without caps.{full}",
        ),
    )


TOPIC = Topic(
    "power-cap",
    "How many servers more can stand behind a breaker, when clocks are capped by priority?",
    "Patel et al., POLCA: Power Oversubscription in LLM Cloud Providers, 2023 (arXiv 2308.12908); Characterizing Power "
    "Management Opportunities for LLMs in the Cloud, ASPLOS 2024",
    (
        MODEL,
        GPU,
        Option("isl", float, "Mean tokens of a prompt.", 1500.0),
        Option("osl", float, "Mean tokens of an answer.", 300.0),
        Option("slots", int, "Requests that a server has in flight.", 8),
        Option("servers", int, "Servers that the breaker is rated for.", 40),
        Option("extra", float, "Share of servers that are added.", 0.3),
        Option("load", float, "Requests of a server at the peak of the day, over what it can serve.", None),
        Option("peak", float, "Most power of the rated servers over the breaker's, in place of a load.", None),
        Option("policy", str, f"Whose servers are searched: {', '.join(POLICIES)}.", "dual-threshold"),
        Option("low_share", float, "Share of servers with requests of low priority.", 0.5),
        Option("valley", float, "Rate at night over that at the peak.", 0.5),
        Option("spread", float, "Standard deviation of tokens over their mean.", 0.5),
        Option("day", float, "Seconds of the day; a shorter one rises faster and runs faster.", 21600.0),
        Option("seed", int, "Of the arrivals.", 0),
    ),
    _explain,
    "--model meta-llama/Meta-Llama-3.1-70B --gpu h100 --load 0.6 --day 7200",
)
