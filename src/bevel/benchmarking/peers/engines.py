"""The table of engines: what is installed for each, what it can run, and how its instruction set can be capped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_ONNX = "onnx==1.23.2"
_TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Engine:
    """An inference engine.

    Attributes:
        name: as in `--against`, and of its adapter.
        packages: pinned requirements of its environment; the first is the engine.
        alone: requirements installed without their dependencies.
        tools: requirements added where models are prepared; a second environment, so that what runs stays small.
        tooled: the precisions that need the tools; the others are prepared where they run.
        int8: how its own int8 is made; None where its Python package cannot make any.
        caps: instruction set -> environment variables that keep the engine within it; empty where nothing does.
        extra: a distribution that, installed in bevel's own environment, stands for the engine's.
    """

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    tooled: frozenset[str] = frozenset()
    int8: str | None = None
    caps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    extra: str | None = None

    @property
    def version(self) -> str:
        """Of the first package."""
        return self.packages[0].partition("==")[2]

    @property
    def precisions(self) -> tuple[str, ...]:
        """What it can run a float model in."""
        return ("fp32",) if self.int8 is None else ("fp32", "int8")


# Features a capped artifact may need, by --isa; the names are those of device profiles.
ISAS: Mapping[str, frozenset[str]] = {
    "avx2": frozenset({"sse2", "avx2", "fma"}),
    "avx512-vnni": frozenset({"sse2", "avx2", "fma", "avx512", "avx512_vnni"}),
}
_ONEDNN = {"avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx512-vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}}
# Outside oneDNN, torch has vector code of its own.
_ATEN = {"avx2": "avx2", "avx512-vnni": "avx512"}

ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            "onnxruntime",
            ("onnxruntime==1.31.1",),
            tools=(_ONNX, "sympy==1.14.0"),
            tooled=frozenset({"int8"}),
            int8="static quantization, QDQ, per channel",
            extra="onnxruntime",
        ),
        Engine(
            "openvino",
            ("openvino==2026.4.1",),
            tools=("nncf==3.4.0",),
            tooled=frozenset({"int8"}),
            int8="NNCF post-training quantization",
            caps=_ONEDNN,
        ),
        Engine(
            "litert",
            ("ai-edge-litert==2.3.0",),
            tools=("litert-torch==0.10.0", _TORCH, _ONNX),
            tooled=frozenset({"fp32", "int8"}),
            int8="AI Edge Quantizer, static, per channel",
        ),
        Engine("ncnn", ("ncnn==1.0.20261020", "numpy>=2"), alone=("pnnx==20261020",)),
        Engine("mnn", ("MNN==3.6.1", "numpy>=2")),
        Engine(
            "torch",
            (_TORCH, "numpy>=2", _ONNX),
            caps={isa: {**env, "ATEN_CPU_CAPABILITY": _ATEN[isa]} for isa, env in _ONEDNN.items()},
        ),
    )
}
# What --against takes.
CONTESTANTS: Mapping[str, tuple[Engine, str]] = {
    (engine.name if precision == "fp32" else f"{engine.name}-{precision}"): (engine, precision)
    for engine in ENGINES.values()
    for precision in engine.precisions
}
