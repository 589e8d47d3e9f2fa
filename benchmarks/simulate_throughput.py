"""Simulated requests per processor second, on a recorded trace and without end; the peers' figures beside.

Usage: python benchmarks/simulate_throughput.py [TRACE.csv]
"""

import resource
import sys
import time
from collections.abc import Iterator

from nearpeak.case import setup
from nearpeak.simulate.deploy import deploy
from nearpeak.simulate.loop import Feed
from nearpeak.simulate.policies import policy
from nearpeak.simulate.serving import Deployment, feed, serve
from nearpeak.workload.traffic import LogNormal, Traffic, poisson, read_trace

PEER = 678.0
"""Requests per processor second of the best-known Python serving simulator, the higher of two measurements."""
ENDLESS = 10_000_000
REPEATS = 5


def deployment() -> Deployment:
    """One replica of an 8B model, chunked prefill and paged cache."""
    one = setup("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", 1, 1155, 211)
    return deploy(one, rule=policy("stall-free", budget=2048), longest=32768)


def recorded(path: str | None) -> Feed:
    """The trace's requests, or some like them."""
    if path is not None:
        trace = read_trace(path)
        return feed(trace.arrival, trace.isl, trace.osl)
    drawn = Traffic(LogNormal(1155, 1.0), LogNormal(211, 0.8), poisson(5.5)).sample(19366, 0)
    return feed(drawn.arrival, drawn.isl, drawn.osl)


def endless(requests: int, part: int = 1 << 18) -> Iterator[Feed]:
    """Requests without end, drawn part by part."""
    start = 0.0
    for seed in range(requests // part + 1):
        drawn = Traffic(LogNormal(1155, 1.0), LogNormal(211, 0.8), poisson(5.5)).sample(part, seed)
        yield feed(drawn.arrival + start, drawn.isl, drawn.osl)
        start += float(drawn.arrival[-1])


def main() -> None:
    own, requests = deployment(), recorded(sys.argv[1] if len(sys.argv) > 1 else None)
    serve(own, requests)  # compiles
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        serve(own, requests, keep=False)
        seconds.append(time.process_time() - began)
    rate = len(requests.isl) / min(seconds)
    print(f"trace: {rate:,.0f} requests per processor second, {rate / PEER:,.0f} times the peer's {PEER:g}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    result = serve(own, endless(ENDLESS), keep=False)
    took, grown = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"endless: {result.completed:,} requests in {took:.0f} s, drawing them included: "
        f"{result.completed / took:,.0f} per processor second; {grown / 1024:.0f} MB more memory"
    )


if __name__ == "__main__":
    main()
