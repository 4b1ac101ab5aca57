"""The store that `trainers.Trainer` makes of its files, or finds in the cache."""

from __future__ import annotations

from collections.abc import Sequence
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


def made_or_found(
    cache: Path, grid: Grid, inputs: Sequence[Path | None], template: str, listed: ListedNegatives
) -> Store:
    """Return the store of these files: the one in the cache, or a new one."""
    fasta, peaks, proteins, biotypes, experiments = inputs
    assert fasta is not None, "a genome is needed"
    assert peaks is not None, "peaks are needed"
    assert proteins is not None, "proteins are needed"
    every = [*inputs, *listed[:3]] if any(listed[:3]) else inputs
    path = cache / f"{hashed_inputs(f'{grid.window_bp}/{grid.bin_bp} {template}', every)}.store"
    store = Store.open(path) if path.exists() else Store.create(path, fasta=fasta, grid=grid)
    # a call that has been made with the same file changes nothing
    import_proteins(store, proteins, species_priority=SPECIES_PRIORITY)
    import_peaks(store, peaks)
    if biotypes is not None:
        import_biotypes(store, biotypes, template=template)
    if experiments is not None:
        import_experiments(store, experiments)
    if listed.bed is not None:
        import_negatives(store, listed.bed)
    if listed.scoped_bed is not None:
        import_negatives(store, listed.scoped_bed, scoped=listed.scoped_folder)
    return store
