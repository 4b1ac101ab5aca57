"""Peaks as tracks: which bins an experiment's peaks touch, by SQL, as one row of labels.

What a bigWig would say is made from peaks alone: an experiment's, or the union over the experiments of a factor in a
biotype. Chromosomes on which none of them has looked, and bins that a blacklist touches, are NaN: not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import ConfigError, InputFileError
from tfbind_store.ingest.calls import note_call, recorded
from tfbind_store.ingest.sources import ImportReport, digest_of, next_id
from tfbind_store.ingest.track_rows import (
    TrackEntry,
    only_importer,
    open_tracks,
    publish_track,
    stored_tracks,
    track_spec,
    write_entries,
)
from tfbind_store.spec import canonical_json, fingerprint_of
from tfbind_store.store.folder import Store

Grouping = Literal["experiment", "factor_biotype"]
Number = Literal["bound", "covered", "score"]
_NUMBERS: Mapping[str, str] = {
    # a bin is bound if it holds a summit; ``covered`` is the share of its bases under the longest overlap of one peak
    "bound": "max(CASE WHEN summit_bp >= bin_start AND summit_bp < bin_start + bin_bp THEN 1.0 ELSE 0.0 END)",
    "covered": "max((least(end_bp, bin_start + bin_bp) - greatest(start_bp, bin_start)) / bin_bp::DOUBLE)",
    "score": "max(coalesce(score, 0))",
}
_GROUPS = """
    SELECT list(e.experiment_id ORDER BY e.experiment_id) AS ids, list(e.experiment ORDER BY e.experiment_id) AS names,
           f.factor, b.biotype, any_value(e.biotype_id) AS biotype_id, any_value(e.assembly) AS assembly
    FROM data.experiments e JOIN data.factors f USING (factor_id) JOIN data.biotypes b USING (biotype_id)
    WHERE EXISTS (SELECT 1 FROM data.experiment_sources s WHERE s.experiment_id = e.experiment_id)
    GROUP BY f.factor, b.biotype, {more}
    ORDER BY f.factor, b.biotype, names
"""
_BINS = """
    WITH touched AS (
        SELECT p.start_bp, p.end_bp, p.summit_bp, p.score, c.first_window, $bin_bp AS bin_bp,
               unnest(range(p.start_bp // $bin_bp, (greatest(p.end_bp, p.summit_bp + 1) - 1) // $bin_bp + 1)) AS number
        FROM data.peaks p JOIN data.chromosomes c USING (chrom_id)
        WHERE p.experiment_id IN (SELECT unnest($ids::INTEGER[]))
    ), placed AS (SELECT *, number * bin_bp AS bin_start FROM touched)
    SELECT first_window::BIGINT * $n_bins + number AS global_bin, {number} AS value
    FROM placed GROUP BY global_bin
"""
_LABELLED = """
    SELECT DISTINCT chrom_id FROM data.source_chromosomes
    WHERE source_id IN (
        SELECT source_id FROM data.experiment_sources WHERE experiment_id IN (SELECT unnest($ids::INTEGER[]))
    )
"""
_EXCLUDED = """
    SELECT DISTINCT c.first_window::BIGINT * $n_bins
           + unnest(range(x.start_bp // $bin_bp, (x.end_bp - 1) // $bin_bp + 1)) AS global_bin
    FROM data.exclusions x JOIN data.chromosomes c USING (chrom_id)
"""


class _Group(NamedTuple):
    """Experiments that become one track."""

    track: str
    ids: list[int]
    biotype_id: int
    assembly: str | None
    made_of: str
    metadata: dict[str, str]


@recorded
def import_peak_tracks(
    store: Store,
    *,
    name: str = "peaks",
    by: Grouping = "experiment",
    number: Number = "bound",
    factor: str | None = None,
    biotype: str | None = None,
) -> ImportReport:
    """Rasterise peaks that were imported into the array ``tracks/<name>``.

    Parameters
    ----------
    store
        Where they are.
    name
        Of the array.
    by
        One track per experiment, or per factor and biotype: the union over its experiments.
    number
        ``bound``: 1 where a bin holds a summit, else 0. ``covered``: the share of a bin's bases under a peak.
        ``score``: the highest score of a peak that touches the bin, else 0.
    factor, biotype
        Only these.

    Raises
    ------
    InputFileError
        If no experiment fits, or tracks of these names are there and were made from other peaks.
    """
    if number not in _NUMBERS or by not in ("experiment", "factor_biotype"):
        raise ConfigError(f"no track of {number!r} by {by!r}", where="peak tracks", fix=f"one of {', '.join(_NUMBERS)}")
    array_name = store.array_name_for("tracks", name)
    with store.reader() as catalog:
        groups = _groups(catalog, by, number, factor, biotype)
    with only_importer(store, array_name):
        counts = _publish(store, array_name, groups, number)
        report = ImportReport("tracks", f"{len(groups)} groups of peaks", len(groups), len(groups), {}, [])
        with store.reader() as catalog:
            known = {
                str(track): int(n)
                for track, n in catalog.rows("SELECT track, n_bins FROM data.tracks WHERE array_name = ?", [array_name])
            }
        if {group.track for group in groups} <= known.keys():
            return report._replace(notes=["the same tracks were there before: nothing changed"])
        with store.writer() as catalog, catalog.transaction():
            source_id = _add_source(catalog, report, {"by": by, "number": number, "factor": factor, "biotype": biotype})
            entries = [
                TrackEntry(
                    row, group.track, group.ids[0], group.biotype_id, "peaks", group.assembly, n_bins, group.metadata
                )
                for group, (row, n_bins) in zip(groups, counts, strict=True)
            ]
            write_entries(catalog, array_name, entries, source_id)
    return report


def _groups(catalog: Catalog, by: Grouping, number: Number, factor: str | None, biotype: str | None) -> list[_Group]:
    sql = _GROUPS.format(more="e.experiment_id" if by == "experiment" else "f.factor")
    state = catalog.one("SELECT bit_xor(hash(p)), (SELECT bit_xor(hash(x)) FROM data.exclusions x) FROM data.peaks p")
    groups = []
    for ids, names, of, in_biotype, biotype_id, assembly in catalog.rows(sql):
        if factor not in (None, of) or biotype not in (None, in_biotype):
            continue
        track = str(names[0]) if by == "experiment" else f"{of}.{in_biotype}"
        made_of = fingerprint_of([number, track, list(names), str(state)])[:32]
        groups.append(
            _Group(track, list(map(int, ids)), int(biotype_id), assembly, made_of, {"experiments": "; ".join(names)})
        )
    if not groups:
        fix = "tfbind sql STORE 'SELECT DISTINCT factor, biotype FROM experiments' lists them"
        raise InputFileError("no experiment with peaks fits", where="peak tracks", fix=fix)
    return groups


def _publish(store: Store, array_name: str, groups: list[_Group], number: Number) -> list[tuple[int, int]]:
    """Publish what is not there; return the row and the number of known bins of each group."""
    spec = track_spec(store, "tracks", "peaks", {"number": number})
    array, _ = open_tracks(store, array_name, spec, 0)
    stored = stored_tracks(array)
    odd = [group.track for group in groups if group.track in stored and stored[group.track].made_of != group.made_of]
    if odd:
        what = f"{len(odd)} tracks were made from other peaks or blacklists (first: {odd[0]})"
        raise InputFileError(what, where=array_name, fix="choose another --name: a stored track is never changed")
    new = [group for group in groups if group.track not in stored]
    array, free = open_tracks(store, array_name, spec, len(new))
    done = {track: (found.row_index, found.n_bins) for track, found in stored.items()}
    with store.reader() as catalog:
        for group, row in zip(tqdm(new, desc="rasterise", unit="track", disable=None), free, strict=True):
            values = _raster(store, catalog, group.ids, number)
            n_bins = publish_track(
                array.layout, row, values, track=group.track, made_of=group.made_of, provenance={"number": number}
            )
            done[group.track] = (row, n_bins)
    return [done[group.track] for group in groups]


def _raster(store: Store, catalog: Catalog, ids: list[int], number: Number) -> Float32[np.ndarray, "n_windows n_bins"]:
    """Return the track of some experiments' peaks together."""
    tiling = store.tiling
    params: dict[str, Any] = {"bin_bp": tiling.grid.bin_bp, "n_bins": tiling.grid.n_bins, "ids": ids}
    values = np.full(tiling.n_bins, np.nan, dtype=np.float32)
    for (chrom,) in catalog.rows(_LABELLED, {"ids": ids}):
        values[tiling.global_bins(int(chrom))] = 0
    found = catalog.columns(_BINS.format(number=_NUMBERS[number]), params)
    bins = np.asarray(found["global_bin"], dtype=np.int64)
    keep = ~np.isnan(values[bins])
    values[bins[keep]] = np.asarray(found["value"], dtype=np.float32)[keep]
    excluded = catalog.columns(_EXCLUDED, {"bin_bp": tiling.grid.bin_bp, "n_bins": tiling.grid.n_bins})["global_bin"]
    values[np.asarray(excluded, dtype=np.int64)] = np.nan
    return values.reshape(tiling.n_windows, tiling.grid.n_bins)


def _add_source(catalog: Catalog, report: ImportReport, options: Mapping[str, Any]) -> int:
    """Record where the tracks came from: the catalog's own peaks, no file."""
    source_id = next_id(catalog, "data.sources", "source_id")
    options_text = canonical_json(dict(options))
    row = {
        "source_id": source_id,
        "kind": "tracks",
        "path": "peaks",
        "sha256": fingerprint_of(options_text),
        "size_bytes": 0,
        "options": options_text,
        "rows_read": report.rows_read,
        "rows_kept": report.rows_kept,
        "dropped": "{}",
    }
    catalog.insert("data.sources", {name: [value] for name, value in row.items()})
    note_call(catalog, digest_of)
    return source_id
