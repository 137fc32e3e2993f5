"""Files that fuzzing made (`benchmarks/fuzz`): each gives a graph or one of bevel's errors, those that once did not included."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz.import_onnx import outcome
from benchmarks.fuzz.mutate import mutated

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.onnx"))


@pytest.mark.parametrize("file", CORPUS, ids=lambda path: path.stem)
def test_corpus(file: Path, tmp_path: Path) -> None:
    assert not outcome(file.read_bytes(), tmp_path / "case.onnx").startswith("FAILURE")


def test_corpus_holds_both_kinds_and_what_was_found() -> None:
    kinds = {path.stem.split("-")[0] for path in CORPUS}
    assert kinds == {"bytes", "structure", "found"}
    assert sum(path.stat().st_size for path in CORPUS) < 200_000


def test_a_seed_and_an_index_name_a_file() -> None:
    seeds = [path.read_bytes() for path in CORPUS if path.stem.startswith("structure")][:5]
    assert [mutated(seeds, 3, i) for i in range(20)] == [mutated(seeds, 3, i) for i in range(20)]
    assert len({mutated(seeds, 3, i) for i in range(20)}) > 15
