"""A calibration is fitted again to tables made by a known model, kept under its name, and used."""

import made
import msgspec
import numpy as np
import pytest

from nearpeak.calibrate import operators, refit, store
from nearpeak.calibrate.board import NEW, SEEN, lines
from nearpeak.calibrate.scoring import score
from nearpeak.calibrate.tables import find
from nearpeak.cost import predict_operators, write_table
from nearpeak.cost.calibration import shipped, stored
from nearpeak.cost.stored import data, folder_of, using
from nearpeak.errors import NearpeakError, UsageError

MEDIAN_OF_NORMAL = 0.6745


def files(folder, *tables, name="made.parquet"):
    (folder / "gemm").mkdir(exist_ok=True, parents=True)
    write_table(folder / "gemm" / name, made.joined(*tables))
    return find([folder / "gemm" / name])[0]


def kept(found, name="lab"):
    folder, _ = store.place(name, None)
    store.save(folder, found.files, found.about)
    return folder


def test_the_constants_that_made_a_table_are_found_again(tmp_path):
    found = refit.refit(files(tmp_path, made.gemm()), "lab", 1)
    gemm = stored(kept(found)).operators["gemm"]
    (entry,) = [e for e in gemm.entries if e.gpu == "l40s"]
    assert (entry.engine, entry.variant) == ("vllm", "bf16")
    assert entry.launch == pytest.approx(made.LAUNCH, rel=0.1)
    assert entry.compute == pytest.approx(made.COMPUTE, rel=0.1)
    assert entry.traffic == pytest.approx(made.TRAFFIC, rel=0.1)


def test_what_changed_is_said_and_what_was_not_measured_stays(tmp_path):
    found = refit.refit(files(tmp_path, made.gemm(noise=0.04)), "lab", 1)
    (change,) = found.changes
    assert (change.op, change.gpu, change.engine, change.format) == ("gemm", "l40s", "vllm", "bf16")
    assert (change.change, change.rows, change.before_seen) == ("added", 160, False)
    assert 100 * MEDIAN_OF_NORMAL * 0.04 * 0.7 < change.after < 100 * MEDIAN_OF_NORMAL * 0.04 * 2
    assert change.before > 1.5 * change.after
    new, old = stored(kept(found)), shipped()
    assert new.operators.keys() == old.operators.keys()
    assert new.operators["moe"] == old.operators["moe"]
    assert set(old.operators["gemm"].entries) <= set(new.operators["gemm"].entries)


def test_a_second_version_replaces_the_first_and_says_so(tmp_path):
    kept(refit.refit(files(tmp_path, made.gemm()), "lab", 1))
    slower = files(tmp_path, made.gemm(slower=1.5, seed=1), name="slower.parquet")
    assert store.place("lab", None)[1] == 2
    found = refit.refit(slower, "lab", 2, base="lab")
    (change,) = found.changes
    assert (change.change, change.before_seen) == ("changed", True)
    assert change.before == pytest.approx(33, abs=5)
    assert found.about.replaces == "lab@1"
    kept(found)
    assert folder_of("lab").name == "2"
    assert folder_of("lab@1").name == "1"
    assert len([e for e in stored(folder_of("lab")).operators["gemm"].entries if e.gpu == "l40s"]) == 1


def test_the_same_tables_give_the_same_bytes(tmp_path):
    tables = files(tmp_path, made.gemm(), made.gemm(engine="sglang", slower=1.2, seed=3))
    assert refit.refit(tables, "lab", 1).files == refit.refit(tables, "lab", 1).files


def test_with_the_calibration_in_use_new_measurements_are_met_and_fall_into_the_intervals(tmp_path):
    kept(refit.refit(files(tmp_path, made.gemm(noise=0.1)), "lab", 1))
    fresh = made.gemm(noise=0.1, seed=5)
    before = predict_operators(fresh, "gemm")
    with using("lab"):
        after = predict_operators(fresh, "gemm")
    assert set(after["evidence"]) == {"measured"}
    assert "measured" not in set(before["evidence"])
    error = np.abs(after["seconds"] / fresh["seconds"] - 1)
    assert np.median(error) < 1.5 * MEDIAN_OF_NORMAL * 0.1
    inside = (after["seconds_low"] <= fresh["seconds"]) & (fresh["seconds"] <= after["seconds_high"])
    assert 0.7 <= inside.mean() <= 0.92


def test_rows_of_the_fit_are_told_from_others_and_shown_beside_what_leaving_them_out_gives(tmp_path):
    table = made.gemm(noise=0.1)
    site = table["n"] != 8192
    kept(refit.refit(files(tmp_path, {k: v[site] for k, v in table.items()}), "lab", 1))
    with using("lab"):
        rows, _ = score(files(tmp_path, table, name="all.parquet"))
    found = {line.fit: line for line in lines(rows, ("gpu", "operator"))}
    assert found.keys() == {SEEN, "site left out", NEW}
    assert found[SEEN].rows == found["site left out"].rows == site.sum()
    assert found[NEW].rows == (~site).sum()
    assert found[SEEN].mean < found["site left out"].mean
    assert 70 <= found["site left out"].coverage <= 90


def test_a_device_left_out_is_predicted_by_the_others_alone(tmp_path):
    kept(refit.refit(files(tmp_path, made.gemm()), "lab", 1))
    with using("lab"):
        rows, _ = score(files(tmp_path, made.gemm(), name="again.parquet"), ("gpu",))
    (seen, unseen) = lines(rows, ("gpu",))
    assert (seen.fit, unseen.fit) == (SEEN, "GPU left out")
    assert "measured" not in set(rows.evidence[rows.fit == "GPU left out"])
    plain = predict_operators(made.gemm(), "gemm")["seconds"]
    np.testing.assert_allclose(rows.predicted[rows.fit == "GPU left out"], plain, rtol=1e-6)
    assert unseen.median > 2 * seen.median


def test_an_interrupted_refit_goes_on_where_it_stopped(tmp_path, monkeypatch):
    moe = tmp_path / "collective"
    moe.mkdir()
    size = np.tile(2 ** np.arange(10, 26), 8)
    columns = {"gpu": "l40s", "backend": "nccl", "nccl_dtype": "half", "op_name": "all_reduce", "kernel_source": "NCCL"}
    table = {k: np.full(size.size, v, object) for k, v in columns.items()}
    table |= {"num_gpus": np.repeat([2, 4], size.size // 2), "message_size": size}
    table |= {"backend_version": np.repeat(np.arange(8), 16).astype(str).astype(object)}
    write_table(moe / "l40s.parquet", table | {"seconds": 2e-5 + 4.0 * size / 2e10})
    both = [*files(tmp_path, made.gemm()), *find([moe])[0]]
    fit, fitted = operators.calibrate, []

    def stopping(op, sample):
        if op != "gemm" and not fitted.count("stop"):
            fitted.append("stop")
            raise KeyboardInterrupt
        fitted.append(op)
        return fit(op, sample)

    monkeypatch.setattr(operators, "calibrate", stopping)
    with pytest.raises(KeyboardInterrupt):
        refit.refit(both, "lab", 1, work=tmp_path / "work")
    again = refit.refit(both, "lab", 1, work=tmp_path / "work")
    assert fitted == ["gemm", "stop", "all_reduce"]
    monkeypatch.setattr(operators, "calibrate", fit)
    assert again.files == refit.refit(both, "lab", 1).files


def test_a_refused_table_changes_nothing(tmp_path):
    table = made.gemm()
    with pytest.raises(UsageError, match="milliseconds"):
        refit.refit(files(tmp_path, table | {"seconds": 1e3 * table["seconds"]}), "lab", 1, work=tmp_path / "work")
    assert not (tmp_path / "work").exists()
    with pytest.raises(UsageError, match="nothing to fit"):
        refit.refit(files(tmp_path, table), "lab", 1, only=["moe"])


def test_nothing_is_written_over(tmp_path):
    target = tmp_path / "there"
    about = store.About("lab", 1, "", "", ())
    store.save(target, {"x.json": b"1"}, about)
    with pytest.raises(UsageError, match="exists"):
        store.place("lab", target)
    with pytest.raises(UsageError, match="exists"):
        store.save(target, {"x.json": b"2"}, about)
    assert (target / "x.json").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["", "shipped", "a/b", "a@1", ".hidden"])
def test_a_name_that_could_not_be_asked_for_is_refused(name):
    with pytest.raises(UsageError, match="name"):
        store.place(name, None)


def test_calibrations_that_are_not_there_are_told_with_those_that_are(tmp_path):
    kept(refit.refit(files(tmp_path, made.gemm()), "lab", 1))
    with pytest.raises(NearpeakError, match="lab"):
        folder_of("lob")
    with pytest.raises(UsageError, match="no version '7'; it has 1"):
        folder_of("lab@7")
    with pytest.raises(UsageError, match=r"about\.json"):
        folder_of(str(tmp_path))
    assert folder_of("") is folder_of("shipped") is None


def test_files_that_a_calibration_lacks_are_the_shipped_ones(tmp_path):
    folder = kept(refit.refit(files(tmp_path, made.gemm()), "lab", 1))
    assert data("engines.json", folder) == data("engines.json")
    assert data("calibration.json", folder) != data("calibration.json")
    assert msgspec.json.decode(data("about.json", folder))["sources"][-1]["gpu"] == "l40s"
