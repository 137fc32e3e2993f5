"""to-integer of a residual block, before and after in the text form."""

from __future__ import annotations

from pathlib import Path

from bevel.ir.text import parse_graph, print_graph
from bevel.passes.quantize import ToInteger

GOLDEN = Path(__file__).parent / "golden"


def test_residual_block_lowers_to_the_golden_text() -> None:
    graph = parse_graph((GOLDEN / "residual.annotated.txt").read_text(), {})
    assert print_graph(ToInteger().run(graph)) == (GOLDEN / "residual.integer.txt").read_text()
