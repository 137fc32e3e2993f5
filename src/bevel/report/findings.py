"""What is known of an artifact beyond its files: predicted when it was compiled, measured since.

In: the documents that `bevel bench`, `profile` and `eval` print as JSON. Out: `Findings`, kept in the manifest under `findings`
so that each verb adds to what the others found, and a report drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bevel.runtime.artifact import Artifact

NAME = "report.html"
FIELD = "findings"


@dataclass(frozen=True)
class Findings:
    """What to show beside what the manifest says. The documents are those of the verbs' `--json`; each may be empty.

    Attributes:
        predicted_ms: time of each layer by name, as the cost model sees it; steps that the compiler added have none.
        bench: of `bevel bench`: `latency_ms`, `peers`, `conditions` and so on.
        profile: of `bevel profile`: `layers`, each with `ms`, in the manifest's order.
        evaluation: of `bevel eval`: `metric`, `value`, `baseline`, `agreement`.
    """

    predicted_ms: Mapping[str, float] = field(default_factory=dict)
    bench: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    def layer_ms(self, manifest: Mapping[str, Any]) -> list[float]:
        """Time of each layer of `manifest`; empty unless the profile is of this very artifact."""
        layers = self.profile.get("layers", ())
        if [layer["name"] for layer in layers] != [layer["name"] for layer in manifest["layers"]]:
            return []
        return [float(layer["ms"]) for layer in layers]


def load_findings(artifact: Artifact) -> Findings:
    """The findings that the manifest keeps."""
    return Findings(**artifact.manifest.get(FIELD, {}))


def write_report(artifact: Artifact, findings: Findings | None = None) -> Artifact:
    """Write (or replace) report.html inside `artifact`; enter it and `findings` (default: those kept) in the manifest."""
    from bevel.report.page import render

    findings = findings if findings is not None else load_findings(artifact)
    kept = {name: value for name, value in asdict(findings).items() if value}
    return artifact.update({NAME: render(artifact.manifest, findings).encode()}, **{FIELD: kept})


def record(artifact: Artifact, **documents: Mapping[str, Any]) -> Artifact:
    """Add documents, named as the fields of `Findings`, to what is known of `artifact`, and draw its report anew.

    Paths of this machine do not go in: artifacts travel.
    """
    artifact = Artifact.open(artifact.path)  # Another verb may have written since.
    cleaned = {name: {k: v for k, v in document.items() if k != "artifact"} for name, document in documents.items()}
    return write_report(artifact, Findings(**{**asdict(load_findings(artifact)), **cleaned}))
