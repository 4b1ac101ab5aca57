"""Turn names into ids: factors, biotypes and experiments, made on first sight and in sorted order.

A factor's row follows from the experiment's verbatim name and from the proteins and synonyms known so far, so that
peaks may come before proteins: `resolve_again` gives every experiment its factor anew when proteins come.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfbind_store.catalog.database import Catalog
from tfbind_store.contexts import DEFAULT_TEMPLATE, context_text, metadata_for
from tfbind_store.factors import unambiguous
from tfbind_store.ingest.sources import next_id
from tfbind_store.names import ParsedFactor, ParsedName, parse_experiment_name, parse_factor_name, split_treatment


class Names:
    """The parser with the symbols and synonyms of one catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self.symbols = {
            str(row[0]): int(row[1]) for row in catalog.rows("SELECT symbol, protein_id FROM data.proteins")
        }
        """Protein id of each gene symbol."""
        pairs = [(str(a), str(b)) for a, b in catalog.rows("SELECT synonym, symbol FROM data.synonyms")]
        self.synonyms = unambiguous(pairs, self.symbols)

    def experiment(self, raw: str) -> ParsedName:
        """Parse an experiment's name."""
        return parse_experiment_name(raw, known_symbols=self.symbols, synonyms=self.synonyms)

    def factor(self, raw: str) -> ParsedFactor:
        """Parse a factor's name."""
        return parse_factor_name(raw, known_symbols=self.symbols, synonyms=self.synonyms)


def as_json(metadata: Mapping[str, str]) -> str:
    """Return metadata as the catalog keeps it, columns in their order."""
    return json.dumps(dict(metadata), ensure_ascii=False)


def ids_of(catalog: Catalog, table: str, name: str) -> dict[str, int]:
    """Return ``{name: id}`` of a table of named things."""
    return {str(row[0]): int(row[1]) for row in catalog.rows(f"SELECT {name}, {name}_id FROM data.{table}")}


def ensure_biotypes(catalog: Catalog, biotypes: Iterable[str]) -> dict[str, int]:
    """Add missing biotypes with their context, and return the ids of all."""
    known = ids_of(catalog, "biotypes", "biotype")
    new = sorted(set(biotypes) - known.keys())
    if not new:
        return known
    metadata = biotype_metadata(catalog)
    first = next_id(catalog, "data.biotypes", "biotype_id")
    ids = list(range(first, first + len(new)))
    parts = [split_treatment(biotype) for biotype in new]
    cells = [metadata_for(biotype, metadata) for biotype in new]
    catalog.insert(
        "data.biotypes",
        {
            "biotype_id": ids,
            "biotype": new,
            "base_biotype": [base for base, _ in parts],
            "treatment": [treatment for _, treatment in parts],
            "metadata": [as_json(cell) for cell in cells],
        },
    )
    template = context_template(catalog)
    write_contexts(catalog, dict(zip(ids, zip(new, cells, strict=True), strict=True)), template)
    return known | dict(zip(new, ids, strict=True))


def biotype_metadata(catalog: Catalog) -> dict[str, dict[str, str]]:
    """Return the metadata of every biotype."""
    rows = catalog.rows("SELECT biotype, metadata FROM data.biotypes")
    return {str(biotype): json.loads(metadata) for biotype, metadata in rows}


def context_template(catalog: Catalog) -> str:
    """Return the template that makes the contexts of this catalog."""
    found = catalog.one("SELECT value FROM data.meta WHERE key = 'context_template'")
    return str(found[0]) if found else DEFAULT_TEMPLATE


def write_contexts(catalog: Catalog, biotypes: Mapping[int, tuple[str, Mapping[str, str]]], template: str) -> None:
    """Write the context of each biotype; a context has its biotype's id."""
    catalog.insert(
        "data.contexts",
        {
            "context_id": list(biotypes),
            "biotype_id": list(biotypes),
            "text": [context_text(template, biotype, metadata) for biotype, metadata in biotypes.values()],
            "template": [template] * len(biotypes),
        },
    )


def ensure_factors(catalog: Catalog, names: Names, factors: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Add missing factors, given as ``{factor: genes}``, and return the ids of all."""
    known = ids_of(catalog, "factors", "factor")
    new = sorted(set(factors) - known.keys())
    first = next_id(catalog, "data.factors", "factor_id")
    write_factors(catalog, names, {first + place: (name, factors[name]) for place, name in enumerate(new)})
    return known | {name: first + place for place, name in enumerate(new)}


def write_factors(catalog: Catalog, names: Names, factors: Mapping[int, tuple[str, tuple[str, ...]]]) -> None:
    """Write rows of factors and of their subunits."""
    if not factors:
        return
    catalog.insert(
        "data.factors",
        {
            "factor_id": list(factors),
            "factor": [factor for factor, _ in factors.values()],
            "genes": [list(genes) for _, genes in factors.values()],
            "has_protein": [all(gene in names.symbols for gene in genes) for _, genes in factors.values()],
        },
    )
    subunits = [
        (factor_id, position, gene, names.symbols.get(gene))
        for factor_id, (_, genes) in factors.items()
        for position, gene in enumerate(genes)
    ]
    columns = ("factor_id", "position", "gene", "protein_id")
    catalog.insert("data.factor_subunits", dict(zip(columns, map(list, zip(*subunits, strict=True)), strict=True)))


def ensure_experiments(
    catalog: Catalog,
    names: Names,
    parsed: Sequence[ParsedName],
    metadata: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, int]:
    """Add missing experiments with their factors and biotypes, and return the ids of all.

    One that is there and of which nothing is said yet gets its metadata, too.
    """
    known = ids_of(catalog, "experiments", "experiment")
    for name, cells in (metadata or {}).items():
        if name in known and cells:
            sql = "UPDATE data.experiments SET metadata = ? WHERE experiment_id = ? AND metadata = '{}'"
            catalog.execute(sql, [as_json(cells), known[name]])
    new = sorted((name for name in set(parsed) if name.raw not in known), key=lambda name: name.raw)
    if not new:
        return known
    factors = ensure_factors(catalog, names, {factor_of(name): name.genes for name in new})
    biotypes = ensure_biotypes(catalog, (name.biotype for name in new))
    first = next_id(catalog, "data.experiments", "experiment_id")
    ids = list(range(first, first + len(new)))
    catalog.insert(
        "data.experiments",
        {
            "experiment_id": ids,
            "experiment": [name.raw for name in new],
            "accession": [name.accession for name in new],
            "factor_id": [factors[factor_of(name)] for name in new],
            "biotype_id": [biotypes[name.biotype] for name in new],
            "modification": [name.modification for name in new],
            "metadata": [as_json((metadata or {}).get(name.raw, {})) for name in new],
        },
    )
    return known | {name.raw: key for name, key in zip(new, ids, strict=True)}


def factor_of(name: ParsedName) -> str:
    """Return the name of the factor that an experiment is of."""
    return ParsedFactor(name.genes, name.modification).factor


def resolve_again(catalog: Catalog, names: Names) -> None:
    """Give every experiment its factor by the proteins and synonyms known now.

    A factor keeps its id, under its new name too, so that selections made before stay true: only factors that turn out
    to be one are merged, into the lower id, and only a factor whose experiments part ways gives some of them a new one.
    """
    old = catalog.rows(
        "SELECT experiment_id, experiment, factor_id FROM data.experiments ORDER BY factor_id, experiment"
    )
    parsed = {int(key): names.experiment(raw) for key, raw, _ in old}
    taken: dict[str, int] = {}
    used: set[int] = set()
    unplaced: dict[str, tuple[str, ...]] = {}
    for key, _, factor_id in old:
        factor = factor_of(parsed[int(key)])
        if factor not in taken and factor not in unplaced:
            if int(factor_id) in used:
                unplaced[factor] = parsed[int(key)].genes
            else:
                taken[factor] = int(factor_id)
                used.add(int(factor_id))
    first = next_id(catalog, "data.factors", "factor_id")
    taken |= {factor: first + place for place, factor in enumerate(sorted(unplaced))}
    genes = {factor_of(name): name.genes for name in parsed.values()}
    biotypes = ensure_biotypes(catalog, (name.biotype for name in parsed.values()))
    catalog.execute("DELETE FROM data.factor_subunits")
    catalog.execute("DELETE FROM data.factors")
    write_factors(catalog, names, {key: (factor, genes[factor]) for factor, key in sorted(taken.items(), key=_second)})
    incoming = {
        "experiment_id": list(parsed),
        "factor_id": [taken[factor_of(name)] for name in parsed.values()],
        "biotype_id": [biotypes[name.biotype] for name in parsed.values()],
        "modification": [name.modification for name in parsed.values()],
    }
    if parsed:
        with catalog.registered("resolved", incoming):
            catalog.execute(
                "UPDATE data.experiments AS e SET factor_id = r.factor_id, biotype_id = r.biotype_id,"
                " modification = r.modification FROM resolved AS r WHERE e.experiment_id = r.experiment_id"
            )


def _second(pair: tuple[Any, int]) -> int:
    return pair[1]
