"""What no deployment can do: make more than its devices can, hold more than it is given, or send for nothing."""

from dataclasses import replace

import numpy as np
import pytest

from nearpeak.cost import costs, decode, ledger, platform_of, predict
from nearpeak.cost.engine import engine
from nearpeak.cost.memory import kv_bytes, weight_bytes
from nearpeak.cost.serving import transfer
from nearpeak.hardware import node_of
from nearpeak.plan import base_setup
from nearpeak.setup import Pool
from nearpeak.workload import bundled, parameters, read

NODE = node_of("h200")
MODEL = read("meta-llama/Meta-Llama-3.1-8B")
MIXTURE = read("Qwen/Qwen3-30B-A3B")
ISL = 1000


def base(osl=100, model=MODEL):
    return base_setup(model, NODE, "vllm", ISL, osl)


@pytest.mark.parametrize("name", bundled()[::6])
@pytest.mark.parametrize("osl", [1, 2, 10, 200])
def test_stages_are_never_busier_than_always(name, osl):
    batch = np.array([1, 3, 16, 256])
    pp = np.array([[1], [2], [4]])
    setup = base_setup(read(name), NODE, "vllm", ISL, osl)
    setup = replace(setup, decode=Pool(tp=2, moe_tp=2, pp=pp, batch=batch))
    for closed in (False, True):
        found = predict(platform_of(setup), setup, closed=closed)
        times = found.times
        busy = found.request_rate * (times.occupied + (osl - 1) * times.token / batch)
        assert (busy <= 1 + 1e-9).all()
        assert (found.latency >= times.prompt + (osl - 1) * times.token - 1e-12).all()


def test_stages_share_prompts():
    # As many prompts as stages are under way at once: four stages serve about four times what one stage of it does.
    at_once = replace(base(osl=1), decode=Pool(pp=np.array([1, 4]), batch=64))
    one, four = predict(platform_of(at_once), at_once).request_rate
    assert 3 < four / one <= 4


def test_prefill_pools_share_their_load():
    prefill = Pool(replicas=np.array([1, 2, 1]), pp=np.array([1, 1, 2]))
    found = predict(platform_of(base()), replace(base(), decode=Pool(batch=16), prefill=prefill))
    assert found.load[1] == pytest.approx(found.load[0] / 2)
    assert found.load[2] == pytest.approx(found.load[0] / 2, rel=0.05)


def test_a_batch_is_split_over_the_stages():
    pool = Pool(pp=np.array([1, 4]))
    steps = decode(platform_of(base()), base(), pool, np.array([64.0, 256.0]), np.asarray(1000.0))
    # Four times the batch in four stages: the same rows in each, and the hops between them.
    hops = steps.communication
    assert (steps.total - hops)[1] == pytest.approx((steps.total - hops)[0], rel=0.02)
    assert hops[0] == 0
    assert hops[1] > 3 * NODE.scale_up.latency


def test_what_spans_nodes_crosses_the_network():
    pool = Pool(tp=8, pp=np.array([1, 2]), batch=8)
    far = decode(platform_of(base()), base(), pool, np.asarray(8.0), np.asarray(1000.0)).communication
    near = replace(NODE, network=None)
    inside = replace(base(), node=near)
    close = decode(platform_of(inside), inside, pool, np.asarray(8.0), np.asarray(1000.0)).communication
    assert far[0] == close[0]
    assert far[1] > close[1]


def test_memory_is_what_is_held():
    count = parameters(MODEL)
    tables = 2 * MODEL.vocab * MODEL.hidden
    stages = Pool(pp=np.array([1, 2, 4]))
    weights = weight_bytes(base(), stages)
    # The embedding and the head are on different stages.
    expected = 2 * ((count.total - tables) / stages.pp + np.where(stages.pp > 1, tables / 2, tables))
    np.testing.assert_allclose(weights, expected, rtol=1e-3)
    one = kv_bytes(base(), stages, np.asarray(ISL + 100.0))
    np.testing.assert_allclose(one, 32 * 2 * 8 * 128 * 2 * (ISL + 100) / stages.pp)
    np.testing.assert_allclose(ledger(base(), replace(stages, batch=64)).kv, 64 * one)
    prompts = ledger(base(), replace(stages, batch=2), decoding=False).kv
    np.testing.assert_allclose(prompts, 2 * one * ISL / (ISL + 100))


def test_uneven_stages_wait_for_the_longest():
    # 32 layers in 3 stages: the longest has 11.
    even, uneven = weight_bytes(base(), Pool(pp=np.array([2, 3])))
    layers = 2 * (parameters(MODEL).total - 2 * MODEL.vocab * MODEL.hidden)
    assert uneven - even == pytest.approx(layers * (11 / 32 - 16 / 32), rel=1e-3)


def test_experts_meet_the_tokens_of_every_attention_replica():
    platform, setup = platform_of(base(model=MIXTURE)), base(model=MIXTURE)
    alone = decode(platform, setup, Pool(moe_ep=1), np.asarray(256.0), np.asarray(1000.0))
    shared = decode(platform, setup, Pool(dp=4, moe_tp=4), np.asarray(256.0), np.asarray(1000.0))
    quarter = decode(platform, setup, Pool(dp=4, moe_tp=4), np.asarray(64.0), np.asarray(1000.0))
    assert shared.experts > 1.2 * quarter.experts
    assert quarter.experts < alone.experts
    assert shared.communication > 0


def test_a_cache_crosses_the_ports_of_the_smaller_instance():
    cache = float(kv_bytes(base(), Pool(), np.asarray(float(ISL))))
    for first, second, ports in ((Pool(), Pool(), 1), (Pool(tp=4), Pool(), 1), (Pool(tp=2, pp=2), Pool(tp=8), 4)):
        setup = replace(base(), decode=replace(second, replicas=0 if ports == 4 else 1), prefill=first)
        seconds = float(transfer(setup, first, np.asarray(float(ISL))))
        assert seconds == pytest.approx(NODE.scale_up.latency + cache / (NODE.scale_up.bandwidth * ports))
    far = replace(base(), decode=Pool(tp=8), prefill=Pool(tp=8))
    assert float(transfer(far, far.prefill, np.asarray(float(ISL)))) > cache / (NODE.scale_up.bandwidth * 8)


def test_power_lies_between_idle_and_full_and_follows_the_load():
    device, share = NODE.device, NODE.overhead_power / NODE.count
    setup = replace(base(), decode=Pool(batch=np.array([1, 64])), prefill=Pool())
    watts = costs(setup, predict(platform_of(setup), setup)).power
    assert watts[1] > watts[0]
    assert (watts < 2 * (device.tdp + share)).all()
    assert (watts > 2 * (device.idle_power + share)).all()


def test_making_a_device_counts():
    setup = replace(base(), decode=Pool(batch=8))
    found = predict(platform_of(setup), setup)
    green = replace(setup, node=replace(NODE, device=replace(NODE.device, embodied_carbon=0.0)))
    assert costs(setup, found).carbon > costs(green, found).carbon
    assert costs(green, found, grid_carbon=0.0).carbon == 0


def test_a_graph_hides_nothing_below_the_roofline():
    setup = replace(base(), engine="trtllm")
    assert engine("trtllm").graph < 1
    count = parameters(MODEL)
    reading = 2 * (count.total - count.embedding) / NODE.device.memory_bandwidth
    assert float(predict(platform_of(setup), setup).times.decode.total) > reading
