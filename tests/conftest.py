"""Fixtures that every test file may ask for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that $TFBIND_TEST_DATA names, or a skip with the reason."""
    named = os.environ.get("TFBIND_TEST_DATA")
    if not named:
        pytest.skip("real data: set TFBIND_TEST_DATA to the folder that MANIFEST.md describes")
    path = Path(named)
    if not (path / "MANIFEST.md").is_file():
        pytest.skip(f"real data: {path} has no MANIFEST.md")
    return path


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what a command run inside a test does to the package's logger, which other tests listen to."""
    logger = logging.getLogger("tfbind_store")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
