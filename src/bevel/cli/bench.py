"""`bevel bench`: latency on the device, alone or against peers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from bevel.benchmarking.host import Contest, measure_host
from bevel.benchmarking.peers.engines import CONTESTANTS, ISAS
from bevel.benchmarking.peers.preparation import find_peers, hold_to, reference_outputs
from bevel.benchmarking.protocol import LOCK_WAIT_S, Effort, Measurement, Protocol, session_facts
from bevel.benchmarking.statistics import Latency
from bevel.benchmarking.watch import Point, Watch, save
from bevel.cli import options
from bevel.cli.output import STDERR, emit, progress, table
from bevel.data import open_data
from bevel.devices.conditions import choose_cpus, sample
from bevel.devices.local import LocalTransport
from bevel.devices.profile import load_profile
from bevel.devices.runner import BenchOptions, DeviceRunner
from bevel.devices.store import Store
from bevel.devices.transport import Transport
from bevel.errors import UsageError
from bevel.evaluation import artifact_inputs
from bevel.frontend.onnx_file import read_onnx
from bevel.report import record
from bevel.runtime.artifact import Artifact

PROCESSES, BLOCKS, TIME_LIMIT_S, STARTS = 5, 20, 60.0, 20
# Emulated runs prove the road, not the speed: one short process suffices.
_EMULATED, _EMULATED_EFFORT = BenchOptions(blocks=3, block_ms=1, warmup_ms=1), Effort(processes=1, most=1)


@click.command("bench")
@options.artifact_argument
@options.device()
@options.threads
@options.seed
@click.option(
    "--against",
    metavar="PEER[,PEER]",
    default="",
    help=f"Measure other engines in the same run, installed when first named: {', '.join(CONTESTANTS)}.",
)
@click.option("--model", type=click.Path(path_type=Path), help="Model file for the peers.")
@click.option("--calib", type=click.Path(path_type=Path), help="Calibration data for peers in int8.")
@click.option("--isa", type=click.Choice(list(ISAS)), help="Hold peers to an instruction set; those that cannot be are left out.")
@click.option("--processes", type=click.IntRange(1), default=PROCESSES, show_default=True, help="Measuring processes, at least.")
@click.option("--blocks", type=click.IntRange(1), default=BLOCKS, show_default=True, help="Blocks of calls in each process.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    default=TIME_LIMIT_S,
    show_default=True,
    help="Seconds after which no more processes are started.",
)
@click.option("--pin", default="auto", show_default=True, metavar="auto|none|CPU,CPU", help="CPUs to stay on; auto: the fastest.")
@click.option("--cold", is_flag=True, help="Empty the caches before every call.")
@click.option("--start", is_flag=True, help="Measure a cold start as well: from starting the program to its first result.")
@click.option(
    "--watch", type=click.FloatRange(0, min_open=True), metavar="MINUTES", help="Watch latency, clock and heat so long."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Drawing of --watch.  [default: NAME.watch.svg]")
@click.option("--fresh", is_flag=True, help="Start anew instead of going on with an interrupted measurement.")
@options.dims
@options.report
@options.universal
def command(
    artifact: Path,
    device: str | None,
    threads: int,
    seed: int,
    against: str,
    model: Path | None,
    calib: Path | None,
    isa: str | None,
    processes: int,
    blocks: int,
    time_limit: float,
    pin: str,
    cold: bool,
    start: bool,
    watch: float | None,
    plot: Path | None,
    fresh: bool,
    dims: tuple[str, ...],
    report: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure the latency of ARTIFACT on its device.

    Processes of blocks are measured, and blocks that something disturbed are rejected, until the median is known to 2 % or the
    time is up. The interval says where the median of a later measurement will fall; docs/measuring.md has the rules. Interrupted,
    the same command goes on where it stopped. On this machine other engines run interleaved with the artifact (docs/peers.md).

    \b
    bevel bench model.bevel
    bevel bench model.bevel --against onnxruntime --model model.onnx
    bevel bench model.bevel --against openvino-int8,litert-int8 --model model.onnx --calib data.npz
    bevel bench model.bevel --device raspberry-pi-4 --threads 4
    bevel bench model.bevel --device raspberry-pi-4 --watch 10   # does it throttle? writes model.watch.svg
    bevel bench model.bevel --cold --start       # caches empty; from nothing to the first result
    bevel bench text.bevel --dim seq=32   # a size of an artifact compiled with --dim seq=1:256; without it the largest
    """
    opened = Artifact.open(artifact)
    extents = opened.extents(options.parse_extents(dims))
    names = list(dict.fromkeys(name.strip() for name in against.split(",") if name.strip()))
    cpus = parse_pin(pin, threads)
    if names and (cold or start or watch):
        raise UsageError("--against: peers are measured warm and running; leave out --cold, --start and --watch")
    if report and watch is not None:
        raise UsageError("--report: --watch has a drawing of its own; leave one of them out")
    if plot is not None and (watch is None or plot.suffix != ".svg"):
        raise UsageError(f"--plot {plot}: expected a file NAME.svg, for the drawing of --watch MINUTES")
    with options.open_transport(opened, device) as transport:
        runner = DeviceRunner(opened, transport, threads)
        given = BenchOptions(blocks=blocks, cold=cold, pin=cpus or (), dims=extents, limit_s=max(600.0, 4 * time_limit))
        bench = _Bench(runner, device or str(opened.manifest["target"]["name"]), given, cpus, seed, report)
        if watch is not None:
            bench.watch(watch, plot or Path(f"{opened.name}.watch.svg"), as_json)
        elif names:
            bench.contest(names, model, calib, isa, processes, as_json)
        else:
            bench.alone(Effort(processes, time_limit), fresh, start, as_json)


def parse_pin(text: str, threads: int) -> tuple[int, ...] | None:
    """CPUs of `--pin`: "auto" is None, "none" is no pinning, else a list such as "2,3".

    Raises:
        UsageError: none of these, or fewer CPUs than threads.
    """
    if text in ("auto", "none"):
        return None if text == "auto" else ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--pin {text}: expected auto, none, or CPUs such as 2,3")
    if len(set(parts)) < threads:
        raise UsageError(f"--pin {text}: {threads} threads need as many CPUs")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class _Bench:
    """One command's artifact, device and options."""

    runner: DeviceRunner
    device: str
    options: BenchOptions
    cpus: tuple[int, ...] | None
    seed: int
    report: bool

    @property
    def transport(self) -> Transport:
        return self.runner.transport

    def alone(self, effort: Effort, fresh: bool, start: bool, as_json: bool) -> None:
        """Measure the artifact by the protocol and print it."""
        emulated = self.transport.emulated
        given = _EMULATED if emulated else self.options
        given = BenchOptions(
            given.blocks, given.block_ms, given.warmup_ms, self.options.cold, self.options.pin, self.options.dims
        )
        with Store.open() as store, progress() as say:
            name = load_profile(self.device).name
            protocol = Protocol(self.runner, store, name, given, pin=self.cpus, fresh=fresh, say=say, note=_note)
            with _kept(protocol):
                found = protocol.run(_EMULATED_EFFORT if emulated else effort)
            starts = self._starts(3 if emulated else STARTS) if start else None
        document = self._document(found.latency, found.conditions, found.why_unstable) | {
            "cache": "cold" if self.options.cold else "warm",
            "rss_mib": found.rss_kib / 1024 if found.rss_kib is not None else None,
            "energy_mj": found.energy_mj,
            "resumed": found.resumed,
            "peers": {},
        }
        if starts is not None:
            document["start_ms"] = starts
        self._record(document)
        text = [self._table(found.latency, Contest(found.latency, {}, {}), ", caches cold" if self.options.cold else "")]
        text += [line for line in (_confidence(found.latency, found.conditions, found), _extras(found, starts)) if line]
        emit(as_json, document, [*text, *self._warnings(found.why_unstable)])

    def contest(
        self, names: list[str], model: Path | None, calib: Path | None, isa: str | None, processes: int, as_json: bool
    ) -> None:
        """Measure the artifact and peers interleaved and print them."""
        if not isinstance(self.transport, LocalTransport) or self.transport.emulated:
            raise UsageError(
                f"--against: peers are measured on this machine only, and the artifact runs on {self.transport.label}, where "
                "bevel installs no engines; compile it with --device host"
            )
        runner = self.runner
        kept, out = hold_to(names, isa, runner.artifact)
        inputs = bench_inputs(runner.artifact, model, calib, self.seed, self.options.dims)
        with progress() as say:
            peers = find_peers(kept, model, runner.artifact, inputs, calib, isa=isa, say=say)
            reference = reference_outputs(model, inputs, runner.artifact) if model is not None else None
            with self.transport.lock(f"bench of {runner.artifact.name}", LOCK_WAIT_S, _note):
                contest = measure_host(
                    runner.artifact,
                    inputs,
                    peers,
                    threads=runner.threads,
                    processes=processes,
                    reference=reference,
                    isa=isa,
                    say=say,
                )
        conditions = session_facts(sample(self.transport)) | {"pinned": [], "canary_spread": None, "rejected": {}}
        document = self._document(contest.ours, conditions, contest.ours.why_unstable) | {
            "cache": "warm",
            "isa": isa,
            "error": contest.errors.get("bevel"),
            "peers": contest.document(),
            "left_out": out,
        }
        self._record(document)
        text = [self._table(contest.ours, contest), *_about_peers(contest, isa, out), _confidence(contest.ours, conditions)]
        emit(as_json, document, [*text, *self._warnings(contest.ours.why_unstable)])

    def watch(self, minutes: float, plot: Path, as_json: bool) -> None:
        """Measure for minutes, draw what was seen, also when interrupted, and print where it is."""
        title = f"{self.runner.artifact.name} on {self.transport.label}, {_threads(self.runner.threads)}"
        pin = self.cpus if self.cpus is not None else choose_cpus(sample(self.transport).cpus, self.runner.threads)
        given = BenchOptions(cold=self.options.cold, pin=pin, dims=self.options.dims)
        with STDERR.status(f"{title}: warming up") as status:
            watch = Watch(self.runner, given, lambda point: status.update(f"{title}: {_live(point)}"), _note)
            try:
                seen = watch.run(minutes)
            finally:
                # What was seen is worth a drawing whatever ended it.
                data = save(watch.seen, title, plot) if watch.seen is not None else plot
        facts = {"artifact": str(self.runner.artifact.path), "device": self.transport.label, "threads": self.runner.threads}
        facts |= {"provenance": self._provenance, "dims": dict(self.options.dims), "pinned": list(pin)}
        document = facts | {"watch": seen.document()} | {"plot": str(plot), "data": str(data)}
        change = 100 * (seen.slowdown - 1)
        line = f"{title}: {len(seen.points)} blocks in {seen.points[-1].s:.0f} s, the end {change:+.1f} % against the start"
        throttled = f"; the device says it throttled ({seen.throttled})" if seen.throttled else ""
        emit(as_json, document, [line + throttled, f"drawing: {plot}, data: {data}", *self._emulated_note()])

    # How ---------------------------------------------------------------------------------------------------------------

    def _record(self, document: Mapping[str, Any]) -> None:
        if self.report:
            record(self.runner.artifact, bench=document)

    @property
    def _provenance(self) -> str:
        return "emulated" if self.transport.emulated else "measured"

    def _starts(self, count: int) -> dict[str, float]:
        times = np.array(self.runner.start_times(count, self.options.dims)) / 1e6
        return {"median": float(np.median(times)), "p10": float(np.percentile(times, 10)), "n": len(times)}

    def _document(self, latency: Latency, conditions: Mapping[str, Any], why: str | None) -> dict[str, Any]:
        interval = latency.interval
        return {
            "artifact": str(self.runner.artifact.path),
            "device": self.transport.label,
            "latency_ms": latency.document(),
            "interval": {"lo": interval.lo, "hi": interval.hi, "kind": interval.kind},
            "dims": dict(self.options.dims),
            "threads": self.runner.threads,
            "provenance": self._provenance,
            "unstable": latency.unstable,
            "why_unstable": why,
            "disturbed": latency.disturbed,
            "conditions": dict(conditions),
        }

    def _table(self, ours: Latency, contest: Contest, mode: str = "") -> object:
        entries = {"bevel": ours, **contest.peers}
        columns = ["", "median ms", "p10 ms", "CPU ms", "95 % interval", "peer / bevel"]
        rows = [[n, p.median, p.p10, p.cpu, _interval(p), contest.ratios.get(n)] for n, p in entries.items()]
        if contest.peers:
            columns += ["error", "version", "kernels"]
            for row, facts in zip(rows, (contest.facts[name] for name in entries), strict=True):
                row += [contest.errors.get(str(row[0])), facts["version"], facts.get("isa") or "-"]
        extents = [f"{d} = {n}" for d, n in self.options.dims.items()]
        title = ", ".join([f"{self.runner.artifact.name} on {self.transport.label}", _threads(self.runner.threads), *extents])
        return table(title + mode, columns, rows)

    def _warnings(self, why: str | None) -> list[object]:
        if self.transport.emulated:
            return self._emulated_note()
        if why is None:
            return []
        return [f"unstable: {why}; close other programs and measure again, or allow more time (--time-limit)"]

    def _emulated_note(self) -> list[object]:
        return ["emulated: these times say nothing about the device's speed"] if self.transport.emulated else []


@contextmanager
def _kept(protocol: Protocol) -> Iterator[None]:
    """Say on the way out of an interruption that nothing finished is lost."""
    try:
        yield
    except BaseException:
        if protocol.kept:
            _note(f"{protocol.kept} finished blocks are kept; the same command goes on from there")
        raise


def _note(line: str) -> None:
    click.echo(line, err=True)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _about_peers(contest: Contest, isa: str | None, left_out: list[str]) -> list[str]:
    """Lines a reader of the ratios must have seen."""
    lines = [f"{name} computes something else: error {contest.errors[name]:.3g}" for name in contest.strangers]
    lines += [f"{name} is not held to {isa}: {contest.facts[name]['beyond_cap']}" for name in contest.uncapped]
    if isa is not None:
        lines.append(f"held to {isa}" + (f"; left out because nothing holds them: {', '.join(left_out)}" if left_out else ""))
    return lines


def _interval(latency: Latency) -> str:
    return f"{latency.ci95[0]:.4g} to {latency.ci95[1]:.4g}"


def _confidence(latency: Latency, conditions: Mapping[str, Any], found: Measurement | None = None) -> str:
    """One line: how sure, how much was measured, and under which conditions."""
    half = 100 * (latency.interval.hi - latency.interval.lo) / 2 / latency.median
    what = "a later median within" if latency.interval.kind == "prediction" else "blocks within"
    parts = [f"{what} ±{half:.1f} %"]
    if found is not None:
        accepted = sum(block.rejected is None for block in found.blocks)
        processes = len({block.process for block in found.blocks})
        why = ", ".join(f"{count} {reason}" for reason, count in conditions["rejected"].items())
        parts.append(
            f"{accepted} of {len(found.blocks)} blocks of {processes} processes" + (f" (rejected: {why})" if why else "")
        )
    heat, khz = conditions["temperature_c"], conditions["khz"]
    parts.append(f"{heat:.0f} °C" if heat is not None else "temperature unknown")
    parts.append(f"governor {conditions['governor'] or 'unknown'}")
    if khz is not None:
        parts.append(f"{khz / 1e6:.2f} GHz")
    if conditions["pinned"]:
        parts.append(f"CPU {','.join(map(str, conditions['pinned']))}")
    return " | ".join(parts)


def _extras(found: Measurement, starts: Mapping[str, float] | None) -> str:
    parts = [f"peak memory {found.rss_kib / 1024:.1f} MiB"] if found.rss_kib is not None else []
    if found.energy_mj is not None:
        parts.append(f"energy {found.energy_mj:.3g} mJ a call")
    if starts is not None:
        parts.append(f"cold start {starts['median']:.2f} ms (median of {starts['n']}, p10 {starts['p10']:.2f})")
    return " | ".join(parts)


def _live(point: Point) -> str:
    parts = [f"{point.s:.0f} s", f"{point.ms:.4g} ms"]
    if point.mhz is not None:
        parts.append(f"{point.mhz:.0f} MHz")
    if point.temperature_c is not None:
        parts.append(f"{point.temperature_c:.0f} °C")
    return ", ".join(parts)


def bench_inputs(
    artifact: Artifact, model: Path | None, calibration: Path | None, seed: int, dims: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Inputs every contestant takes: the first calibration sample, else noise in the type of the model's inputs.

    `dims` are the extents of the noise.

    Raises:
        UsageError: model or data do not fit the artifact.
    """
    shapes = artifact.input_shapes(dims)
    dtypes = {str(tensor["name"]): np.dtype(tensor["dtype"]) for tensor in artifact.manifest["inputs"]}
    if model is not None:
        dtypes |= _model_dtypes(model, shapes.keys())
    if calibration is not None:
        sample = open_data(calibration, artifact_inputs(artifact)).sample(0)
        for name, array in sample.items():
            if model is not None and array.dtype != dtypes[name]:
                raise UsageError(f"{calibration}: {name!r} is {array.dtype}, {model} takes {dtypes[name]}")
        return sample
    rng = np.random.default_rng(seed)
    # 0 and 1 are valid in any index, mask or table of a model.
    noise = {n: rng.uniform(-1, 1, s) if dtypes[n].kind == "f" else rng.integers(0, 2, s) for n, s in shapes.items()}
    return {name: array.astype(dtypes[name]) for name, array in noise.items()}


def _model_dtypes(model: Path, names: Collection[str]) -> dict[str, np.dtype[Any]]:
    """Input dtypes of an ONNX file, whose inputs must be called `names`."""
    dtypes = {str(value.name): value.dtype.numpy() for value in read_onnx(model).model.graph.inputs if value.dtype is not None}
    if dtypes.keys() != set(names):
        raise UsageError(f"--model {model}: its inputs are {sorted(dtypes)}, the artifact's {sorted(names)}; give its own model")
    return dtypes
