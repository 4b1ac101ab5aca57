"""How far a fast precision is from float32: measured on canary windows, recorded in receipts.

A spec says which precision was asked for; what it costs depends on weights and machine. So some shards' receipts say
it: one window of theirs was embedded in float32 too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from tfbind_store.arrays.receipts import Receipt

EXACT = "float32"
EVERY_SHARDS = 16
"""Shards with a number that this divides have a canary, and whichever is an array's first: one window in 512."""
FIELD = "precision_error"
"""In a receipt's provenance."""
_log = logging.getLogger(__name__)


class Canary(NamedTuple):
    """A window as the embedder gave it."""

    window: int
    values: Float32[np.ndarray, "n_bins dim"]


def precision_error(embedder: Any, canary: Canary | None, embed: Callable[[Any, int], np.ndarray]) -> dict[str, Any]:
    """Return what a shard's receipt says of the precision: empty where it is float32, or there is nothing to compare.

    Parameters
    ----------
    embedder
        With a ``precision``, and ``exact()``, which gives the same model in float32; others are left alone.
    canary
        A window of the shard; None where it is not this shard's turn.
    embed
        Gives a window's numbers by an embedder.
    """
    precision = getattr(embedder, "precision", EXACT)
    if canary is None or precision == EXACT or not hasattr(embedder, "exact"):
        return {}
    try:
        exact = embed(embedder.exact(), canary.window).astype(np.float64)
    except (RuntimeError, ValueError) as error:  # such as no memory for a second copy of the weights
        _log.warning("window %d could not be embedded in float32 to compare: %s", canary.window, error)
        return {}
    lost = exact - canary.values
    size = float(np.sqrt(np.square(exact).mean()))
    said = {
        "window": canary.window,
        "precision": precision,
        "relative_rms": float(f"{np.sqrt(np.square(lost).mean()) / size:.4g}") if size else 0.0,
        "max_abs": float(f"{np.abs(lost).max():.4g}"),
    }
    return {FIELD: said}


def largest_error(receipts: Iterable[Receipt]) -> float | None:
    """Return the largest relative error that receipts tell of; None where none does."""
    said = [receipt.provenance.get(FIELD) for receipt in receipts]
    found = [each.get("relative_rms") for each in said if isinstance(each, dict)]
    numbers = [float(each) for each in found if isinstance(each, int | float)]
    return max(numbers) if numbers else None
