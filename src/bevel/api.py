"""The Python interface: what the command line's verbs do, as functions. Reached as `bevel.compile`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bevel.compiler import Options, boundary_sides, compile_model, default_output
from bevel.data import save_arrays
from bevel.errors import UsageError
from bevel.exporting.torch_export import OPSET, TOLERANCE, Exported, ExportOptions, export_model
from bevel.ir.plan import DEFAULT_CALIBRATION, CompressionPlan, load_plan
from bevel.passes.preprocess import Preprocess
from bevel.preprocessing import load_preprocess
from bevel.runtime.artifact import Artifact
from bevel.tuning.options import Tuning


def compile(
    model: str | Path,
    *,
    device: str = "host",
    bits: str | None = None,
    plan: str | Path | CompressionPlan | None = None,
    calibration: str | Path | Mapping[str, npt.NDArray[np.generic]] | None = None,
    output: str | Path | None = None,
    samples: int = 256,
    method: str | None = None,
    weight_scales: str | None = None,
    rounding: str | None = None,
    weight_group: int | None = None,
    bias_correction: bool = True,
    dims: Mapping[str, int | tuple[int, int]] | None = None,
    custom_ops: Sequence[str] = (),
    preprocess: str | Path | Preprocess | None = None,
    pad_nms: bool = False,
    channels_last: str | None = None,
    float_outputs: bool = False,
    keep_float: Sequence[str] = (),
    states: Mapping[str, str] | None = None,
    tune: str = "cached",
    tune_budget: float | None = None,
) -> Artifact:
    """Compile a model into an artifact for one device; the same as `bevel compile`.

    Args:
        model: an .onnx file, a saved graph (.ir) or another artifact, whose integer graph is then compiled for `device`.
        device: profile name (`bevel devices` lists them) or path of a TOML file.
        bits: "fp32", "fp16", "8" (= "w8a8", integer-only), "wNaM" for weights of N and activations of M bits, or "auto-lowbit",
            "auto-lowbit:w4a8,w2a2" for the fastest of these in each layer (docs/quantization.md); default "8", or the plan's.
        plan: precision layer by layer, or the path of its JSON document; excludes `bits`, `method`,
            `weight_scales`, `rounding` and `weight_group`.
        calibration: arrays by input name, sample axis first, preprocessed as the model takes them; or the path of an .npz or of
            a directory of .npy files. A float model needs it for 8 bits.
        output: artifact directory; default MODEL.bevel in the current directory.
        samples: calibration samples to use at most.
        method: calibration method, for example "mse" or "percentile:99.9" (docs/calibration.md); default "percentile".
        weight_scales: "minmax", "mse" or "auto"; default "auto", least squared error below 4 bits and for groups.
        rounding: of weights of fewer than 8 bits: "nearest" or "gptq" (docs/quantization.md); default "nearest".
        weight_group: of inputs whose weights, of up to 4 bits, share an integer factor: 16, 32, 64 or 128; None for no groups.
        bias_correction: correct the biases of quantized layers on the calibration data.
        dims: of symbolic dimensions: an extent, or bounds (lo, hi) within which it is chosen at run time; a leading batch
            dimension is 1 unless given.
        custom_ops: "DOMAIN.OP=FILE.c" of each custom operator (docs/custom.md).
        preprocess: take camera frames: a preset's name, a .toml file or the pass itself (docs/preprocess.md).
        pad_nms: take NonMaxSuppression: a fixed number of rows, those left empty filled with -1 (docs/detectors.md).
        channels_last: "inputs", "outputs" or "both": images at the artifact's boundary are [N, H, W, C].
        float_outputs: outputs are float32, not codes.
        keep_float: patterns of layers to keep in float when the model is quantized.
        states: inputs whose bytes a run leaves the next, by name -> the outputs they come from (docs/states.md).
        tune: how kernels are chosen: "off", "cached", "fast" or "full", the last two by measuring on the device (docs/tuning.md).
        tune_budget: seconds after which no measurement begins; None for no limit.

    Returns:
        The artifact on disk; `bevel.runtime.host.HostModel` runs it in this process when it is for this machine.

    Raises:
        BevelError: a subclass of `bevel.errors` says what is wrong with the model, the data, the options or the toolchain.

    Example:
        >>> artifact = bevel.compile("model.onnx", device="raspberry-pi-4", calibration="images.npz")  # doctest: +SKIP
        >>> artifact.manifest["integer_only"]  # doctest: +SKIP
        True
    """
    if plan is not None and any(given is not None for given in (bits, method, weight_scales, rounding, weight_group)):
        raise UsageError(
            "a plan decides bits, calibration method, weight scales, groups and rounding: leave out bits, method, weight_scales, "
            "weight_group and rounding"
        )
    chosen = plan if isinstance(plan, CompressionPlan) or plan is None else load_plan(plan)
    target = Path(output) if output is not None else default_output(Path(model), device)
    with tempfile.TemporaryDirectory(prefix="bevel-calibration-") as folder:
        if isinstance(calibration, Mapping):
            for name, array in calibration.items():
                if not isinstance(array, np.ndarray):
                    raise UsageError(f"calibration {name!r} is {type(array).__name__}, expected a numpy array [samples, ...]")
            data: Path | None = save_arrays(Path(folder) / "calibration.npz", calibration)
        else:
            data = Path(calibration) if calibration is not None else None
        calibrate = method or DEFAULT_CALIBRATION
        options = Options(device, bits or "8", data, samples, calibrate, dict(dims or {}), chosen, tuple(custom_ops))
        options = dataclasses.replace(
            options,
            preprocess=load_preprocess(str(preprocess)) if isinstance(preprocess, str | Path) else preprocess,
            pad_nms=pad_nms,
            channels_last=boundary_sides(channels_last),
            float_outputs=float_outputs,
            keep_float=tuple(keep_float),
            weight_scales=weight_scales or "auto",
            rounding=rounding or "nearest",
            weight_group=weight_group,
            bias_correction=bias_correction,
            states=dict(states or {}),
            tuning=Tuning(tune, tune_budget),
        )
        artifact, _ = compile_model(model, target, options)
    return artifact


def export(
    source: object,
    output: str | Path,
    *,
    inputs: Mapping[str, str | npt.NDArray[np.generic]] | None = None,
    dims: Mapping[str, tuple[int, int]] | None = None,
    outputs: Sequence[str] = (),
    data: str | Path | Mapping[str, npt.NDArray[np.generic]] | None = None,
    samples: int = 32,
    task: str | None = None,
    head: str | None = None,
    random_weights: bool = False,
    exporter: str = "dynamo",
    opset: int = OPSET,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Exported:
    """Export a torch or transformers model to ONNX and prove that the file computes the same; the same as `bevel export`.

    Args:
        source: a torch module, `module:factory`, a .pt2 file, or a config.json or directory of transformers.
        output: ONNX file to write; nothing is written unless parity holds.
        inputs: for each input text (`"1,seq[1:256]:int64[0:30522]"`, docs/export.md) or an example array.
        dims: bounds of named dimensions, both inclusive.
        outputs: names of the outputs, in order; default the model's own.
        data: inputs to prove parity on besides random ones: arrays by name, sample axis first, or the path of such a file.
        samples: samples of `data` to use at most.
        task: head of a transformers model, for example "text-classification".
        head: head of a transformers model, by the name of its class.
        random_weights: draw weights that a transformers directory lacks.
        exporter: "dynamo", or "torchscript" for torch's older one.
        opset: ONNX operator set.
        tolerance: of max|d| / max|reference|, per output and case.
        seed: of random inputs and weights.

    Returns:
        The file, what it takes and gives, and the proof.

    Raises:
        ParityError: the exported file computes something else; its `error` says how far off it is.
        ExportError: the model cannot be loaded, run or exported.
        ToolchainError: torch, transformers or onnxruntime is missing; the extra `bevel[export]` has them.
        UsageError: the source, the inputs, the data or the options cannot be meant.

    Example:
        >>> exported = bevel.export(net, "net.onnx", inputs={"x": "1,3,224,224"})  # doctest: +SKIP
        >>> exported.proof.error < 1e-4  # doctest: +SKIP
        True
    """
    with tempfile.TemporaryDirectory(prefix="bevel-parity-") as folder:
        if isinstance(data, Mapping):
            path: Path | None = save_arrays(Path(folder) / "data.npz", data)
        else:
            path = Path(data) if data is not None else None
        options = ExportOptions(
            inputs=dict(inputs or {}),
            dims=dict(dims or {}),
            data=path,
            samples=samples,
            outputs=tuple(outputs),
            task=task,
            head=head,
            random_weights=random_weights,
            exporter=exporter,
            opset=opset,
            tolerance=tolerance,
            seed=seed,
        )
        return export_model(source, Path(output), options)
