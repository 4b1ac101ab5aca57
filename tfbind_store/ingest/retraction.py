"""Take back what an import brought in: its rows, its record, and its call.

Experiments keep their ids as long as anything tells of them, so that selections that were made before stay true.
Arrays of tracks are never taken back: a stored track does not change.
"""

from __future__ import annotations

import json

from tfbind_store.catalog.database import Catalog
from tfbind_store.contexts import DEFAULT_TEMPLATE
from tfbind_store.ingest.calls import Imported, replaced
from tfbind_store.ingest.registry import Names, as_json, resolve_again, write_contexts
from tfbind_store.store.folder import Store
from tfbind_store.store.stock import IMPORTS_KEY, recorded_imports

_OF_SOURCES = (
    "peaks",
    "relaxed_peaks",
    "exclusions",
    "loci",
    "source_chromosomes",
    "experiment_sources",
    "proteins",
    "sources",
)
"""Tables whose rows say which source they are of; sources themselves last."""
_UNTOLD = """
    experiment_id NOT IN (SELECT experiment_id FROM data.experiment_sources)
    AND experiment_id NOT IN (SELECT experiment_id FROM data.tracks WHERE experiment_id IS NOT NULL)
    AND experiment_id NOT IN (SELECT experiment_id FROM data.relaxed_peaks)
"""
_BARE = "metadata = '{}', peaks_nr = NULL, assembly = NULL"
_UNUSED = """
    biotype_id NOT IN (SELECT biotype_id FROM data.experiments)
    AND biotype_id NOT IN (SELECT biotype_id FROM data.tracks WHERE biotype_id IS NOT NULL)
"""


def take_back_replaced(catalog: Catalog) -> None:
    """Take back what the running import replaces; every import does so first, in its transaction."""
    retract(catalog, replaced())


def withdraw(store: Store, old: Imported) -> None:
    """Take back imports that nothing replaces."""
    with store.writer() as catalog, catalog.transaction():
        retract(catalog, old)
        resolve_again(catalog, Names(catalog))


def retract(catalog: Catalog, old: Imported) -> None:
    """Take back imports; the caller is in a transaction, and resolves names anew where proteins are among them."""
    if not old.sources:
        return
    keys = {name: [getattr(key, name) for key in old.sources] for name in ("kind", "sha256", "options")}
    with catalog.registered("retracted", keys):
        found = catalog.rows(
            "SELECT source_id, kind FROM data.sources AS s WHERE EXISTS (SELECT 1 FROM retracted AS r"
            " WHERE r.kind = s.kind AND r.sha256 = s.sha256 AND r.options = s.options)"
        )
    ids, kinds = [int(source_id) for source_id, _ in found], {str(kind) for _, kind in found}
    for table in _OF_SOURCES:
        catalog.execute(f"DELETE FROM data.{table} WHERE source_id IN (SELECT unnest(?::INTEGER[]))", [ids])
    if "proteins" in kinds:
        catalog.execute("DELETE FROM data.synonyms WHERE symbol NOT IN (SELECT symbol FROM data.proteins)")
    if "peaks" in kinds:
        catalog.execute(f"UPDATE data.experiments SET {_BARE} WHERE {_UNTOLD}")
    if "experiments" in kinds:
        tables = [json.loads(key.options) for key in old.sources if key.kind == "experiments"]
        _forget_columns(catalog, {column for options in tables for column in options["brought"]})
    if "biotypes" in kinds:
        _forget_biotypes(catalog)
    calls = [call for call in recorded_imports(catalog) if not _is_one_of(call, old)]
    catalog.insert("data.meta", {"key": [IMPORTS_KEY], "value": [json.dumps(calls)]}, replace=True)


def _is_one_of(call: dict[str, object], old: Imported) -> bool:
    return {"verb": call["verb"], "arguments": call["arguments"]} in old.calls


def _forget_columns(catalog: Catalog, columns: set[str]) -> None:
    """Remove what tables of experiments said: their columns, numbers of peaks, assemblies.

    Which experiment a cell was of is not on record: a column of the same name that came with peak files goes too.
    """
    rows = catalog.rows("SELECT experiment_id, metadata FROM data.experiments ORDER BY experiment_id")
    left = {int(key): {c: cell for c, cell in json.loads(text).items() if c not in columns} for key, text in rows}
    incoming = {"experiment_id": list(left), "metadata": [as_json(cells) for cells in left.values()]}
    with catalog.registered("bare_metadata", incoming):
        catalog.execute(
            "UPDATE data.experiments AS e SET metadata = b.metadata, peaks_nr = NULL, assembly = NULL"
            " FROM bare_metadata AS b WHERE e.experiment_id = b.experiment_id"
        )


def _forget_biotypes(catalog: Catalog) -> None:
    """Make every biotype as it was before any table of them came."""
    catalog.execute("DELETE FROM data.meta WHERE key = 'context_template'")
    catalog.execute(f"DELETE FROM data.biotypes WHERE {_UNUSED}")
    catalog.execute("UPDATE data.biotypes SET metadata = '{}'")
    catalog.execute("DELETE FROM data.contexts")
    rows = catalog.rows("SELECT biotype_id, biotype FROM data.biotypes ORDER BY biotype_id")
    write_contexts(catalog, {int(key): (str(name), {}) for key, name in rows}, DEFAULT_TEMPLATE)


def prune(store: Store) -> int:
    """Remove experiments of which no file tells any more, and return how many.

    Factors and biotypes that only they had go too; a biotype that a table describes stays.
    """
    with store.reader() as catalog:
        if not catalog.rows(f"SELECT 1 FROM data.experiments WHERE {_UNTOLD} LIMIT 1"):
            return 0
    with store.writer() as catalog, catalog.transaction():
        gone = catalog.rows(f"SELECT experiment_id, biotype_id FROM data.experiments WHERE {_UNTOLD}")
        biotypes = sorted({int(biotype_id) for _, biotype_id in gone})
        catalog.execute(f"DELETE FROM data.experiments WHERE {_UNTOLD}")
        for table in ("factor_subunits", "factors"):
            unused = "factor_id NOT IN (SELECT factor_id FROM data.experiments)"
            catalog.execute(f"DELETE FROM data.{table} WHERE {unused}")
        catalog.execute(
            f"DELETE FROM data.biotypes WHERE {_UNUSED} AND metadata = '{{}}'"
            " AND biotype_id IN (SELECT unnest(?::INTEGER[]))",
            [biotypes],
        )
        catalog.execute("DELETE FROM data.contexts WHERE biotype_id NOT IN (SELECT biotype_id FROM data.biotypes)")
    return len(gone)
