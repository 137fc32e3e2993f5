"""Torch models in a folder of their own, as a user has them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

# What a user's file looks like. Every factory is one test's subject.
NETS = '''
import torch
from torch import nn

print("printed while importing")


def conv():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids, mask):
        return {"sums": (self.table(ids) * mask[..., None]).cumsum(1), "count": mask.sum(-1)}


class Branch(nn.Module):
    """Takes the branch that the traced example took, when traced."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x * 3


class Loop(nn.Module):
    """Has as many steps as the traced example, when traced."""

    def forward(self, x):
        state = torch.zeros(x.shape[0], x.shape[2])
        for step in range(x.shape[1]):
            state = 0.5 * state + x[:, step]
        return state


class Offers(nn.Module):
    def example_inputs(self):
        return (torch.arange(6.0).reshape(2, 3),)

    def forward(self, x):
        return x @ x.T, x.argmax(1)


class WrongExample(Offers):
    def example_inputs(self):
        return ("text",)


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such luck")


class Words(nn.Module):
    def forward(self, x):
        return "words"


class Dropped(nn.Module):
    """Differs between training and evaluation."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(x)


def boom():
    raise ValueError("weights are missing")


def number():
    return 7


constant = 3
'''


def shapes(path: Path) -> dict[str, list[int | str]]:
    """Shapes of the inputs and outputs of a file."""
    graph = onnx.load(path).graph
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)}


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory with `nets.py` and a module that cannot be imported."""
    pytest.importorskip("torch", reason="torch is not installed (extra `export`)")
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "needs.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("nets", "needs", "broken"):
        sys.modules.pop(name, None)
