"""Runs launch scripts for real, with stand-ins for the engines that note how they were called."""

import json
import os
import subprocess
import sys
from pathlib import Path

NOTED = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "VLLM_NIXL_SIDE_CHANNEL_PORT", "VLLM_NIXL_SIDE_CHANNEL_HOST")

STAND_IN = """#!{python}
import json, os, sys, time, uuid
from pathlib import Path
calls = Path(os.environ["CALLS"])
env = {{n: os.environ[n] for n in {noted!r} if n in os.environ}}
note = dict(argv=[Path(sys.argv[0]).name, *sys.argv[1:]], env=env)
fresh = calls / (uuid.uuid4().hex + ".part")
fresh.write_text(json.dumps(note))
fresh.rename(fresh.with_suffix(".json"))
end = time.monotonic() + 20
while len(list(calls.glob("*.json"))) < int(os.environ["EXPECTED"]) and time.monotonic() < end:
    time.sleep(0.01)
"""


def run(text: str, folder: Path, expected: int = 1, arguments: tuple[str, ...] = (), **env: str) -> list[dict]:
    """The calls that a script makes: program and arguments, and the environment that matters, by port."""
    programs, calls = folder / "programs", folder / "calls"
    for made in (programs, calls):
        made.mkdir(parents=True)
    for name in ("vllm", "vllm-router", "python"):
        (programs / name).write_text(STAND_IN.format(python=sys.executable, noted=NOTED))
        (programs / name).chmod(0o755)
    script = folder / "script.sh"
    script.write_text(text)
    plain = {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), "EXPECTED": str(expected), **env}
    done = subprocess.run(["bash", script, *arguments], env=plain, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = [json.loads(call.read_text()) for call in calls.glob("*.json")]
    assert len(found) == expected
    return sorted(found, key=lambda call: int(call["argv"][call["argv"].index("--port") + 1]))


def flags(argv: list[str], known: dict[str, type | None]) -> dict[str, object]:
    """Arguments by flag, each read as its type (None: the flag stands alone). An unknown flag is an error."""
    found, rest = {}, list(argv)
    while rest:
        name = rest.pop(0)
        assert name in known, f"{name} is no flag of this program"
        kind = known[name]
        found[name] = True if kind is None else kind(rest.pop(0))
    return found
