"""Checkpoints of training: one file, written beside its place and moved there, so that an interrupted write leaves the older one.

Nothing in the file is executed when it is loaded. Imports torch; callers import this file when it is used.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevel.errors import UsageError

_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where training stood.

    Attributes:
        identity: digest of model, plan, recipe and data.
        stage: number of the stage.
        done: steps done in all.
        totals: steps of every stage; empty while the speed is being measured.
        loss: running mean.
        top1: running mean, or None.
        graph: file bytes of the ANNOTATED graph that the stage started from.
        net: parameters.
        optimizer: its state.
    """

    identity: str
    stage: int
    done: int
    totals: list[int]
    loss: float
    top1: float | None
    graph: bytes
    net: dict[str, Any]
    optimizer: dict[str, Any]


def save_checkpoint(state: Checkpoint, path: Path) -> None:
    """Write `state` to `path`."""
    fields = {name: getattr(state, name) for name in asdict(_EMPTY)}
    fields["graph"] = torch.from_numpy(np.frombuffer(state.graph, np.uint8).copy())
    partial = path.with_name(f".{path.name}.partial")
    torch.save({"version": _VERSION, **fields}, partial)
    partial.replace(path)


def load_checkpoint(path: Path, identity: str) -> Checkpoint:
    """The checkpoint at `path`.

    Raises:
        UsageError: there is none, it is damaged, or of another training.
    """
    try:
        fields = torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"--resume: there is no checkpoint {path}; leave --resume out to begin anew") from None
    except Exception as error:
        raise UsageError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); leave --resume out to begin anew"
        ) from error
    if not isinstance(fields, dict) or fields.pop("version", None) != _VERSION or fields.keys() != asdict(_EMPTY).keys():
        raise UsageError(f"{path} is no checkpoint of this version of bevel; leave --resume out to begin anew")
    if fields["identity"] != identity:
        raise UsageError(f"checkpoint {path} belongs to another model, data set or options; give those, or leave --resume out")
    return Checkpoint(**{**fields, "graph": fields["graph"].numpy().tobytes()})


_EMPTY = Checkpoint("", 0, 0, [], 0.0, None, b"", {}, {})
