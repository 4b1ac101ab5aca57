"""Numpy columns in and out of the catalog, and plain parameters for its queries.

NULL is NaN among numbers and None among anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Shaped

Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any] | None
Column: TypeAlias = Shaped[np.ndarray, " rows"]


class Columns(dict[str, np.ndarray]):
    """The answer to a query: one numpy array per column, in the query's order."""

    @property
    def n(self) -> int:
        """Rows."""
        return len(next(iter(self.values()))) if self else 0

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the same as plain tuples."""
        return list(zip(*(column.tolist() for column in self.values()), strict=True))


def to_columns(arrays: Mapping[str, Any]) -> Columns:
    """Return what DuckDB fetched, without masks."""
    return Columns({name: _unmasked(values) for name, values in arrays.items()})


def _unmasked(values: Any) -> Column:
    if not isinstance(values, np.ma.MaskedArray):
        return np.asarray(values)
    if not values.mask.any():
        return np.asarray(values.data)
    if values.dtype.kind == "f":
        return np.asarray(values.filled(np.nan))
    if values.dtype.kind in "iu":
        return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))
    plain = values.data.astype(object)
    plain[values.mask] = None
    return np.asarray(plain)


def as_column(values: Any) -> Column:
    """Return a list as an array of objects, so that None and nested lists survive; an array as it is."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return values
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def plain_parameters(params: Parameters) -> Any:
    """Return parameters as Python values: DuckDB takes no numpy scalars."""
    if params is None:
        return None
    if isinstance(params, Mapping):
        return {name: _plain_value(value) for name, value in params.items()}
    return [_plain_value(value) for value in params]


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value
