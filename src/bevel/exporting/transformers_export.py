"""Models of the transformers library, from local files only.

In: a directory that save_pretrained wrote, or a config.json alone (weights are then drawn at random). Out: a `Source` with the
usual inputs of its kind: token ids with their masks, or an image.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from bevel.errors import ExportError, UsageError
from bevel.exporting.extra import require
from bevel.exporting.inputs import Bounds, InputSpec
from bevel.exporting.source import Source, foreign_output

# What --task selects; without one, the model without a head.
TASKS = {
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "image-classification": "AutoModelForImageClassification",
    "image-segmentation": "AutoModelForSemanticSegmentation",
    "audio-classification": "AutoModelForAudioClassification",
}
# Longest sequence unless --dim says otherwise; parity is proven at it, and attention grows with its square.
_LONGEST = 512


def load_transformers(path: Path, task: str | None, head: str | None, random_weights: bool) -> Source:
    """The model in a directory, or of a config.json.

    Attention is written out ("eager"): fused forms add branches for rows that are masked entirely.

    Args:
        path: a directory with config.json and weights, or a config.json.
        task: one of `TASKS`.
        head: name of a class of transformers; excludes `task`.
        random_weights: draw weights that the directory lacks; those of a config.json always are.

    Raises:
        UsageError: no such file, task or class; weights are missing.
        ExportError: transformers cannot load it.
        ToolchainError: transformers is missing.
    """
    transformers = require("transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    folder = path if path.is_dir() else path.parent
    if not (path / "config.json" if path.is_dir() else path).is_file():
        raise UsageError(f"{path}: holds no config.json; expected a directory that save_pretrained wrote, or a config.json")
    model_class = _model_class(transformers, task, head)
    if path.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise UsageError(f"{path}: holds no weights; give {path / 'config.json'} to export the architecture with random weights")
    try:
        with foreign_output():
            config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
            if getattr(config, "use_cache", False):
                config.use_cache = False
            model, missing = _build(transformers, model_class, path, config)
    except Exception as error:
        raise ExportError(f"{path}: transformers {transformers.__version__} cannot load it ({_first_line(error)})") from error
    if missing and not random_weights:
        raise UsageError(
            f"{path}: holds no weights for {', '.join(missing[:3])}{' and others' if missing[3:] else ''} of "
            f"{type(model).__name__}; choose the head with --task or --class, or give --random-weights"
        )
    model.eval()
    inputs, bounds = _inputs(model, model.config)
    return Source(str(path), model, inputs, bounds)


def _model_class(transformers: Any, task: str | None, head: str | None) -> Any:
    if task is not None and head is not None:
        raise UsageError("--task and --class both select the head; give one")
    if task is not None and task not in TASKS:
        raise UsageError(f"--task {task}: unknown; choose one of {', '.join(TASKS)}, or name a class with --class")
    name = head or TASKS[task or "feature-extraction"]
    found = getattr(transformers, name, None)
    if found is None or not (
        hasattr(found, "from_pretrained") and hasattr(found, "from_config" if name.startswith("Auto") else "forward")
    ):
        raise UsageError(f"--class {name}: transformers {transformers.__version__} has no such model")
    return found


def _build(transformers: Any, model_class: Any, path: Path, config: Any) -> tuple[Any, list[str]]:
    """The model in float32, and names of weights it lacks."""
    torch = require("torch")
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    if path.is_dir():
        model, info = model_class.from_pretrained(
            str(path), config=config, local_files_only=True, trust_remote_code=False, output_loading_info=True, **options
        )
        return model, sorted(info["missing_keys"])
    build = model_class.from_config if hasattr(model_class, "from_config") else model_class._from_config
    return build(config, **options), []


def _inputs(model: Any, config: Any) -> tuple[tuple[InputSpec, ...], dict[str, Bounds]]:
    """The usual inputs of a model of this kind; none when it is of another kind and the caller must say."""
    parameters = inspect.signature(model.forward).parameters
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return (InputSpec("pixel_values", (1, getattr(config, "num_channels", 3), height, width)),), {}
    if model.main_input_name != "input_ids":
        return (), {}
    text = config.get_text_config()
    inputs = [InputSpec("input_ids", (1, "seq"), "int64", 0, text.vocab_size)]
    bounds = {"seq": (1, min(_LONGEST, getattr(text, "max_position_embeddings", _LONGEST)))}
    if "attention_mask" in parameters:
        inputs.append(InputSpec("attention_mask", (1, "seq"), "int64", mask=True))
    if "token_type_ids" in parameters and getattr(text, "type_vocab_size", 0) > 1:
        inputs.append(InputSpec("token_type_ids", (1, "seq"), "int64", 0, text.type_vocab_size))
    if config.is_encoder_decoder:
        inputs.append(InputSpec("decoder_input_ids", (1, "target"), "int64", 0, text.vocab_size))
        bounds["target"] = bounds["seq"]
    return tuple(inputs), bounds


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
