"""Fixtures that every test file may ask for."""

from __future__ import annotations

import os
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
