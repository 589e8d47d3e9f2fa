import json
import math
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.plan import Figure, Goal
from nearpeak.report import page, write_page
from nearpeak.setup import Pool
from plans_by_hand import DENSE, MIXTURE, explained, plans, setup

GOAL = Goal("cost", ttft=0.5, tpot=0.03)
BEST = [
    explained(setup(decode=Pool(tp=2, replicas=2, batch=64), kv="fp8")),
    explained(setup(decode=Pool(tp=4, batch=64), prefill=Pool(tp=2)), tpot=0.025),
    explained(tpot=0.005),
]
FOUND = plans(*BEST)


class Loads(HTMLParser):
    """What a browser would load, and the text of elements by their id."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.texts, self.tags, self._open = [], {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        self._open = given.get("id")

    def handle_data(self, data):
        if self._open:
            self.texts[self._open] = self.texts.get(self._open, "") + data


def test_the_page_loads_nothing():
    text = page(FOUND, BEST, GOAL)
    assert Loads(text).loads == []
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_says_what_was_asked_and_what_came_of_it():
    text = page(FOUND, BEST, GOAL)
    for words in (
        "org/dense-8b", "4,000 prompt and 500 answer tokens", "TTFT at most 500 ms", "12,345 setups were priced",
        "2\N{MULTIPLICATION SIGN}tp2", "decode tp4", "$0.37", "TPOT x0.61", "vllm serve", "--max-num-seqs 64",
    ):  # fmt: skip
        assert words in text, words


def test_the_plots_hold_the_front_and_the_plan():
    charts = json.loads(Loads(page(FOUND, BEST, GOAL)).texts["figures"])
    front = {(x, y) for trace in charts["pareto"]["data"][1:3] for x, y in zip(trace["x"], trace["y"], strict=True)}
    assert front == {(p.per_user, p.per_device) for p in FOUND.front}
    assert charts["pareto"]["data"][2]["x"] == [p.per_user for p in FOUND.front if p.meets]
    assert charts["pareto"]["data"][3]["x"] == pytest.approx([100, 40, 200])
    held = {trace["name"]: trace["x"] for trace in charts["memory"]["data"]}
    assert held == {
        "weights": [16], "KV cache": [40], "activations": [4], "kept by the engine": [8], "free": [12],
    }  # fmt: skip
    shares = [sum(trace["x"][i] for trace in charts["steps"]["data"]) for i in (0, 1)]
    assert shares == pytest.approx([100, 100])
    for chart in charts.values():
        assert chart["layout"]["xaxis"]["title"]["text"]


def test_names_cannot_become_markup():
    evil = "</script><script>alert(1)</script>"
    best = [explained(setup(replace(DENSE, name=evil)))]
    parsed = Loads(page(plans(*best), best, GOAL))
    assert parsed.tags.count("script") == 3


def test_a_plan_that_no_engine_starts_says_so_in_its_place():
    best = [explained(replace(setup(MIXTURE, Pool(tp=8, moe_tp=2, moe_ep=4)), engine="trtllm"))]
    assert "there are no launch files for &#x27;trtllm&#x27;" in page(plans(*best), best, GOAL)


def test_an_unknown_price_is_a_dash():
    unknown = Figure(math.nan, math.nan, math.nan, "measured")
    best = [replace(BEST[0], figures=BEST[0].figures | {"dollars_per_million_tokens": unknown})]
    text = page(plans(*best), best, GOAL)
    assert "<b>\N{EN DASH}</b>" in text
    assert "nan" not in text.split("<script>")[0]


def test_there_is_no_page_without_a_plan():
    with pytest.raises(NearpeakError, match="nothing meets the goal"):
        page(FOUND, [], GOAL)


def test_a_page_replaces_the_one_before_and_a_bad_place_is_named(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    write_page(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(UsageError, match="cannot write"):
        write_page(tmp_path / "no" / "such" / "page.html", "new")


def chromium(folder, *arguments):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium on this machine")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    flags = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [program, *flags, offline, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def pixels(png):
    """Rows of 3-byte pixels of a PNG without interlace (PNG specification, section 9: filters)."""
    at, packed, width, depth = 8, b"", 0, 0
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, bits, colour, *_ = struct.unpack(">IIBBBBB", body)
            depth = {2: 3, 6: 4}[colour]
            assert bits == 8
        elif kind == b"IDAT":
            packed += body
        at += 12 + length
    raw, row, rows = zlib.decompress(packed), bytearray(width * depth), []
    for start in range(0, len(raw), width * depth + 1):
        filtered, line = raw[start], bytearray(raw[start + 1 : start + 1 + width * depth])
        for i in range(len(line)):
            left, above = line[i - depth] if i >= depth else 0, row[i]
            corner = row[i - depth] if i >= depth else 0
            guess = left + above - corner
            nearest = min((left, above, corner), key=lambda v: abs(guess - v))
            line[i] = (line[i] + (0, left, above, (left + above) // 2, nearest)[filtered]) & 255
        row = line
        rows.append([bytes(line[i : i + 3]) for i in range(0, len(line), depth)])
    return rows


def test_a_browser_draws_the_plots_without_errors_or_a_network(tmp_path):
    path, shot = tmp_path / "page.html", tmp_path / "page.png"
    write_page(path, page(FOUND, BEST, GOAL))
    dumped = chromium(tmp_path, "--virtual-time-budget=10000", "--dump-dom", path.as_uri())
    assert dumped.stdout.count('class="main-svg"') >= 4
    assert "CONSOLE" not in dumped.stderr
    chromium(tmp_path, "--virtual-time-budget=10000", f"--screenshot={shot}", "--window-size=1000,700", path.as_uri())
    rows = pixels(shot.read_bytes())
    assert (len(rows[0]), len(rows)) == (1000, 700)
    colours = {colour for row in rows for colour in row}
    assert len(colours) > 100
    # The green of the points that meet the goal: the plot itself, not only text, has been drawn.
    assert bytes.fromhex("009E73") in colours
