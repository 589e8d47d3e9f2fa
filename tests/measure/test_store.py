import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import duckdb
import pytest
from measurements_by_hand import a_measurement

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.measure import Store, default_path, store


@pytest.fixture
def kept(tmp_path) -> Store:
    return Store(tmp_path / "new" / "measurements.duckdb", patience=0.3)


def in_another_process(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Run code that may import what this test may."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_what_is_added_comes_back_as_it_was(kept):
    first, second = a_measurement(1), a_measurement(2, predicted=False)
    kept.add(first)
    kept.add(second)
    assert kept.list() == (first, second)
    assert kept.get(second.id) == second
    assert kept.get(first.id[:7]) == first
    assert Store(kept.path).list(batch=2, model="tiny ✓") == (second,)
    assert kept.list(batch=3) == ()


def test_a_store_that_does_not_exist_is_empty_and_reading_does_not_make_one(kept):
    assert kept.list() == ()
    assert not kept.path.exists()
    with pytest.raises(UsageError, match="no measurement"):
        kept.get("abc")


def test_figures_and_predictions_are_columns_that_sql_can_read(kept):
    kept.add(a_measurement(8))
    with duckdb.connect(str(kept.path), read_only=True) as connection:
        rows = connection.execute(
            "SELECT what->>'batch', name, value / predicted, evidence FROM figures JOIN measurements "
            "ON measurement = id ORDER BY name"
        ).fetchall()
    assert rows == [("8", "memory", None, None), ("8", "ttft", 2.0, "datasheet")]


def test_a_measurement_is_added_once_and_needs_an_id(kept):
    m = a_measurement()
    kept.add(m)
    with pytest.raises(UsageError, match="already"):
        kept.add(m)
    with pytest.raises(UsageError, match="record"):
        kept.add(replace(m, id=""))
    assert kept.list() == (m,)


def test_an_id_that_fits_several_is_refused(kept):
    for batch in range(3):
        kept.add(a_measurement(batch))
    with pytest.raises(UsageError, match="3 measurements begin"):
        kept.get("")


def test_an_add_that_fails_midway_leaves_nothing_of_it(kept, monkeypatch):
    before = a_measurement(1)
    kept.add(before)
    monkeypatch.setattr(store, "_figure_rows", lambda m: [["too", "short"]])
    with pytest.raises(NearpeakError):
        kept.add(a_measurement(2))
    monkeypatch.undo()
    after = a_measurement(3)
    kept.add(after)
    assert kept.list() == (before, after)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("fresh", [True, False])
def test_a_process_killed_in_the_middle_of_an_add_leaves_the_store_as_it_was(kept, fresh):
    before = () if fresh else (a_measurement(1),)
    for m in before:
        kept.add(m)
    killed = in_another_process(
        """
        import os, signal, sys
        from pathlib import Path
        from nearpeak.measure import Store, store
        from measurements_by_hand import a_measurement
        store._figure_rows = lambda m: os.kill(os.getpid(), signal.SIGKILL)  # the run is written, its figures are not
        Store(Path(sys.argv[1])).add(a_measurement(2))
        """,
        str(kept.path),
    )
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert kept.list() == before
    after = a_measurement(3)
    kept.add(after)
    assert kept.list() == (*before, after)


def test_a_store_held_by_another_process_is_waited_for_and_then_named(kept):
    kept.add(a_measurement(1))
    holder = in_another_process(
        "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); input()", str(kept.path)
    )
    assert holder.stdout.readline() == "held\n"
    for use in (kept.list, lambda: kept.add(a_measurement(2))):
        with pytest.raises(NearpeakError, match="in use by another process"):
            use()
    holder.communicate("\n")
    assert len(kept.list()) == 1


def test_concurrent_writers_all_get_through(kept):
    writer = """
        import sys
        from pathlib import Path
        from nearpeak.measure import Store
        from measurements_by_hand import a_measurement
        for i in range(5):
            Store(Path(sys.argv[1]), patience=60).add(a_measurement(i))
    """
    writers = [in_another_process(writer, str(kept.path)) for _ in range(3)]
    for w in writers:
        w.communicate()
    assert [w.returncode for w in writers] == [0, 0, 0]
    assert len(kept.list()) == 15


def test_a_store_made_by_another_process_meanwhile_is_kept(kept):
    kept.add(a_measurement(1))
    kept._make()
    assert len(kept.list()) == 1
    assert [p.name for p in kept.path.parent.iterdir()] == ["measurements.duckdb"]


@pytest.mark.parametrize("content", [b"", b"no database\n", b"\0" * 20000], ids=["empty", "text", "zeros"])
def test_a_file_that_is_no_database_is_an_error_with_a_way_out(kept, content):
    kept.path.parent.mkdir()
    kept.path.write_bytes(content)
    with pytest.raises(NearpeakError, match="move it aside"):
        kept.list()


@pytest.mark.parametrize("damage", ["cut", "scrambled"])
def test_a_damaged_store_is_an_error_with_a_way_out_never_a_wrong_measurement(kept, damage):
    added = [a_measurement(i) for i in range(20)]
    for m in added:
        kept.add(m)
    with duckdb.connect(str(kept.path)) as connection:
        connection.execute("CHECKPOINT")
    whole = kept.path.read_bytes()
    for tenth in range(10):
        at = len(whole) * tenth // 10
        rest = whole[at + 4096 :] if damage == "scrambled" else b""
        kept.path.write_bytes(whole[:at] + (os.urandom(4096) + rest if damage == "scrambled" else b""))
        try:
            assert set(m.id for m in kept.list()) <= {m.id for m in added}
        except NearpeakError as e:
            assert "move it aside" in str(e)  # noqa: PT017 - either outcome is allowed
    kept.path.rename(kept.path.with_suffix(".broken"))
    kept.add(added[0])
    assert kept.list() == (added[0],)


def test_another_version_and_another_database_are_refused(kept):
    kept.add(a_measurement())
    with duckdb.connect(str(kept.path)) as connection:
        connection.execute("UPDATE nearpeak_store SET version = 2")
    with pytest.raises(NearpeakError, match=r"version \[2\].*reads version 1"):
        kept.list()
    with pytest.raises(NearpeakError, match="reads version 1"):
        kept.add(a_measurement())
    kept.path.unlink()
    with duckdb.connect(str(kept.path)) as connection:
        connection.execute("CREATE TABLE accounts (id INTEGER)")
    with pytest.raises(NearpeakError, match=r"no measurement store.*accounts"):
        kept.add(a_measurement())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NearpeakError, match="NEARPEAK_HOME"):
        Store(tmp_path / "file" / "folder" / "m.duckdb").add(a_measurement())
    with pytest.raises(NearpeakError, match="NEARPEAK_HOME"):
        Store(tmp_path / "file" / "folder" / "m.duckdb").prepare()


def test_a_prepared_store_is_empty_and_keeps_what_it_had(tmp_path):
    store = Store(tmp_path / "m.duckdb")
    store.prepare()
    assert store.list() == ()
    store.add(a_measurement())
    store.prepare()
    assert len(store.list()) == 1


def test_the_default_place_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NEARPEAK_HOME", str(tmp_path))
    assert default_path() == tmp_path / "measurements.duckdb"
    assert Store().path == default_path()
    monkeypatch.delenv("NEARPEAK_HOME")
    assert default_path().parent.name == "nearpeak"
    assert default_path().is_absolute()
