"""The page: its sections in order, its style and its script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bevel.report.accuracy import accuracy
from bevel.report.allocation import allocation
from bevel.report.conditions import conditions
from bevel.report.findings import Findings
from bevel.report.flow import flow, pipeline
from bevel.report.layers import layers
from bevel.report.markup import section, text
from bevel.report.memory import memory
from bevel.report.plan import plan, provenance
from bevel.report.prediction import prediction
from bevel.report.ranges import islands, ranges
from bevel.report.style import SCRIPT, STYLE
from bevel.report.summary import summary

# A browser that would fetch anything is told not to.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render(manifest: Mapping[str, Any], findings: Findings) -> str:
    """The report as HTML text."""
    title = f"{manifest['name']} for {manifest['target']['name']}"
    target = manifest["target"]
    cpu = f"{target['arch']}, {target['cpu']}, {' '.join(target['features'])}"
    parts = [
        f"<header><h1>{text(title)}</h1><p class=note>{text(cpu)}</p></header><main>",
        summary(manifest, findings),
        section("From model to device", flow(manifest, findings), pipeline(manifest)),
        section("Latency", conditions(findings)),
        section("Layers", layers(manifest, findings)),
        section("Predicted against measured", prediction(manifest, findings)),
        section("Accuracy", accuracy(findings)),
        section("Arena over the steps", memory(manifest)),
        section("Precision", plan(manifest)),
        section("Bits weighed", allocation(manifest)),
        section("Float islands", islands(manifest)),
        section("Calibrated ranges", ranges(manifest)),
        section("Provenance", provenance(manifest)),
        "</main>",
    ]
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}"><title>{text(title)}</title><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}<script>{SCRIPT}</script></body></html>\n"
    )
