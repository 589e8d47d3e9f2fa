"""Traffic: distributions against their moments, traces against their files."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearpeak.errors import UsageError
from nearpeak.workload import (
    Constant,
    Empirical,
    Gamma,
    LogNormal,
    Traffic,
    Uniform,
    fixed,
    poisson,
    read_trace,
)
from nearpeak.workload.traffic import Trace

TRACES = Path(__file__).parents[3] / "shared" / "measurements" / "traces"


def test_the_same_seed_draws_the_same_requests_and_another_others():
    traffic = Traffic(LogNormal(500, 1.0), Uniform(10, 90), poisson(3.0))
    first, again, other = (traffic.sample(200, seed) for seed in (1, 1, 2))
    for a, b, c in zip(*((r.arrival, r.isl, r.osl) for r in (first, again, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_changing_one_distribution_leaves_the_others_draws():
    first = Traffic(Uniform(1, 99), Uniform(1, 99), poisson(3.0)).sample(50, 0)
    second = Traffic(Uniform(1, 99), Constant(7), poisson(3.0)).sample(50, 0)
    np.testing.assert_array_equal(first.isl, second.isl)
    np.testing.assert_array_equal(first.arrival, second.arrival)


@pytest.mark.parametrize("lengths", [Constant(7), Uniform(3, 19), LogNormal(800, 0.5), Empirical((1, 5, 5, 100))])
def test_lengths_have_their_mean(lengths):
    drawn = lengths.draw(40_000, np.random.default_rng(0))
    assert drawn.min() >= 1
    assert drawn.mean() == pytest.approx(lengths.mean, rel=0.03)


def test_lognormal_lengths_have_their_spread():
    drawn = LogNormal(800, 0.5).draw(40_000, np.random.default_rng(0))
    assert drawn.std() / drawn.mean() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("cv", [0.0, 0.3, 1.0, 2.5])
def test_arrivals_come_at_their_rate_with_their_variation(cv):
    arrival = Gamma(4.0, cv).draw(40_000, np.random.default_rng(0))
    gaps = np.diff(arrival)
    assert (gaps >= 0).all()
    assert 1 / gaps.mean() == pytest.approx(4.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-6)


def test_fixed_traffic_is_either_open_or_closed():
    closed = fixed(100, 20, concurrency=8)
    assert closed.concurrency == 8
    assert not closed.sample(5, 0).arrival.any()
    assert (closed.mean_isl, closed.mean_osl) == (100, 20)
    assert fixed(100, 20, rate=2.0).arrivals.rate == 2.0
    for wrong in ({}, {"rate": 1.0, "concurrency": 1}):
        with pytest.raises(UsageError, match="rate"):
            fixed(100, 20, **wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(0), lambda: Constant(1.5), lambda: Uniform(5, 4), lambda: Uniform(0, 4),
        lambda: LogNormal(0.5, 1), lambda: LogNormal(100, 0), lambda: Empirical(()), lambda: Empirical((3, 0)),
        lambda: Gamma(0), lambda: Gamma(math.inf), lambda: Gamma(1, -1), lambda: fixed(1, 1, concurrency=0),
        lambda: fixed(1, 1, rate=1).sample(0, 0),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(UsageError):
        make()


def write(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


HEADER = "arrived_at,num_prefill_tokens,num_decode_tokens\n"


def test_a_trace_is_put_in_order_and_begins_at_zero(tmp_path):
    trace = read_trace(write(tmp_path, HEADER + "9,30,3\n5,10,1\n7,20,2\n"))
    np.testing.assert_array_equal(trace.arrival, [0, 2, 4])
    np.testing.assert_array_equal(trace.isl, [10, 20, 30])
    assert (trace.mean_isl, trace.mean_osl, trace.rate) == (20, 2, 0.5)


def test_json_lines_are_a_trace_too(tmp_path):
    text = '{"timestamp": 0, "input_length": 5, "output_length": 6, "hash_ids": []}\n\n'
    text += '{"timestamp": 1500, "input_length": 7, "output_length": 8}\n'
    trace = read_trace(write(tmp_path, text, "trace.jsonl"), time_unit=0.001)
    np.testing.assert_array_equal(trace.arrival, [0, 1.5])
    np.testing.assert_array_equal(trace.osl, [6, 8])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "0,5,5\n-1,5,5\n", "line 3.*arrived_at"),
        (HEADER + "0,5,5\n,5,5\n", "line 3.*arrived_at"),
        (HEADER + "nan,5,5\n", "line 2.*arrived_at"),
        (HEADER + "0,0,5\n", "line 2.*num_prefill_tokens"),
        (HEADER + "0,5\n", "line 2.*num_decode_tokens"),
        (HEADER + "0,5.5,5\n", "line 2.*num_prefill_tokens"),
        (HEADER + "0,many,5\n", "line 2.*'many'"),
        ("arrived_at,num_decode_tokens\n0,5\n", "no column for isl"),
        ("", "no column"),
        (HEADER, "no request"),
    ],
)
def test_a_bad_trace_is_refused_by_line(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read_trace(write(tmp_path, text))


def test_bad_json_lines_are_refused_by_line(tmp_path):
    for text in ('{"timestamp": 0', "[1, 2]"):
        with pytest.raises(UsageError, match="line 1"):
            read_trace(write(tmp_path, text, "trace.jsonl"))
    with pytest.raises(UsageError, match="no trace"):
        read_trace(tmp_path / "absent.csv")


@given(n=st.integers(1, 4), seed=st.integers(0, 100))
def test_a_sample_of_a_trace_is_a_stretch_of_it(tmp_path_factory, n, seed):
    path = tmp_path_factory.mktemp("t") / "trace.csv"
    trace = read_trace(write(path.parent, HEADER + "0,10,1\n2,20,2\n3,30,3\n7,40,4\n"))
    drawn = trace.sample(n, seed)
    start = int(drawn.isl[0] // 10 - 1)
    np.testing.assert_array_equal(drawn.isl, trace.isl[start : start + n])
    np.testing.assert_array_equal(np.diff(drawn.arrival), np.diff(trace.arrival[start : start + n]))
    assert drawn.arrival[0] == 0


@pytest.mark.skipif(not TRACES.is_dir(), reason="the shared measurements are not beside this checkout")
def test_the_published_traces_are_read_whole():
    # Splitwise (arXiv:2311.18677): code prompts are long and answers short, conversation the other way round
    code, conversation = (read_trace(TRACES / f"splitwise_{kind}.csv") for kind in ("code", "conv"))
    assert (len(code.arrival), len(conversation.arrival)) == (8819, 19366)
    assert code.mean_isl > conversation.mean_isl
    assert code.mean_osl < conversation.mean_osl


def test_a_trace_may_say_priorities_and_shared_prefixes(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("arrival,isl,osl,priority,prefix,shared\n1,10,5,1,,\n0,20,6,0,3,16\n")
    marks = read_trace(file).marks
    assert marks is not None
    assert (marks.rank.tolist(), marks.prefix.tolist(), marks.shared.tolist()) == ([0, 1], [3, -1], [16, 0])
    file.write_text("arrival,isl,osl,priority\n0,20,6,high\n")
    with pytest.raises(UsageError, match="line 2: priority = 'high'"):
        read_trace(file)


def test_resampling_keeps_stretches_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    trace = Trace("t", np.cumsum(rng.exponential(1, 1000)), rng.integers(1, 99, 1000), rng.integers(1, 9, 1000))
    drawn = trace.resampled(1, stretch=50)
    assert len(drawn.arrival) == 1000
    assert (np.diff(drawn.arrival) >= 0).all()
    first = np.flatnonzero((trace.isl[: 1000 - 49] == drawn.isl[0]) & (trace.osl[: 1000 - 49] == drawn.osl[0]))
    assert any((trace.isl[k : k + 50] == drawn.isl[:50]).all() for k in first)
    assert (trace.resampled(2).isl != drawn.isl).any()
