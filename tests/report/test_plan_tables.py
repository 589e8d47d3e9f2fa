import io
from dataclasses import replace

import pytest
from rich.console import Console

from nearpeak.plan import Candidate, Figure, Lever, Miss, Variant
from nearpeak.report import front_table, miss_text, plans_table, predict_table, print_plans, print_record, table, why
from nearpeak.report.format import DASH, TIMES
from nearpeak.setup import Pool
from plans_by_hand import MIXTURE, explained, plans, setup

SPLIT = setup(MIXTURE, Pool(tp=2, dp=4, moe_ep=8, batch=256), Pool(tp=2, moe_tp=2, replicas=3))
BEST = [
    explained(setup(decode=Pool(tp=2, pp=2, replicas=2, batch=64), kv="fp8")),
    explained(SPLIT, tpot=0.025),
    explained(tpot=0.005),
]


def shown(renderable, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_ranked_plans_fit_the_terminal_and_lose_nothing(width):
    text = shown(plans_table(plans(*BEST), BEST), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    layout, figures = (f"2{TIMES}tp2 pp2", "dp4", "ep8"), ("25 ms", f"22.5{DASH}27.5", "200 ms", "1,500", "$0.37")
    for word in (*layout, *figures, "measured", "matrices"):
        assert word in text, word
    assert "12,345 setups priced in 250 ms" in text


def test_an_unknown_price_is_a_dash():
    figures = BEST[0].figures | {"dollars_per_million_tokens": Figure(float("nan"), float("nan"), float("nan"), "x")}
    plan = replace(BEST[0], figures=figures)
    assert "nan" not in shown(plans_table(plans(plan), [plan])) + shown(predict_table(plan))


def test_why_says_where_memory_and_time_go_and_what_would_move_them():
    text = shown(why(BEST[0]))
    assert "weights               20 %" in text
    assert "68 GB of 80 GB in use" in text
    assert "decode step goes (10 ms)" in text
    assert "matrices              40 % ████████████ " in text
    assert "twice the memory bandwidth: TPOT x0.61, TTFT x1, throughput x1.5" in text
    assert "experts" not in text


def test_a_lever_that_overruns_the_prefill_pool_says_so():
    plan = replace(explained(SPLIT), levers=(Lever("twice the memory bandwidth", 160.0, 0.6, 1.4),))
    assert "TTFT x160 (prompts queue: give prefill more)" in shown(why(plan), 120)


def test_both_pools_of_a_disaggregated_plan_have_a_ledger():
    text = shown(why(BEST[1]))
    assert "decode kv" in text
    assert "prefill kv" in text


def test_a_prediction_lists_every_figure_with_its_interval():
    text = shown(predict_table(BEST[0]))
    assert "time to first token" in text
    assert "180\N{EN DASH}220 ms" in text
    assert "2,700\N{EN DASH}3,300 tokens/s" in text
    assert text.count("measured") == len(BEST[0].figures)


def test_the_front_is_listed_from_fast_to_slow():
    text = shown(front_table(plans(*BEST).front))
    rows = [line.split()[0] for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert [float(r) for r in rows] == [80, 40, 20]
    assert "no" in text


def test_a_miss_names_the_limit_that_binds_and_how_far_each_is():
    miss = Miss(Candidate(1.0, Variant(SPLIT, (), 1.0), SPLIT, ()), {"ttft": 1.8, "tpot": 0.5, "rate": 1.25})
    text = shown(miss_text(miss))
    assert "binds is ttft" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["ttft", "180", "%", "of", "the", "limit"] in lines
    assert ["rate", "80", "%", "of", "the", "limit"] in lines
    assert ["tpot", "50", "%", "of", "the", "limit,", "holds"] in lines


def test_a_table_writes_figures_by_column_and_takes_no_text_for_markup():
    rows = [{"device": "[red]x", "memory": 80e9, "price_per_hour": None}, {"device": "y", "memory": 1e9}]
    text = shown(table(rows))
    assert "[red]x" in text
    assert "80 GB" in text
    assert "\N{EN DASH}" in text
    assert shown(table(rows, ["memory"])).split()[0] == "memory"
    assert shown(table([])).strip() == ""


def test_a_crowded_table_wraps_and_leaves_nothing_out():
    row = {"id": "20df59b27803", "model": "tiny", "created": "2026-01-02T03:04:05"}
    row |= {f"time_over_a_long_name_{i}": 1.25 + i for i in range(6)}
    lines = shown(table([row]), 90)
    assert "20df59b27803" in lines
    assert all(f"{1.25 + i}" in lines for i in range(6))
    assert "…" not in lines
    narrow = shown(table([row]), 60)
    assert "20df59b27803" in narrow
    assert max(map(len, narrow.splitlines())) <= 60


def test_without_a_terminal_all_is_plain_text(capsys):
    print_plans(plans(*BEST), BEST)
    print_record({"rates": {"bf16": 1e15}, "prices": [{"per_hour": 2.0}], "aliases": (), "title": "[b]"})
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "Why the first" in out
    assert "[b]" in out
    assert "…" not in out
