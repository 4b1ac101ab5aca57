"""What the trunks of a store were trained on, and whether a selection holds out what they have seen.

A trunk says so itself where this package made it: its checkpoint's card goes into the spec of the arrays that it
embedded. For others, such as Enformer, a table of its tracks is imported (``ingest.trunks``), and its own training
split as a set of loci of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from tfbind_store.arrays.layouts import read_layout
from tfbind_store.catalog.columns import Columns
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import SelectionError
from tfbind_store.query import reads
from tfbind_store.query.kinship import Kinship, close_names
from tfbind_store.query.leaks import NAMED, Leak, trunk_leaks
from tfbind_store.query.stretches import bin_spans, covered
from tfbind_store.store.folder import Store


class Trunk(NamedTuple):
    """One trunk, as far as it is known."""

    name: str
    """Of the array that it embedded, or of the imported table."""
    trained_on: Mapping[str, Sequence[str]] | None
    """Names by ``factors``, ``biotypes``, ``chromosomes``; None where it says nothing."""
    loci: Columns | None
    """Its own split of the genome, where that was imported."""
    is_of_array: bool
    """Whether an array was embedded by it, rather than a table imported."""


def read_trunks(store: Store, catalog: Catalog) -> list[Trunk]:
    """Return the trunks of a store: of its arrays of windows, and those that were imported."""
    sets = set(reads.loci_sets(catalog))
    found = []
    for name in store.array_names():
        if name.startswith(store.array_name_for("windows", "x").removesuffix("x")):
            card = read_layout(store.array_path(name), store.path / "receipts", name=name).spec.identity
            trained_on = card.get("trained_on")
            found.append(Trunk(name, trained_on if isinstance(trained_on, Mapping) else None, None, True))
    for name, trained_on in reads.imported_trunks(catalog).items():
        found.append(Trunk(name, trained_on, reads.loci(catalog, name) if name in sets else None, False))
    return found


class LookedAt(NamedTuple):
    """The trunks whose training matters to who reads some arrays."""

    trunks: list[Trunk]
    notes: list[str]


def looked_at(known: Sequence[Trunk], arrays: Sequence[str]) -> LookedAt:
    """Return the trunks behind arrays, all of a store if none is named.

    Imported trunks are of no array in particular: they count where one does not say itself what it was trained on.

    Parameters
    ----------
    arrays
        Names with or without their folder; some may not be embedded yet.
    """
    if not arrays:
        return LookedAt(list(known), [])
    found = [
        trunk for trunk in known if trunk.is_of_array and {trunk.name, trunk.name.rpartition("/")[2]} & set(arrays)
    ]
    there = {name for trunk in found for name in (trunk.name, trunk.name.rpartition("/")[2])}
    notes = [f"{name} is not embedded yet: training looks at its trunk" for name in arrays if name not in there]
    if any(trunk.trained_on is None for trunk in found):
        found += [trunk for trunk in known if not trunk.is_of_array]
    return LookedAt(found, notes)


def trunk_named(trunks: Sequence[Trunk], name: str) -> Trunk:
    """Return the trunk that a split goes by.

    Raises
    ------
    SelectionError
        If there is none of this name, or it does not say on which part of the genome it was trained.
    """
    by_name = {known: trunk for trunk in trunks for known in (trunk.name, trunk.name.rpartition("/")[2])}
    if name not in by_name:
        fix = close_names(name, sorted(by_name)) if by_name else "embed windows first, or import a trunk's table"
        raise SelectionError(f"no trunk {name!r}", where="split.trunk", fix=fix)
    trunk = by_name[name]
    if trunk.loci is None and not (trunk.trained_on or {}).get("chromosomes"):
        fix = f"import its split: tfbind import loci STORE BED --name {name.rpartition('/')[2]}"
        raise SelectionError(f"the trunk {name} does not say where it was trained", where="split.trunk", fix=fix)
    return trunk


def find_trunk_leaks(
    store: Store,
    trunks: Sequence[Trunk],
    unseen: Mapping[str, Sequence[str]],
    unseen_bins: Int64[np.ndarray, " n"],
    kinship: Kinship,
    *,
    fold: int | None = None,
) -> list[Leak]:
    """Return what trunks have seen of what a selection holds out.

    Parameters
    ----------
    unseen
        Names by ``factors``, ``biotypes`` and ``chromosomes``.
    unseen_bins
        Bins of rows whose place is held out: compared with the loci that a trunk was trained on.
    """
    leaks: list[Leak] = []
    for trunk in trunks:
        if trunk.trained_on is not None:
            leaks += trunk_leaks(unseen, trunk.trained_on, name=trunk.name, kinship=kinship, fold=fold)
        if trunk.loci is not None and len(unseen_bins):
            leaks += _seen_places(store, trunk, unseen_bins, fold)
    return leaks


def silent_notes(trunks: Sequence[Trunk]) -> list[str]:
    """Return a note for each trunk that does not say what it was trained on: a leak that nobody can exclude."""
    known = {trunk.name for trunk in trunks if trunk.trained_on is not None}
    return [
        f"{trunk.name}: the trunk does not say what it was trained on"
        for trunk in trunks
        if trunk.name not in known and trunk.trained_on is None
    ]


def _seen_places(store: Store, trunk: Trunk, bins: Int64[np.ndarray, " n"], fold: int | None) -> list[Leak]:
    assert trunk.loci is not None, "asked of a trunk with loci"
    trained: Any = trunk.loci["split"] == "train"
    spans = bin_spans(store.tiling, *(trunk.loci[name][trained] for name in ("chrom_id", "start_bp", "end_bp")))
    seen = bins[covered(spans.first, spans.last, store.tiling.n_bins)[bins]]
    if not len(seen):
        return []
    first = [str(store.tiling.bin_locus(*divmod(int(b), store.grid.n_bins))) for b in np.unique(seen)[:NAMED]]
    return [Leak("trunk", f"places of {trunk.name} ({len(seen):,} rows)", first, first, 0, fold)]
