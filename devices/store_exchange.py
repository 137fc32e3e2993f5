"""Measurements from one store to another: a portable text file, one JSON object a line.

The first line names the format; then devices, finished sessions with their blocks, results and layers, and kernels with their
times follow. Rows are named by content (digests, session uuids), never by number, so importing a file twice, or files that
overlap, adds each measurement once. Unfinished sessions and emulated devices stay at home.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from sqlite3 import Connection, IntegrityError
from typing import Any, NoReturn, get_args, get_type_hints

from bevel.devices.measurements import (
    Block,
    DeviceFingerprint,
    KernelKey,
    KernelTime,
    LayerTime,
    SessionPlan,
    Summary,
    canonical_json,
)
from bevel.devices.store import Store, device_row, insert_statement, kernel_row
from bevel.errors import UsageError

FORMAT, VERSION = "bevel-measurements", 1
# SQLite's integers.
_INT_BITS = 63
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")


@dataclass(frozen=True)
class Merged:
    """How many sessions and kernel times an import added."""

    sessions: int
    kernel_times: int


def export_store(store: Store, path: Path) -> int:
    """Write every finished measurement to `path`, whole or not at all.

    Returns:
        Number of sessions and kernel times written.

    Raises:
        UsageError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    count = -1
    try:
        with partial.open("w", encoding="utf-8") as stream:
            for line in _lines(store):
                stream.write(canonical_json(line) + "\n")
                count += "device" not in line
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def merge_file(store: Store, path: Path) -> Merged:
    """Add what `path` holds and the store does not; all of it or, where a line is wrong, nothing.

    Raises:
        UsageError: no such file, or not one that `export_store` wrote; names the line.
    """
    try:
        stream = path.open(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    sessions = times = 0
    devices: dict[str, int] = {}
    where = str(path)
    with stream, store.transaction() as sql:
        try:
            for number, entry in _entries(path, stream):
                where = f"{path}, line {number}"
                if number == 1:
                    if entry.get("format") != FORMAT or entry.get("version") != VERSION:
                        _wrong(where, f"expected format {FORMAT!r}, version {VERSION}")
                elif "device" in entry:
                    fingerprint = _decode(DeviceFingerprint, entry["device"], where)
                    if fingerprint.emulated:
                        _wrong(where, f"{fingerprint.name} is emulated: its times are not measurements")
                    devices[fingerprint.digest] = device_row(sql, fingerprint)
                elif "session" in entry:
                    sessions += _merge_session(sql, entry, devices, where)
                elif "kernel" in entry:
                    times += _merge_kernel(sql, entry, devices, where)
                else:
                    _wrong(where, "expected a device, a session or a kernel")
        except IntegrityError as error:
            _wrong(where, f"values that cannot be ({error})")
    return Merged(sessions, times)


def _lines(store: Store) -> Iterator[dict[str, Any]]:
    """The file's objects in order."""
    yield {"format": FORMAT, "version": VERSION}
    known = {row: device for row, device in store.devices().items() if not device.emulated}
    for device in known.values():
        yield {"device": asdict(device)}
    for found in reversed(store.history()):
        session = found.session
        plan = {key: value for key, value in asdict(session.plan).items() if key != "device"}
        facts = {"uuid": session.uuid, "started": session.started, "finished": found.finished, "canary_ns": session.canary_ns}
        yield {
            "session": plan | facts | {"conditions": dict(session.conditions)},
            "on": found.device.digest,
            "blocks": [asdict(block) for block in store.blocks(session)],
            "result": asdict(found.summary) if found.summary is not None else None,
            "layers": [asdict(layer) for layer in store.layers(session)],
        }
    for row, device in known.items():
        for key, time in store.kernels(row):
            yield {"kernel": asdict(key), "on": device.digest, "time": asdict(time)}


def _entries(path: Path, stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects."""
    number = 0
    try:
        for number, line in enumerate(stream, 1):
            entry = json.loads(line, parse_constant=lambda name: _wrong(path, f"{name} is not a number"))
            if not isinstance(entry, dict):
                _wrong(f"{path}, line {number}", "expected an object")
            yield number, entry
    except (ValueError, RecursionError) as error:
        _wrong(f"{path}, line {number + isinstance(error, UnicodeDecodeError)}", f"not JSON ({error})")
    if number == 0:
        _wrong(path, "the file is empty")


def _merge_session(sql: Connection, entry: Mapping[str, Any], devices: Mapping[str, int], where: str) -> int:
    """Insert a session unless it is there; 1 when it was new."""
    device = _device(devices, entry, where)
    facts = entry["session"]
    if not isinstance(facts, dict):
        _wrong(where, "a session is an object")
    plan = _decode(SessionPlan, {key: facts.get(key) for key in _names(SessionPlan)} | {"device": device}, where)
    values = asdict(plan) | {"settings": canonical_json(plan.settings), "conditions": canonical_json(facts.get("conditions"))}
    for key in ("uuid", "started", "finished"):
        values[key] = _decode_value(facts.get(key), str, where, key)
    if not (_DATE.fullmatch(values["started"]) and _DATE.fullmatch(values["finished"])):
        _wrong(where, "started and finished are dates in UTC, such as 2026-01-31T12:00:00.000000+00:00")
    values["canary_ns"] = _decode_value(facts.get("canary_ns"), float | None, where, "canary_ns")
    names = list(values)
    added = sql.execute(
        f"INSERT OR IGNORE INTO sessions ({', '.join(names)}, state) VALUES ({', '.join(':' + n for n in names)}, 'finished')",
        values,
    )
    if not added.rowcount:
        return 0
    owner = {"session": added.lastrowid}
    blocks = [asdict(_decode(Block, block, where)) | owner for block in _list(entry, "blocks", where)]
    layers = [asdict(_decode(LayerTime, layer, where)) | owner for layer in _list(entry, "layers", where)]
    sql.executemany(insert_statement("blocks", Block), blocks)
    sql.executemany(insert_statement("layers", LayerTime), layers)
    if entry.get("result") is not None:
        summary = _decode(Summary, entry["result"], where)
        sql.execute(
            insert_statement("results", Summary), asdict(summary) | owner | {"rejected": canonical_json(summary.rejected)}
        )
    return 1


def _merge_kernel(sql: Connection, entry: Mapping[str, Any], devices: Mapping[str, int], where: str) -> int:
    """Insert a kernel's time unless it is there; 1 when it was new."""
    kernel, time = _decode(KernelKey, entry["kernel"], where), _decode(KernelTime, entry.get("time"), where)
    row = {"kernel": kernel_row(sql, kernel), "device": _device(devices, entry, where)}
    return sql.execute(insert_statement("kernel_times", KernelTime, "INSERT OR IGNORE", tuple(row)), asdict(time) | row).rowcount


def _device(devices: Mapping[str, int], entry: Mapping[str, Any], where: str) -> int:
    digest = entry.get("on")
    if not isinstance(digest, str) or digest not in devices:
        _wrong(where, f"device {digest!r} is not described by a line before")
    return devices[digest]


def _list(entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = entry.get(key)
    if not isinstance(found, list):
        _wrong(where, f"{key} is a list")
    return found


def _names(record: type[Any]) -> list[str]:
    return [column.name for column in fields(record)]


def _decode(record: type[Any], value: object, where: str) -> Any:
    """A record from a JSON object that holds its fields, each of its type."""
    if not isinstance(value, dict):
        _wrong(where, f"expected the fields of a {record.__name__}")
    found = {name: _decode_value(value.get(name), hint, where, name) for name, hint in get_type_hints(record).items()}
    return record(**found)


def _decode_value(value: Any, hint: Any, where: str, name: str) -> Any:
    choices = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if value is None and type(None) in choices:
        return None
    kind = choices[0]
    if kind in (str, bool) and type(value) is kind:
        return value
    if kind is int and type(value) is int and abs(value) < 2**_INT_BITS:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if str(kind).startswith("tuple") and isinstance(value, list) and all(type(part) is str for part in value):
        return tuple(value)
    if "Mapping" in str(kind) and isinstance(value, dict):
        return value
    _wrong(where, f"{name} is {value!r:.80}")


def _wrong(where: object, what: str) -> NoReturn:
    raise UsageError(f"{where}: {what}; expected a file that `bevel devices history export` wrote")
