"""Parameter counts against what the models' makers publish."""

import re

import pytest

from nearpeak.workload import bundled, parameters, read

EXACT = {
    # Parameters of the safetensors files, as the Hugging Face model pages give them.
    "meta-llama/Meta-Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Meta-Llama-3.1-405B": 405_853_388_800,  # the repository's revision with 8 key-value heads
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": 480_154_875_392,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,
}

CARDS = {  # total and active parameters as their makers give them, in billions
    "deepseek-ai/DeepSeek-V3": (671, 37),  # arXiv:2412.19437
    "Qwen/Qwen3-30B-A3B": (30.5, 3.3),  # model card
    "Qwen/Qwen3-235B-A22B": (235, 22),  # arXiv:2505.09388
    "deepseek-ai/DeepSeek-V4-Flash": (284, 13),  # arXiv:2606.19348
    "deepseek-ai/DeepSeek-V4-Pro": (1600, 49),  # arXiv:2606.19348
    "moonshotai/Kimi-K3": (2800, 104),  # arXiv:2607.24653
    "moonshotai/Kimi-K2-Instruct": (1040, 32.6),  # arXiv:2507.20534
    "zai-org/GLM-5": (744, 40),  # model card
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31.6, 3.6),  # Nemotron 3 Nano report, embeddings included
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": (400, 17),  # model card
    "XiaomiMiMo/MiMo-V2-Flash": (309, 15),  # model card
    "MiniMaxAI/MiniMax-M2.5": (230, 10),  # model card
    "mistralai/Mixtral-8x7B-v0.1": (46.7, 12.9),  # arXiv:2401.04088 and the announcement
    "mistralai/Mixtral-8x22B-v0.1": (141, 39),  # announcement
}


@pytest.mark.parametrize("name", EXACT)
def test_the_total_is_the_published_number_to_the_last_parameter(name):
    assert parameters(read(name)).total == EXACT[name]


@pytest.mark.parametrize("name", CARDS)
def test_total_and_active_are_the_published_figures_as_far_as_those_go(name):
    total, active = CARDS[name]
    counted = parameters(read(name))
    assert counted.total == pytest.approx(total * 1e9, rel=0.02)
    # makers do not agree whether the input embedding counts
    low, high = counted.active / 1e9, counted.active_with_embedding / 1e9
    assert low * 0.95 <= active <= high * 1.02


@pytest.mark.parametrize(
    ("name", "total", "active"), [("openai/gpt-oss-120b", 116.83, 5.13), ("openai/gpt-oss-20b", 20.91, 3.61)]
)
def test_gpt_oss_has_the_hundredths_of_its_model_card(name, total, active):
    # table 1 of arXiv:2508.10925, which counts the head but not the embedding as active
    counted = parameters(read(name))
    assert (round(counted.total / 1e9, 2), round(counted.active / 1e9, 2)) == (total, active)


def test_deepseek_v3_with_its_prediction_module_is_what_its_files_hold():
    # Values in bf16 and fp8 as the Hugging Face page lists them. The module's copies of embedding and head are among
    # them; the routers' correction biases of 59 layers are in fp32, and so are the scales, which are no parameters.
    held = 3_918_786_560 + 680_571_043_840 + 59 * 256
    counted = parameters(read("deepseek-ai/DeepSeek-V3"))
    assert counted.language + counted.mtp + counted.embedding + counted.head == held


NAMED = re.compile(r"-(\d+(?:\.\d+)?)B(?:-A(\d+(?:\.\d+)?)B)?(?!-\d+E)(?=-|$)")
# Names that are more than 3 % off what their models hold: MiMo counts no embeddings, the VL models no tower (and 2B and
# 4B stand for 1.7 B and 4.0 B of language model), Nemotron 3's 30B are 31.6 B.
LOOSE = {
    "MiMo-7B": 0.09,  # 7.6 B
    "Qwen3-8B": 0.03,
    "Qwen3-VL-2B": 0.07,
    "Qwen3-VL-4B": 0.11,
    "Qwen3-VL-8B": 0.10,
    "Qwen3-VL-30B": 0.04,
    "Qwen3-VL-32B": 0.05,
    "Nemotron-3-Nano-30B": 0.06,
    "Nemotron-3.5-Lightning-30B": 0.06,
}


def _named():
    return [n for n in bundled() if NAMED.search(n)]


@pytest.mark.parametrize("name", _named())
def test_the_total_is_near_the_number_in_the_name(name):
    expected = float(NAMED.search(name).group(1)) * 1e9
    allowed = next((v for part, v in LOOSE.items() if part in name), 0.03)
    assert parameters(read(name)).total == pytest.approx(expected, rel=allowed)


@pytest.mark.parametrize("name", [n for n in _named() if NAMED.search(n).group(2)])
def test_the_active_number_in_the_name_is_between_ours_without_and_with_embedding(name):
    expected = float(NAMED.search(name).group(2)) * 1e9
    counted = parameters(read(name))
    # names round to whole billions, and some makers round up
    assert counted.active - 0.6e9 <= expected + 0.5e9
    assert counted.active_with_embedding + 0.6e9 >= expected - 0.5e9


def test_most_bundled_ids_have_a_number_to_hold_them_to():
    assert len(_named()) > 30
