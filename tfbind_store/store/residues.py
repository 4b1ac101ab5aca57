"""The stored residues of factors: subunits one after the other, padded into a batch.

A protein is embedded once however many factors contain it; ``data.protein_rows`` says where its residues lie in a
proteins array, ``data.factor_subunits`` which proteins make a factor, in order.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float16, Int16, Int64

from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import StoreError

_ROWS = """
    SELECT s.factor_id, f.factor, s.gene, p.sha256, r.first_row, r.n_rows
    FROM data.factor_subunits s
    JOIN data.factors f USING (factor_id)
    LEFT JOIN data.proteins p USING (protein_id)
    LEFT JOIN data.protein_rows r ON r.sha256 = p.sha256 AND r.array_name = ?
    ORDER BY s.factor_id, s.position
"""


class FactorBatch(NamedTuple):
    """Some factors' residues. Axes: f factors · l residues · e protein dim."""

    protein: Float16[np.ndarray, "f l e"]
    """Zero past a factor's length."""
    mask: Bool[np.ndarray, "f l"]
    """True on real residues."""
    subunit: Int16[np.ndarray, "f l"]
    """Which subunit a residue belongs to; -1 past the length."""


class _Source(Protocol):
    def reader(self) -> Catalog: ...

    def array(self, name: str) -> ShardedArray: ...


class _Subunit(NamedTuple):
    factor: str
    gene: str
    has_sequence: bool
    first_row: int | None
    n_rows: int | None


Subunits = dict[int, list[_Subunit]]
"""Where the residues of each factor's subunits lie."""


class FactorProteins:
    """Reads factors' residues from one proteins array.

    Parameters
    ----------
    store
        The `Store`.
    array_name
        For example ``proteins/composition``.
    """

    def __init__(self, store: _Source, array_name: str) -> None:
        self.array_name = array_name
        self._array = store.array(array_name)
        self.subunits: Subunits = {}
        with store.reader() as catalog:
            for factor_id, factor, gene, sha256, first_row, n_rows in catalog.rows(_ROWS, [array_name]):
                subunit = _Subunit(factor, gene, sha256 is not None, first_row, n_rows)
                self.subunits.setdefault(int(factor_id), []).append(subunit)

    @classmethod
    def over(cls, array: ShardedArray, subunits: Subunits) -> FactorProteins:
        """Return a reader by the `subunits` of another one, without a look at the catalog."""
        made = cls.__new__(cls)
        made.array_name, made._array, made.subunits = array.layout.name, array, subunits
        return made

    @property
    def dim(self) -> int:
        """Numbers per residue."""
        return self._array.shape[-1]

    def has(self, factor_id: int) -> bool:
        """Return whether every subunit of a factor is embedded."""
        subunits = self.subunits.get(int(factor_id), [])
        return bool(subunits) and all(subunit.first_row is not None for subunit in subunits)

    def length(self, factor_id: int) -> int:
        """Return how many residues a factor has, all subunits together."""
        return sum(n_rows for _, n_rows in self._runs(int(factor_id)))

    def get(self, factor_ids: Int64[np.ndarray, " f"]) -> FactorBatch:
        """Return the residues of some factors, padded to the longest.

        Raises
        ------
        StoreError
            If a factor is unknown, or one of its subunits has no sequence or is not embedded.
        """
        ids = [int(factor_id) for factor_id in factor_ids]
        longest = max((self.length(factor_id) for factor_id in ids), default=0)
        protein = np.zeros((len(ids), longest, self.dim), dtype=np.float16)
        subunit = np.full((len(ids), longest), -1, dtype=np.int16)
        for place, factor_id in enumerate(ids):
            begin = 0
            for position, (first_row, n_rows) in enumerate(self._runs(factor_id)):
                protein[place, begin : begin + n_rows] = self._array.rows(first_row, n_rows)
                subunit[place, begin : begin + n_rows] = position
                begin += n_rows
        return FactorBatch(protein, subunit >= 0, subunit)

    def _runs(self, factor_id: int) -> list[tuple[int, int]]:
        subunits = self.subunits.get(factor_id)
        if not subunits:
            raise StoreError(f"no factor has the id {factor_id}", where=self.array_name)
        runs = []
        for subunit in subunits:
            if subunit.first_row is None or subunit.n_rows is None:
                raise self._absent(subunit)
            runs.append((int(subunit.first_row), int(subunit.n_rows)))
        return runs

    def _absent(self, subunit: _Subunit) -> StoreError:
        if not subunit.has_sequence:
            fix = "import a protein of that name: tfbind import factors STORE FASTA, or leave the factor out"
            return StoreError(f"{subunit.gene} of factor {subunit.factor!r} has no sequence", fix=fix)
        what = f"the protein of {subunit.gene}, factor {subunit.factor!r}, has not been embedded"
        return StoreError(what, where=self.array_name, fix="run tfbind embed STORE factors")
