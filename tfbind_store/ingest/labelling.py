"""On which chromosomes an experiment is labelled: where its peak files have looked, or where the caller says so."""

from __future__ import annotations

from collections.abc import Sequence

from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import InputFileError
from tfbind_store.ingest.sources import some

UNION = "union"
ALL = "all"


class Labels:
    """The labelled chromosomes of one import's files.

    Parameters
    ----------
    catalog
        In its transaction.
    wanted
        Chromosomes that every file is taken to have looked at, or ``("all",)``; ``("union",)`` for those on which any
        of the files has a row; None for those on which the file itself has one.

    Raises
    ------
    InputFileError
        If a chromosome is not in the genome.
    """

    def __init__(self, catalog: Catalog, wanted: tuple[str, ...] | None) -> None:
        self.catalog = catalog
        self.sources: list[int] = []
        self._is_union = wanted == (UNION,)
        self._wanted = None if wanted is None or self._is_union else self._chosen(wanted)
        self._seen: set[int] = set()

    def _chosen(self, wanted: Sequence[str]) -> list[int]:
        rows = self.catalog.rows(
            "SELECT chrom, chrom_id FROM data.chromosomes UNION ALL SELECT alias, chrom_id FROM data.chromosome_aliases"
        )
        known = {str(name): int(chrom_id) for name, chrom_id in rows}
        if tuple(wanted) == (ALL,):
            return sorted(set(known.values()))
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise InputFileError(f"chromosomes that the genome does not have: {some(unknown)}", where="labelled_chroms")
        return sorted({known[name] for name in wanted})

    def add(self, source_id: int, experiment_ids: Sequence[int], chroms: Sequence[int]) -> None:
        """Take a source as having looked, for these experiments; `chroms` are those on which it has a row."""
        self.sources.append(source_id)
        pairs = {"experiment_id": list(experiment_ids), "source_id": [source_id] * len(experiment_ids)}
        self.catalog.insert("data.experiment_sources", pairs)
        self._seen |= set(chroms)
        if not self._is_union:
            self._insert(source_id, chroms if self._wanted is None else self._wanted)

    def finish(self) -> list[str]:
        """Write what only all files together tell, and return a note on unlabelled chromosomes."""
        if self._is_union:
            for source_id in self.sources:
                self._insert(source_id, sorted(self._seen))
        rows = self.catalog.rows(
            """SELECT chrom FROM data.chromosomes WHERE chrom_id NOT IN (
            SELECT chrom_id FROM data.source_chromosomes WHERE source_id IN (SELECT unnest(?))) ORDER BY chrom_id""",
            [self.sources],
        )
        names = [str(chrom) for (chrom,) in rows]
        return [f"{len(names)} chromosomes have no row and are unlabelled: {some(names)}"] if names else []

    def _insert(self, source_id: int, chroms: Sequence[int]) -> None:
        columns = {"source_id": [source_id] * len(chroms), "chrom_id": list(chroms)}
        self.catalog.insert("data.source_chromosomes", columns)
