"""ONNX conformance: `python -m benchmarks.conformance.onnx_node [OP ...] [--verbose]`.

Judges all node cases of the installed onnx package (`node_cases`) and prints a table per operator.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter, defaultdict

from benchmarks.conformance.node_cases import Verdict, judge_all, load_cases, variants


def main() -> None:
    """Run the cases of the named operators, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", nargs="*", help="only cases whose first node is one of these, or whose name contains it")
    parser.add_argument("--verbose", action="store_true", help="print every case that does not pass")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    cases = [c for c in load_cases() if not arguments.op or any(o == c.op or o in c.name for o in arguments.op)]
    verdicts = judge_all(list(variants(cases)))
    by_op: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_op[verdict.case.op].append(verdict)
    for op in sorted(by_op):
        print(f"{op:28}", dict(Counter(v.status for v in by_op[op])))
        for verdict in by_op[op]:
            if verdict.status in ("wrong", "crash") or (arguments.verbose and verdict.status != "pass"):
                print(f"    {verdict.case.name}: {verdict.status}: {verdict.detail[:220]}")
    passed = {v.case.name.removesuffix(" frozen") for v in verdicts if v.status == "pass"}
    print(f"{len(cases)} cases, {len(passed)} pass in one variant or both;", dict(Counter(v.status for v in verdicts)))


if __name__ == "__main__":
    main()
