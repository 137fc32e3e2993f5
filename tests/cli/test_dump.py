"""--dump-ir-after prints graphs on stderr, and the pipeline that ran stands in the manifest."""

from __future__ import annotations

from pathlib import Path

from bevel.ir.graph import Level
from bevel.ir.serialize import loads
from bevel.ir.text import parse_graph
from bevel.passes.pipeline import parse_pipeline
from bevel.runtime.artifact import Artifact
from tests.cli.conftest import KWS, Bevel


def test_one_pass_is_printed_and_stdout_stays_json(bevel: Bevel, tmp_path: Path) -> None:
    done = bevel("compile", KWS, "--device", "host", "--dump-ir-after", "to-integer", "-o", tmp_path / "m.bevel", "--json")
    assert done.code == 0
    assert done.json["integer_only"] is True
    heading, _, text = done.err.partition("\n")
    assert heading == "// after to-integer"
    # Large constants are named, not printed: take them from the artifact.
    graph = loads(Artifact.open(tmp_path / "m.bevel").graph_bytes())
    printed = parse_graph(text, {value.name: value.array for value in graph.constants})
    assert printed.level is Level.INTEGER
    assert [node.op for node in printed.nodes] == [node.op for node in graph.nodes]


def test_every_pass_is_printed_in_the_order_of_the_manifest(bevel: Bevel, tmp_path: Path) -> None:
    done = bevel("compile", KWS, "--device", "host", "--dump-ir-after", "all", "-o", tmp_path / "m.bevel")
    assert done.code == 0
    printed = [line.removeprefix("// after ") for line in done.err.splitlines() if line.startswith("// after ")]
    pipeline = Artifact.open(tmp_path / "m.bevel").manifest["provenance"]["pipeline"]
    assert printed == [step.name for step in parse_pipeline(pipeline)]
    assert printed[-1] == "to-integer"


def test_unknown_pass_is_refused(bevel: Bevel, tmp_path: Path) -> None:
    done = bevel("compile", KWS, "--device", "host", "--dump-ir-after", "fold-everything", "-o", tmp_path / "m.bevel")
    assert done.code == 2
    assert "fold-everything" in done.err
    assert not (tmp_path / "m.bevel").exists()
