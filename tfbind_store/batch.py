"""One training batch, as it travels from the loader to a head.

Axes: b rows · n bins per row · d trunk dim · f distinct factors in the batch · l residues · e protein dim ·
c distinct contexts in the batch · t context dim · s signal channels. Proteins and contexts are given once per distinct
factor and context; `factor_index` and `context_index` say which one a row uses, so that a head can do the protein side
once. The fields are numpy arrays when they leave ``query.loader`` and torch tensors (same names, same shapes) when
they leave ``feed``.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

ArrayT = TypeVar("ArrayT", bound=Any)


class Batch(NamedTuple, Generic[ArrayT]):
    """Rows of a selection with the embeddings they point at."""

    dna: ArrayT
    """float16 [b, n, d]: embedding of each bin of each row."""
    protein: ArrayT
    """float16 [f, l, e]: residues of each distinct factor, subunits one after the other, zero past its length."""
    mask: ArrayT
    """bool [f, l]: True on real residues."""
    subunit: ArrayT
    """int16 [f, l]: which subunit a residue belongs to (0, 1, …); -1 past the length."""
    factor_index: ArrayT
    """int64 [b]: row of `protein` that a batch row uses."""
    context: ArrayT
    """float32 [c, t]: embedding of each distinct context."""
    context_index: ArrayT
    """int64 [b]: row of `context` that a batch row uses."""
    signal: ArrayT | None
    """float32 [b, n, s] or None: accessibility and the like; NaN where absent."""
    labels: ArrayT
    """float32 [b, n]: 1 bound, 0 unbound, NaN not labelled (left out of loss and scores)."""
    weights: ArrayT
    """float32 [b]."""
    rows: ArrayT
    """int64 [b]: row ids in the selection."""
