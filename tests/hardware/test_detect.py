import math
import subprocess
import sys

import pytest

from nearpeak.errors import UnknownName
from nearpeak.hardware import detect as d
from nearpeak.hardware import device, here


def processor(**changes):
    facts = dict(
        name="Some CPU", vendor="GenuineIntel", family=6, cores=4, clock=2e9, flags=frozenset({"sse2", "fma"}),
        memory=32 * 2.0**30, caches={1: 2e5, 3: 2.0**25},
    )  # fmt: skip
    return d.Processor(**(facts | changes))


def test_this_machine_is_a_cpu_with_measured_memory():
    cpu = here()[-1]
    assert cpu.kind in ("cpu", "apu")
    assert 1 <= cpu.units <= 1024
    assert "measured here" in cpu.sources["memory"]
    assert 1e8 < cpu.memory_bandwidth < 1e13
    assert cpu.rates["fp32"] > 1e9


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"fp32": 32}),
        ({"flags": frozenset({"sse2"})}, {"fp32": 8}),
        ({"flags": frozenset({"asimd"})}, {"fp32": 16}),
        ({"flags": frozenset({"sse2", "fma", "avx512f"})}, {"fp32": 64}),
        (
            {"flags": frozenset({"sse2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"})},
            {"bf16": 1024, "fp32": 64, "int8": 2048},
        ),
        (
            {"vendor": "AuthenticAMD", "family": 25, "flags": frozenset({"sse2", "fma", "avx512f", "avx512_bf16"})},
            {"bf16": 64, "fp32": 32},
        ),
        (
            {"vendor": "AuthenticAMD", "family": 26, "flags": frozenset({"sse2", "fma", "avx512f", "avx512_bf16"})},
            {"bf16": 128, "fp32": 64},
        ),
    ],
)
def test_operations_follow_the_instruction_sets(changes, expected):
    assert d.operations(processor(**changes)) == expected


def test_peak_is_cores_times_operations_times_clock():
    found = d.cpu_device(processor(), {0: 1e10, 3: 5e10})
    assert found.rates == {"fp32": 4 * 32 * 2e9}
    assert [level.name for level in found.memory] == ["RAM", "L3"]
    assert found.sources["tdp"].startswith("assumed")


def test_a_slice_of_a_known_socket_takes_its_share_of_the_power():
    found = d.cpu_device(processor(name="Intel(R) Xeon(R) Platinum 8480+", cores=14), {0: 1e10})
    assert found.tdp == pytest.approx(device("xeon_8480").tdp / 4)
    assert found.units == 14


def test_apple_chips_take_the_gpu_of_the_catalogue_and_their_own_memory():
    found = d.cpu_device(processor(name="Apple M3 Max", vendor="Apple", memory=36 * 2.0**30), {0: 2e11})
    assert found.rates == device("m3_max").rates
    assert found.memory_capacity == 36 * 2**30


def test_catalogue_and_detection_agree_on_a_socket():
    flags = frozenset({"sse2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"})
    found = d.cpu_device(processor(cores=56, clock=2.0e9, flags=flags), {0: 1e10})
    known = device("xeon_8480").rates
    assert found.rates == pytest.approx({rate: known[rate] for rate in found.rates})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "10000 100000\n"}, 1.0),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ({}, math.inf),
    ],
)
def test_control_groups_limit_the_cores(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert d.cpu_quota(tmp_path) == expected


def test_nvidia_smi_names_are_found():
    found = d._known(d.parse_nvidia("NVIDIA H100 80GB HBM3, 81559\nTesla T4, 15360\nNVIDIA GH200 480GB, [N/A]\n"))
    assert [gpu.name for gpu in found] == ["h100_sxm", "t4", "gh200"]
    assert found[0].memory_capacity == 81559 * 2**20
    assert d.parse_nvidia("") == []


def test_rocm_smi_tables_are_read():
    text = (
        "WARNING: noise\n"
        "device,VRAM Total Memory (B),VRAM Total Used Memory (B),Card series,Card model,Card vendor\n"
        "card0,206141652992,288000,AMD Instinct MI300X OAM,0x74a1,AMD\n"
    )
    (gpu,) = d._known(d.parse_rocm(text))
    assert gpu.name == "mi300x"
    assert gpu.memory_capacity == 206141652992


def test_an_unknown_gpu_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match=r"GPU that is left out: unknown device 'NVIDIA X1'.*TOML"):
        assert d._known([("NVIDIA X1", 1e9)]) == []
    with pytest.raises(UnknownName):
        device("NVIDIA X1")


def test_a_tool_that_is_not_there_says_nothing():
    assert d._output(["no-such-tool-at-all"]) == ""


def test_import_stays_light():
    heavy = "{'numpy', 'msgspec', 'tomllib', 'duckdb'}"
    loaded = f"import sys, nearpeak.hardware; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
