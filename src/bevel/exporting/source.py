"""What is to be exported: a loaded torch module with its inputs.

In: `module:factory`, a .pt2 file, a transformers config or directory, or a module. Out: a `Source`: the module in evaluation
mode, what it takes and how it is called, and its outputs by name.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import ExportError, UsageError
from bevel.exporting.extra import require
from bevel.exporting.inputs import Bounds, InputSpec, describe_example

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Source:
    """A model to export.

    Attributes:
        label: what messages call it.
        module: the torch module, in evaluation mode.
        inputs: what it takes, as far as the source itself says; empty when the caller must say.
        bounds: of named dimensions, as far as the source says.
        examples: values that the source offers for its inputs, by name.
        program: the ExportedProgram that `module` runs, for a .pt2 file.
    """

    label: str
    module: Any
    inputs: tuple[InputSpec, ...] = ()
    bounds: Mapping[str, Bounds] | None = None
    examples: Mapping[str, Array] | None = None
    program: Any = None


@dataclass(frozen=True)
class Call:
    """How a module is called with inputs by name: the first `positional` ones in order, the rest as keywords."""

    module: Any
    names: tuple[str, ...]
    positional: int

    def arguments(self, feeds: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments."""
        return tuple(feeds[n] for n in self.names[: self.positional]), {n: feeds[n] for n in self.names[self.positional :]}

    def tensors(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """The arrays as torch tensors."""
        torch = require("torch")
        return {name: torch.from_numpy(np.array(feeds[name])) for name in self.names}

    def outputs(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the module.

        Raises:
            ExportError: it raises, or returns something else than tensors.
        """
        torch = require("torch")
        args, kwargs = self.arguments(self.tensors(feeds))
        try:
            with torch.no_grad(), foreign_output():
                returned = self.module(*args, **kwargs)
        except Exception as error:
            shapes = {name: list(feeds[name].shape) for name in self.names}
            raise ExportError(
                f"the model itself raises {type(error).__name__} on {shapes} ({_short(error)}); "
                "check the inputs' shapes, bounds and values"
            ) from error
        return {name: _array(name, tensor) for name, tensor in tensors_of(returned)}


def load_source(source: Any, *, task: str | None, head: str | None, random_weights: bool, seed: int) -> Source:
    """Load what `source` names.

    Args:
        source: `module:factory`, a .pt2 file, a config.json or a directory of transformers, or a torch module.
        task: of a transformers model; selects its head.
        head: class of a transformers model, by name.
        random_weights: draw weights that a transformers directory lacks.
        seed: of random weights.

    Raises:
        UsageError: there is no such source, or it is none.
        ExportError: it cannot be loaded.
        ToolchainError: torch or transformers is missing.
    """
    torch = require("torch")
    torch.manual_seed(seed)
    if isinstance(source, torch.nn.Module):
        return _of_module(type(source).__name__, source)
    text, path = str(source), Path(str(source))
    transformers = path.is_dir() or path.suffix == ".json"
    if (task or head or random_weights) and not transformers:
        raise UsageError(
            f"{text}: --task, --class and --random-weights are for transformers models (a config.json or a directory)"
        )
    if transformers:
        from bevel.exporting.transformers_export import load_transformers

        return load_transformers(path, task, head, random_weights)
    if path.suffix == ".pt2":
        from bevel.exporting.program import load_program

        return load_program(path)
    if ":" in text and not path.exists():
        return _of_module(text, _call_factory(text))
    raise UsageError(
        f"{text}: no such source; expected module:factory, a .pt2 file, or a config.json or directory of transformers"
        + ("" if not path.is_file() else f", and {path.suffix or 'this'} files are none of these")
    )


def plan_call(source: Source, names: Sequence[str]) -> Call:
    """How to pass inputs called `names`: as the keywords they name, or else in order.

    Raises:
        UsageError: the module takes neither.
    """
    parameters = inspect.signature(source.module.forward).parameters.values()
    keywords = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    ordered = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        ordered = len(names)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if set(names) <= keywords:
        if missing := [name for name in required if name not in names]:
            raise UsageError(f"{source.label}: no input given for {missing}; forward takes {[p.name for p in parameters]}")
        return Call(source.module, tuple(names), 0)
    if not keywords & set(names) and len(required) <= len(names) <= ordered:
        return Call(source.module, tuple(names), len(names))
    raise UsageError(
        f"{source.label}: inputs {list(names)} given, but forward takes {[p.name for p in parameters]}; name them so, "
        "or give every one another name, in order"
    )


@contextlib.contextmanager
def foreign_output() -> Iterator[None]:
    """What a model's own code prints goes to stderr: stdout belongs to the caller."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _call_factory(text: str) -> Any:
    module_name, _, factory_name = text.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with foreign_output():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise UsageError(f"{text}: no module {error.name!r} in {Path.cwd()} or among the installed packages") from error
            raise UsageError(f"{text}: module {module_name!r} needs {error.name!r}, which is not installed") from error
        except Exception as error:
            raise UsageError(f"{text}: importing {module_name!r} raises {type(error).__name__} ({_short(error)})") from error
        factory: Any = module
        for part in factory_name.split("."):
            factory = getattr(factory, part, None)
        if not callable(factory):
            raise UsageError(f"{text}: {module_name!r} has no function {factory_name!r}")
        try:
            return factory()
        except Exception as error:
            raise UsageError(f"{text}: {factory_name}() raises {type(error).__name__} ({_short(error)})") from error


def _of_module(label: str, module: Any) -> Source:
    torch = require("torch")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{label}: returned {type(module).__name__}, expected a torch.nn.Module")
    module.eval()
    offer = getattr(module, "example_inputs", None)
    if not callable(offer):
        return Source(label, module)
    try:
        with foreign_output():
            offered = offer()
    except Exception as error:
        raise UsageError(f"{label}: example_inputs() raises {type(error).__name__} ({_short(error)})") from error
    if isinstance(offered, torch.Tensor):
        offered = (offered,)
    if not isinstance(offered, Mapping):
        offered = dict(zip(inspect.signature(module.forward).parameters, offered, strict=False))
    examples = {}
    for name, tensor in offered.items():
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{label}: example_inputs() gives {type(tensor).__name__} for {name!r}, expected a tensor")
        examples[name] = tensor.detach().cpu().numpy()
    return Source(label, module, tuple(describe_example(name, array) for name, array in examples.items()), {}, examples)


def tensors_of(returned: Any) -> list[tuple[str, Any]]:
    """The tensors that a module returned: under the keys of a mapping, else `output`, or `output_0` and so on."""
    torch = require("torch")
    if isinstance(returned, Mapping):
        pairs = [(f"{key}_{i}" if isinstance(value, tuple | list) else str(key), leaf)
                 for key, value in returned.items()
                 for i, leaf in enumerate(value if isinstance(value, tuple | list) else (value,))]  # fmt: skip
    else:
        leaves = torch.utils._pytree.tree_leaves(returned)
        pairs = [("output" if len(leaves) == 1 else f"output_{i}", leaf) for i, leaf in enumerate(leaves)]
    pairs = [(name, leaf) for name, leaf in pairs if leaf is not None]
    if not pairs:
        raise ExportError("the model returns nothing; expected tensors")
    for name, leaf in pairs:
        if not isinstance(leaf, torch.Tensor):
            raise ExportError(f"the model returns {type(leaf).__name__} as {name!r}, expected tensors")
    return pairs


def _array(name: str, tensor: Any) -> Array:
    torch = require("torch")
    if tensor.dtype == torch.bfloat16:
        raise ExportError(
            f"output {name!r} is bfloat16, which runtimes on devices do not take; convert the module: module.float()"
        )
    array: Array = tensor.detach().cpu().numpy()
    return array


def _short(error: BaseException) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[0][:300]
