import numpy as np

from nearpeak.hardware import node_of
from nearpeak.setup import Pool, Setup
from nearpeak.workload import read


def many() -> Setup:
    decode = Pool(tp=np.array([[1], [2]]), batch=np.array([1, 4, 16]), replicas=3)
    return Setup(read("Qwen/Qwen3-8B"), node_of("h100"), "vllm", 1000, 100, decode, prefill=Pool(tp=4))


def test_numeric_fields_broadcast_to_one_shape():
    assert many().shape == (2, 3)


def test_one_configuration_is_taken_out_of_many():
    one = many().at((1, 2))
    assert one.shape == ()
    assert (one.decode.tp, one.decode.batch, one.decode.replicas, one.prefill.tp) == (2, 16, 3, 4)


def test_devices_are_those_of_both_pools():
    assert many().devices.tolist() == [[7], [10]]
    assert many().decode.in_flight.tolist() == [3, 12, 48]
