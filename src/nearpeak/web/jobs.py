"""Jobs: each in a process of its own, so that the page stays quick and a job can be ended at any moment."""

import contextlib
import multiprocessing
import secrets
import signal
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import msgspec

from nearpeak.errors import UsageError

MOST_RUNNING = 2
"""Jobs at once."""
MOST_KEPT = 8
"""Jobs whose results are kept, the latest."""
PAUSE = 0.05
"""Seconds between looks at what a job has sent."""


@dataclass
class Running:
    """A job: its process, the events so far as JSON, files by name, and whether it is over."""

    process: SpawnProcess
    connection: Connection
    events: list[bytes] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    over: bool = False

    async def stream(self, start: int) -> AsyncIterator[bytes]:
        """Events from ``start`` on as a server sends them (text/event-stream), until the job is over."""
        import asyncio

        at = start
        while True:
            over = self.over  # before the events: none comes after
            while at < len(self.events):
                yield b"id: %d\ndata: %b\n\n" % (at, self.events[at])
                at += 1
            if over:
                return
            await asyncio.sleep(PAUSE)


class Jobs:
    """The jobs of a server."""

    def __init__(self) -> None:
        self.known: dict[str, Running] = {}
        self.lock = threading.Lock()
        self.spare: Running | None = None

    def prepare(self) -> None:
        """Have a process ready for the next job: what it imports takes a second or two."""
        if self.spare is None:
            self.spare = _spawned()

    def start(self, raw: Any) -> str:  # noqa: ANN401 (plain JSON values)
        """Begin a job; returns its name.

        Raises:
            UsageError: too many are running.
        """
        with self.lock:
            if sum(not job.over for job in self.known.values()) >= MOST_RUNNING:
                raise UsageError(f"{MOST_RUNNING} jobs are running; wait for one of them, or end it")
            job, self.spare = self.spare or _spawned(), None
            job.connection.send(raw)
            name = secrets.token_urlsafe(12)
            self.known[name] = job
            for old in [n for n, one in self.known.items() if one.over][: max(0, len(self.known) - MOST_KEPT)]:
                del self.known[old]
            self.prepare()
        threading.Thread(target=_listen, args=(job,), daemon=True).start()
        return name

    def cancel(self, name: str) -> None:
        """End a job; one that is over stays as it is."""
        self.known[name].process.terminate()

    def close(self) -> None:
        """End all jobs."""
        for job in [*self.known.values(), *filter(None, [self.spare])]:
            job.process.terminate()
            job.process.join(5)


def _spawned() -> Running:
    """A process that waits for a job."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return Running(process, ours)


def _listen(job: Running) -> None:
    """Take over what the process sends until it ends, in whatever way."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            kind, name, content = job.connection.recv()
            if kind == "file":
                job.files[name] = content
            else:
                job.events.append(content)
    job.process.join()
    code = job.process.exitcode
    if code != 0:
        text = "ended" if code is not None and code < 0 else "the work broke off; the terminal of nearpeak web says why"
        job.events.append(_event("error", {"errors": {"": text}, "ended": code is not None and code < 0}))
    job.events.append(_event("end", {}))
    job.over = True


def _event(kind: str, value: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"kind": kind, **value})


def _child(connection: Connection) -> None:
    """Runs in the process of a job. The server ends it; a person's Ctrl-C is for the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from nearpeak.web.work import Out, plain, work

    try:
        raw = connection.recv()
    except EOFError:  # the server has gone
        return

    def send(kind: str, value: dict[str, Any]) -> None:
        connection.send(("event", "", _event(kind, plain(value))))

    def keep(name: str, content: bytes) -> None:
        connection.send(("file", name, content))

    work(raw, Out(send, keep))
