"""manifest.json: what every artifact says about itself, and the check that a manifest from elsewhere says it in these types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bevel.errors import ArtifactError
from bevel.runtime.codegen import DTYPES

FORMAT = "bevel-artifact"
FORMAT_VERSION = 4
MANIFEST = "manifest.json"
GRAPH_FILE = "graph.ir.zst"
CORE_FILES = frozenset({"lib/libmodel.so", "lib/libmodel.a", "bin/bevel-run", "include/model.h", "example.c", "weights.bin"})

# `dims` names the dimension that is the extent of each axis, "" where it is fixed; `shape` then holds its bound.
_TENSOR = {"name": str, "shape": [int], "dims": [str], "dtype": str, "scale": float, "zero_point": int}
_LAYER = {"name": str, "op": str, "kernel": str, "symbol": str, "bits": str, "macs": int, "bytes": int}
_TARGET = {"name": str, "arch": str, "cpu": str, "triple": str, "features": [str], "required_features": [str]}
# A list holds one element's shape; the key "*" stands for any key.
_SCHEMA: dict[str, Any] = {
    "name": str,
    "target": _TARGET,
    "graph_hash": str,
    "level": str,
    "integer_only": bool,
    "float_islands": [str],
    "dims": [{"name": str, "lo": int, "hi": int}],
    "states": [{"input": str, "output": str}],
    "inputs": [_TENSOR],
    "outputs": [_TENSOR],
    "layers": [_LAYER],
    "arena_bytes": int,
    "scratch_bytes": int,
    "bytes": {"library": int, "weights": int, "total": int},
    "toolchain": str,
    "runner": str,
    "runtime": str,
    "golden_cases": int,
    "provenance": {"*": object},
    "files": {"*": {"bytes": int, "sha256": str}},
}


def kernel_calls(layer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The kernel calls of one of the manifest's layers: the members of a cascade, else the layer itself."""
    return list(layer.get("members", (layer,)))


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of artifact directory `root`, with every field the writer makes present and of its type.

    Raises:
        ArtifactError: not an artifact, of another format version, or a field is missing or of another type; names it.
    """
    path = root / MANIFEST
    if not root.is_dir():
        found = "not a directory" if root.exists() else "does not exist"
        raise ArtifactError(f"{root}: {found}; expected an artifact NAME.bevel/")
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(f"{root}: not a bevel artifact (it has no {MANIFEST})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); copy or compile the artifact again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(f"{path}: not the manifest of a bevel artifact")
    if manifest.get("format_version") != FORMAT_VERSION:
        found = repr(manifest.get("format_version"))
        raise ArtifactError(f"{path}: format version {found}, this bevel reads {FORMAT_VERSION}; compile the model again")
    wrong = _first_mismatch(manifest, _SCHEMA, "")
    if wrong is None:
        for tensor in (*manifest["inputs"], *manifest["outputs"]):
            dims = {"", *(dim["name"] for dim in manifest["dims"])}
            known = len(tensor["dims"]) == len(tensor["shape"]) and dims.issuperset(tensor["dims"])
            if tensor["dtype"] not in DTYPES or any(dim < 0 for dim in tensor["shape"]) or not known:
                wrong = f"the type of tensor {tensor['name']!r}"
        types = [
            {tensor["name"]: (tensor["dtype"], tensor["shape"], tensor["scale"]) for tensor in manifest[side]}
            for side in ("inputs", "outputs")
        ]
        for state in manifest["states"]:
            if state["input"] not in types[0] or types[0][state["input"]] != types[1].get(state["output"]):
                wrong = f"state {state['input']!r}"
    if wrong is not None:
        raise ArtifactError(f"{path}: {wrong} is missing or not what bevel writes; compile the model again")
    absent = CORE_FILES - manifest["files"].keys()
    if absent:
        raise ArtifactError(f"{path}: lists no {', '.join(sorted(absent))}; compile the model again")
    return manifest


def _first_mismatch(value: Any, schema: Any, where: str) -> str | None:
    """Where `value` first differs from `schema`, or None."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"field {where!r}"
        items = value.items() if "*" in schema else ((key, value.get(key)) for key in schema)
        pairs = [(entry, schema.get(key, schema.get("*")), f"{where}.{key}".lstrip(".")) for key, entry in items]
    elif isinstance(schema, list):
        if not isinstance(value, list):
            return f"field {where!r}"
        pairs = [(entry, schema[0], f"{where}[{index}]") for index, entry in enumerate(value)]
    else:
        # JSON writes 1.0 as 1 in some tools, and True is an int to isinstance.
        kinds = (int, float) if schema is float else schema
        fits = isinstance(value, kinds) and (schema in (bool, object) or not isinstance(value, bool))
        return None if fits else f"field {where!r}"
    return next((wrong for entry, inner, at in pairs if (wrong := _first_mismatch(entry, inner, at))), None)
