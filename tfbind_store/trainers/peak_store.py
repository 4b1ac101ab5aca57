"""The store that `trainers.Trainer` makes of its files, or finds in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tfbind_store.errors import ConfigError
from tfbind_store.ingest import import_biotypes, import_experiments, import_negatives, import_peaks, import_proteins
from tfbind_store.loci import Grid
from tfbind_store.store.folder import Store
from tfbind_store.trainers.cache import SPECIES_PRIORITY, hashed_inputs


class ListedNegatives(NamedTuple):
    """Negatives of others, and the rules by which a selection takes negatives."""

    bed: Path | None
    scoped_bed: Path | None
    scoped_folder: Path | None
    rules: tuple[str, ...]

    @staticmethod
    def given(
        bed: Path | str | None, with_scoped: bool, scoped_bed: Path | str | None, scoped_folder: Path | str | None
    ) -> ListedNegatives:
        """Return what the trainer's arguments say.

        Raises
        ------
        ConfigError
            If one of the two places of scoped negatives is missing, or neither is asked for.
        """
        places = [None if path is None else Path(path) for path in (bed, scoped_bed, scoped_folder)]
        if (places[1] is None) != (places[2] is None) or (places[1] is not None and not with_scoped):
            fix = "give include_scoped_negs=True with both scoped_negs_remap_bed_path and scoped_negs_path, or none"
            raise ConfigError("scoped negatives are half given", where="Trainer", fix=fix)
        is_listed = bed is not None or scoped_folder is not None
        # what is listed by both files is one pool: as many of it as both together would have been
        n_listed = (bed is not None) + (scoped_folder is not None)
        rules = [] if bed is not None else ["random:1"]
        rules += [f"listed:{n_listed}"] if is_listed else []
        rules += ["scoped:1"] if with_scoped and scoped_folder is None else []
        return ListedNegatives(places[0], places[1], places[2], tuple(rules))


class PeakFiles(NamedTuple):
    """What a store is made of."""

    fasta: Path
    peaks: Path
    proteins: Path
    experiments: Path | None
    biotypes: Path | None
    template: str
    """What a context's text is made of."""
    negatives: ListedNegatives

    @staticmethod
    def given(
        fasta: Path | str,
        peaks: Path | str,
        proteins: Path | str,
        experiments: Path | str | None,
        biotypes: tuple[Path | None, str],
        negatives: ListedNegatives,
    ) -> PeakFiles:
        """Return what the trainer's arguments say; `biotypes` is the table and the template."""
        table = None if experiments is None else Path(experiments)
        return PeakFiles(Path(fasta), Path(peaks), Path(proteins), table, *biotypes, negatives)

    def store_name(self, grid: Grid) -> str:
        """Return a name for the store of what is in these files, cut so."""
        listed = self.negatives[:3]
        every = [self.fasta, self.peaks, self.proteins, self.biotypes, self.experiments]
        said = f"{grid.window_bp}/{grid.bin_bp} {self.template}"
        return f"{hashed_inputs(said, [*every, *listed] if any(listed) else every)}.store"


def all_bins(bin_bp: int, window_bp: int) -> Grid:
    """Return the grid of windows that keep all their bins.

    Raises
    ------
    ConfigError
        If bins do not fill a window.
    """
    if window_bp < bin_bp or window_bp % bin_bp:
        raise ConfigError(f"context_length {window_bp} is no multiple of {bin_bp} bp", where="Trainer")
    return Grid(window_bp=window_bp, n_bins=window_bp // bin_bp, bin_bp=bin_bp)


def made_or_found(cache: Path, grid: Grid, files: PeakFiles) -> Store:
    """Return the store of these files: the one in the cache, or a new one."""
    path = cache / files.store_name(grid)
    store = Store.open(path) if path.exists() else Store.create(path, fasta=files.fasta, grid=grid)
    # a call that has been made with the same file changes nothing
    import_proteins(store, files.proteins, species_priority=SPECIES_PRIORITY)
    import_peaks(store, files.peaks)
    if files.biotypes is not None:
        import_biotypes(store, files.biotypes, template=files.template)
    if files.experiments is not None:
        import_experiments(store, files.experiments)
    listed = files.negatives
    if listed.bed is not None:
        import_negatives(store, listed.bed)
    if listed.scoped_bed is not None:
        import_negatives(store, listed.scoped_bed, scoped=listed.scoped_folder)
    return store
