"""The page in a real browser: from opening it to a launch command, mistakes beside their fields, by keyboard alone."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from browser import Browser, found

IDLE = "document.body?.dataset.state === 'idle'"

SMALL = """
document.getElementById('simulate').checked = false;
document.querySelectorAll('#devices .devices:not(:first-child) button').forEach(e => e.click());
document.querySelector('#devices [data-part=most]').value = 2;
document.getElementById('rate').value = 1;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if found() is None:
        pytest.skip("no chromium on this machine")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def opened(browser, served):
    """The page as it opens, but for the simulation, which has to be compiled first."""
    browser.open(served + "/")
    browser.wait(IDLE)
    browser.value("document.getElementById('simulate').checked = false")
    return browser


@pytest.fixture
def page(opened):
    """The page set to a small case."""
    opened.value(SMALL)
    return opened


@pytest.fixture(scope="module")
def planned(browser, served):
    """The page with the plans of the small case, for tests that only look at them."""
    browser.open(served + "/")
    browser.wait(IDLE)
    browser.value(SMALL)
    plan(browser)
    return browser


def text(browser, selector):
    return browser.value(f"document.querySelector({selector!r})?.innerText ?? ''")


def put(browser, identity, value):
    browser.value(
        f"(() => {{ const e = document.getElementById({identity!r}); e.value = {value!r};"
        "e.dispatchEvent(new Event('input')); })()"
    )


def plan(browser):
    browser.value("document.getElementById('form').requestSubmit()")
    browser.wait(IDLE, 120)


def test_the_defaults_lead_to_a_launch_command_by_one_key(opened, served):
    """A person presses Enter in the first field; a minute later at most there is a script, and plots."""
    page = opened
    page.value("document.getElementById('model').focus()")
    page.press("Enter", 13, "\r")
    page.wait("document.getElementById('script')", 60)
    page.wait(IDLE, 60)
    assert "vllm serve" in page.value(
        "[...document.querySelectorAll('.tabs button')].map(t => { if (t.textContent.endsWith('.sh')) t.click();"
        " return document.getElementById('script').textContent }).join('')"
    )
    assert page.value("document.querySelectorAll('#view .main-svg').length") >= 4
    assert page.value("document.querySelectorAll('#plot-pareto .scatterlayer .point').length") > 10
    assert page.value("document.querySelectorAll('#view table.data tbody tr').length") >= 3
    assert page.troubles() == []
    assert all(address.startswith((served, "data:")) for address in page.asked())


def test_the_script_is_copied(planned, served):
    page = planned
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"], origin=served)
    page.call("Page.bringToFront")
    page.value("document.getElementById('copy').click()")
    page.wait("document.getElementById('copy').textContent === 'Copied'")
    assert page.value("navigator.clipboard.readText()") == page.value("document.getElementById('script').textContent")


def test_another_plan_of_the_list_is_shown_whole(planned):
    page = planned
    first = text(page, "#script"), text(page, ".cards")
    page.value("document.getElementById('choose-closed-0').focus()")
    page.press("ArrowDown", 40)
    page.wait("document.getElementById('choose-closed-1').checked")
    assert (text(page, "#script"), text(page, ".cards")) != first
    assert "Launch plan 2" in text(page, "#view")
    assert page.value("document.activeElement.id") == "choose-closed-1"
    assert page.value("document.querySelectorAll('#plot-roofline .main-svg').length") >= 1


def test_every_control_has_a_name_and_dark_is_dark(planned):
    page = planned
    nameless = page.value(
        "[...document.querySelectorAll('input, select, textarea, button')].filter(e => !(e.labels?.length ||"
        " e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert nameless == []
    light = page.value("getComputedStyle(document.querySelector('#plot-pareto .xtick text')).fill")
    page.value("localStorage.setItem('colours', 'light'); document.getElementById('theme').click()")
    assert page.value("document.documentElement.dataset.theme") == "dark"
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(16, 22, 29)"
    page.wait(f"getComputedStyle(document.querySelector('#plot-pareto .xtick text')).fill !== {light!r}")
    page.value("localStorage.clear()")


def test_mistakes_are_beside_their_fields_and_go_when_mended(page):
    put(page, "rate", "-3")
    put(page, "model", "Qwen/Qwen9")
    plan(page)
    assert "-3" in text(page, "#rate-error")
    assert "unknown model" in text(page, "#model-error")
    assert page.value("document.getElementById('rate').getAttribute('aria-invalid')") == "true"
    assert page.value("document.activeElement.id") == "model"
    put(page, "rate", "")
    plan(page)
    assert text(page, "#rate-error")
    put(page, "rate", "3")
    put(page, "model", "Qwen/Qwen3-8B")
    plan(page)
    assert text(page, "#rate-error") == text(page, "#model-error") == ""
    assert page.value("Boolean(document.getElementById('script'))")


def test_a_device_that_is_none_is_told_in_its_row(page):
    page.value("document.getElementById('add').click()")
    assert page.value("document.activeElement.dataset.part") == "name"
    page.type("h1000")
    plan(page)
    assert "h1000" in text(page, "#devices .devices:last-child .error")
    page.value("document.querySelector('#devices .devices:last-child button').click()")
    assert page.value("document.querySelectorAll('#devices .devices').length") == 1


def test_a_pasted_trace_stands_for_rate_and_lengths(page):
    rows = "".join(f"{at / 2},{400 + at},{50 + at}\\n" for at in range(60))
    page.value("document.querySelector('[name=source][value=trace]').click()")
    put(page, "trace", "when,isl,osl\n1,2,3\n")
    plan(page)
    assert "arrival" in text(page, "#trace-error")
    page.value(f"document.getElementById('trace').value = 'arrival,isl,osl\\n{rows}'")
    plan(page)
    assert text(page, "#trace-error") == ""
    assert "429.5 prompt and 79.5 answer tokens" in text(page, "#script")


def test_a_limit_that_nothing_meets_is_explained(page):
    page.value("document.querySelector('[data-figure=tpot][data-of=\"99\"]').value = 0.01")
    plan(page)
    assert "Nothing meets the goal" in text(page, "#view")
    assert "tpot" in text(page, "#view")


def test_work_can_be_cancelled(page):
    page.value("document.querySelectorAll('#devices [data-part=most]').forEach(e => { e.value = 24 })")
    page.value("document.getElementById('form').requestSubmit()")
    page.wait("!document.getElementById('cancel').hidden && document.getElementById('said').textContent !== 'Checking'")
    page.value("document.getElementById('cancel').click()")
    page.wait(IDLE)
    assert "Cancelled" in text(page, "#said")
    assert not page.value("document.getElementById('plan').disabled")


@pytest.mark.slow
def test_the_traffic_is_simulated_and_drawn(page):
    put(page, "model", "Qwen/Qwen3-8B")
    put(page, "requests", "1000")
    page.value("document.getElementById('simulate').checked = true")
    page.value("document.getElementById('form').requestSubmit()")
    page.wait("document.getElementById('script')", 60)
    page.wait(IDLE, 1200)
    assert page.value("document.getElementById('rank-served').getAttribute('aria-pressed')") == "true"
    for name in ("spread", "sensitivity", "timeline"):
        assert page.value(f"document.querySelectorAll('#plot-{name} .main-svg').length") >= 1
    assert page.value("document.querySelectorAll('#plot-timeline .bars .point').length") > 50
    assert page.troubles() == []
