import os
import subprocess

import pytest

from nearpeak.errors import UsageError
from nearpeak.export import engines, write
from nearpeak.setup import Pool
from plans_by_hand import MIXTURE, explained, setup

PLANS = [
    setup(),
    setup(decode=Pool(tp=2, replicas=7)),
    setup(MIXTURE, Pool(tp=8, dp=4, moe_ep=32, batch=128), Pool(tp=4, moe_tp=4, replicas=3)),
    setup(attention="int4_wo", ffn="int4_wo"),
]


@pytest.mark.parametrize("engine", sorted(engines()))
@pytest.mark.parametrize("plan", PLANS)
def test_every_file_is_a_script_that_bash_can_read(engine, plan, tmp_path):
    files = engines()[engine](explained(plan))
    write(files, tmp_path / "launch")
    assert sorted(p.name for p in (tmp_path / "launch").iterdir()) == sorted(files)
    for name, text in files.items():
        path = tmp_path / "launch" / name
        assert path.read_text() == text
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in text
        assert os.access(path, os.X_OK)
        subprocess.run(["bash", "-n", path], check=True)


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="mine exists"):
        write({"serve.sh": ""}, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write({"serve.sh": ""}, tmp_path / "file" / "launch")


def test_a_write_that_fails_midway_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        write({"serve.sh": "", "no/such/folder.sh": ""}, tmp_path / "launch")
    assert list(tmp_path.iterdir()) == []
