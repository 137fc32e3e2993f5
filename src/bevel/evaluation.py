"""Accuracy of an artifact, and its agreement with a baseline.

In: an artifact on its device, a data set, optionally a baseline (model file or artifact). Out: top-1 accuracy where labels are
given, and the share of samples on which both choose the same class. Baseline models run in the numpy interpreter, which is the
semantics of their graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.compiler import Say, load_graph
from bevel.data import DataSet, Inputs, SampleFolder, inputs_of, open_data
from bevel.devices.runner import DeviceRunner
from bevel.devices.transport import Transport
from bevel.errors import UsageError
from bevel.ir import interp
from bevel.runtime.artifact import Artifact

Array = npt.NDArray[Any]

# Samples per call: bounds the memory of interpreter activations and of files sent to a board.
BATCH = 200


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        metric: "top1", or "agreement" without labels.
        value: of the artifact, 0 to 1.
        n: samples.
        baseline: the baseline's top-1; None without labels or baseline.
        agreement: share of equal top-1 choices; None without baseline.
    """

    metric: str
    value: float
    n: int
    baseline: float | None
    agreement: float | None


def artifact_inputs(artifact: Artifact) -> tuple[Inputs, ...]:
    """What a data set must provide for an artifact, whose batch axes have extent 1."""
    return tuple(
        Inputs(str(t["name"]), tuple(None if name else n for n, name in zip(t["shape"], t["dims"], strict=True)))
        for t in artifact.manifest["inputs"]
    )


def choices(outputs: Array, samples: int) -> Array:
    """Top-1 class of each sample: the last axis holds the classes."""
    best: Array = outputs.reshape(samples, -1).argmax(axis=1)
    return best


def evaluate(
    artifact: Artifact,
    transport: Transport,
    data: Path,
    *,
    baseline: Path | None = None,
    limit: int | None = None,
    say: Say | None = None,
) -> Evaluation:
    """Run `artifact` over `data` on a device and compare.

    Raises:
        UsageError: the data does not fit, or there are neither labels nor a baseline to compare with.
    """
    dataset = open_data(data, artifact_inputs(artifact))
    if dataset.labels is None and baseline is None:
        raise UsageError(f"{data}: holds no `label`; give --baseline MODEL to compare with")
    count = len(dataset) if limit is None else min(-(-limit // dataset.rows), len(dataset))
    runner = DeviceRunner(artifact, transport)
    name = str(artifact.manifest["outputs"][0]["name"])
    ours = _collect(dataset, count, lambda batch, n: choices(_run_batch(runner, batch)[name], n), "artifact", say)
    theirs = None
    if baseline is not None:
        theirs = _collect(dataset, count, _baseline(baseline, artifact), "baseline", say)
    labels = None if dataset.labels is None else np.asarray(dataset.labels[: count * dataset.rows])
    agreement = None if theirs is None else float((ours == theirs).mean())
    count *= dataset.rows
    if labels is None:
        assert agreement is not None
        return Evaluation("agreement", agreement, count, None, agreement)
    base = None if theirs is None else float((theirs == labels).mean())
    return Evaluation("top1", float((ours == labels).mean()), count, base, agreement)


def _collect(
    dataset: DataSet | SampleFolder,
    count: int,
    choose: Callable[[dict[str, Array], int], Array],
    stage: str,
    say: Say | None,
) -> Array:
    """Choices of every sample, batch by batch."""
    parts = []
    size = min(BATCH, dataset.most)
    for start in range(0, count, size):
        stop = min(start + size, count)
        batch = dataset.take(start, stop)
        for name, array in batch.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = start * dataset.rows + int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
                raise UsageError(f"{dataset.path}: sample {bad} of {name!r} holds NaN or infinity; correct the data")
        parts.append(choose(batch, (stop - start) * dataset.rows))
        if say is not None:
            say(stage, stop, count)
    return np.concatenate(parts)


def _run_batch(runner: DeviceRunner, batch: dict[str, Array]) -> dict[str, Array]:
    """Each sample in the shape the artifact takes; `bevel-run` walks the leading axis."""
    shaped = {}
    for spec in artifact_inputs(runner.artifact):
        array = batch[spec.name]
        # A batch has one size along every run-time extent: that of its arrays' last axes.
        own = array.shape[array.ndim - len(spec.shape) :]
        shaped[spec.name] = array.reshape(-1, *(o if n is None else n for n, o in zip(spec.shape, own, strict=True)))
    return runner.run(shaped, batch=True)


def _baseline(path: Path, artifact: Artifact) -> Callable[[dict[str, Array], int], Array]:
    """A function from a batch to the baseline's choices."""
    # Tables of a model may be as long as its bounds, so it needs those that the artifact has.
    bounds = {str(d["name"]): (int(d["lo"]), int(d["hi"])) for d in artifact.manifest["dims"]}
    # Outputs are compared element by element, so its rows are padded where those of the artifact are.
    padded = any(layer["op"] == "NonMaxSuppression" for layer in artifact.manifest["layers"])
    graph = load_graph(path, bounds if path.suffix == ".onnx" else None, pad_nms=padded)
    specs = {spec.name for spec in inputs_of(graph)}
    ours = {str(t["name"]) for t in artifact.manifest["inputs"]}
    if specs != ours:
        raise UsageError(f"baseline {path} takes {sorted(specs)}, the artifact {sorted(ours)}")
    output = graph.outputs[0].name
    symbolic = all(spec.shape[:1] == (None,) for spec in inputs_of(graph))

    def choose(batch: dict[str, Array], samples: int) -> Array:
        if symbolic:
            return choices(interp.run(graph, batch)[output], samples)
        singles = [interp.run(graph, {n: a[i : i + 1] for n, a in batch.items()})[output] for i in range(samples)]
        return np.concatenate([choices(single, 1) for single in singles])

    return choose
