"""``nearpeak explain``: topics are listed, asked with options, and answered as text and as JSON."""

import shlex

import pytest

from nearpeak.bounds import REQUIRED, topics


def test_every_topic_is_listed_with_its_paper(run):
    rows = run("explain", "--json").json
    assert [row["topic"] for row in rows] == list(topics()) == sorted(topics())
    assert all(row["what"].endswith("?") and row["paper"] for row in rows)
    assert run("explain").code == 0


@pytest.mark.parametrize("topic", topics().values(), ids=lambda t: t.name)
def test_every_topic_answers_its_example_as_text_and_as_json(run, topic):
    command = ("explain", topic.name, *shlex.split(topic.example))
    told = run(*command)
    assert told.code == 0, told.err
    assert topic.title[:40] in told.out
    answer = run(*command, "--json").json
    assert answer["figures"] or answer["tables"]
    said = run("explain", topic.name, "--help")
    assert f"nearpeak explain {topic.name}" in said.out
    for option in topic.options:
        assert f"--{option.name.replace('_', '-')}" in said.out


@pytest.mark.parametrize("topic", topics().values(), ids=lambda t: t.name)
def test_a_topic_names_the_option_that_it_misses(run, topic):
    needed = [o.name for o in topic.options if o.default is REQUIRED]
    found = run("explain", topic.name)
    assert (found.code == 2) == bool(needed)
    if needed:
        assert f"--{needed[0].replace('_', '-')}" in found.err


def test_an_unknown_topic_is_refused_with_the_known_ones(run):
    found = run("explain", "long-contexts")
    assert found.code == 2
    assert "long-context" in found.err
    bad = run("explain", "long-context", "--model", "Qwen/Qwen3-8B", "--gpu", "h100", "--context", "4k")
    assert bad.code == 2
    assert "'4k'" in bad.err
