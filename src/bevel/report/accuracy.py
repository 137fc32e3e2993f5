"""Accuracy of the artifact beside its baseline's, with standard errors."""

from __future__ import annotations

import math

from bevel.report.findings import Findings
from bevel.report.markup import note, number, table, text


def accuracy(findings: Findings) -> str:
    """A table of what `bevel eval` found; nothing where it did not run."""
    found = findings.evaluation
    if not found:
        return ""
    n, value, base, agreement = found["n"], found["value"], found.get("baseline"), found.get("agreement")
    name = {"top1": "top-1", "agreement": "agreement with the baseline"}.get(found["metric"], found["metric"])
    rows = [_row(f"artifact: {name}", value, _binomial(value, n))]
    if base is not None:
        rows.append(_row(f"baseline: {name}", base["value"], _binomial(base["value"], n)))
        rows.append(
            _row("change", value - base["value"], found.get("change_se") or paired_error(value - base["value"], agreement, n))
        )
    if agreement is not None and found["metric"] != "agreement":
        rows.append(_row("same choice as the baseline", agreement, _binomial(agreement, n)))
    heads = ["<th scope=col>", "<th scope=col class=n>value</th>", "<th scope=col class=n>standard error</th>"]
    plain = table(f"On {n} samples, {found.get('device', 'the device')}", heads, rows).replace(" class=sortable", "")
    return plain + note(
        "The change's standard error is that of paired samples: both saw the same ones, so only those on which they choose "
        "differently count. It is an upper bound, since some of these are wrong either way."
        if base is not None and agreement is not None
        else f"{text(n)} samples."
    )


def paired_error(change: float, agreement: float | None, n: int) -> float | None:
    """Upper bound of the standard error of a difference of two accuracies on the same `n` samples (McNemar, 1947).

    The variance is (b + c - (b - c)^2 / n) / n^2 with b and c the samples that only one of them gets right; b + c is at most
    the number on which they choose differently.
    """
    if agreement is None or n == 0:
        return None
    return math.sqrt(max(0.0, (1 - agreement) - change**2) / n)


def _binomial(share: float, n: int) -> float | None:
    return math.sqrt(share * (1 - share) / n) if n else None


def _row(name: str, value: float, error: float | None) -> str:
    sign = "+" if name == "change" else ""
    unit = "points" if name == "change" else "%"
    cells = number(value, f"{100 * value:{sign}.2f} {unit}") + number(
        error, None if error is None else f"{100 * error:.2f} points"
    )
    return f"<th scope=row>{text(name)}</th>{cells}"
