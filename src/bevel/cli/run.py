"""`bevel run`: an artifact computes outputs from inputs."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from bevel.cli import options
from bevel.cli.output import emit, table
from bevel.data import load_arrays, save_arrays
from bevel.devices.runner import DeviceRunner
from bevel.errors import UsageError
from bevel.runtime.artifact import Artifact


@click.command("run")
@options.artifact_argument
@click.option("--input", "inputs", multiple=True, metavar="[NAME=]FILE.npy", help="An input; repeat for each. Or one .npz.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the outputs to this .npz.")
@click.option("--selftest", is_flag=True, help="Prove on the device that it computes the artifact's golden outputs.")
@options.device()
@options.threads
@options.universal
def command(
    artifact: Path,
    inputs: tuple[str, ...],
    output: Path | None,
    selftest: bool,
    device: str | None,
    threads: int,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run ARTIFACT on its device: over SSH if the profile has an address, here if this machine can, else emulated.

    \b
    bevel run model.bevel --input image.npy -o out.npz
    bevel run model.bevel --device pi.toml --selftest
    """
    opened = Artifact.open(artifact)
    if not inputs and not selftest:
        raise UsageError("nothing to do: give --input FILE.npy for each input, or --selftest")
    arrays = _read(inputs, opened)
    if output is not None and not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: cannot be written: there is no directory {output.absolute().parent}")
    with options.open_transport(opened, device) as transport:
        runner = DeviceRunner(opened, transport, threads)
        document: dict[str, object] = {"device": transport.label, "emulated": transport.emulated}
        if selftest:
            document["selftest"] = runner.selftest()
        results = runner.run(arrays) if inputs else {}
    if output is not None and results:
        save_arrays(output, results)
    document["outputs"] = {
        name: {
            "shape": list(a.shape),
            "dtype": str(a.dtype),
            "min": a.min().item(),
            "max": a.max().item(),
            "argmax": int(a.argmax()),
        }
        for name, a in results.items()
    }
    rows = [(n, list(a.shape), a.dtype, a.min().item(), a.max().item(), int(a.argmax())) for n, a in results.items()]
    text: list[object] = [f"on {transport.label}" + (" (emulated)" if transport.emulated else "")]
    if selftest:
        text.append("self-test passed")
    if rows:
        text.append(table("outputs", ("name", "shape", "dtype", "min", "max", "argmax"), rows))
    emit(as_json, document, text)


def _read(pairs: tuple[str, ...], artifact: Artifact) -> dict[str, np.ndarray]:
    """Arrays by input name; a bare file serves the only input, an .npz names its own."""
    names = [str(t["name"]) for t in artifact.manifest["inputs"]]
    quantized = {str(t["name"]): t["scale"] != 0 for t in artifact.manifest["inputs"]}
    arrays: dict[str, np.ndarray] = {}
    for pair in pairs:
        name, separator, file = pair.rpartition("=")
        if not separator and file.endswith(".npz"):
            arrays.update(load_arrays(Path(file)))
            continue
        if not separator:
            needed = [n for n in names if n not in artifact.states]
            if len(needed) != 1:
                raise UsageError(f"--input {pair}: the model has inputs {names}; write NAME=FILE")
            name = needed[0]
        try:
            array = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"--input {pair}: not a readable .npy file ({error})") from error
        if not isinstance(array, np.ndarray):
            raise UsageError(f"--input {pair}: an archive; give an .npz without a name, its arrays named like the inputs")
        arrays[name] = array
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise UsageError(f"input {name!r}: dtype {array.dtype}, expected numbers")
        if array.dtype.kind == "f" and quantized.get(name) and np.isnan(array).any():
            raise UsageError(f"input {name!r} holds NaN, for which a quantized input has no code; correct the data")
    return arrays
