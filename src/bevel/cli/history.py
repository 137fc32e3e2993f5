"""`bevel devices history`: what has been measured, and measurements from and to other machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bevel.cli import options
from bevel.cli.output import emit, table
from bevel.devices.measurements import HistoryRow
from bevel.devices.store import Store
from bevel.errors import UsageError
from bevel.runtime.artifact import Artifact

_EXCHANGE = ("export", "import")


@click.command("history")
@click.argument("words", nargs=-1, metavar="[NAME | export FILE | import FILE]")
@click.option(
    "--artifact", metavar="NAME|HASH|PATH", help="Only this artifact: its name, its hash as --json shows it, or NAME.bevel."
)
@click.option("--limit", type=click.IntRange(1), default=30, show_default=True, help="Newest sessions to show.")
@options.universal
def command(words: tuple[str, ...], artifact: str | None, limit: int, as_json: bool, verbose: bool) -> None:
    """Show what `bevel bench` and `bevel profile` measured, newest first; on device NAME only when given.

    The store is $BEVEL_HOME/store.sqlite (docs/measuring.md). Importing a file twice adds nothing twice.

    \b
    bevel devices history
    bevel devices history kitchen-pi --artifact model.bevel
    bevel devices history export measurements.jsonl
    bevel devices history import measurements.jsonl
    """
    if words and words[0] in _EXCHANGE:
        if len(words) != 2:
            raise UsageError(f"history {words[0]}: expected one file, for example: bevel devices history {words[0]} all.jsonl")
        _exchange(words[0], Path(words[1]), as_json)
        return
    if len(words) > 1:
        raise UsageError(f"history {' '.join(words)}: expected one device name, `export FILE` or `import FILE`")
    with Store.open(read_only=True) as store:
        found = store.history(words[0] if words else None, _artifact(artifact))
    shown = found[:limit]
    document = {"store": str(store.path), "total": len(found), "sessions": [_document(row) for row in shown]}
    if not found:
        emit(
            as_json,
            document,
            ["nothing measured yet: bevel bench ARTIFACT" if not (words or artifact) else "nothing measured of that"],
        )
        return
    columns = ("date (UTC)", "device", "artifact", "what", "threads", "median ms", "95 % interval", "blocks", "")
    text: list[Any] = [table("measurements", columns, [_row(row) for row in shown])]
    if len(found) > len(shown):
        text.append(f"{len(found) - len(shown)} older: --limit {len(found)}")
    emit(as_json, document, text)


def _exchange(verb: str, path: Path, as_json: bool) -> None:
    if verb == "export":
        with Store.open(read_only=True) as store:
            count = store.export(path)
        emit(as_json, {"exported": count, "file": str(path)}, [f"{count} measurements in {path}"])
        return
    with Store.open() as store:
        merged = store.merge(path)
    document = {"imported": {"sessions": merged.sessions, "kernel_times": merged.kernel_times}, "file": str(path)}
    emit(as_json, document, [f"{merged.sessions} sessions and {merged.kernel_times} kernel times were new"])


def _artifact(text: str | None) -> str | None:
    """Name or hash to look for; a path stands for the name of the artifact there."""
    return Artifact.open(text, verify=False).name if text is not None and Path(text).is_dir() else text


def _row(row: HistoryRow) -> Sequence[object]:
    plan, summary = row.session.plan, row.summary
    head = (row.session.started[:16].replace("T", " "), row.device.name, plan.name, _what(row), plan.settings.get("threads"))
    if summary is None:
        return (*head, None, "-", None, "")
    interval = f"{summary.lo_ns / 1e6:.4g} to {summary.hi_ns / 1e6:.4g}"
    return (*head, summary.median_ns / 1e6, interval, summary.blocks, f"unstable: {summary.unstable}" if summary.unstable else "")


def _what(row: HistoryRow) -> str:
    settings = row.session.plan.settings
    extents = [f"{name}={extent}" for name, extent in settings.get("dims", {}).items()]
    return " ".join([row.session.plan.purpose, *(["cold"] if settings.get("cold") else []), *extents])


def _document(row: HistoryRow) -> dict[str, Any]:
    plan, summary = row.session.plan, row.summary
    result = None
    if summary is not None:
        result = {
            "median": summary.median_ns / 1e6,
            "p10": summary.p10_ns / 1e6,
            "interval": {"lo": summary.lo_ns / 1e6, "hi": summary.hi_ns / 1e6, "kind": summary.interval},
            "cpu": summary.cpu_ns / 1e6 if summary.cpu_ns is not None else None,
            "unstable": summary.unstable,
            "processes": summary.processes,
            "blocks": summary.blocks,
            "rejected": dict(summary.rejected),
        }
    return {
        "session": row.session.uuid,
        "device": row.device.name,
        "cpu": row.device.cpu,
        "kernel": row.device.kernel,
        "machine": row.device.machine,
        "purpose": plan.purpose,
        "artifact": plan.artifact,
        "name": plan.name,
        "settings": dict(plan.settings),
        "bevel": plan.bevel,
        "runtime": plan.runtime,
        "conditions": dict(row.session.conditions),
        "started": row.session.started,
        "finished": row.finished,
        "latency_ms": result,
    }
