"""Import proteins and synonyms, and give every experiment its factor anew."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import ProteinError
from tfbind_store.factors import SPECIES_PRIORITY, Protein, ProteinTable, read_proteins, read_synonyms
from tfbind_store.ingest.calls import recorded
from tfbind_store.ingest.registry import Names, resolve_again
from tfbind_store.ingest.retraction import take_back_replaced
from tfbind_store.ingest.sources import (
    FileIdentity,
    ImportReport,
    add_source,
    check_drop,
    check_strict,
    earlier_import,
    next_id,
    some,
)
from tfbind_store.names import near_miss
from tfbind_store.store.folder import Store


@recorded
def import_proteins(
    store: Store,
    path: Path | str,
    *,
    species_priority: Sequence[str] = SPECIES_PRIORITY,
    synonyms: Sequence[Path | str] = (),
    drop: Collection[str] = (),
    strict: bool = False,
) -> ImportReport:
    """Import proteins, one per gene, and tables of other gene names.

    Every experiment's factor is then resolved anew, so it does not matter whether peaks or proteins came first. A gene
    that has a protein already gets the new one.

    Parameters
    ----------
    store
        Where to.
    path
        Multi-FASTA, or folder of ``{GENE}.{UNIPROT}.fasta``.
    species_priority
        Which species to take where a gene has entries of several.
    synonyms
        SGD features, HGNC-like tables, or two columns; see `tfbind_store.factors.read_synonyms`.
    drop
        ``bad_sequence``: leave out entries whose sequence is empty or holds foreign letters.
    strict
        Refuse to drop anything.

    Raises
    ------
    ProteinError
        If a file is no FASTA, or holds a bad sequence.
    """
    path, tables = Path(path), [Path(table) for table in synonyms]
    allowed = check_drop(drop)
    if not path.exists():
        raise ProteinError("no such file", where=str(path), fix="give a FASTA file or a folder of them")
    digests = [FileIdentity.of("synonyms", table, {}).sha256 for table in tables]
    options = {"species_priority": list(species_priority), "synonyms": digests, "drop": sorted(allowed)}
    file = FileIdentity.of("proteins", path, options)
    with store.reader() as catalog:
        if earlier := earlier_import(catalog, file):
            return earlier
    table = read_proteins(path, species_priority=species_priority, drop_bad="bad_sequence" in allowed)
    with store.writer() as catalog, catalog.transaction():
        take_back_replaced(catalog)
        notes = list(table.notes)
        report = ImportReport("proteins", str(path), table.n_read, len(table.chosen), dict(table.dropped), notes)
        check_strict(report, strict=strict)
        notes += _store_proteins(catalog, table.chosen, add_source(catalog, file, report))
        _store_synonyms(catalog, table, tables)
        names = Names(catalog)
        resolve_again(catalog, names)
        notes += _missing(catalog, names)
    return report


def _store_proteins(catalog: Catalog, proteins: Sequence[Protein], source_id: int) -> list[str]:
    """Write proteins; a gene that has one keeps its id. Return a note on those whose sequence changed."""
    rows = catalog.rows("SELECT symbol, protein_id, sha256 FROM data.proteins")
    known = {str(symbol): (int(key), str(sha256)) for symbol, key, sha256 in rows}
    unused = next_id(catalog, "data.proteins", "protein_id")
    ids: list[int] = []
    for protein in proteins:
        if protein.symbol in known:
            ids.append(known[protein.symbol][0])
        else:
            ids.append(unused)
            unused += 1
    catalog.insert(
        "data.proteins",
        {
            "protein_id": ids,
            "symbol": [protein.symbol for protein in proteins],
            "accession": [protein.accession for protein in proteins],
            "species": [protein.species for protein in proteins],
            "reviewed": [protein.reviewed for protein in proteins],
            "sequence": [protein.sequence for protein in proteins],
            "sha256": [protein.sha256 for protein in proteins],
            "length_aa": [len(protein.sequence) for protein in proteins],
            "chosen_by": [protein.chosen_by for protein in proteins],
            "source_id": [source_id] * len(proteins),
        },
        replace=True,
    )
    changed = sorted(p.symbol for p in proteins if p.symbol in known and known[p.symbol][1] != p.sha256)
    return [f"{len(changed)} genes got another protein than before: {some(changed)}"] if changed else []


def _store_synonyms(catalog: Catalog, table: ProteinTable, files: Sequence[Path]) -> None:
    symbols = [str(symbol) for (symbol,) in catalog.rows("SELECT symbol FROM data.proteins")]
    pairs = set(table.synonyms)
    for file in files:
        pairs |= set(read_synonyms(file, known_symbols=symbols))
    ordered = sorted(pairs)
    columns = {"synonym": [pair[0] for pair in ordered], "symbol": [pair[1] for pair in ordered]}
    catalog.insert("data.synonyms", columns, replace=True)


def _missing(catalog: Catalog, names: Names) -> list[str]:
    """Return a note on factors without protein, with the nearest symbol where one is close."""
    rows = catalog.rows("SELECT factor, genes FROM data.factors WHERE NOT has_protein ORDER BY factor")
    if not rows:
        return []
    told: list[str] = []
    for factor, genes in rows:
        lacking = [str(gene) for gene in genes if gene not in names.symbols]
        close = near_miss(lacking[0], names.symbols) if len(told) < 20 else None
        told.append(f"{factor} (close: {close})" if close else str(factor))
    found = catalog.one("SELECT count(*) FROM data.factors")
    notes = [f"{len(rows)} of {found[0] if found else 0} factors have no protein: {some(told, 20)}"]
    partly = [str(factor) for factor, genes in rows if any(gene in names.symbols for gene in genes)]
    if partly:
        notes.append(f"{len(partly)} of them are complexes of which a part is missing: {some(partly, 20)}")
    return notes
