from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import flags, run

from nearpeak.errors import NearpeakError
from nearpeak.export import sglang
from nearpeak.plan.space import layouts
from nearpeak.setup import Pool
from plans_by_hand import DENSE, MIXTURE, NODE, explained, setup

# docs.sglang.io, server arguments
KNOWN = {
    **dict.fromkeys(
        ("--port", "--tp-size", "--pp-size", "--dp-size", "--ep-size", "--max-running-requests",
         "--chunked-prefill-size", "--context-length", "--nnodes", "--node-rank", "--disaggregation-bootstrap-port"),
        int,
    ),
    **dict.fromkeys(
        ("--host", "--model-path", "--served-model-name", "--kv-cache-dtype", "--quantization", "--dist-init-addr",
         "--disaggregation-mode", "--disaggregation-transfer-backend"),
        str,
    ),
    "--mem-fraction-static": float,
    "--enable-dp-attention": None,
    "--is-embedding": None,
}  # fmt: skip


def served(call):
    assert call["argv"][:3] == ["python", "-m", "sglang.launch_server"]
    return flags(call["argv"][3:], KNOWN)


def test_a_plan_of_one_server_is_one_script(tmp_path):
    files = sglang(explained(setup(decode=Pool(tp=4, pp=2, batch=48), kv="fp8")))
    assert list(files) == ["serve.sh"]
    found = served(run(files["serve.sh"], tmp_path)[0])
    assert found["--model-path"] == found["--served-model-name"] == DENSE.name
    assert (found["--tp-size"], found["--pp-size"], found["--max-running-requests"]) == (4, 2, 48)
    assert found["--chunked-prefill-size"] == 8192
    assert found["--context-length"] == 4500
    assert found["--kv-cache-dtype"] == "fp8_e4m3"
    # 80 GB less the 8 that are reserved and the 4 of activations, which SGLang does not count as static.
    assert found["--mem-fraction-static"] == 0.85


def test_attention_replicas_count_in_the_totals_that_sglang_divides(tmp_path):
    plan = explained(setup(MIXTURE, Pool(tp=2, dp=4, moe_ep=8, batch=32)))
    found = served(run(sglang(plan)["serve.sh"], tmp_path)[0])
    assert found["--enable-dp-attention"]
    assert (found["--tp-size"], found["--dp-size"], found["--ep-size"]) == (8, 4, 8)
    assert found["--max-running-requests"] == 4 * 32
    assert found["--chunked-prefill-size"] == 4 * 8192


def test_disaggregated_servers_meet_over_the_routers_bootstrap_ports(tmp_path):
    files = sglang(explained(setup(decode=Pool(tp=4), prefill=Pool(tp=2, replicas=2))))
    prefill = run(files["prefill.sh"], tmp_path / "prefill", expected=2)
    (decode,) = run(files["decode.sh"], tmp_path / "decode")
    assert [served(c)["--disaggregation-mode"] for c in [*prefill, decode]] == ["prefill", "prefill", "decode"]
    assert [c["env"]["CUDA_VISIBLE_DEVICES"] for c in [*prefill, decode]] == ["0,1", "2,3", "4,5,6,7"]
    (router,) = run(files["router.sh"], tmp_path / "router")
    assert router["argv"][:3] == ["python", "-m", "sglang_router.launch_router"]
    expected = ["--pd-disaggregation"]
    for call in prefill:
        found = served(call)
        expected += ["--prefill", f"http://127.0.0.1:{found['--port']}", str(found["--disaggregation-bootstrap-port"])]
    expected += ["--decode", f"http://127.0.0.1:{served(decode)['--port']}"]
    assert router["argv"][-len(expected) :] == expected


def test_a_server_over_two_nodes_meets_at_the_first(tmp_path):
    files = sglang(explained(setup(decode=Pool(tp=8, pp=2, replicas=2))))
    found = served(run(files["serve.sh"], tmp_path / "server", arguments=("3",), HEAD="node2")[0])
    assert (found["--nnodes"], found["--node-rank"], found["--dist-init-addr"]) == (2, 1, "node2:20000")
    (router,) = run(files["router.sh"], tmp_path / "router", NODES="node0 node1 node2 node3")
    assert router["argv"][-2:] == ["http://node0:30000", "http://node2:30000"]


@pytest.mark.parametrize(
    ("of", "words"),
    [(setup(kv="int8"), "not as int8"), (setup(decode=Pool(dp=2)), "use replicas")],
)
def test_what_sglang_cannot_express_is_refused(of, words):
    with pytest.raises(NearpeakError, match=words):
        sglang(explained(of))


ROWS = layouts(MIXTURE, NODE, "trtllm", 8)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.integers(0, len(ROWS.tp) - 1), batch=st.integers(1, 512))
def test_every_layout_mixed_ones_too_comes_back_from_its_command_line(tmp_path_factory, row, batch):
    given = {name: int(a[row]) for name, a in ROWS.arrays().items() if a.ndim}
    of = replace(setup(MIXTURE, Pool(**{**given, "batch": batch})), engine="sglang")
    found = served(run(sglang(explained(of))["serve.sh"], tmp_path_factory.mktemp("run"))[0])
    dp = found.get("--dp-size", 1)
    back = {"tp": found["--tp-size"] // dp, "pp": found["--pp-size"], "dp": dp, "moe_ep": found.get("--ep-size", 1)}
    assert back == {name: given[name] for name in back}
    assert found["--tp-size"] // back["moe_ep"] == given["moe_tp"]
    assert found["--max-running-requests"] == batch * dp
