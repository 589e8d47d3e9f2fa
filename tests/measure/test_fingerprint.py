import getpass
import os
import platform
import socket
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest

from nearpeak.measure import Gpu, fingerprint
from nearpeak.measure.memory import peak_resident, reset_peak, resident

module = sys.modules["nearpeak.measure.fingerprint"]


def test_the_hash_is_the_same_in_another_process():
    code = "from nearpeak.measure import fingerprint; print(fingerprint(3).hash)"
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert other.stdout.strip() == fingerprint(3).hash
    assert len(fingerprint(3).hash) == 16


@pytest.mark.parametrize(
    "change",
    [{"cpu": "another"}, {"cores": 1000}, {"threads": 2}, {"memory": 1}, {"torch": "0"}, {"governor": "another"},
     {"gpus": (Gpu("another", "1", 1, 1.0),)}],
)  # fmt: skip
def test_another_platform_has_another_hash(change):
    here = fingerprint()
    assert replace(here, **change).hash != here.hash


def test_nothing_tells_whose_machine_it_is():
    text = msgspec.json.encode(fingerprint()).decode()
    for private in (socket.gethostname(), getpass.getuser(), os.path.expanduser("~"), os.getcwd(), sys.prefix):
        assert len(private) < 3 or private not in text
    assert platform.python_version() in text


def test_it_survives_json():
    here = replace(fingerprint(), gpus=(Gpu("a GPU", "570.1", 2**30, 1.98e9),))
    again = msgspec.json.decode(msgspec.json.encode(here), type=type(here))
    assert again == here
    assert again.hash == here.hash


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 64), ("150000 100000", 2), ("1000 100000", 1)])
def test_a_containers_quota_limits_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(module, "_read", lambda path: quota if path.endswith("cpu.max") else None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert module.available_cores() == cores


@pytest.mark.skipif(os.name != "posix", reason="runs a shell script in place of the driver's tool")
@pytest.mark.parametrize(
    ("printed", "gpus"),
    [
        ("NVIDIA H200, 570.86.15, 143771, 1980", (Gpu("NVIDIA H200", "570.86.15", 143771 * 2**20, 1.98e9),)),
        ("NVIDIA-SMI has failed because it could not communicate with the driver", ()),
        ("NVIDIA GB10, 580.95, [N/A], 3003", ()),
    ],
)
def test_gpus_are_those_the_driver_shows(monkeypatch, tmp_path, printed, gpus):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{printed}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    module._nvidia_gpus.cache_clear()
    assert fingerprint().gpus == gpus
    module._nvidia_gpus.cache_clear()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process reset its peak")
def test_the_peak_of_memory_counts_from_its_reset():
    size = 2**26
    held = bytearray(os.urandom(1)) * size
    with_it = resident()
    del held
    reset_peak()
    before = peak_resident()
    assert before < with_it - size // 2
    again = bytearray(os.urandom(1)) * size
    assert peak_resident() - before > size // 2
    del again
