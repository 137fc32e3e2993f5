"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from bevel.compiler import Options, build
from bevel.devices.profile import load_profile
from bevel.runtime.artifact import Artifact
from tests.e2e.road import graph_of


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function (model name, bits, profile name) -> Artifact that compiles each combination once."""

    @cache
    def build_once(name: str, bits: str, profile: str) -> Artifact:
        _, static = graph_of(name, bits)
        folder = tmp_path_factory.mktemp(f"{name}-{bits}-{profile}")
        return build(static, load_profile(profile), folder / f"{name}.bevel", Options(profile, bits))

    return build_once
