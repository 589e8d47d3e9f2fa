"""The server of the page. It listens to this machine alone, and to pages that it has sent itself.

A page of another site that a person has open could send requests here as well. None is answered: a request must name
this server by an address or ``localhost``, not by a name that its owner can point anywhere (DNS rebinding), and one
that comes from a page must come from this one. No request names a path: files are those of the package, and those that
a job keeps in memory.
"""

import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from nearpeak import __version__
from nearpeak.errors import UsageError
from nearpeak.hardware import devices, node_of
from nearpeak.techniques import techniques
from nearpeak.web.form import DEFAULT, FormError, decode, understood
from nearpeak.web.jobs import Jobs
from nearpeak.web.work import Job, chosen, plain
from nearpeak.workload import bundled, parameters, read

MOST_BYTES = 16 << 20
"""Of a request: a trace of about half a million requests."""
HERE = Path(__file__).parent / "static"
CONTENT = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: only what this server sends. plotly.js writes styles of its own."""


class Guard:
    """Refuses requests that are not for this server, are not from its page, or are too large."""

    def __init__(self, inner: ASGIApp, host: str) -> None:
        self.inner, self.host = inner, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is allowed."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if (refused := self.refusal(scope["method"], headers)) is not None:
            status, text = refused
            await JSONResponse({"errors": {"": text}}, status)(scope, receive, send)
            return
        held = 0

        async def counted() -> Any:  # noqa: ANN401 (an ASGI message)
            nonlocal held
            message = await receive()
            held += len(message.get("body", b""))
            if held > MOST_BYTES:
                raise TooLarge
            return message

        try:
            await self.inner(scope, counted, send)
        except TooLarge:
            await JSONResponse({"errors": {"trace": TOO_LARGE}}, 413)(scope, receive, send)

    def refusal(self, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason, None where a request is allowed."""
        named = headers.get("host", "")
        if not self.known(named):
            return 400, f"this server is not called {named!r}; open it by its address"
        if headers.get("origin") not in (None, f"http://{named}"):
            return 403, "this request comes from a page of another site"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "this request comes from a page of another site"
        if method == "POST" and headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return 415, "requests are JSON (content-type application/json)"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BYTES:
            return 413, TOO_LARGE
        return None

    def known(self, named: str) -> bool:
        """Whether a Host header is an address, localhost, or the name that the server was told to listen on."""
        name = named.rpartition(":")[0] if named.rpartition(":")[2].isdigit() else named
        if name in ("localhost", self.host):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


class TooLarge(Exception):
    """More bytes came than a request may have."""


TOO_LARGE = f"more than {MOST_BYTES >> 20} MiB; give a part of the trace"


def app(host: str = "127.0.0.1") -> FastAPI:
    """The server's application; ``host``: what it listens on."""
    jobs = Jobs()

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        jobs.prepare()
        yield
        jobs.close()

    made = FastAPI(title="nearpeak", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    made.add_middleware(Guard, host=host)
    made.state.jobs = jobs
    for error in (FormError, UsageError):
        made.add_exception_handler(error, _refused)

    @made.middleware("http")
    async def secured(request: Request, call: Callable[[Request], Any]) -> Response:
        response: Response = await call(request)
        response.headers["content-security-policy"] = CONTENT
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["referrer-policy"] = "no-referrer"
        response.headers.setdefault("cache-control", "no-cache")
        return response

    @made.get("/")
    def page() -> FileResponse:
        return FileResponse(HERE / "index.html")

    @made.get("/plotly.js")
    def plotly() -> FileResponse:
        place = files("plotly") / "package_data" / "plotly.min.js"
        return FileResponse(str(place), media_type="text/javascript", headers={"cache-control": "max-age=86400"})

    @made.get("/api/catalogue")
    def known() -> Response:
        return Response(_catalogue(), media_type="application/json")

    @made.post("/api/jobs")
    async def start(request: Request) -> JSONResponse:
        from starlette.concurrency import run_in_threadpool

        try:
            raw = msgspec.json.decode(await request.body())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"the request is no JSON: {error}") from None
        await run_in_threadpool(_check, raw)
        return JSONResponse({"job": jobs.start(raw)}, 202)

    @made.get("/api/jobs/{job}/events")
    def events(job: str, request: Request) -> Response:
        if job not in jobs.known:
            return _missing("job", job)
        last = request.headers.get("last-event-id", "")
        start_at = int(last) + 1 if last.isdigit() else 0
        return StreamingResponse(jobs.known[job].stream(start_at), media_type="text/event-stream")

    @made.delete("/api/jobs/{job}")
    def cancel(job: str) -> Response:
        if job not in jobs.known:
            return _missing("job", job)
        jobs.cancel(job)
        return JSONResponse({"job": job})

    @made.get("/api/jobs/{job}/files/{name}")
    def file(job: str, name: str) -> Response:
        if job not in jobs.known or name not in jobs.known[job].files:
            return _missing("file", name)
        kind = "application/zip" if name.endswith(".zip") else "application/json"
        headers = {"content-disposition": f'attachment; filename="nearpeak-{name}"'}
        return Response(jobs.known[job].files[name], media_type=kind, headers=headers)

    made.mount("/static", StaticFiles(directory=HERE))
    return made


def _check(raw: Any) -> None:  # noqa: ANN401 (plain JSON values)
    """Raise what is wrong with a job before it begins."""
    job: Job = decode(raw, Job)
    asked = understood(job.form)
    if job.plan is not None:
        chosen(asked, job.plan)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    found = error.errors if isinstance(error, FormError) else {"": str(error)}
    return JSONResponse({"errors": found}, 422)


def _missing(kind: str, name: str) -> JSONResponse:
    return JSONResponse({"errors": {"": f"there is no {kind} {name!r}; plan again"}}, 404)


@cache
def _catalogue() -> bytes:
    """Models, devices and what the form starts with, as JSON."""
    models = []
    for name in bundled():
        architecture = read(name)
        if not architecture.encoder:
            counts = parameters(architecture)
            models.append(
                {"id": name, "parameters": counts.total, "active": counts.active, "context": architecture.context}
            )
    kinds = [
        {
            "name": one.name, "title": one.title, "memory": one.memory_capacity, "price": one.price_per_hour,
            "count": node_of(one.name).count,
        }
        for one in sorted(devices().values(), key=lambda one: one.title)
    ]  # fmt: skip
    value = {
        "version": __version__,
        "models": models,
        "devices": kinds,
        "techniques": sorted(techniques()),
        "defaults": msgspec.to_builtins(DEFAULT),
    }
    return msgspec.json.encode(plain(value))


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_page(host: str, port: int, browser: bool) -> None:
    """Serve the page until the process is interrupted.

    Raises:
        UsageError: the port is taken, or the address is none of this machine's.
    """
    import socket
    import threading
    import webbrowser

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(f"cannot listen on {host} port {port}: {error}; choose another --port or --host") from error
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
    print(f"nearpeak is at {address} (Ctrl-C ends it)", flush=True)
    if host != "localhost" and not _loopback(host):
        print("Whoever reaches this address can start work on this machine.", flush=True)
    if browser:
        threading.Timer(0.5, webbrowser.open, (address,)).start()
    config = uvicorn.Config(app(host), log_level="warning", timeout_graceful_shutdown=1)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
