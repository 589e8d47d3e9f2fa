import json
import subprocess
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import flags, run

from nearpeak.errors import NearpeakError
from nearpeak.export import launch_files, vllm
from nearpeak.plan.space import layouts
from nearpeak.setup import Pool
from nearpeak.workload import Block, Checkpoint, Dense, LinearAttention
from plans_by_hand import DENSE, GPU, HEADS, MIXTURE, NODE, explained, on, setup

# docs.vllm.ai, engine arguments
KNOWN = {
    **dict.fromkeys(
        (
            "--port", "--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size", "--max-num-seqs",
            "--max-num-batched-tokens", "--max-model-len", "--data-parallel-size-local", "--data-parallel-start-rank",
            "--data-parallel-rpc-port", "--nnodes", "--node-rank",
        ),
        int,
    ),
    **dict.fromkeys(
        ("--host", "--served-model-name", "--kv-cache-dtype", "--quantization", "--data-parallel-address",
         "--master-addr"),
        str,
    ),
    "--gpu-memory-utilization": float,
    "--kv-transfer-config": json.loads,
    "--enable-expert-parallel": None,
    "--headless": None,
}  # fmt: skip


def served(call):
    program, verb, model, *rest = call["argv"]
    assert (program, verb) == ("vllm", "serve")
    return model, flags(rest, KNOWN)


def test_a_plan_of_one_server_is_one_script(tmp_path):
    files = vllm(explained(setup(decode=Pool(tp=4, pp=2, batch=48))))
    assert list(files) == ["serve.sh"]
    (call,) = run(files["serve.sh"], tmp_path)
    model, found = served(call)
    assert model == found["--served-model-name"] == DENSE.name
    assert found["--tensor-parallel-size"] == 4
    assert found["--pipeline-parallel-size"] == 2
    assert found["--max-num-seqs"] == 48
    assert found["--max-num-batched-tokens"] == 8192
    assert found["--max-model-len"] == 4500
    assert found["--gpu-memory-utilization"] == 0.9
    assert found["--kv-cache-dtype"] == "auto"
    assert "--quantization" not in found
    assert call["env"] == {}


def test_replicas_get_devices_and_ports_of_their_own_and_the_router_knows_them(tmp_path):
    files = vllm(explained(setup(decode=Pool(tp=2, batch=8, replicas=3))))
    calls = run(files["serve.sh"], tmp_path / "servers", expected=3)
    assert [c["env"]["CUDA_VISIBLE_DEVICES"] for c in calls] == ["0,1", "2,3", "4,5"]
    ports = [served(c)[1]["--port"] for c in calls]
    (router,) = run(files["router.sh"], tmp_path / "router")
    at = router["argv"].index("--worker-urls")
    assert router["argv"][at + 1 :] == [f"http://127.0.0.1:{port}" for port in ports]


def test_replicas_beyond_a_node_start_on_the_next(tmp_path):
    files = vllm(explained(setup(decode=Pool(tp=4, replicas=3))))
    first = run(files["serve.sh"], tmp_path / "0", expected=2, arguments=("0",))
    second = run(files["serve.sh"], tmp_path / "1", expected=1, arguments=("1",))
    assert [c["env"]["CUDA_VISIBLE_DEVICES"] for c in [*first, *second]] == ["0,1,2,3", "4,5,6,7", "0,1,2,3"]
    (router,) = run(files["router.sh"], tmp_path / "router", NODES="a b")
    assert router["argv"][-3:] == ["http://a:8100", "http://a:8101", "http://b:8100"]


def test_disaggregated_pools_share_a_node_that_holds_both(tmp_path):
    plan = explained(setup(decode=Pool(tp=2, batch=64, replicas=2), prefill=Pool(tp=2, pp=2)))
    files = vllm(plan)
    (prefill,) = run(files["prefill.sh"], tmp_path / "prefill")
    decode = run(files["decode.sh"], tmp_path / "decode", expected=2)
    assert prefill["env"]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert [c["env"]["CUDA_VISIBLE_DEVICES"] for c in decode] == ["4,5", "6,7"]
    roles = [served(c)[1]["--kv-transfer-config"] for c in [prefill, *decode]]
    assert roles[0] == {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}
    assert roles[1] == roles[2] == {"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}
    # A prefill server works on one prompt in each of its stages.
    assert served(prefill)[1]["--max-num-seqs"] == 2
    channels = [int(c["env"]["VLLM_NIXL_SIDE_CHANNEL_PORT"]) for c in [prefill, *decode]]
    assert len(set(channels)) == 3
    (router,) = run(files["router.sh"], tmp_path / "router")
    assert router["argv"][-7:] == [
        "--vllm-pd-disaggregation",
        "--prefill", "http://127.0.0.1:8100",
        "--decode", "http://127.0.0.1:8200",
        "--decode", "http://127.0.0.1:8201",
    ]  # fmt: skip


def test_a_mixture_over_two_nodes_joins_its_attention_replicas(tmp_path):
    plan = explained(setup(MIXTURE, decode=Pool(tp=2, dp=8, moe_ep=16, batch=16)))
    files = vllm(plan)
    (head,) = run(files["serve.sh"], tmp_path / "0", arguments=("0",), HEAD="node0")
    (other,) = run(files["serve.sh"], tmp_path / "1", arguments=("1",), HEAD="node0")
    _, first = served(head)
    _, second = served(other)
    assert first["--data-parallel-size"] == second["--data-parallel-size"] == 8
    assert first["--data-parallel-size-local"] == second["--data-parallel-size-local"] == 4
    assert first["--enable-expert-parallel"]
    assert "--headless" not in first
    assert second["--headless"]
    assert second["--data-parallel-start-rank"] == 4
    assert second["--data-parallel-address"] == "node0"


def test_pipeline_stages_over_two_nodes_share_one_engine(tmp_path):
    files = vllm(explained(setup(decode=Pool(tp=8, pp=2))))
    (other,) = run(files["serve.sh"], tmp_path, arguments=("1",), HEAD="node0")
    _, found = served(other)
    assert (found["--nnodes"], found["--node-rank"], found["--master-addr"]) == (2, 1, "node0")
    assert found["--headless"]


def test_fp8_weights_of_a_16_bit_checkpoint_are_made_at_load(tmp_path):
    plan = explained(setup(attention="fp8", ffn="fp8", experts="fp8", kv="fp8"), ("fp8-weights", "fp8-kv"))
    _, found = served(run(vllm(plan)["serve.sh"], tmp_path)[0])
    assert found["--quantization"] == "fp8"
    assert found["--kv-cache-dtype"] == "fp8"


def test_a_quantized_checkpoint_is_served_as_it_is(tmp_path):
    model = replace(DENSE, checkpoint=Checkpoint("fp8", "fp8", "fp8", method="fp8"))
    plan = explained(setup(model, attention="fp8", ffn="fp8"))
    assert "--quantization" not in served(run(vllm(plan)["serve.sh"], tmp_path)[0])[1]


def test_weights_that_nearpeak_makes_name_the_command_and_wait_for_its_folder(tmp_path):
    plan = explained(setup(attention="int4_wo", ffn="int4_wo", experts="int4_wo"), ("rtn-int4",))
    text = vllm(plan)["serve.sh"]
    command = 'nearpeak apply org/dense-8b --technique rtn --bits 4 --group 128 --out "$MODEL_DIR"'
    assert f"#   {command}" in text.splitlines()
    model, _ = served(run(text, tmp_path, MODEL_DIR="made here")[0])
    assert model == "made here"
    (tmp_path / "unset.sh").write_text(text)
    missing = subprocess.run(["bash", tmp_path / "unset.sh"], capture_output=True, text=True, check=False)
    assert missing.returncode != 0
    assert "MODEL_DIR" in missing.stderr


def test_weights_that_nobody_here_makes_say_so():
    plan = explained(setup(attention="nvfp4", ffn="nvfp4", experts="nvfp4"), ("nvfp4",))
    text = vllm(plan)["serve.sh"]
    assert "nearpeak does not make it" in text
    assert "--quantization" not in text


@pytest.mark.parametrize("name", ["it's; rm -rf $HOME", "a b", 'x"$(touch hacked)"', "two\nlines; touch hacked"])
def test_any_model_name_reaches_the_engine_as_one_word(name, tmp_path):
    plan = explained(setup(replace(DENSE, name=name)))
    model, found = served(run(vllm(plan)["serve.sh"], tmp_path)[0])
    assert model == found["--served-model-name"] == name
    assert not list(tmp_path.rglob("hacked"))


def test_the_script_says_what_was_predicted():
    text = vllm(explained())["serve.sh"]
    assert "# traffic     4000 prompt and 500 answer tokens, on average" in text
    assert "mean time per later token  10 ms (9 to 11)" in text
    assert "evidence: measured" in text
    assert "not for vllm" not in text
    other = replace(explained().setup, engine="trtllm")
    assert "predictions for trtllm, not for vllm" in vllm(explained(other))["serve.sh"]


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (setup(MIXTURE, decode=Pool(tp=8, moe_tp=2, moe_ep=4)), "spreads experts"),
        (setup(decode=Pool(tp=1, dp=2)), "use replicas"),
        (setup(kv="int8"), "not as int8"),
        (setup(decode=Pool(batch=64), chunk=32), "chunk 32, 64 requests"),
        (setup(MIXTURE, decode=Pool(tp=4, pp=3, dp=2, moe_ep=8)), "whole replicas"),
        (setup(node=on(NODE, count=72)), "many hosts"),
        (setup(decode=Pool(tp=4, pp=3)), "equal nodes"),
        (setup(decode=Pool(tp=2, replicas=2), node=on(NODE, replace(GPU, vendor="Google"))), "NVIDIA and AMD"),
        (
            setup(
                replace(DENSE, blocks=(Block(LinearAttention("gdn", 16, 128, 32, 128, 4), Dense(14336), 32),)),
                decode=Pool(tp=2),
                prefill=Pool(tp=1),
            ),
            "equal tp",
        ),
    ],
)
def test_what_vllm_cannot_express_is_refused(of, words):
    with pytest.raises(NearpeakError, match=words):
        vllm(explained(of))


def test_amd_devices_are_pinned_their_way(tmp_path):
    plan = explained(setup(decode=Pool(tp=4, replicas=2), node=on(NODE, replace(GPU, vendor="AMD"))))
    calls = run(vllm(plan)["serve.sh"], tmp_path, expected=2)
    assert [c["env"] for c in calls] == [{"HIP_VISIBLE_DEVICES": "0,1,2,3"}, {"HIP_VISIBLE_DEVICES": "4,5,6,7"}]


def test_an_engine_without_launch_files_is_refused():
    with pytest.raises(NearpeakError, match="no launch files for 'trtllm'; known: sglang, vllm"):
        launch_files(explained(replace(setup(), engine="trtllm")))


ROWS = layouts(MIXTURE, NODE, "vllm", 16)
HYBRID = replace(MIXTURE, blocks=(*MIXTURE.blocks, Block(HEADS, Dense(4096), 2)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.integers(0, len(ROWS.tp) - 1),
    batch=st.integers(1, 512),
    model=st.sampled_from([MIXTURE, HYBRID]),
    replicas=st.integers(1, 3),
)
def test_every_layout_of_the_space_comes_back_from_its_command_line(tmp_path_factory, row, batch, model, replicas):
    given = {name: int(a[row]) for name, a in ROWS.arrays().items() if a.ndim}
    pool = Pool(**{**given, "batch": batch, "replicas": replicas})
    text = vllm(explained(setup(model, decode=pool)))["serve.sh"]
    devices = given["tp"] * given["pp"] * given["dp"]
    arguments = ("0",) if devices * replicas > 8 else ()
    started = min(replicas, max(1, 8 // devices))
    calls = run(text, tmp_path_factory.mktemp("run"), expected=started, arguments=arguments, HEAD="here")
    used = []
    for call in calls:
        _, found = served(call)
        assert found["--tensor-parallel-size"] == given["tp"]
        assert found["--pipeline-parallel-size"] == given["pp"]
        assert found.get("--data-parallel-size", 1) == given["dp"]
        ep = given["tp"] * given["dp"] if "--enable-expert-parallel" in found else 1
        assert ep == given["moe_ep"]
        assert found["--max-num-seqs"] == batch
        used += call["env"].get("CUDA_VISIBLE_DEVICES", "").split(",")
    if started > 1:
        assert used == [str(i) for i in range(devices * started)]
