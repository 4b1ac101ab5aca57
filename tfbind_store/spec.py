"""What a stored array was made with, and its fingerprint.

A *spec* is fixed: changing any field means embedding again, into another array. It travels as canonical JSON (sorted
keys, no spaces, finite numbers only), whose sha256 is the fingerprint. Choices of a single run live in ``config``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tfbind_store.errors import SpecError

Json = Any
ArrayKind = Literal["windows", "proteins", "contexts", "tracks", "signals"]
MEASURED: frozenset[str] = frozenset({"tracks", "signals"})
"""Kinds whose rows are whole measured tracks, where NaN means that nothing is known."""
SHORT_ID_LENGTH = 12
PROJECTED = "project"
"""What a spec names as the embedder of an array that was derived from another one."""


def canonical_json(value: Json) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, ASCII.

    Raises
    ------
    SpecError
        If a number is not finite or something is not JSON: such a value has no identity.

    Examples
    --------
    >>> canonical_json({"b": 1, "a": [True, None]})
    '{"a":[true,null],"b":1}'
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    except (TypeError, ValueError) as error:
        raise SpecError(f"cannot be written as canonical JSON: {error}", where=repr(value)[:120]) from error


def fingerprint_of(value: Json) -> str:
    """Return the sha256 of the canonical JSON of `value`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


class Difference(NamedTuple):
    """One field in which two specs differ."""

    field: str
    stored: Json
    asked: Json


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """Everything that decides the numbers in one embedding array."""

    kind: ArrayKind
    """What is embedded: genome windows, proteins or context texts; or measured: tracks, signals."""
    embedder: str
    """Registry name, for example ``enformer``."""
    dim: int
    """Numbers per bin, residue or text."""
    dtype: str = "float16"
    """Stored dtype."""
    identity: Mapping[str, Json] = field(default_factory=dict)
    """Model class, architecture, sha256 of the weights, layer, policies (N, strand, length), matmul precision."""
    grid: Mapping[str, int] | None = None
    """``window_bp, n_bins, bin_bp`` for windows, else None."""
    genome: str | None = None
    """Digest of the genome for windows, else None."""
    numerics_version: int = 1
    """Raised only when the embedder's numbers change."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise SpecError(f"dim is {self.dim}, must be at least 1", where=f"spec of {self.embedder}")
        if not all(math.isfinite(number) for number in (self.dim, self.numerics_version)):
            raise SpecError("numbers of a spec must be finite", where=f"spec of {self.embedder}")

    def to_json(self) -> dict[str, Json]:
        """Return the fields as JSON values."""
        return {
            "kind": self.kind,
            "embedder": self.embedder,
            "dim": self.dim,
            "dtype": self.dtype,
            "identity": json.loads(canonical_json(dict(self.identity))),
            "grid": None if self.grid is None else dict(self.grid),
            "genome": self.genome,
            "numerics_version": self.numerics_version,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> EmbeddingSpec:
        """Read the fields back; unknown or absent ones are refused."""
        names = set(cls.__dataclass_fields__)
        if set(value) != names:
            odd = sorted(set(value) ^ names)
            raise SpecError(f"fields of an embedding spec do not fit: {odd}", where="spec")
        return cls(**value)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the canonical JSON of all fields."""
        return fingerprint_of(self.to_json())

    @property
    def short_id(self) -> str:
        """The first 12 digits of the fingerprint: names folders, decides nothing."""
        return self.fingerprint[:SHORT_ID_LENGTH]

    def differences(self, asked: EmbeddingSpec) -> list[Difference]:
        """Return every field in which `asked` differs from this (stored) spec, nested names joined by dots."""
        return list(_differences("", self.to_json(), asked.to_json()))

    def require_same(self, asked: EmbeddingSpec, *, where: str, fix: str) -> None:
        """Refuse `asked` if it differs, naming the first field that does.

        Raises
        ------
        SpecError
            With both values.
        """
        differences = self.differences(asked)
        if differences:
            first = differences[0]
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise SpecError(
                f"stored with {first.field} = {first.stored!r}, this run asks for {first.asked!r}{more}",
                where=where,
                fix=fix,
            )


def _differences(prefix: str, stored: Json, asked: Json) -> list[Difference]:
    if isinstance(stored, dict) and isinstance(asked, dict):
        found: list[Difference] = []
        for key in sorted(set(stored) | set(asked)):
            name = f"{prefix}.{key}" if prefix else key
            found += _differences(name, stored.get(key), asked.get(key))
        return found
    return [] if stored == asked else [Difference(prefix, stored, asked)]
