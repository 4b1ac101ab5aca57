"""Predict where a transcription factor binds, from embeddings that are computed once and stored.

Importing this package is cheap: the public names below are found on first use, so that ``import tfbind_store`` pulls in
neither torch nor DuckDB nor Zarr.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfbind_store.adapter_model import AdapterModel as AdapterModel
    from tfbind_store.batch import Batch as Batch
    from tfbind_store.errors import TfbindError as TfbindError
    from tfbind_store.loci import Grid as Grid
    from tfbind_store.loci import Locus as Locus
    from tfbind_store.loci import Tiling as Tiling
    from tfbind_store.spec import EmbeddingSpec as EmbeddingSpec
    from tfbind_store.store.folder import Store as Store
    from tfbind_store.trainers.peaks import Trainer as Trainer
    from tfbind_store.trainers.tracks import BigWigTrainer as BigWigTrainer

__version__ = "0.1.0"

_PLACES = {
    "AdapterModel": "adapter_model",
    "Batch": "batch",
    "BigWigTrainer": "trainers.tracks",
    "EmbeddingSpec": "spec",
    "Grid": "loci",
    "Locus": "loci",
    "Store": "store.folder",
    "TfbindError": "errors",
    "Tiling": "loci",
    "Trainer": "trainers.peaks",
}
"""Public names and the modules that hold them."""

__all__ = sorted([*_PLACES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
