"""Protein sequences by the name of a factor, as the catalog knows them: ``store.proteins["PAX3-FOXO1"]``.

The choice among a gene's proteins was made once, on import; the same name always gives the same sequence. A complex of
which a part has no protein is refused, never shortened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import NameParseError
from tfbind_store.factors import unambiguous
from tfbind_store.names import near_miss, parse_factor_name


class _Source(Protocol):
    def reader(self) -> Catalog: ...


class FactorSequences:
    """Sequences by factor name; iterates over the gene symbols that have a protein.

    Parameters
    ----------
    store
        The `Store`; read once, here.
    """

    def __init__(self, store: _Source) -> None:
        with store.reader() as catalog:
            proteins = catalog.rows("SELECT symbol, sequence FROM data.proteins ORDER BY symbol")
            pairs = [(str(a), str(b)) for a, b in catalog.rows("SELECT synonym, symbol FROM data.synonyms")]
        self._sequences = {str(symbol): str(sequence) for symbol, sequence in proteins}
        self._synonyms = unambiguous(pairs, self._sequences)

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sequences)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(name.strip()) and not self._missing(self.genes(name))

    def __getitem__(self, name: str) -> str | tuple[str, ...]:
        """Return a factor's sequence, or those of a complex in the order of its name; see `subunits` for errors."""
        found = self.subunits(name)
        return found[0] if len(found) == 1 else found

    def genes(self, name: str) -> tuple[str, ...]:
        """Return the genes that a factor's name stands for, whether they have a protein or not."""
        return parse_factor_name(name, known_symbols=self._sequences, synonyms=self._synonyms).genes

    def subunits(self, name: str) -> tuple[str, ...]:
        """Return a factor's sequences as a tuple, of one where it is no complex.

        Raises
        ------
        NameParseError
            If a gene of it has no protein.
        """
        genes = self.genes(name)
        missing = self._missing(genes)
        if missing:
            close = near_miss(missing[0], list(self._sequences))
            raise NameParseError(
                f"factor {name!r}: no protein of {', '.join(missing)}",
                where="data.proteins",
                fix=f"did you mean {close}?" if close else "import it: tfbind import factors STORE FASTA",
            )
        return tuple(self._sequences[gene] for gene in genes)

    def _missing(self, genes: tuple[str, ...]) -> list[str]:
        return [gene for gene in genes if gene not in self._sequences]
