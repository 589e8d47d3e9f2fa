import pytest

from nearpeak.errors import UnknownName
from nearpeak.formats import code
from nearpeak.hardware import node_of
from nearpeak.plan import base_setup
from nearpeak.techniques import register, technique, techniques
from nearpeak.workload import read

BASE = base_setup(read("Qwen/Qwen3-8B"), node_of("h100"), "vllm", 1000, 100)


def test_every_technique_changes_the_setup_and_says_where_it_comes_from():
    for t in techniques().values():
        assert t.paper
        assert 0 < t.quality.low <= t.quality.high <= 1
        if t.needs(BASE) is None:
            changed = t.effect(BASE)
            assert changed.arrays() != BASE.arrays() or changed.mode != BASE.mode


def test_no_technique_applies_twice():
    for t in techniques().values():
        if t.needs(BASE) is None:
            assert t.needs(t.effect(BASE)) is not None


def test_formats_need_a_device_that_multiplies_them():
    old = base_setup(read("Qwen/Qwen3-8B"), node_of("a100"), "vllm", 1000, 100)
    assert "fp8" in technique("fp8-weights").needs(old)
    assert technique("rtn-int4").needs(old) is None
    assert technique("nvfp4").needs(BASE) is not None


def test_quantized_checkpoints_are_left_alone():
    held = base_setup(read("Qwen/Qwen3-32B-FP8"), node_of("h100"), "vllm", 1000, 100)
    assert held.ffn == code("fp8_block")
    assert all(t.needs(held) for t in techniques().values() if t.slot == "weights")


def test_a_name_belongs_to_one_technique():
    with pytest.raises(ValueError, match="rtn-int4"):
        register(technique("rtn-int4"))
    with pytest.raises(UnknownName, match="rtn-int4"):
        technique("rtn-int5")
