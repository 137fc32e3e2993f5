"""The numbers of docs/numerics.md are what the code computes."""

from __future__ import annotations

import doctest
from pathlib import Path

DOC = Path(__file__).parents[3] / "docs" / "numerics.md"


def test_worked_example() -> None:
    result = doctest.testfile(str(DOC), module_relative=False)
    assert result.attempted >= 8
    assert result.failed == 0
