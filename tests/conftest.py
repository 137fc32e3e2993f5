"""Options and fixtures of all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

GOLDEN = Path(__file__).parent / "golden"


# No test may depend on how fast the machine is; in CI every run tries the same examples.
hypothesis.settings.register_profile(
    "bevel", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("bevel")


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and children inherit that: tests that interrupt them need the default.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.txt with what the code prints now")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Devices and measurements of the tests stay apart from the user's, and no test waits for another's lock on this machine."""
    home = str(tmp_path_factory.mktemp("bevel-home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEVEL_HOME", home)
        patch.setenv("BEVEL_LOCK_DIR", home)
        yield


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare text with tests/golden/NAME.txt, or rewrite that file under --update-golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"{path} is missing: run pytest --update-golden and look at what it wrote"
        assert text == path.read_text(), f"differs from {path.name}; if the change is meant, run pytest --update-golden"

    return compare
