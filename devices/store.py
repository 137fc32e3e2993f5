"""The measurement store: every time bevel has measured, in one sqlite file for benches, kernels and the cost model.

In: the records of `bevel.devices.measurements`. Out: the same. Blocks are written as they arrive, so that whatever ends a session
leaves what it had finished; a session of the same measurement can then go on (`Store.unfinished`). Any number of processes may
use the file at once. Times of emulated devices are never stored: their sessions keep a journal of blocks until they end, which no
query for measurements returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bevel.devices.measurements import (
    Block,
    DeviceFingerprint,
    HistoryRow,
    KernelKey,
    KernelTime,
    LayerTime,
    Session,
    SessionPlan,
    Summary,
    canonical_json,
)
from bevel.devices.store_schema import MIGRATIONS
from bevel.errors import StoreError, UsageError

if TYPE_CHECKING:
    from bevel.devices.store_exchange import Merged

# A writer waits this long for another's transaction; each takes milliseconds.
PATIENCE_S = 30.0
# SQLite's versions before 3.37 know no STRICT tables.
_OLDEST_SQLITE = (3, 37, 0)


def store_path() -> Path:
    """Where the store lives: `$BEVEL_HOME/store.sqlite`, by default ~/.config/bevel/store.sqlite."""
    home = os.environ.get("BEVEL_HOME")
    return (Path(home) if home else Path("~/.config/bevel").expanduser()) / "store.sqlite"


def now() -> str:
    """This moment as the store writes dates: ISO 8601, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Store:
    """An open store; use as a context manager. Safe for several threads.

    Every method raises `StoreError` when the file is damaged, locked for longer than `PATIENCE_S`, or cannot be written.

    Attributes:
        path: the file.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path | None = None, *, read_only: bool = False) -> Store:
        """Open the store, made when missing and brought to today's schema when older.

        Args:
            path: the file; `store_path()` by default.
            read_only: change nothing, not even the schema; a missing file is an empty store.

        Raises:
            StoreError: no database, damaged, locked, of a newer bevel, or (read-only) of an older one.
        """
        path = path or store_path()
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise StoreError(f"the measurement store needs SQLite 3.37 or newer, this Python has {sqlite3.sqlite_version}")
        try:
            if read_only:
                connection = _connect_read_only(path) if path.exists() else None
                store = cls(connection or _connect("file::memory:"), path)
                if connection is None:
                    store._migrate()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                store = cls(_connect(path.absolute().as_uri()), path)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}; set BEVEL_HOME to a folder you may write") from error
        except sqlite3.Error as error:
            raise _explain(path, error) from error
        try:
            store._prepare(read_only)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the file. Harmless when closed."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def export(self, path: Path) -> int:
        """Write every finished measurement to a portable file; see `bevel.devices.store_exchange.export_store`."""
        from bevel.devices.store_exchange import export_store

        return export_store(self, path)

    def merge(self, path: Path) -> Merged:
        """Add the measurements of such a file that are not here yet; see `bevel.devices.store_exchange.merge_file`."""
        from bevel.devices.store_exchange import merge_file

        return merge_file(self, path)

    # Devices and sessions ----------------------------------------------------------------------------------------------

    def device(self, fingerprint: DeviceFingerprint) -> int:
        """Row of a device, made when new. Emulated ones have a row too; storing a time for one is refused."""
        with self.transaction() as sql:
            return device_row(sql, fingerprint)

    def devices(self, name: str | None = None) -> dict[int, DeviceFingerprint]:
        """Known devices by row; those called `name` when given."""
        rows = self._query("SELECT * FROM devices WHERE ?1 IS NULL OR name = ?1 ORDER BY id", (name,))
        return {int(row["id"]): device_of(row) for row in rows}

    def begin(self, plan: SessionPlan, conditions: Mapping[str, Any]) -> Session:
        """Open a session; earlier open ones of the same plan are abandoned."""
        with self.transaction() as sql:
            sql.execute(
                "UPDATE sessions SET state = 'abandoned', finished = ? WHERE state = 'open' AND device = ? AND purpose = ? "
                "AND artifact = ? AND settings = ?",
                (now(), plan.device, plan.purpose, plan.artifact, canonical_json(plan.settings)),
            )
            name, started = uuid.uuid4().hex, now()
            values = asdict(plan) | {"settings": canonical_json(plan.settings), "conditions": canonical_json(conditions)}
            values |= {"uuid": name, "started": started, "state": "open"}
            names = ", ".join(f":{column}" for column in values)
            cursor = sql.execute(f"INSERT INTO sessions ({', '.join(values)}) VALUES ({names})", values)
            assert cursor.lastrowid is not None
            return Session(cursor.lastrowid, name, plan, dict(conditions), started, None, "open")

    def unfinished(self, plan: SessionPlan, within: timedelta) -> Session | None:
        """The open session of the same device, purpose, artifact and settings that began within that time; None if there is none.

        One that another version of bevel or of the runtime began is another measurement.
        """
        since = (datetime.now(UTC) - within).isoformat(timespec="microseconds")
        rows = self._query(
            "SELECT * FROM sessions WHERE state = 'open' AND device = ? AND purpose = ? AND artifact = ? AND settings = ? "
            "AND bevel = ? AND runtime = ? AND started >= ? ORDER BY started DESC LIMIT 1",
            (plan.device, plan.purpose, plan.artifact, canonical_json(plan.settings), plan.bevel, plan.runtime, since),
        )
        return session_of(rows[0]) if rows else None

    def set_canary(self, session: Session, canary_ns: float) -> None:
        """Note the canary's time that the session's blocks are held against."""
        with self.transaction() as sql:
            sql.execute("UPDATE sessions SET canary_ns = ? WHERE id = ?", (canary_ns, session.id))

    def add_block(self, session: Session, block: Block) -> None:
        """Store a block of an open session, durable when this returns."""
        self.add_blocks(session, [block])

    def add_blocks(self, session: Session, blocks: Iterable[Block]) -> None:
        """Store blocks; one that is there already is replaced, as when its verdict comes later."""
        with self.transaction() as sql:
            sql.executemany(
                insert_statement("blocks", Block, "INSERT OR REPLACE"), [asdict(b) | {"session": session.id} for b in blocks]
            )

    def blocks(self, session: Session) -> list[Block]:
        """Blocks of a session in the order they ran."""
        rows = self._query('SELECT * FROM blocks WHERE session = ? ORDER BY process, "index"', (session.id,))
        return [_record(Block, row) for row in rows]

    def finish(self, session: Session, summary: Summary) -> None:
        """Store the result and close the session.

        Raises:
            UsageError: the device is emulated.
        """
        self._refuse_emulated(session.plan.device)
        with self.transaction() as sql:
            values = asdict(summary) | {"session": session.id, "rejected": canonical_json(summary.rejected)}
            sql.execute(insert_statement("results", Summary), values)
            sql.execute("UPDATE sessions SET state = 'finished', finished = ? WHERE id = ?", (now(), session.id))

    def finish_profile(self, session: Session, layers: Sequence[LayerTime]) -> None:
        """Store the layers of a profile and close the session.

        Raises:
            UsageError: the device is emulated.
        """
        self._refuse_emulated(session.plan.device)
        with self.transaction() as sql:
            sql.executemany(insert_statement("layers", LayerTime), [asdict(layer) | {"session": session.id} for layer in layers])
            sql.execute("UPDATE sessions SET state = 'finished', finished = ? WHERE id = ?", (now(), session.id))

    def discard(self, session: Session) -> None:
        """Remove a session and its blocks: how one on an emulated device ends."""
        with self.transaction() as sql:
            sql.execute("DELETE FROM sessions WHERE id = ?", (session.id,))

    # Results -----------------------------------------------------------------------------------------------------------

    def history(self, device: str | None = None, artifact: str | None = None) -> list[HistoryRow]:
        """Finished sessions, newest first; of the device of that name, of the artifact of that name or beginning of its hash."""
        rows = self._query(
            "SELECT sessions.* FROM sessions JOIN devices ON devices.id = "
            "sessions.device WHERE state = 'finished' AND NOT emulated AND (?1 IS NULL OR devices.name = ?1) "
            "AND (?2 IS NULL OR sessions.name = ?2 OR (length(?2) >= 6 AND substr(artifact, 1, length(?2)) = ?2)) "
            "ORDER BY started DESC, sessions.id DESC",
            (device, artifact),
        )
        known = self.devices()
        found = []
        for row in rows:
            results = self._query("SELECT * FROM results WHERE session = ?", (row["id"],))
            summary = summary_of(results[0]) if results else None
            found.append(HistoryRow(known[row["device"]], session_of(row), summary, row["finished"]))
        return found

    def layers(self, session: Session) -> list[LayerTime]:
        """Layers of a profile, in the order of the schedule."""
        rows = self._query("SELECT * FROM layers WHERE session = ? ORDER BY step", (session.id,))
        return [_record(LayerTime, row) for row in rows]

    def repeated_medians(self, device: int, since: timedelta) -> list[list[tuple[float, float, int]]]:
        """Results that measure the same thing on a device: groups of (median_ns, spread, processes) of stable sessions.

        What the medians of a group differ by is what separates two sessions: the statistics take it for the drift between them.
        """
        start = (datetime.now(UTC) - since).isoformat(timespec="microseconds")
        rows = self._query(
            "SELECT artifact, settings, runtime, median_ns, spread, processes FROM results "
            "JOIN sessions ON sessions.id = session "
            "WHERE device = ? AND purpose = 'bench' AND unstable IS NULL AND started >= ? ORDER BY started",
            (device, start),
        )
        groups: dict[tuple[str, str, str], list[tuple[float, float, int]]] = {}
        for row in rows:
            key = (row["artifact"], row["settings"], row["runtime"])
            groups.setdefault(key, []).append((row["median_ns"], row["spread"], row["processes"]))
        return list(groups.values())

    # Kernels -----------------------------------------------------------------------------------------------------------

    def add_kernel(self, key: KernelKey, device: int, time: KernelTime) -> None:
        """Store one measurement of a kernel; the same one twice is stored once.

        Raises:
            UsageError: the device is emulated.
        """
        self._refuse_emulated(device)
        with self.transaction() as sql:
            kernel = kernel_row(sql, key)
            sql.execute(
                insert_statement("kernel_times", KernelTime, "INSERT OR IGNORE", ("kernel", "device")),
                asdict(time) | {"kernel": kernel, "device": device},
            )

    def kernel_times(self, key: KernelKey, device: int, runtime: str | None = None) -> list[KernelTime]:
        """Measurements of a kernel on a device, newest first; of one runtime when given."""
        rows = self._query(
            "SELECT kernel_times.* FROM kernel_times JOIN kernels ON kernels.id = kernel WHERE digest = ?1 AND device = ?2 "
            "AND (?3 IS NULL OR runtime = ?3) ORDER BY date DESC",
            (key.digest, device, runtime),
        )
        return [_record(KernelTime, row) for row in rows]

    def kernels(self, device: int, runtime: str | None = None) -> list[tuple[KernelKey, KernelTime]]:
        """Every measurement of every kernel on a device, oldest first: what a cost model learns from."""
        rows = self._query(
            "SELECT * FROM kernel_times JOIN kernels ON kernels.id = kernel WHERE device = ?1 AND (?2 IS NULL OR runtime = ?2) "
            "ORDER BY date, digest",
            (device, runtime),
        )
        return [(_record(KernelKey, row), _record(KernelTime, row)) for row in rows]

    # How ---------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: all of it or nothing."""
        with self._lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                if self._connection.in_transaction:  # A full disk has rolled back already.
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _query(self, statement: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        with self._lock, self._explained():
            return self._connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _explain(self.path, error) from error

    def _prepare(self, read_only: bool) -> None:
        """Check the file and its version; migrate unless read-only."""
        version = int(self._query("PRAGMA user_version")[0][0])
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path}: written by a newer bevel (schema {version}, this one knows {len(MIGRATIONS)}); update bevel"
            )
        if version == len(MIGRATIONS):
            return
        if read_only:
            raise StoreError(
                f"{self.path}: schema {version} of an older bevel, which a reader may not change; any `bevel bench` brings it to "
                f"{len(MIGRATIONS)}"
            )
        with self._explained():
            # Readers and the writer do not wait for each other; the mode stays with the file.
            self._connection.execute("PRAGMA journal_mode = WAL")
        self._migrate()

    def _migrate(self) -> None:
        """Run the scripts the file has not seen; of several processes at once, one does."""
        with self.transaction() as sql:
            version = int(sql.execute("PRAGMA user_version").fetchone()[0])
            if version == 0 and sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise StoreError(f"{self.path}: a database, but not a measurement store; move it away or set BEVEL_HOME")
            for script in MIGRATIONS[version:]:
                for statement in _statements(script):
                    sql.execute(statement)
            sql.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _refuse_emulated(self, device: int) -> None:
        rows = self._query("SELECT name, emulated FROM devices WHERE id = ?", (device,))
        if not rows:
            raise UsageError(f"device {device} is not in the store {self.path}; Store.device gives the row of a fingerprint")
        if rows[0]["emulated"]:
            raise UsageError(f"{rows[0]['name']} is emulated: its times are not measurements and are not stored")


def _connect(uri: str) -> sqlite3.Connection:
    # Transactions are begun and ended by hand, so a statement outside one commits at once.
    connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    # With WAL, NORMAL survives the death of any process; FULL would wait for the disk at every block.
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _connect_read_only(path: Path) -> sqlite3.Connection | None:
    """A connection that cannot write; None for a file without tables, whose maker was killed before they were there."""
    uri = path.absolute().as_uri()
    try:
        connection = _look(f"{uri}?mode=ro")
    except sqlite3.OperationalError:
        if os.access(path.parent, os.W_OK):
            # What a killed writer left half done is undone by whoever may write, and by no other.
            _look(uri).close()
            connection = _look(f"{uri}?mode=ro")
        elif not path.with_name(f"{path.name}-wal").exists():
            # In a folder that may not be written a WAL's index cannot be made, and is not needed where there is no WAL.
            connection = _look(f"{uri}?immutable=1")
        else:
            raise
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return connection
    connection.close()
    return None


def _look(uri: str) -> sqlite3.Connection:
    """A connection that has read the file once."""
    connection = _connect(uri)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _explain(path: Path, error: sqlite3.Error) -> StoreError:
    """What an error of sqlite means and what to do."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreError(f"{path}: locked by another program for over {PATIENCE_S:.0f} s; end it, then run the command again")
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return StoreError(f"{path}: damaged ({error}); move it away, and import an export of it if you have one")
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return StoreError(f"{path}: cannot be opened or written ({error}); check its permissions, or set BEVEL_HOME")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return StoreError(f"{path}: {error}; free some space on its disk")
    if name.startswith("SQLITE_CONSTRAINT"):
        return StoreError(f"{path}: refused a row ({error})")
    return StoreError(f"{path}: {error}")


def _statements(script: str) -> Iterator[str]:
    """Statements of a script; `executescript` would commit the transaction it runs in."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def insert_statement(table: str, record: type[Any], verb: str = "INSERT", owner: tuple[str, ...] = ("session",)) -> str:
    """Statement that inserts a record's fields and the row it belongs to."""
    names = [*owner, *(column.name for column in fields(record))]
    columns = ", ".join(f'"{name}"' for name in names)
    return f"{verb} INTO {table} ({columns}) VALUES ({', '.join(':' + name for name in names)})"


def _record(record: type[Any], row: sqlite3.Row) -> Any:
    return record(**{column.name: row[column.name] for column in fields(record)})


def device_of(row: sqlite3.Row) -> DeviceFingerprint:
    """A row of `devices`."""
    values = {column.name: row[column.name] for column in fields(DeviceFingerprint)}
    return DeviceFingerprint(**values | {"features": tuple(json.loads(row["features"])), "emulated": bool(row["emulated"])})


def session_of(row: sqlite3.Row) -> Session:
    """A row of `sessions`."""
    values = {column.name: row[column.name] for column in fields(SessionPlan)}
    plan = SessionPlan(**values | {"settings": json.loads(row["settings"])})
    return Session(row["id"], row["uuid"], plan, json.loads(row["conditions"]), row["started"], row["canary_ns"], row["state"])


def summary_of(row: sqlite3.Row) -> Summary:
    """A row of `results`."""
    values = {column.name: row[column.name] for column in fields(Summary)}
    return Summary(**values | {"rejected": json.loads(row["rejected"])})


def device_row(sql: sqlite3.Connection, fingerprint: DeviceFingerprint) -> int:
    """Row of a device, made when new."""
    values = asdict(fingerprint) | {"digest": fingerprint.digest, "features": canonical_json(fingerprint.features)}
    names = ", ".join(f":{name}" for name in values)
    sql.execute(f"INSERT OR IGNORE INTO devices ({', '.join(values)}) VALUES ({names})", values)
    return int(sql.execute("SELECT id FROM devices WHERE digest = ?", (fingerprint.digest,)).fetchone()[0])


def kernel_row(sql: sqlite3.Connection, key: KernelKey) -> int:
    """Row of a kernel, made when new."""
    names = [column.name for column in fields(KernelKey)]
    sql.execute(
        f"INSERT OR IGNORE INTO kernels (digest, {', '.join(names)}) VALUES (:digest, {', '.join(':' + n for n in names)})",
        asdict(key) | {"digest": key.digest},
    )
    return int(sql.execute("SELECT id FROM kernels WHERE digest = ?", (key.digest,)).fetchone()[0])
