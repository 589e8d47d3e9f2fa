"""Training jobs: what can be cut how, and what is refused with which way out."""

from dataclasses import replace

import numpy as np
import pytest

from nearpeak.errors import UnknownName, UsageError
from nearpeak.workload import TrainingJob, read
from nearpeak.workload.training import check, ends_count, faults, recompute_code, zero_stage

LLAMA = read("meta-llama/Meta-Llama-3.1-70B")  # 80 layers, 64 heads, 8 key-value heads
JOB = TrainingJob(LLAMA, sequence=4096, global_batch=64, micro_batch=2, tp=4, dp=4, pp=4)


def test_devices_micro_batches_and_tokens_follow_from_the_layout():
    assert JOB.devices == 64
    assert JOB.micro_batches == 8
    assert JOB.tokens == 64 * 4096
    check(JOB)


def test_fields_broadcast_and_one_job_can_be_picked():
    many = replace(JOB, tp=np.array([1, 2, 4])[:, None], dp=np.array([2, 4]))
    assert many.shape == (3, 2)
    one = many.at((2, 1))
    assert (one.tp, one.dp, int(one.devices)) == (4, 4, 64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"global_batch": 60}, ("global batch 60", "dp 4 x micro batch 2", "56 and 64")),
        ({"tp": 16}, ("8 key-value heads", "tp 16", "1, 2, 4, 8")),
        ({"pp": 7}, ("80 layers", "pp 7", "1, 2, 4, 5, 8")),
        ({"virtual_stages": 3}, ("80 layers", "3 virtual stages")),
        ({"virtual_stages": 2, "pp": 1}, ("virtual stages 2", "pp of 2 or more")),
        ({"virtual_stages": 2, "global_batch": 8}, ("multiples of pp 4", "not 1", "multiple of 32")),
        ({"cp": 3}, ("sequence 4096", "cp 3")),
        ({"zero": 4}, ("zero 4", "0, 1, 2 or 3")),
        ({"recompute": 3}, ("recompute 3", "full")),
        ({"tp": 0}, ("tp is 0", "1 or more")),
        ({"micro_batch": 1.5}, ("micro_batch is 1.5", "whole number")),
        ({"dp": float("nan")}, ("dp is nan", "whole number")),
        ({"sequence": 10**23}, ("sequence is 1" + 23 * "0", "at most 1,000,000,000")),
        ({"ep": 2}, ("ep 2", "no experts")),
        ({"gradient_bytes": 0}, ("gradient_bytes is 0", "above 0")),
    ],
)
def test_a_job_that_cannot_be_cut_is_refused_with_its_value_and_a_way_out(change, said):
    with pytest.raises(UsageError) as error:
        check(replace(JOB, **change))
    assert all(words in str(error.value) for words in said), str(error.value)


def test_one_wrong_job_among_many_is_named():
    with pytest.raises(UsageError, match="tp 3"):
        check(replace(JOB, tp=np.array([1, 2, 3, 4])))
    wrong = np.any([np.broadcast_to(w, (4,)) for w, _ in faults(replace(JOB, tp=np.array([1, 2, 3, 4])))], axis=0)
    assert wrong.tolist() == [False, False, True, False]


def test_experts_are_dealt_out_evenly_over_replicas():
    moe = read("Qwen/Qwen3-30B-A3B")  # 128 experts
    check(TrainingJob(moe, 4096, 64, dp=64, ep=8))
    with pytest.raises(UsageError, match="ep 8 does not divide the dp x cp = 4"):
        check(TrainingJob(moe, 4096, 64, dp=4, ep=8))
    with pytest.raises(UsageError, match="128 experts do not divide by ep 3"):
        check(TrainingJob(moe, 4096, 63, dp=3, ep=3))


def test_embedding_and_head_stand_in_for_a_layer_each_where_that_makes_stages_equal():
    llama = read("meta-llama/Meta-Llama-3.1-405B")  # 126 layers, trained on 16 stages (Llama 3, section 3.3.2)
    job = TrainingJob(llama, 8192, 2048, tp=8, dp=64, pp=16)
    check(job)
    assert ends_count(job)
    assert not ends_count(replace(job, pp=9))


def test_policies_go_by_the_names_of_zero_and_fsdp():
    assert [zero_stage(n) for n in ("0", "zero1", "shard_grad_op", "FSDP")] == [0, 1, 2, 3]
    assert recompute_code("selective") == 1
    with pytest.raises(UnknownName, match="zero4"):
        zero_stage("zero4")
    with pytest.raises(UnknownName, match="did you mean full"):
        recompute_code("ful")
