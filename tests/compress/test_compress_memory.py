import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

MEASURE = """
import json, sys, torch
torch.set_num_threads(1)
from nearpeak.compress import apply
report = apply(sys.argv[1], sys.argv[2])
predicted = report.estimate
print(json.dumps([report.peak_memory, predicted.peak_memory, predicted.largest_shard, predicted.read]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process its memory")
def test_peak_memory_is_that_of_one_layer_and_not_of_the_checkpoint(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shards, hidden = 2, 2048
    projections = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    weight_map = {}
    for k in range(shards):
        name = f"model-0000{k + 1}-of-0000{shards}.safetensors"
        tensors = {
            f"model.layers.{4 * k + layer}.{p}.weight": torch.full((hidden, hidden), 0.1, dtype=torch.bfloat16)
            for layer in range(4)
            for p in projections
        }
        safetensors_torch.save_file(tensors, source / name)
        weight_map |= dict.fromkeys(tensors, name)
    (source / "config.json").write_text(json.dumps({"num_hidden_layers": 4 * shards}))
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    measured, predicted, largest_shard, read = json.loads(result.stdout)
    assert read > 450e6
    assert largest_shard > 230e6
    assert 2 * hidden**2 < measured < predicted < largest_shard
