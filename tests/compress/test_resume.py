import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from nearpeak.compress import apply, estimate
from nearpeak.errors import UsageError

KILLED = 9
DIES_IN_THE_THIRD_SHARD = """
import os, signal, sys
from nearpeak.compress import apply

def progress(step):
    if step.tensor == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

apply(sys.argv[1], sys.argv[2], progress=progress)
"""


def _third_shard(source: Path) -> list[str]:
    weight_map = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    return [name for name, shard in weight_map.items() if shard == "model-00003-of-00005.safetensors"]


def _kill_in_the_third_shard(source: Path, out: Path) -> None:
    command = [sys.executable, "-c", DIES_IN_THE_THIRD_SHARD, str(source), str(out), _third_shard(source)[1]]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}).returncode == -KILLED


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def killed(sharded_llama, tmp_path):
    """Where a job should have written its result and did not come to it."""
    _kill_in_the_third_shard(sharded_llama, tmp_path / "out")
    return tmp_path / "out"


def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(sharded_llama, killed, tmp_path):
    assert not killed.exists()
    finished = sorted(path.name for path in (tmp_path / "out.partial" / "checkpoint").glob("*.safetensors"))
    assert finished == [f"model-0000{k}-of-00005.safetensors" for k in (1, 2)]
    whole, rest = estimate(sharded_llama, tmp_path / "other"), estimate(sharded_llama, killed)
    assert whole.written == rest.written == whole.remaining
    done = sum((tmp_path / "out.partial" / "checkpoint" / name).stat().st_size for name in finished)
    assert rest.remaining == whole.remaining - done
    touched = []
    report = apply(sharded_llama, killed, progress=lambda step: touched.append(step.tensor))
    assert report.resumed == 2
    assert set(_third_shard(sharded_llama)) < set(touched)
    uninterrupted = apply(sharded_llama, tmp_path / "other")
    assert _content(killed) == _content(tmp_path / "other")
    assert not set(touched) & {t for n in finished for t in _names(sharded_llama, n)}
    assert report.layers == uninterrupted.layers
    assert {path.name for path in tmp_path.iterdir()} == {"out", "other"}


def _names(source: Path, shard: str) -> list[str]:
    weight_map = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    return [name for name, place in weight_map.items() if place == shard]


def test_a_job_with_other_parameters_does_not_go_on(sharded_llama, killed):
    for arguments, named in [({"bits": 8}, "bits 4 then, 8 now"), ({"group": 32}, "group 128 then, 32 now")]:
        with pytest.raises(UsageError, match=f"{named}.*delete .*out.partial.*another out_dir"):
            apply(sharded_llama, killed, **arguments)
    with pytest.raises(UsageError, match="another linears"):
        apply(sharded_llama, killed, ignore=["re:.*o_proj"])
    assert len(list((killed.with_name("out.partial") / "checkpoint").glob("*.safetensors"))) == 2


def test_a_source_that_changed_does_not_go_on(sharded_llama, killed, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(sharded_llama, copy)  # times of change stay
    shard = copy / "model-00002-of-00005.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UsageError, match="another source"):
        apply(copy, killed)


def test_a_finished_shard_that_was_changed_is_refused(sharded_llama, killed):
    shard = killed.with_name("out.partial") / "checkpoint" / "model-00001-of-00005.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"model-00001-of-00005\.safetensors is not what the journal says"):
        apply(sharded_llama, killed)


def test_a_folder_in_the_way_or_a_broken_journal_is_refused(sharded_llama, tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="holds no journal"):
        apply(sharded_llama, tmp_path / "out")
    (partial / "journal.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read as a journal"):
        apply(sharded_llama, tmp_path / "out")
    assert (partial / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("last_step", ["pathlib.Path.rename", "shutil.copyfileobj"])
def test_a_job_stopped_at_its_end_is_delivered_by_the_next_call(sharded_llama, tmp_path, monkeypatch, last_step):
    def stop(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(last_step, stop)
    with pytest.raises(KeyboardInterrupt):
        apply(sharded_llama, tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert apply(sharded_llama, tmp_path / "out").resumed == 5
    apply(sharded_llama, tmp_path / "other")
    assert _content(tmp_path / "out") == _content(tmp_path / "other")


def test_an_error_in_between_leaves_what_is_done_for_the_next_call(sharded_llama, tmp_path):
    def full(step):
        if step.tensor in _third_shard(sharded_llama):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(sharded_llama, tmp_path / "out", progress=full)
    assert not (tmp_path / "out").exists()
    assert apply(sharded_llama, tmp_path / "out").resumed == 2
