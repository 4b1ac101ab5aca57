"""Signals that a selection declares: inputs of the head beside the embeddings, by biotype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import SelectionError
from tfbind_store.names import near_miss
from tfbind_store.store.folder import Store


def declared_signals(
    store: Store, catalog: Catalog, name: str, biotypes: Sequence[str], *, where: str
) -> dict[str, Any]:
    """Return what ``selection.json`` says of the signals `name`: the array, and which biotypes have one; empty if none.

    Raises
    ------
    SelectionError
        If there is no such array, or none of the biotypes has a signal in it.
    """
    if not name:
        return {}
    array = store.array_name_for("signals", name)
    known = [one.partition("/")[2] for one in store.array_names() if one.startswith("signals/")]
    if name not in known:
        close = near_miss(name, known)
        fix = f"did you mean {close}?" if close else "import them: tfbind import signals STORE FOLDER"
        raise SelectionError(f"no signals {name!r} in this store", where=where, fix=fix)
    sql = "SELECT b.biotype FROM data.tracks t JOIN data.biotypes b USING (biotype_id) WHERE t.array_name = ?"
    having = {str(biotype) for (biotype,) in catalog.rows(sql, [array])}
    own = sorted(set(biotypes))
    found = {"array": array, "with": [b for b in own if b in having], "without": [b for b in own if b not in having]}
    if not found["with"]:
        what = f"none of the {len(own):,} biotypes of the selection has a signal in {array}"
        raise SelectionError(what, where=where, fix="import signals of these biotypes, or select without")
    return found
