"""The command line: `bevel VERB`. Each verb is one file; this one wires them and turns errors into exit codes.

Exit codes: 0 ok, 1 failed check, 2 usage, 3 unsupported model, 4 device or toolchain; 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import click

from bevel import __version__
from bevel.errors import BevelError

# verb -> (module, one line of help): verbs are imported when used, so that `bevel --help` stays instant.
_VERBS = {
    "compile": ("bevel.cli.compile", "Compile a model into an artifact for one device."),
    "run": ("bevel.cli.run", "Run an artifact on given inputs."),
    "bench": ("bevel.cli.bench", "Measure an artifact's latency, alone or against peers."),
    "profile": ("bevel.cli.profile", "Show where an artifact spends its time, layer by layer."),
    "eval": ("bevel.cli.evaluate", "Measure accuracy and agreement with a baseline."),
    "cost": ("bevel.cli.cost", "Predict latency per layer and precision before compiling."),
    "devices": ("bevel.cli.devices", "List and show device profiles; check that a device answers."),
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


def main(argv: list[str] | None = None) -> Any:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        cli.main(arguments, standalone_mode=False)
    except BevelError as error:
        sys.exit(_report(error, error.exit_code, arguments))
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    sys.exit(0)


def _report(error: BevelError, code: int, arguments: list[str]) -> int:
    """Print one message; the traceback only with --verbose; an object with `error` on stdout with --json."""
    if "--verbose" in arguments:
        traceback.print_exception(error)
    click.echo(f"error: {error}", err=True)
    if "--json" in arguments:
        click.echo(json.dumps({"error": {"kind": type(error).__name__, "message": str(error), "exit_code": code}}))
    return code
