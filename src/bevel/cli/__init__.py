"""The command line: `bevel VERB`. Each verb is one file; this one wires them and turns errors into exit codes.

Exit codes: 0 ok, 1 failed check, 2 usage, 3 unsupported model, 4 device, toolchain or this machine (disk, memory); 70 a defect of
bevel; 130 after Ctrl-C, 143 after SIGTERM. Every error is one message on stderr and, with --json, an object on stdout; tracebacks
come with --verbose only.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import traceback
from typing import NoReturn

import click

from bevel import __version__
from bevel.errors import BevelError, UsageError

_USAGE, _MACHINE, _DEFECT, _INTERRUPTED, _TERMINATED = 2, 4, 70, 130, 143

# verb -> (module, one line of help): verbs are imported when used, so that `bevel --help` stays instant.
_VERBS = {
    "export": ("bevel.cli.export", "Export a torch or transformers model to ONNX and prove parity."),
    "compile": ("bevel.cli.compile", "Compile a model into an artifact for one device."),
    "quantize": ("bevel.cli.quantize", "Train a model to compute with few bits."),
    "run": ("bevel.cli.run", "Run an artifact on given inputs."),
    "bench": ("bevel.cli.bench", "Measure an artifact's latency, alone or against peers."),
    "profile": ("bevel.cli.profile", "Show where an artifact spends its time, layer by layer."),
    "eval": ("bevel.cli.evaluate", "Measure accuracy and agreement with a baseline."),
    "cost": ("bevel.cli.cost", "Predict latency per layer and precision before compiling."),
    "devices": ("bevel.cli.devices", "Add, list, show, check, probe and remove devices."),
    "doctor": ("bevel.cli.doctor", "Check this machine or a device, and say what to install or change."),
    "ops": ("bevel.cli.ops", "List the operators bevel knows."),
}


class _Verbs(click.Group):
    """A group whose commands are imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        from importlib import import_module

        command: click.Command = import_module(_VERBS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in _VERBS.items()])


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bevel")
def cli() -> None:
    """Cut a trained model to fit the edge it runs on.

    \b
    bevel cost model.onnx --device raspberry-pi-4
    bevel compile model.onnx --device raspberry-pi-4 --bits 8 --calib images.npz -o model.bevel
    bevel bench model.bevel --device raspberry-pi-4
    """


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:] if argv is None else argv
    # A polite kill unwinds like Ctrl-C, so that temporary directories and programs on boards go as well.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        # click gives what a command exits with (ctx.exit), else what it returns: nothing.
        code = cli.main(arguments, prog_name="bevel", standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except Exception as error:
        sys.exit(_report(error, arguments))
    except KeyboardInterrupt:
        sys.exit(_report(click.Abort(), arguments))
    sys.exit(code or 0)


def _terminate(_signal: int, _frame: object) -> NoReturn:
    sys.exit(_TERMINATED)


def _kind(error: Exception) -> str:
    """What JSON calls an error: bevel's class, and for the parser's many classes the one they amount to."""
    return UsageError.__name__ if isinstance(error, click.ClickException) else type(error).__name__


def _describe(error: Exception) -> tuple[str, int]:
    """What to tell people about an error, and the exit code."""
    match error:
        case BevelError():
            return str(error), error.exit_code
        case click.UsageError():
            hint = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
            return error.format_message() + hint, _USAGE
        case click.ClickException():
            return error.format_message(), _USAGE
        case click.Abort():
            return "interrupted", _INTERRUPTED
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror or error}; this machine's files, space or permissions are at fault", _MACHINE
        case MemoryError():
            return (
                "not enough free memory; close other programs, or use less data (--samples, --limit)",
                _MACHINE,
            )
    return (
        f"defect in bevel {__version__}: {type(error).__name__}: {error}. Please report it with the model and the traceback "
        "that the same command shows with --verbose",
        _DEFECT,
    )


def _report(error: Exception, arguments: list[str]) -> int:
    """Print one message; the traceback only with --verbose; an object with `error` on stdout with --json."""
    message, code = _describe(error)
    if "--verbose" in arguments:
        traceback.print_exception(error)
    click.echo(f"error: {message}", err=True)
    if "--json" in arguments:
        click.echo(json.dumps({"error": {"kind": _kind(error), "message": message, "exit_code": code}}))
    return code
