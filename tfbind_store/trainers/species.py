"""One species of a trainer of tracks: its files, and the store made of them in a cache folder, or found there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from tfbind_store.errors import ConfigError
from tfbind_store.ingest import import_biotypes, import_loci, import_proteins, import_tracks
from tfbind_store.loci import Grid
from tfbind_store.store.folder import Store
from tfbind_store.tracks.tables import file_of, read_annotation
from tfbind_store.trainers.cache import hashed_inputs, known_chroms
from tfbind_store.training.track_windows import WindowSplit, split_windows

FACTOR_TRACKS, PLAIN_TRACKS, LOCI = "tracks/tracks", "tracks/plain", "trainer"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SpeciesFiles:
    """What one species is trained on."""

    name: str
    """``human``, ``mouse``; empty for the only one."""
    fasta: Path
    proteins: Path | None
    """None where no track is of a factor."""
    species_priority: tuple[str, ...]
    assembly: str | None
    loci: Path | None = None
    held_out: Sequence[str] = field(default=())
    held_out_biotypes: Sequence[str] = field(default=())


class TrackFiles(NamedTuple):
    """What all species share."""

    annotation: Path
    factor_folder: Path | None
    """bigWigs that are asked for by factor and cell type."""
    plain_folder: Path | None
    """bigWigs that DNA alone gives."""
    statistic: Literal["sum", "mean"]
    biotypes: Path | None
    template: str


class SpeciesStore(NamedTuple):
    """A store made of a species' files, and which of its tracks there are."""

    files: SpeciesFiles
    store: Store
    has_factor_tracks: bool
    has_plain_tracks: bool

    def split(self, train: Sequence[int | str], valid: Sequence[int | str], *, has_split: bool) -> WindowSplit:
        """Return the windows that train and validate, by chromosome and loci.

        Raises
        ------
        ConfigError
            If nothing says what validates.
        """
        loci = LOCI if self.files.loci is not None else None
        if not valid and (loci is None or not has_split):
            fix = "valid_chromosome_ids=[…], or loci whose fourth column says train and valid"
            raise ConfigError("nothing says what validates", where=self.files.name or "BigWigTrainer", fix=fix)
        train_chroms, valid_chroms = (known_chroms(self.store, ids) if ids else () for ids in (train, valid))
        return split_windows(
            self.store, train_chroms=train_chroms, valid_chroms=valid_chroms, loci=loci, has_split=has_split
        )


def made_or_found(cache: Path, grid: Grid, files: SpeciesFiles, shared: TrackFiles) -> SpeciesStore | None:
    """Return the store of a species: the one in the cache, or a new one; None if the table has no bigWig of it."""
    folders = [
        folder if folder is not None and _has_tracks(folder, shared.annotation, files.assembly) else None
        for folder in (shared.factor_folder, shared.plain_folder)
    ]
    if folders == [None, None]:
        _log.warning("%s: the table has no bigWig of assembly %s", files.name or "BigWigTrainer", files.assembly)
        return None
    if folders[0] is not None and files.proteins is None:
        what = "tracks of factors need proteins"
        raise ConfigError(what, where=files.name or "BigWigTrainer", fix="give factor_fasta_folder")
    inputs = [files.fasta, *folders, shared.annotation, files.proteins, files.loci, shared.biotypes]
    said = f"{grid} {files.assembly} {files.species_priority} {shared.statistic} {shared.template}"
    path = cache / f"{hashed_inputs(said, inputs)}.store"
    store = Store.open(path) if path.exists() else Store.create(path, fasta=files.fasta, grid=grid)
    # a call that has been made with the same files changes nothing
    if files.proteins is not None:
        import_proteins(store, files.proteins, species_priority=files.species_priority)
    for folder, array in zip(folders, (FACTOR_TRACKS, PLAIN_TRACKS), strict=True):
        if folder is not None:
            import_tracks(
                store, folder, annotation=shared.annotation, name=array.partition("/")[2], assembly=files.assembly,
                statistic=shared.statistic, gaps="zero",
            )  # fmt: skip
    if shared.biotypes is not None:
        import_biotypes(store, shared.biotypes, template=shared.template)
    if files.loci is not None:
        import_loci(store, files.loci, LOCI)
    return SpeciesStore(files, store, folders[0] is not None, folders[1] is not None)


def windows_of(split: WindowSplit) -> np.ndarray:
    """Return all windows of a split: those that must be embedded."""
    return np.unique(np.concatenate([split.train, split.valid]))


def _has_tracks(folder: Path, annotation: Path, assembly: str | None) -> bool:
    rows = read_annotation(annotation)
    return any(
        file_of(row, folder, annotation) is not None
        for row in rows
        if assembly is None or row.assembly in (None, assembly)
    )
