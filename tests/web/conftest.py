"""A server of the page in this process, and a browser that looks at it."""

import socket
import threading
import time

import pytest


@pytest.fixture(scope="session")
def served():
    """Address of a server of the page."""
    pytest.importorskip("fastapi", reason="the page needs nearpeak[web]")
    uvicorn = pytest.importorskip("uvicorn", reason="the page needs nearpeak[web]")

    from nearpeak.web import app

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app(), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
