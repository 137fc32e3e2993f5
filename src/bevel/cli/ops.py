"""`bevel ops`: the op table."""

from __future__ import annotations

import click

from bevel.cli import options
from bevel.cli.output import emit, table
from bevel.ir.ops import table as op_table

COLUMNS = ("op", "levels", "integer form", "quantization", "pruning", "what it computes")


def cells() -> list[tuple[str, str, str, str, str, str]]:
    """The table's rows as text."""
    return [
        (
            op.name,
            ", ".join(sorted(level.value for level in op.levels)),
            op.integer or "-",
            op.quant.value,
            op.prune.value,
            op.doc,
        )
        for op in op_table()
    ]


def markdown() -> str:
    """The op table as docs/ops.md holds it; the conformance table follows there."""
    lines = [
        "# Operators",
        "",
        "Generated from the op table (`ir/ops`). FLOAT operators carry ONNX names; an integer form of `-` means the operator",
        "stays a float island in a quantized graph. What the columns mean is in `ir/ops/op.py`; which ONNX spellings are",
        "accepted, in `frontend/onnx_ops`.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells()]
    return "\n".join(lines) + "\n"


@click.command("ops")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table of docs/ops.md.")
@options.universal
def command(as_markdown: bool, as_json: bool, verbose: bool) -> None:
    """List every operator: where it may stand, what it becomes at INTEGER level, how it quantizes and prunes.

    \b
    bevel ops
    bevel ops --json
    """
    if as_markdown:
        click.echo(markdown(), nl=False)
        return
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
    emit(as_json, {"ops": rows}, [table("operators", COLUMNS, cells())])
