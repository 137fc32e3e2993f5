"""`bevel ops`: the op table."""

from __future__ import annotations

import click

from bevel.cli import options
from bevel.cli.output import emit, table
from bevel.ir.ops import table as op_table


@click.command("ops")
@options.universal
def command(as_json: bool, verbose: bool) -> None:
    """List every operator: where it may stand, what it becomes at INTEGER level, how it quantizes and prunes.

    \b
    bevel ops
    bevel ops --json
    """
    rows = [
        {
            "name": op.name,
            "levels": sorted(level.value for level in op.levels),
            "integer": op.integer,
            "quantization": op.quant.value,
            "pruning": op.prune.value,
            "tolerance": op.tolerance,
            "doc": op.doc,
        }
        for op in op_table()
    ]
    cells = [(r["name"], ", ".join(r["levels"]), r["integer"], r["quantization"], r["pruning"], r["doc"]) for r in rows]  # type: ignore[arg-type]
    emit(as_json, {"ops": rows}, [table("operators", ("op", "levels", "integer form", "quantization", "pruning", ""), cells)])
