"""Fixtures that every test file may ask for."""

from __future__ import annotations

import logging
import os
import signal
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
def _process_as_new() -> Iterator[None]:
    """Undo what commands run in this process leave behind: the package's logger, the handler of SIGTERM."""
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logger = logging.getLogger("tfbind_store")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
