"""What a spec says under ``on_reading``: how stored rows become embeddings.

Absent for most arrays: they are read as they are stored. ``decoded`` does what is said here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfbind_store.arrays.int8 import SCALE_ROWS
from tfbind_store.errors import SpecError

FIELD = "on_reading"
"""Of a spec's identity."""
MAX_DIM = 2**20


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How stored rows become embeddings."""

    scale_rows: int = 0
    """Rows after a window's bins that hold its scales; 0 where numbers are stored as floats."""
    pointwise_dim: int = 0
    """Channels after the trunk's last layer; 0 where it is not to be applied."""
    pointwise_sha256: str = ""
    """Of the file with that layer's weights."""

    @property
    def is_plain(self) -> bool:
        """Whether rows are read as they are stored."""
        return self == Reading()

    @property
    def dtype(self) -> str:
        """Stored dtype."""
        return "int8" if self.scale_rows else "float16"

    def to_json(self) -> dict[str, Any]:
        """Return the field's value; empty where it should be left out."""
        said: dict[str, Any] = {"int8": {"scale_rows": self.scale_rows}} if self.scale_rows else {}
        if self.pointwise_dim:
            said["pointwise"] = {"dim": self.pointwise_dim, "sha256": self.pointwise_sha256}
        return said

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> Reading:
        """Read the field of a spec's identity, refusing whatever `to_json` does not write.

        Raises
        ------
        SpecError
            If the array is of a kind that this version does not know.
        """
        said = identity.get(FIELD, {})
        try:
            reading = cls(
                scale_rows=SCALE_ROWS if "int8" in said else 0,
                pointwise_dim=said["pointwise"]["dim"] if "pointwise" in said else 0,
                pointwise_sha256=said["pointwise"]["sha256"] if "pointwise" in said else "",
            )
            fits = reading.to_json() == said and type(reading.pointwise_dim) is int
        except (TypeError, KeyError, AttributeError):
            fits = False
        if not fits or not 0 <= reading.pointwise_dim <= MAX_DIM:
            fix = "use the tfbind_store version that wrote it"
            raise SpecError(f"this version cannot read an array by {str(said)[:120]}", where=FIELD, fix=fix)
        return reading


def stored_bins(identity: Mapping[str, Any], n_bins: int) -> int:
    """Return how many rows a stored window of `n_bins` bins has."""
    return n_bins + Reading.of(identity).scale_rows
