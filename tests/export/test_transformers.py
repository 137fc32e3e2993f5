"""`bevel export` of transformers models: local files only, the usual inputs, heads by task or class."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

import bevel
from bevel.errors import ExportError, UsageError
from tests.export.conftest import shapes

pytest.importorskip("torch", reason="torch is not installed (extra `export`)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `export`)")


def config(**changes: Any) -> Any:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertConfig(vocab_size=50, max_position_embeddings=24, **{**small, **changes})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    transformers.BertModel(config()).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach a network fails the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_directory(bert: Path, tmp_path: Path) -> None:
    exported = bevel.export(bert, tmp_path / "bert.onnx")
    assert exported.dims == {"seq": (1, 24)}
    found = shapes(tmp_path / "bert.onnx")
    assert found["last_hidden_state"] == [1, "seq", 16]
    assert {name: found[name] for name in ("input_ids", "attention_mask", "token_type_ids")} == {
        "input_ids": [1, "seq"],
        "attention_mask": [1, "seq"],
        "token_type_ids": [1, "seq"],
    }


def test_a_config_with_a_head(tmp_path: Path) -> None:
    config(num_labels=3, type_vocab_size=1).save_pretrained(tmp_path)
    by_task = bevel.export(tmp_path / "config.json", tmp_path / "a.onnx", task="text-classification", dims={"seq": (2, 9)})
    assert by_task.outputs == ("logits",)
    assert [spec.name for spec in by_task.inputs] == ["input_ids", "attention_mask"]
    bevel.export(tmp_path / "config.json", tmp_path / "b.onnx", head="BertForSequenceClassification", dims={"seq": (2, 9)})
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_an_image_model(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.ViTConfig(image_size=16, patch_size=8, **small).save_pretrained(tmp_path)
    exported = bevel.export(tmp_path / "config.json", tmp_path / "vit.onnx", task="image-classification")
    assert exported.inputs[0].shape == (1, 3, 16, 16)


def test_a_language_model_without_its_cache(tmp_path: Path) -> None:
    transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=16).save_pretrained(tmp_path)
    exported = bevel.export(tmp_path / "config.json", tmp_path / "gpt.onnx", task="text-generation")
    assert exported.outputs == ("logits",)


def test_what_cannot_be_loaded(bert: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    with pytest.raises(UsageError, match=r"no weights for classifier\.bias"):
        bevel.export(bert, target, task="text-classification")
    assert bevel.export(bert, target, task="text-classification", random_weights=True).outputs == ("logits",)
    target.unlink()
    for options, message in (
        ({"task": "telepathy"}, "telepathy"),
        ({"head": "NoSuchModel"}, "NoSuchModel"),
        ({"head": "AutoConfig"}, "AutoConfig"),
        ({"task": "fill-mask", "head": "BertModel"}, "give one"),
    ):
        with pytest.raises(UsageError, match=message):
            bevel.export(bert, target, **options)
    with pytest.raises(UsageError, match="no config"):
        bevel.export(tmp_path, target)
    config().save_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match="random weights"):
        bevel.export(tmp_path / "bare", target)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_architecture"}))
    with pytest.raises(ExportError, match="cannot load"):
        bevel.export(tmp_path / "config.json", target)
    assert not target.exists()
