"""Canonicalization: the float-level clean-up every imported graph goes through, as a list of small passes.

What later passes may rely on afterwards, in the order the list establishes it: no constant subgraphs; no division by or
subtraction of float constants; no BatchNormalization over constants; per-channel constants folded into Conv and Gemm; zero
borders folded into windows where exact; one node for each activation and normalization; full-image means are
GlobalAveragePool; no chains of Reshape, Transpose or Slice. Outputs keep their names and, up to float32 rounding, their values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bevel.ir.graph import Graph
from bevel.passes.canonicalize_activations import FuseActivations
from bevel.passes.canonicalize_arithmetic import SimplifyArithmetic
from bevel.passes.canonicalize_norms import FuseNorms
from bevel.passes.canonicalize_pools import GlobalizePools
from bevel.passes.canonicalize_reshapes import MergeReshapes
from bevel.passes.canonicalize_slices import MergeSlices
from bevel.passes.canonicalize_transposes import MergeTransposes
from bevel.passes.fold_affine import FoldAffine
from bevel.passes.fold_bn import FoldBn
from bevel.passes.fold_constants import FoldConstants
from bevel.passes.fold_pad import FoldPad
from bevel.passes.lift_elementwise import LiftElementwise
from bevel.passes.pipeline import Pass, run_passes
from bevel.passes.subpixel import Subpixel

# Activations are recognised before constants fold into layers, so that a SiLU's operands are still what exporters wrote.
CANONICAL: tuple[Pass, ...] = (
    FoldConstants(),
    LiftElementwise(),
    FuseActivations(),
    FuseNorms(),
    SimplifyArithmetic(),
    FoldBn(),
    FoldAffine(),
    Subpixel(),
    MergeTransposes(),
    GlobalizePools(),
    MergeReshapes(),
    MergeSlices(),
    FoldPad(),
)


@dataclass(frozen=True)
class Canonicalize:
    """All of CANONICAL as one pass, `canonicalize`."""

    name: ClassVar[str] = "canonicalize"

    def run(self, graph: Graph) -> Graph:
        """The canonical form of a FLOAT or ANNOTATED graph.

        Raises:
            VerifyError: `graph` is not well formed.
        """
        return run_passes(graph, CANONICAL)


def canonicalize(graph: Graph) -> Graph:
    """See `Canonicalize.run`."""
    return Canonicalize().run(graph)
