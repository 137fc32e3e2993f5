"""Every verb's --json document: exactly the keys docs/json.md promises, of the promised types, alone on stdout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import KWS, KWS_INPUT, ROOT, Bevel, save

NUMBER = (int, float)
MAYBE = (*NUMBER, type(None))
LATENCY = {"median": NUMBER, "p10": NUMBER, "ci95": [NUMBER], "cpu": MAYBE}
INTERVAL = {"lo": NUMBER, "hi": NUMBER, "kind": str}
CONDITIONS = {
    "governor": (str, type(None)),
    "khz": MAYBE,
    "temperature_c": MAYBE,
    "boot_id": str,
    "load": MAYBE,
}
DEVICE = {
    "name": str,
    "description": str,
    "arch": str,
    "cpu": str,
    "features": [str],
    "cores": int,
    "clock_ghz": NUMBER,
    "address": (str, type(None)),
    "core_kinds": [{"name": str, "cpus": [int], "max_ghz": (int, float, type(None))}],
    "probed": (str, type(None)),
    "peaks": {"fp32_gmacs": NUMBER, "int8_gmacs": NUMBER, "provenance": str, "bandwidth_gbs": {"*": NUMBER}},
}
SCHEMAS: dict[str, Any] = {
    "compile": {
        "artifact": str,
        "device": str,
        "bytes": {"library": int, "weights": int, "total": int},
        "arena_bytes": int,
        "integer_only": bool,
        "float_islands": [str],
        "islands": [
            {"layer": str, "op": str, "reason": str, "macs": int, "bytes": int, "macs_share": NUMBER, "bytes_share": NUMBER}
        ],
        "layers": [{"name": str, "op": str, "kernel": str, "bits": str, "chosen": str}],
        "tuning": {"source": str, "macs": {"*": int}},
        "seconds": NUMBER,
    },
    "run": {
        "device": str,
        "emulated": bool,
        "outputs": {"*": {"shape": [int], "dtype": str, "min": NUMBER, "max": NUMBER, "argmax": int}},
        "selftest": {"*": object},
    },
    "bench --against": {
        "artifact": str,
        "device": str,
        "latency_ms": LATENCY,
        "dims": {"*": int},
        "threads": int,
        "provenance": str,
        "unstable": bool,
        "why_unstable": (str, type(None)),
        "disturbed": NUMBER,
        "interval": INTERVAL,
        "conditions": CONDITIONS | {"pinned": [int], "canary_spread": MAYBE, "rejected": {"*": int}},
        "cache": str,
        "isa": (str, type(None)),
        "error": MAYBE,
        "peers": {
            "*": {
                "latency_ms": LATENCY,
                "ratio": NUMBER,
                "error": MAYBE,
                "computes_something_else": bool,
                "cpu_ratio": NUMBER,
                "version": (str, type(None)),
                "isa": (str, type(None)),
                "capped": bool,
            }
        },
        "left_out": [str],
    },
    "bench": {
        "artifact": str,
        "device": str,
        "latency_ms": LATENCY,
        "dims": {"*": int},
        "threads": int,
        "provenance": str,
        "unstable": bool,
        "why_unstable": (str, type(None)),
        "disturbed": NUMBER,
        "interval": INTERVAL,
        "conditions": CONDITIONS | {"pinned": [int], "canary_spread": MAYBE, "rejected": {"*": int}},
        "cache": str,
        "rss_mib": MAYBE,
        "energy_mj": MAYBE,
        "start_ms": {"median": NUMBER, "p10": NUMBER, "n": int},
        "resumed": int,
        "peers": {"*": object},
    },
    "bench --watch": {
        "artifact": str,
        "device": str,
        "threads": int,
        "provenance": str,
        "dims": {"*": int},
        "pinned": [int],
        "watch": {
            "seconds": NUMBER,
            "median_ms": NUMBER,
            "worst_ms": NUMBER,
            "slowdown": NUMBER,
            "throttled": (int, type(None)),
            "temperature_c": (list, type(None)),
            "points": [{"s": NUMBER, "ms": NUMBER, "mhz": MAYBE, "temperature_c": MAYBE, "canary": MAYBE}],
        },
        "plot": str,
        "data": str,
    },
    "profile": {
        "device": str,
        "provenance": str,
        "dims": {"*": int},
        "threads": int,
        "total_ms": NUMBER,
        "whole_ms": NUMBER,
        "timer_overhead": NUMBER,
        "clock_ns": NUMBER,
        "predicted_ms": NUMBER,
        "conditions": CONDITIONS,
        "layers": [
            {
                "name": str,
                "op": str,
                "kernel": str,
                "bits": str,
                "macs": int,
                "ms": NUMBER,
                "share": NUMBER,
                "predicted_ms": MAYBE,
            }
        ],
    },
    "eval": {"device": str, "metric": str, "value": NUMBER, "n": int, "baseline": {"value": NUMBER}, "agreement": NUMBER},
    "cost": {
        "device": str,
        "provenance": str,
        "layers": [{"name": str, "op": str, "macs": int, "bits": {"*": {"ms": NUMBER, "lo": NUMBER, "hi": NUMBER}}}],
        "total_ms": {"*": NUMBER},
    },
    "devices": {"devices": [DEVICE]},
    "doctor": {
        "subject": str,
        "ok": bool,
        "checks": [{"name": str, "ok": bool, "required": bool, "found": str, "purpose": str, "remedy": str}],
    },
    "ops": {
        "ops": [
            {
                "name": str,
                "levels": [str],
                "integer": (str, type(None)),
                "quantization": str,
                "pruning": str,
                "tolerance": NUMBER,
                "doc": str,
            }
        ]
    },
}


def differences(value: Any, schema: Any, at: str = "") -> Iterator[str]:
    """Where a document is not what a schema says; a list's one entry stands for all, "*" for any key."""
    if isinstance(schema, dict):
        if not isinstance(value, dict) or ("*" not in schema and value.keys() != schema.keys()):
            yield f"{at}: {sorted(value) if isinstance(value, dict) else value!r}, expected {sorted(schema)}"
            return
        for key, entry in value.items():
            yield from differences(entry, schema.get(key, schema.get("*")), f"{at}.{key}")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{at}: {value!r} is no list"
            return
        for index, entry in enumerate(value):
            yield from differences(entry, schema[0], f"{at}[{index}]")
    elif not isinstance(value, schema) or (isinstance(value, bool) and schema not in (bool, object)):
        yield f"{at}: {value!r}, expected {schema}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {KWS_INPUT: 20 * rng.standard_normal((16, 49, 10, 1)).astype(np.float32), "label": np.arange(16) % 12}
    return save(tmp_path / "data.npz", arrays)


def commands(kws: Path, data: Path, tmp_path: Path) -> dict[str, list[object]]:
    np.save(tmp_path / "x.npy", np.zeros((1, 49, 10, 1), np.float32))
    return {
        "compile": [KWS, "--device", "host", "-o", tmp_path / "out.bevel"],
        "run": [kws, "--selftest", "--input", tmp_path / "x.npy", "-o", tmp_path / "out.npz"],
        "bench --against": [kws, "--against", "onnxruntime", "--model", KWS, "--processes", 1],
        "bench": [kws, "--processes", 1, "--blocks", 2, "--time-limit", 1, "--start"],
        "bench --watch": [kws, "--watch", 0.01, "--plot", tmp_path / "seen.svg"],
        "profile": [kws, "--runs", 5],
        "eval": [kws, "--data", data, "--baseline", KWS],
        "cost": [ROOT / "models" / "resnet8_cifar10_float.onnx", "--device", "raspberry-pi-4"],
        "devices": [],
        "doctor": ["--device", "host"],
        "ops": [],
    }


@pytest.mark.parametrize("verb", SCHEMAS)
def test_document_has_the_documented_keys(verb: str, kws: Path, data: Path, tmp_path: Path, bevel: Bevel) -> None:
    if verb == "bench --against":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'bevel[peers]'")
    result = bevel(verb.partition(" ")[0], *commands(kws, data, tmp_path)[verb], "--json")
    assert result.code == 0, result
    assert list(differences(result.json, SCHEMAS[verb])) == []
    assert result.err == "", "a pipe gets no progress"


@pytest.mark.parametrize("verb", SCHEMAS)
def test_every_key_is_documented(verb: str) -> None:
    """docs/json.md names every key that the schema above holds, in the verb's own row."""
    text = (ROOT / "docs" / "json.md").read_text()
    row = re.search(rf"^\| {re.escape(verb)} \|(.*)$", text, re.MULTILINE)
    assert row is not None

    def keys(schema: Any) -> Iterator[str]:
        if isinstance(schema, dict):
            for key, inner in schema.items():
                yield from [] if key == "*" else [key]
                yield from keys(inner)
        elif isinstance(schema, list):
            yield from keys(schema[0])

    words = set(re.findall(r"\w+", row[1]))
    assert set(keys(SCHEMAS[verb])) - words == set()


def test_values_of_compile_and_run(kws: Path, data: Path, tmp_path: Path, bevel: Bevel) -> None:
    args = commands(kws, data, tmp_path)
    compiled = bevel("compile", *args["compile"], "--json").json
    assert compiled["integer_only"] is True
    assert compiled["bytes"]["total"] == compiled["bytes"]["library"] + compiled["bytes"]["weights"]
    assert (tmp_path / "out.bevel" / "report.html").is_file()
    run = bevel("run", *args["run"], "--json").json
    with np.load(tmp_path / "out.npz") as outputs:
        (name,) = outputs.files
        assert run["outputs"][name]["argmax"] == outputs[name].argmax()


def test_eval_of_a_quantized_model_agrees_with_its_own_graph(kws: Path, data: Path, bevel: Bevel) -> None:
    """The artifact and the interpreter compute the same integer graph: every choice is the same."""
    document = bevel("eval", kws, "--data", data, "--baseline", kws, "--json").json
    assert document["agreement"] == 1.0
    assert document["baseline"]["value"] == document["value"]
    assert document["n"] == 16


def test_a_probed_device_has_the_documented_keys(bevel: Bevel) -> None:
    """Of every emulated or real device: the keys of `devices add` and `devices probe` in docs/json.md."""
    document = bevel("devices", "probe", "host", "--quick", "--json").json
    (row,) = re.findall(r"^\| devices add, devices probe \| (.*) \|$", (ROOT / "docs" / "json.md").read_text(), re.MULTILINE)
    documented = set(re.findall(r"\w+", row))
    assert set(document) <= documented
    assert {key for part in ("clock", "counters") for key in document[part]} <= documented
    assert list(differences(document["profile"], DEVICE)) == []


def test_a_named_device_is_one_object(bevel: Bevel) -> None:
    assert list(differences(bevel("devices", "raspberry-pi-4", "--json").json, DEVICE)) == []


@pytest.mark.parametrize("verb", SCHEMAS)
def test_text_form_runs_without_escape_codes(verb: str, kws: Path, data: Path, tmp_path: Path, bevel: Bevel) -> None:
    if verb == "bench --against":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'bevel[peers]'")
    result = bevel(verb.partition(" ")[0], *commands(kws, data, tmp_path)[verb])
    assert result.code == 0, result
    assert "\x1b" not in result.out
    assert result.out.strip()
