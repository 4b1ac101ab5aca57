"""Predict where a transcription factor binds, from embeddings that are computed once and stored.

Importing this package is cheap: the public names below are found on first use, so that ``import tfbind_store`` pulls in
neither torch nor DuckDB nor Zarr.
"""

from __future__ import annotations

__version__ = "0.1.0"
