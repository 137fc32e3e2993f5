"""Every backend node case of ONNX: it computes what ONNX says, as graph and as machine code, or is refused by operator name."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache

import onnx
import pytest

from benchmarks.conformance.artifacts import judge_artifacts
from benchmarks.conformance.node_cases import NodeCase, Verdict, judge_all, load_cases, variants
from benchmarks.conformance.onnx_node import DOCUMENT, chosen_variants, rows, section

# Fewest cases that compute, so that support never shrinks unnoticed.
LEAST = 1150


@cache
def all_cases() -> list[NodeCase]:
    return load_cases()


@cache
def interpreted() -> list[Verdict]:
    with warnings.catch_warnings():
        # ONNX's own cases divide by zero on purpose.
        warnings.simplefilter("ignore", RuntimeWarning)
        return judge_all(list(variants(all_cases())))


@cache
def executed() -> list[Verdict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return judge_artifacts(chosen_variants(interpreted()))


def listed(verdicts: list[Verdict]) -> list[str]:
    return [f"{v.case.name}: {v.status}: {v.detail[:200]}" for v in verdicts]


def test_no_case_is_wrong_or_crashes() -> None:
    assert listed([v for v in interpreted() if v.status in ("wrong", "crash")]) == []


def test_refusals_name_the_operator_or_its_tensor() -> None:
    for verdict in interpreted():
        if verdict.status == "refused":
            kind, _, message = verdict.detail.partition(": ")
            assert kind == "UnsupportedOp", verdict.detail
            types = {node.op_type for node in verdict.case.model.graph.node}
            types |= {node.op_type for f in verdict.case.model.functions for node in f.node}
            # An expanded CastLike takes an input that no node reads: the message can only name that.
            unread = message.startswith(("input ", "tensor "))
            assert any(t in message for t in types) or "function" in message or unread, verdict.detail


def test_machine_code_computes_what_the_interpreter_does() -> None:
    assert listed([v for v in executed() if v.status in ("wrong", "crash")]) == []
    assert Counter(v.status for v in executed())["pass"] >= LEAST


def test_document_holds_these_results() -> None:
    text = DOCUMENT.read_text()
    if f"onnx {onnx.__version__}," not in text:
        pytest.skip(f"docs/ops.md was written with another version of onnx than {onnx.__version__}, whose cases differ")
    assert section(rows(all_cases(), executed())) in text, "run: python -m benchmarks.conformance.onnx_node --artifacts --write"
