"""How the tests run, whatever else does."""

import os

import pytest
from hypothesis import settings

# The nets of the tests are too small to share out: with one thread each, parallel workers do not slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A deadline for each example would fail wherever another process has the core.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier test has loaded is not what a shield of this one is to use."""
    monkeypatch.setattr("persist_sb3.state._last_loaded", None)
