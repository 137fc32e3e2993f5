"""The measurement store: what goes in comes out, emulated times stay out, and neither processes nor damage confuse it."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bevel.devices import store as store_module
from bevel.devices import store_schema
from bevel.devices.measurements import (
    Block,
    DeviceFingerprint,
    KernelKey,
    KernelTime,
    LayerTime,
    Session,
    SessionPlan,
    Summary,
)
from bevel.devices.store import Store, now, store_path
from bevel.errors import StoreError, UsageError

PI = DeviceFingerprint("pi", "aarch64", "Cortex-A72", ("neon",), "6.1.0", "0123456789abcdef")
EMULATED = replace(PI, name="board", emulated=True)
SUMMARY = Summary(1e6, 0.9e6, 0.98e6, 1.02e6, "prediction", 0.01, 1e6, 5, 98, {"clock": 2}, None, 0.004, 2048, 12.5)
KERNEL = KernelKey("conv", "{h: 32}", "(4, 16)", "aarch64+neon", 1000, 64)
TIME = KernelTime(1234.5, 0.01, 0.002, "runtime", "2026-01-31T12:00:00.000000+00:00")


def plan(device: int, **changes: object) -> SessionPlan:
    fields = {"purpose": "bench", "artifact": "a" * 64, "name": "net", "settings": {"threads": 1}, "bevel": "0", "runtime": "r"}
    return SessionPlan(device, **fields | changes)  # type: ignore[arg-type]


def blocks(process: int, count: int = 3) -> list[Block]:
    return [Block(process, index, 100, 1e6 + index, 1e6, 9e5, 5e4, 0, 1_500_000, 45_000, 3.5) for index in range(count)]


def finished(store: Store, **changes: object) -> Session:
    session = store.begin(plan(store.device(PI), **changes), {"governor": "performance"})
    store.add_blocks(session, blocks(0))
    store.finish(session, SUMMARY)
    return session


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.sqlite")


def test_a_session_comes_back_as_it_went_in(store: Store) -> None:
    device = store.device(PI)
    assert store.device(PI) == device, "the same machine has one row"
    session = store.begin(plan(device), {"governor": "performance", "boot_id": "b"})
    store.set_canary(session, 5e4)
    for block in blocks(0) + blocks(1):
        store.add_block(session, block)
    store.add_block(session, replace(blocks(0)[1], rejected="clock"))
    assert store.blocks(session) == [blocks(0)[0], replace(blocks(0)[1], rejected="clock"), blocks(0)[2], *blocks(1)]
    store.finish(session, SUMMARY)
    [row] = store.history("pi", "net")
    assert (row.device, row.summary) == (PI, SUMMARY)
    assert row.session == replace(session, canary_ns=5e4, state="finished")
    assert store.history("other") == store.history("pi", "other") == []
    assert store.history(artifact="aaaaaa") == [row], "found by the beginning of its hash"
    assert store.repeated_medians(device, timedelta(days=1)) == [[(1e6, 0.01, 5)]]


def test_layers_come_back_in_order(store: Store) -> None:
    layers = [LayerTime(step, f"conv{step}", "Conv", "vnni", "int8", 10, 20, 1.5, 2.5 if step else None) for step in range(3)]
    session = store.begin(plan(store.device(PI), purpose="profile"), {})
    store.finish_profile(session, layers[::-1])
    assert store.layers(session) == layers
    assert store.history()[0].summary is None


def test_kernels_by_content_device_and_runtime(store: Store) -> None:
    device, other = store.device(PI), store.device(replace(PI, kernel="6.6.0"))
    later = replace(TIME, ns=1200.0, date="2026-02-01T12:00:00.000000+00:00")
    newer = replace(TIME, runtime="newer")
    for time in (TIME, TIME, later, newer):
        store.add_kernel(KERNEL, device, time)
    assert store.kernel_times(KERNEL, device, "runtime") == [later, TIME]
    assert store.kernel_times(replace(KERNEL, tile="(8, 16)"), device) == []
    assert store.kernel_times(KERNEL, other) == [], "another kernel release is another device"
    assert [time for _, time in store.kernels(device)] == [newer, TIME, later]
    assert {key for key, _ in store.kernels(device)} == {KERNEL}


def test_an_unfinished_session_is_found_by_what_it_measures(store: Store) -> None:
    device = store.device(PI)
    session = store.begin(plan(device), {})
    assert store.unfinished(plan(device), timedelta(hours=1)) == session
    for change in (
        {"artifact": "b" * 64},
        {"settings": {"threads": 2}},
        {"runtime": "s"},
        {"bevel": "1"},
        {"purpose": "profile"},
    ):
        assert store.unfinished(plan(device, **change), timedelta(hours=1)) is None, change
    assert store.unfinished(plan(store.device(EMULATED)), timedelta(hours=1)) is None
    assert store.unfinished(plan(device), timedelta(0)) is None, "too old"
    anew = store.begin(plan(device), {})
    assert store.unfinished(plan(device), timedelta(hours=1)) == anew
    store.finish(anew, SUMMARY)
    assert store.unfinished(plan(device), timedelta(hours=1)) is None, "the one before was abandoned when this one began"


def test_emulated_times_are_refused_whoever_writes(store: Store) -> None:
    device = store.device(EMULATED)
    session = store.begin(plan(device), {})
    store.add_blocks(session, blocks(0))
    assert store.blocks(session) == blocks(0), "the journal to resume from"
    with pytest.raises(UsageError, match="board is emulated"):
        store.finish(session, SUMMARY)
    with pytest.raises(UsageError, match="board is emulated"):
        store.finish_profile(session, [])
    with pytest.raises(UsageError, match="board is emulated"):
        store.add_kernel(KERNEL, device, TIME)
    statements = [
        f"INSERT INTO results VALUES ({session.id}, 1, 1, 1, 1, 'x', 0, 1, 1, 1, '{{}}', NULL, 0, 0, 0)",
        f"INSERT INTO layers VALUES ({session.id}, 0, '', '', '', '', 0, 0, 1, NULL)",
        f"UPDATE sessions SET state = 'finished' WHERE id = {session.id}",
        f"INSERT INTO kernel_times VALUES (1, {device}, 'r', 'd', 1, 0, 0)",
    ]
    with sqlite3.connect(store.path) as foreign:
        for statement in statements:
            with pytest.raises(sqlite3.IntegrityError, match="emulated device are not measurements"):
                foreign.execute(statement)
    assert store.history() == []
    store.discard(session)
    assert store.blocks(session) == []


def test_unknown_devices_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="not in the store"):
        store.add_kernel(KERNEL, 77, TIME)
    with pytest.raises(StoreError, match="refused a row"):
        store.begin(plan(77), {})


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    session = store.begin(plan(store.device(PI)), {})
    with pytest.raises(StoreError, match="refused a row"):
        store.add_blocks(session, [blocks(0)[0], replace(blocks(0)[1], calls=0)])
    assert store.blocks(session) == []


_WRITER = """
import sys
from pathlib import Path
from bevel.devices.measurements import Block, DeviceFingerprint, SessionPlan
from bevel.devices.store import Store
path, who = Path(sys.argv[1]), int(sys.argv[2])
with Store.open(path) as store:
    device = store.device(DeviceFingerprint("pi", "aarch64", "A72", ("neon",), "6", "m"))
    session = store.begin(SessionPlan(device, "bench", f"{who}", "net", {}, "0", "r"), {})
    for index in range(100):
        store.add_block(session, Block(0, index, 1, 1.0 + index))
"""


def test_several_processes_make_and_fill_one_store(tmp_path: Path) -> None:
    """Four processes open a file that is not there and write 100 blocks each; none is lost."""
    path = tmp_path / "new" / "store.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), str(who)]) for who in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM devices").fetchone() == (1,)
        assert raw.execute("SELECT count(*) FROM sessions").fetchone() == (4,)
        assert raw.execute("SELECT count(*) FROM blocks").fetchone() == (400,)
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_threads_share_a_store(store: Store) -> None:
    session = store.begin(plan(store.device(PI)), {})
    threads = [threading.Thread(target=lambda p=p: [store.add_block(session, b) for b in blocks(p, 50)]) for p in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.blocks(session)) == 200


def test_a_locked_store_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PATIENCE_S", 0.05)
    with Store.open(store.path) as impatient, sqlite3.connect(store.path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked by another program"):
            impatient.device(PI)
        other.execute("ROLLBACK")


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_text("these are no measurements, " * 100)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(path)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(path, read_only=True)
    with Store.open(tmp_path / "torn.sqlite") as store:
        finished(store)
    whole = (tmp_path / "torn.sqlite").read_bytes()
    (tmp_path / "torn.sqlite").write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    with pytest.raises(StoreError, match="damaged"), Store.open(tmp_path / "torn.sqlite") as store:
        store.history()


def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(StoreError, match="not a measurement store"):
        Store.open(path)


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old file gains what later scripts add and keeps its rows; a newer one is refused; a reader changes nothing."""
    path = tmp_path / "store.sqlite"
    with Store.open(path) as store:
        finished(store)
    later = (*store_schema.MIGRATIONS, "ALTER TABLE devices ADD COLUMN note TEXT;\nUPDATE devices SET note = 'kept';")
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", later)
        with pytest.raises(StoreError, match="older bevel"):
            Store.open(path, read_only=True)
        with Store.open(path) as store:
            assert len(store.history()) == 1
        with sqlite3.connect(path) as raw:
            assert raw.execute("SELECT note FROM devices").fetchall() == [("kept",)]
    with pytest.raises(StoreError, match="newer bevel"):
        Store.open(path)


def test_a_failing_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    with Store.open(path) as store:
        finished(store)
    with monkeypatch.context() as patch:
        script = "CREATE TABLE extra (a TEXT);\nINSERT INTO nowhere VALUES (1);"
        patch.setattr(store_module, "MIGRATIONS", (*store_schema.MIGRATIONS, script))
        with pytest.raises(StoreError, match="nowhere"):
            Store.open(path)
    with Store.open(path) as store:
        assert len(store.history()) == 1


def test_readers_write_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "none.sqlite", read_only=True) as empty:
        assert empty.history() == []
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "store.sqlite"
    with Store.open(path) as store:
        finished(store)
    with Store.open(path, read_only=True) as reader:
        assert len(reader.history()) == 1
        with pytest.raises(StoreError, match="cannot be opened or written"):
            reader.device(replace(PI, name="new"))


_DYING = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
for number in range(200):
    connection.execute(f"CREATE TABLE t{number} (a TEXT)")
os.kill(os.getpid(), 9)
"""


def test_a_store_whose_maker_was_killed_is_empty(tmp_path: Path) -> None:
    """Killed in the middle of its first transaction: readers and writers find an empty store, not an error."""
    path = tmp_path / "store.sqlite"
    assert subprocess.run([sys.executable, "-c", _DYING, str(path)], check=False).returncode == -9
    assert path.with_name("store.sqlite-journal").exists()
    with Store.open(path, read_only=True) as reader:
        assert reader.history() == []
    with Store.open(path) as writer:
        finished(writer)
    with Store.open(path, read_only=True) as reader:
        assert len(reader.history()) == 1


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = tmp_path / "locked"
    folder.mkdir()
    with Store.open(folder / "store.sqlite") as store:
        finished(store)
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with Store.open(folder / "store.sqlite", read_only=True) as reader:
            assert len(reader.history()) == 1
    finally:
        folder.chmod(stat.S_IRWXU)


def test_the_store_follows_bevel_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))
    with Store.open() as store:
        assert store.path == store_path() == tmp_path / "home" / "store.sqlite"
    monkeypatch.setenv("BEVEL_HOME", "/proc/nowhere")
    with pytest.raises(StoreError, match="BEVEL_HOME"):
        Store.open()


# Import and export -----------------------------------------------------------------------------------------------------


def fill(store: Store) -> None:
    finished(store)
    profile = store.begin(plan(store.device(PI), purpose="profile"), {"governor": None})
    store.finish_profile(profile, [LayerTime(0, "conv", "Conv", "vnni", "int8", 10, 20, 1.5)])
    store.add_kernel(KERNEL, store.device(PI), TIME)
    store.begin(plan(store.device(PI), artifact="c" * 64), {})
    journal = store.begin(plan(store.device(EMULATED)), {})
    store.add_blocks(journal, blocks(0))


def dump(store: Store) -> tuple[object, object, object]:
    rows = [
        (row.device, replace(row.session, id=0, plan=replace(row.session.plan, device=0)), row.summary) for row in store.history()
    ]
    details = [(store.blocks(row.session), store.layers(row.session)) for row in store.history()]
    return rows, details, [store.kernels(device) for device, known in store.devices().items() if not known.emulated]


def test_merging_is_idempotent(store: Store, tmp_path: Path) -> None:
    fill(store)
    assert store.export(tmp_path / "all.jsonl") == 3
    with Store.open(tmp_path / "other.sqlite") as other:
        other.device(replace(PI, name="unrelated"))
        added = other.merge(tmp_path / "all.jsonl")
        assert (added.sessions, added.kernel_times) == (2, 1)
        again = other.merge(tmp_path / "all.jsonl")
        assert (again.sessions, again.kernel_times) == (0, 0)
        assert dump(other)[:2] == dump(store)[:2]
        finished(other, name="local")
        other.export(tmp_path / "back.jsonl")
    assert store.merge(tmp_path / "back.jsonl").sessions == 1, "what was exported before is known"
    assert [path.name for path in tmp_path.glob(".*")] == [], "no partial file"


def test_exports_hold_no_emulated_session_and_no_unfinished_one(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.export(tmp_path / "all.jsonl")
    text = (tmp_path / "all.jsonl").read_text()
    assert '"board"' not in text
    assert "c" * 64 not in text


@pytest.mark.parametrize(
    ("find", "put", "message"),
    [
        ('"version":1', '"version":2', "line 1: expected format"),
        ('"emulated":false', '"emulated":true', "line 2: pi is emulated"),
        ('"calls":100', '"calls":0', "line 3: values that cannot be"),
        ('"calls":100', '"calls":"many"', "line 3: calls is 'many'"),
        ('"wall_ns":1000000.0', '"wall_ns":NaN', "NaN is not a number"),
        ('"wall_ns":1000000.0', '"wall_ns":null', "wall_ns is None"),
        ('"on":"', '"on":"x', "is not described by a line before"),
        ('"started":"2', '"started":"x', "are dates in UTC"),
        ('"kernel":{', '"colonel":{', "expected a device, a session or a kernel"),
        ('{"blocks"', '{{"blocks"', "line 3: not JSON"),
        ('"layers":[]', '"layers":0', "layers is a list"),
    ],
)
def test_a_damaged_file_is_refused_whole(store: Store, tmp_path: Path, find: str, put: str, message: str) -> None:
    fill(store)
    path = tmp_path / "all.jsonl"
    store.export(path)
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, put, 1))
    with Store.open(tmp_path / "other.sqlite") as other:
        with pytest.raises(UsageError, match=message):
            other.merge(path)
        assert other.history() == []
        assert other.devices() == {}


def test_files_that_cannot_be_read_or_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is empty"):
        store.merge(tmp_path / "empty")
    with pytest.raises(UsageError, match="not JSON"):
        store.merge(tmp_path / "binary")
    with pytest.raises(UsageError, match="cannot read"):
        store.merge(tmp_path / "nothing")
    with pytest.raises(UsageError, match="cannot write"):
        store.export(tmp_path / "nowhere" / "file")


def test_dates_sort_as_text() -> None:
    assert now() <= now()
    assert now().endswith("+00:00")
