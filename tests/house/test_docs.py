"""Generated documents are current, and documents name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bevel.cli.ops import markdown

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "models" / "README.md", ROOT / "src" / "README.md"]
# A path in backquotes: at least one folder, no spaces or placeholders.
PATH = re.compile(r"`((?:[a-z_.]+/)+[a-zA-Z0-9_.]*)`")


def test_op_table_document_is_current() -> None:
    # The conformance table follows; its test is in tests/conformance.
    message = "run: python -m benchmarks.conformance.onnx_node --artifacts --write"
    assert (ROOT / "docs" / "ops.md").read_text().startswith(markdown()), message


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_documents_exist(document: Path) -> None:
    # Parts of an artifact and of a home folder are named like paths, too.
    inside = ("lib/", "bin/", "include/", "selftest/")
    named = [p for p in PATH.findall(document.read_text()) if not p.startswith(inside) and "FAMILY" not in p]
    assert [p for p in named if not (ROOT / p).exists() and not (document.parent / p).exists()] == []
