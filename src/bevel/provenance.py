"""What the manifest says of an artifact's making: versions, options and passes, what calibration saw, why layers stayed float."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bevel import __version__
from bevel.ir.graph import Graph, Level
from bevel.passes.pipeline import print_pipeline
from bevel.runtime.manifest import read_manifest

if TYPE_CHECKING:
    from bevel.compiler import Options, Trace


def _calibration(options: Options) -> dict[str, Any] | None:
    if options.calibration is None:
        return None
    return {"method": options.calibration_method(), "samples": options.samples, "bias_correction": options.bias_correction}


def findings(graph: Graph, model: Path, trace: Trace) -> dict[str, Any]:
    """Manifest fields `ranges` (`Observation`) and `islands` (`IslandLayer`); those of an artifact compiled again stay."""
    if model.is_dir():
        source = read_manifest(model)
        return {name: source.get(name, []) for name in ("ranges", "islands")}
    from bevel.passes.quantize.islands import explain_islands

    islands = explain_islands(graph, trace.kept) if graph.level is Level.INTEGER else []
    return {"ranges": [asdict(row) for row in trace.observed], "islands": [asdict(row) for row in islands]}


def provenance(model: Path, options: Options, key: str, trace: Trace) -> dict[str, Any]:
    """Manifest field `provenance`: what the artifact of that `key` was made from, and by what."""
    from importlib import metadata

    return {
        "bevel": __version__,
        "tvm": metadata.version("apache-tvm"),
        "model": model.name,
        "key": key,
        "bits": str(options.precision()),
        "pipeline": print_pipeline(trace.applied),
        "calibration": _calibration(options),
        "plan": json.loads(options.plan.dumps()) if options.plan is not None else None,
    }
