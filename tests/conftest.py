"""What tests share: where data of others lies, and the lab where this machine can build one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test is about time: a busy machine makes any example slow.
settings.register_profile("gatewatch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gatewatch")

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

from lab.lab import Lab, unmet  # noqa: E402


@pytest.fixture(scope="session")
def repository() -> Path:
    return TESTS.parent


@pytest.fixture(scope="session")
def data(repository: Path) -> Path:
    """Captures and logs of others: `$GATEWATCH_DATA`, else ../shared/data. Skips where there are none."""
    folder = Path(os.environ.get("GATEWATCH_DATA") or repository.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no captures and logs of others: GATEWATCH_DATA names no folder")
    return folder


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    """A lab without services, for all tests of a module."""
    why = unmet()
    if why:
        pytest.skip(why)
    with Lab(services=False) as built:
        yield built


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab of the test's own."""
    why = unmet()
    if why:
        pytest.skip("needs root" if os.geteuid() != 0 else why)
    with Lab() as built:
        yield built
