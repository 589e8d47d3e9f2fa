"""A simulated run as a trace that Perfetto and chrome://tracing open: engines' steps, and each request's life."""

from typing import Any

from nearpeak.simulate.results import Result

MOST_REQUESTS = 2000
"""Requests that are drawn: a viewer stays quick with as many."""
MICROSECOND = 1e-6


def trace_events(result: Result) -> dict[str, Any]:
    """The Trace Event format's object: complete events of engines (process 1), spans of requests (process 2).

    Times are microseconds. A run of decode steps alike is one event that says how many they are.
    """
    events: list[dict[str, Any]] = [_named(1, "engines"), _named(2, "requests")]
    for span in result.timeline:
        tokens, steps, users = int(span["tokens"]), int(span["steps"]), int(span["decoding"])
        name = (
            f"decode {users} x {steps}"
            if tokens == 0
            else f"prefill {tokens}" + (f" + decode {users}" if users else "")
        )
        events.append(
            {
                "name": name, "cat": "decode" if tokens == 0 else "prefill", "ph": "X", "pid": 1,
                "tid": int(span["engine"]), "ts": float(span["start"]) / MICROSECOND,
                "dur": float(span["end"] - span["start"]) / MICROSECOND,
                "args": {"decoding": users, "prompt_tokens": tokens, "steps": steps},
            }
        )  # fmt: skip
    if result.requests is not None:
        until = float(result.timeline["end"].max()) if len(result.timeline) else float("inf")
        columns = [result.requests[name].tolist() for name in ("id", "arrival", "first", "finish", "isl", "osl")]
        for number, arrival, first, finish, isl, osl in list(zip(*columns, strict=True))[:MOST_REQUESTS]:
            if arrival > until:
                break
            for name, start, end in (("to first token", arrival, first), ("answer", first, finish)):
                common = {"name": name, "cat": "request", "id": number, "pid": 2, "tid": 0}
                events.append(common | {"ph": "b", "ts": start / MICROSECOND, "args": {"isl": isl, "osl": osl}})
                events.append(common | {"ph": "e", "ts": end / MICROSECOND})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _named(process: int, name: str) -> dict[str, Any]:
    return {"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}}
