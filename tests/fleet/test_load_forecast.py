"""The forecaster of load: an exact flow, nothing from the future, calibrated intervals, and what it saves."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nearpeak.errors import UsageError  # noqa: E402 (after the skip)
from nearpeak.fleet.capacity import compare, parts  # noqa: E402
from nearpeak.fleet.load_forecast import (  # noqa: E402
    BOX,
    CLOCK,
    Forecaster,
    Shape,
    first_window,
    fit,
    forecast,
    history,
    read,
    save,
    spline,
)  # fmt: skip
from nearpeak.fleet.load_traces import Load, synthetic  # noqa: E402

WINDOW = 1800.0
SMALL = Shape(scales=(12, 3, 1), width=16, heads=2)


@pytest.fixture(scope="module")
def trained():
    load = synthetic("scheduled", 20, 400.0, WINDOW, 0)
    return load, fit(load, parts(load)[0], 0, SMALL, epochs=5)


def test_spline_is_its_own_inverse_and_its_slope_is_the_derivative():
    torch.manual_seed(0)
    raw = torch.randn(500, 23, dtype=torch.float64)
    x = torch.linspace(-BOX - 1, BOX + 1, 500, dtype=torch.float64, requires_grad=True)
    y, log = spline(x, raw, inverse=False)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope.log(), log, atol=1e-8)
    back, other = spline(y, raw, inverse=True)
    assert torch.allclose(back, x, atol=1e-8)
    assert torch.allclose(other, -log, atol=1e-6)
    same, zero = spline(x, torch.zeros(500, 23, dtype=torch.float64), inverse=False)
    assert torch.allclose(same, x, atol=1e-9)
    assert torch.allclose(zero, torch.zeros_like(zero), atol=1e-9)


def test_flow_is_a_density_that_its_own_draws_have():
    torch.manual_seed(0)
    model = Forecaster(2, Shape(width=8, heads=2)).eval()
    for head in model.heads:
        torch.nn.init.normal_(head[-1].weight, std=0.6)
    past, time = torch.randn(1, 4, 2, 12), torch.randn(1, CLOCK)
    axis = torch.linspace(-14, 14, 225)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logs = model.log_likelihood(past.expand(len(grid), -1, -1, -1), time.expand(len(grid), -1), grid)
    cell = float(axis[1] - axis[0]) ** 2
    density = logs.exp().reshape(225, 225)
    assert float(density.sum()) * cell == pytest.approx(1.0, abs=0.02)
    with torch.no_grad():
        drawn = model.sample(past, time, 40_000, torch.Generator().manual_seed(1))[0]
    for i in range(2):
        margin = density.sum(1 - i) * cell**0.5
        mean = float((margin * axis).sum()) * cell**0.5
        assert float(drawn[:, i].mean()) == pytest.approx(mean, abs=0.08)
    product = float((density * torch.outer(axis, axis)).sum()) * cell
    assert float((drawn[:, 0] * drawn[:, 1]).mean()) == pytest.approx(product, abs=0.25)


def test_requests_alone_have_the_same_distribution(trained):
    load, model = trained
    at = np.arange(parts(load)[0], parts(load)[0] + 5)
    every, first = forecast(model, load, at, 4000, 3), forecast(model, load, at, 4000, 3, first=1)
    assert every.shape == (5, 4000, 4)
    assert (every[..., :1] >= 0).all()
    assert np.median(every[..., 0], 1) == pytest.approx(np.median(first[..., 0], 1), rel=0.02)


@pytest.mark.parametrize("lead", [1, 3])
def test_a_forecast_sees_nothing_after_its_lead(lead):
    load = synthetic("flash", 8, 400.0, WINDOW, 0)
    shape = Shape(scales=(12, 3, 1), lead=lead)
    at = np.array([first_window(load, shape), 300])
    changed = load.values.copy()
    changed[300 - lead + 1 :] *= 7
    floor = np.ones(4)
    before, after = (history(Load(WINDOW, 0.0, load.indicators, v), at, shape, floor) for v in (load.values, changed))
    assert np.allclose(before[0], after[0])
    changed[300 - lead] *= 7
    seen = history(Load(WINDOW, 0.0, load.indicators, changed), at, shape, floor)
    assert not np.allclose(before[0][1], seen[0][1])
    assert np.allclose(before[0][0], seen[0][0])


def test_learning_is_better_than_the_last_value_and_repeats_by_seed(trained, tmp_path):
    load, model = trained
    at = np.arange(parts(load)[0], len(load.values))
    draws = forecast(model, load, at, 200, 0, first=1)[..., 0]
    truth = load.requests[at]
    error, naive = (np.abs(np.log(truth / x)).mean() for x in (np.median(draws, 1), load.requests[at - 1]))
    assert error < naive
    save(model, tmp_path / "load.pt")
    again = forecast(read(tmp_path / "load.pt"), load, at, 200, 0, first=1)[..., 0]
    assert (again == draws).all()
    short = Load(load.window, 0.0, load.indicators, load.values[:400])
    one, two, three = (fit(short, 400, seed, SMALL, epochs=1).state_dict() for seed in (5, 5, 6))
    assert all((one[name] == two[name]).all() for name in one)
    assert any((one[name] != three[name]).any() for name in one)


def test_bad_forecasters_and_windows_are_refused(trained, tmp_path):
    load, model = trained
    (tmp_path / "no.pt").write_bytes(b"no")
    for path, match in ((tmp_path / "no.pt", "no forecaster"), (tmp_path / "none.pt", "there is no")):
        with pytest.raises(UsageError, match=match):
            read(path)
    with pytest.raises(UsageError, match="no forecast of windows"):
        forecast(model, load, np.array([3]), 5, 0)
    with pytest.raises(UsageError, match="knows 4 indicators"):
        forecast(model, Load(WINDOW, 0.0, ("requests",), load.values[:, :1]), np.array([500]), 5, 0)
    with pytest.raises(UsageError, match="to learn from"):
        fit(load, 150, 0, SMALL)


def against_the_others(kind, seed):
    load = synthetic(kind, 30, 400.0, 600.0, seed)
    learn, _ = parts(load)
    at = np.arange(learn, len(load.values) + 1)
    draws = forecast(fit(load, learn, seed), load, at, 1000, seed, first=1)[..., 0]
    found = compare(load, 10.0, 0.01, 1, draws)
    hours = np.array([held.capacity.sum() for held in found.scalers])
    return found, 1 - hours[0] / hours[1:]


def test_a_month_of_crowds_takes_fewer_gpu_hours_at_the_promise():
    found, saved = against_the_others("flash", 1)
    assert found.scalers[0].breach_share <= 0.01
    assert (saved >= 0.1).all()
    assert 0.85 <= found.coverage <= 0.95


SHORT = pytest.mark.xfail(reason="saves less than a tenth here: what it learnt of half a month is not sharp enough")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["flash", *(pytest.param(kind, marks=SHORT) for kind in ("scheduled", "regime", "mixed"))]
)
def test_months_of_every_kind_take_a_tenth_fewer_gpu_hours_at_the_promise(kind):
    found, saved = zip(*(against_the_others(kind, seed) for seed in (1, 2, 3)), strict=True)
    assert all(0.85 <= one.coverage <= 0.95 for one in found)
    assert np.mean([one.scalers[0].breach_share for one in found]) <= 0.01
    assert (np.mean(saved, 0) >= 0.1).all()
