"""Import what the leak check goes by: DNA-binding domains of genes, and what trunks of others were trained on.

A trunk of this package says itself what it was trained on; for Enformer and its like the table of its output tracks
does (Basenji's ``targets.txt``), and its split of the genome, where it is known, is a set of loci of the same name.
"""

from __future__ import annotations

from pathlib import Path

from tfbind_store.errors import InputFileError
from tfbind_store.ingest.calls import recorded
from tfbind_store.ingest.registry import Names
from tfbind_store.ingest.sources import FileIdentity, ImportReport, add_source, check_strict, earlier_import
from tfbind_store.names import parse_factor_name, path_safe_name, split_treatment
from tfbind_store.store.folder import Store
from tfbind_store.textfiles import TextTable, find_column, read_table

GENE_WORDS = ("gene", "symbol", "hgnc_symbol", "tf", "factor", "name")
DOMAIN_WORDS = ("domain", "dbd", "dna_binding_domain", "family", "tf_family", "class")
_WITH_A_FACTOR = "CHIP"


@recorded
def import_families(store: Store, path: Path | str, *, strict: bool = False) -> ImportReport:
    """Import the DNA-binding domain of genes.

    Parameters
    ----------
    store
        Where to.
    path
        TSV or CSV with a column of gene symbols (``gene``, ``symbol``, ``tf`` …) and one of domains or families
        (``domain``, ``dbd``, ``family`` …). A later table replaces what an earlier one said of a gene.
    strict
        Refuse to drop anything.

    Raises
    ------
    InputFileError
        If the table has no such columns, or says two things of one gene.
    """
    path = Path(path)
    file = FileIdentity.of("families", path, {})
    with store.reader() as catalog:
        if earlier := earlier_import(catalog, file):
            return earlier
    table = read_table(path)
    gene_column, domain_column = _column(table, GENE_WORDS), _column(table, DOMAIN_WORDS)
    found: dict[str, str] = {}
    n_empty = 0
    for row in table.rows:
        gene, domain = row.cells.get(gene_column), row.cells.get(domain_column)
        if not gene or not domain:
            n_empty += 1
        elif found.setdefault(gene, domain) != domain:
            what = f"{gene} has two domains: {found[gene]} and {domain}"
            raise InputFileError(what, where=f"{path}:{row.line}", fix="leave one row per gene")
    dropped = {"no_gene_or_domain": n_empty, "duplicate": len(table.rows) - n_empty - len(found)}
    report = _report("families", path, len(table.rows), len(found), dropped)
    check_strict(report, strict=strict)
    with store.writer() as catalog, catalog.transaction():
        source_id = add_source(catalog, file, report)
        genes = sorted(found)
        columns = {"gene": genes, "domain": [found[gene] for gene in genes], "source_id": [source_id] * len(genes)}
        catalog.insert("data.gene_domains", columns, replace=True)
    return report


@recorded
def import_trunk(store: Store, path: Path | str, name: str, *, strict: bool = False) -> ImportReport:
    """Import what a trunk was trained on.

    Parameters
    ----------
    store
        Where to.
    path
        Basenji's table of targets (a column ``description`` with ``CHIP:CTCF:MCF-7``, ``DNASE:K562`` …), or a table
        with columns ``factor`` and ``biotype``, one of which may be empty. The genes are taken out of epitope tags and
        complexes, the cells out of treatments.
    name
        What the trunk is called; what an earlier table said under this name stays.
    strict
        Refuse to drop anything.

    Raises
    ------
    InputFileError
        If the table has neither column, or nothing in it names a factor or a cell.
    """
    path, name = Path(path), path_safe_name(name, what="trunk")
    file = FileIdentity.of("trunk", path, {"name": name})
    with store.reader() as catalog:
        if earlier := earlier_import(catalog, file):
            return earlier
    table = read_table(path)
    pairs = _described(table) if find_column(table, "description") else _named(table)
    n_empty = sum(not factor and not cell for factor, cell in pairs)
    if n_empty == len(pairs):
        raise InputFileError("no row names a factor or a cell", where=str(path))
    report = _report("trunk", path, len(pairs), len(pairs) - n_empty, {"names_nothing": n_empty})
    check_strict(report, strict=strict)
    with store.writer() as catalog, catalog.transaction():
        source_id = add_source(catalog, file, report)
        names = Names(catalog)
        factors = sorted({gene for factor, _ in pairs if factor for gene in _genes(names, factor)})
        cells = sorted({cell for _, cell in pairs if cell})
        named = [("factors", factor) for factor in factors] + [("biotypes", cell) for cell in cells]
        columns = {
            "trunk": [name] * len(named),
            "kind": [kind for kind, _ in named],
            "name": [value for _, value in named],
            "source_id": [source_id] * len(named),
        }
        catalog.insert("data.trunk_training", columns, replace=True)
    note = f"{len(factors):,} genes and {len(cells):,} cells that {name} has seen"
    return report._replace(notes=[*report.notes, note])


def _described(table: TextTable) -> list[tuple[str | None, str | None]]:
    """Return (factor, cell) of each of Basenji's targets."""
    found: list[tuple[str | None, str | None]] = []
    for row in table.rows:
        assay, _, rest = row.cells.get("description", "").partition(":")
        factor, colon, cell = rest.partition(":") if assay.upper() == _WITH_A_FACTOR else ("", ":", rest)
        found.append((factor or None, split_treatment(cell.strip())[0] or None) if colon else (None, None))
    return found


def _named(table: TextTable) -> list[tuple[str | None, str | None]]:
    columns = [find_column(table, name) for name in ("factor", "biotype")]
    if not any(columns):
        what = f"the table has neither a column description nor factor or biotype: {', '.join(table.columns)}"
        raise InputFileError(what, where=str(table.path), fix="give Basenji's targets.txt, or name the columns so")
    rows = [[row.cells.get(column) if column else None for column in columns] for row in table.rows]
    return [(factor, cell) for factor, cell in rows]


def _genes(names: Names, factor: str) -> tuple[str, ...]:
    return parse_factor_name(factor, known_symbols=names.symbols, synonyms=names.synonyms).genes


def _column(table: TextTable, words: tuple[str, ...]) -> str:
    found = find_column(table, words[0], None, *words[1:])
    if found is None:
        what = f"no column {words[0]}: the table has {', '.join(table.columns)}"
        raise InputFileError(what, where=str(table.path), fix=f"call it one of {', '.join(words)}")
    return found


def _report(kind: str, path: Path, read: int, kept: int, dropped: dict[str, int]) -> ImportReport:
    return ImportReport(kind, str(path), read, kept, {cause: n for cause, n in dropped.items() if n}, [])
