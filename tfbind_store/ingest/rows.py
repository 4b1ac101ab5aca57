"""Have the catalog read a BED-like file, place its rows on the genome, and say what is wrong with which.

The result is a temporary table ``import_rows``: line, chrom_id, start_bp, end_bp, summit_bp, score, name_id, cause (and
as text, if asked, name and c5). ``cause`` is NULL where the row is good. Lines are numbered among the clean rows.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tfbind_store.catalog.database import Catalog
from tfbind_store.durable import typed_errors
from tfbind_store.errors import NameParseError, PeakFileError
from tfbind_store.ingest.sources import in_words, some
from tfbind_store.peaks import GOOD_ROW_SQL, CleanBlock, CleanFile, first_bad_line, source_line
from tfbind_store.textfiles import read_ahead

BLOCK_BYTES = 32 << 20
"""Text that one query reads."""
CAUSE = "ENUM('bad_line', 'unknown_chromosome', 'beyond_end', 'bad_name')"
MAX_ODD_ROWS = 100_000
"""Of each block: what is told about rows that do not fit needs no more of them."""
N_COLUMNS = 10
MAX_FAST_COLUMNS = 30
MAX_BAD_NAMES = 1000
"""So many names that are no experiments are enough to refuse a file."""


class Placed(NamedTuple):
    """How many rows a file has, and what is wrong with how many of them."""

    n_rows: int
    bad: dict[str, int]


def place_rows(
    catalog: Catalog, clean: CleanFile, *, drop: Collection[str], needs_name: bool = False, keep_text: bool = False
) -> Placed:
    """Read a file into ``import_rows``; refuse it if rows are bad for a cause that may not be dropped.

    The file is read block by block, the next one made ready by a thread meanwhile: no copy of it is written, and what
    the rows say stands in numbers of the fewest bytes.

    Parameters
    ----------
    needs_name
        Column 4 must name something: ``name_id`` numbers the distinct names, which stand in ``import_names``.
    keep_text
        Keep columns 4 and 5 as they are, as ``name`` and ``c5``, for small files.

    Raises
    ------
    PeakFileError
        With the count of each cause and the first line that has it.
    """
    text = ", name VARCHAR, c5 VARCHAR" if keep_text else ""
    longest = catalog.one("SELECT max(length_bp) FROM data.chromosomes")
    bp = "INTEGER" if longest and longest[0] < 2**31 else "BIGINT"
    catalog.execute(
        f"""CREATE OR REPLACE TEMP TABLE import_rows (line BIGINT, chrom_id SMALLINT, start_bp {bp}, end_bp {bp},
        summit_bp {bp}, score FLOAT, name_id INTEGER{text}, cause {CAUSE})"""
    )
    catalog.execute("CREATE OR REPLACE TEMP TABLE import_names (name_id INTEGER, name VARCHAR)")
    catalog.execute("CREATE OR REPLACE TEMP TABLE import_odd (line BIGINT, chrom_name VARCHAR, place VARCHAR)")
    n_before = 0
    blocks = read_ahead(_joined(clean.blocks()))
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(blocks):
        path = Path(folder) / "block.bed"
        for block in blocks:
            with typed_errors(path):
                path.write_bytes(block.text)
            _read_block(catalog, clean, block, path, n_before, needs_name=needs_name)
            _place_block(catalog, bp, needs_name=needs_name, keep_text=keep_text)
            n_before += block.n_rows
    catalog.execute("DROP TABLE IF EXISTS import_block")
    bad = _causes(catalog)
    refused = {cause: count for cause, count in bad.items() if cause not in drop}
    if refused:
        raise _refusal(catalog, clean, refused, needs_name=needs_name)
    return Placed(clean.n_rows, bad)


def _joined(blocks: Iterable[CleanBlock]) -> Iterator[CleanBlock]:
    """Put blocks together until they are worth a query."""
    held: list[CleanBlock] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += len(block.text)
        if size >= BLOCK_BYTES:
            yield _sum_of(held)
            held, size = [], 0
    if held:
        yield _sum_of(held)


def _sum_of(blocks: Sequence[CleanBlock]) -> CleanBlock:
    text = b"".join(block.text for block in blocks)
    return CleanBlock(text, sum(b.n_rows for b in blocks), all(b.is_rectangular for b in blocks))


def _read_block(
    catalog: Catalog, clean: CleanFile, block: CleanBlock, path: Path, n_before: int, *, needs_name: bool
) -> None:
    """Make ``import_block``: the rows of a block, placed, with what is wrong with them."""
    named = " AND c4 IS NOT NULL AND trim(c4) <> ''" if needs_name else ""
    n_fields = max(clean.format.min_columns, 4 if needs_name else 3)
    with _lines(catalog, clean, block, path) as (lines, params):
        catalog.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE import_block AS
            SELECT line + {n_before} AS line, chrom_name, c.chrom_id, start_bp, end_bp,
                   {clean.format.summit_sql()} AS summit_bp, {clean.format.score_sql()} AS score, c4 AS name, c5,
                   CASE WHEN NOT good THEN 'bad_line' WHEN c.chrom_id IS NULL THEN 'unknown_chromosome'
                        WHEN end_bp > c.length_bp THEN 'beyond_end' END AS cause
            FROM (SELECT *, c1 AS chrom_name, try_cast(c2 AS BIGINT) AS start_bp, try_cast(c3 AS BIGINT) AS end_bp,
                         coalesce({GOOD_ROW_SQL}, false) AND n_fields >= {n_fields}{named} AS good
                  FROM {lines}) AS l
            LEFT JOIN (SELECT chrom AS known_name, chrom_id, length_bp FROM data.chromosomes
                       UNION ALL SELECT alias, chrom_id, length_bp
                       FROM data.chromosome_aliases JOIN data.chromosomes USING (chrom_id)
                      ) AS c ON l.chrom_name = c.known_name""",
            params,
        )


def _place_block(catalog: Catalog, bp: str, *, needs_name: bool, keep_text: bool) -> None:
    """Append ``import_block`` to the tables of the whole file."""
    catalog.execute(
        f"""INSERT INTO import_odd SELECT line, chrom_name, concat(start_bp, '-', end_bp) FROM import_block
        WHERE cause IS NOT NULL AND cause <> 'bad_line' ORDER BY line LIMIT {MAX_ODD_ROWS}"""
    )
    if needs_name:
        catalog.execute(
            """INSERT INTO import_names
            SELECT (SELECT count(*) FROM import_names) + row_number() OVER (ORDER BY name), name
            FROM (SELECT DISTINCT name FROM import_block WHERE cause IS DISTINCT FROM 'bad_line') AS b
            WHERE name NOT IN (SELECT name FROM import_names)"""
        )
    # a row that is kept lies on its chromosome, so its numbers fit; those of other rows are looked at no more
    catalog.execute(
        f"""INSERT INTO import_rows BY NAME
        SELECT line, chrom_id, try_cast(start_bp AS {bp}) AS start_bp, try_cast(end_bp AS {bp}) AS end_bp,
               try_cast(summit_bp AS {bp}) AS summit_bp, score, {"name_id, " if needs_name else ""}
               {"b.name, c5, " if keep_text else ""} cause
        FROM import_block AS b {"LEFT JOIN import_names AS n ON b.name = n.name" if needs_name else ""}"""
    )


@contextlib.contextmanager
def _lines(catalog: Catalog, clean: CleanFile, block: CleanBlock, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Give SQL, with its parameters, that reads a block as text columns c1 to c10 with line and n_fields.

    Where all rows have one number of columns, DuckDB splits the lines itself, three times as fast; else each line is
    split on its own, so that short and long ones can be told.
    """
    names = [f"c{place}" for place in range(1, max(N_COLUMNS, clean.n_columns) + 1)]
    if block.is_rectangular and clean.n_columns <= MAX_FAST_COLUMNS:
        own = ", ".join(f"'{name}': 'VARCHAR'" for name in names[: clean.n_columns])
        absent = "".join(f", NULL::VARCHAR AS {name}" for name in names[clean.n_columns : N_COLUMNS])
        yield (
            f"(SELECT row_number() OVER () AS line, {clean.n_columns} AS n_fields, *{absent} FROM read_csv(?,"
            " auto_detect=false, header=false, delim='\t', quote='', escape='', strict_mode=false,"
            f" columns={{{own}}}))",
            [str(path)],
        )
        return
    columns = dict.fromkeys(names[:N_COLUMNS], "VARCHAR")
    catalog.read_delimited(path, columns, "import_lines", skip_prefixes=())
    yield "import_lines", []
    catalog.execute("DROP TABLE import_lines")


def _causes(catalog: Catalog) -> dict[str, int]:
    rows = catalog.rows(
        "SELECT cause, count(*) FROM import_rows WHERE cause IS NOT NULL GROUP BY cause ORDER BY cause::VARCHAR"
    )
    return {str(cause): int(count) for cause, count in rows}


def _refusal(catalog: Catalog, clean: CleanFile, refused: Mapping[str, int], *, needs_name: bool) -> PeakFileError:
    """Return the error that names the gravest cause's first line."""
    counts = f"{in_words(refused)} of {clean.n_rows:,} rows"
    if "bad_line" in refused:
        bad = first_bad_line(clean.source, clean.format, needs_name=needs_name)
        number, reason = bad or (0, "no peak")
        return PeakFileError(f"{reason} ({counts})", where=f"{clean.source}:{number}", fix=_fix(refused, "correct it"))
    cause = next(iter(refused))
    row = catalog.one(
        "SELECT line, chrom_name, place, length_bp FROM import_rows JOIN import_odd USING (line)"
        " LEFT JOIN data.chromosomes USING (chrom_id) WHERE cause = ? ORDER BY line LIMIT 1",
        [cause],
    )
    assert row is not None
    where = f"{clean.source}:{source_line(clean.source, int(row[0]))}"
    if cause == "beyond_end":
        what = f"{row[1]}:{row[2]} ends past the chromosome's {row[3]:,} bp ({counts})"
        return PeakFileError(what, where=where, fix=_fix(refused, "use peaks of the store's assembly"))
    unknown = [str(name) for (name,) in catalog.rows(
        "SELECT chrom_name FROM import_rows JOIN import_odd USING (line) WHERE cause = ? GROUP BY 1 ORDER BY min(line)",
        [cause],
    )]  # fmt: skip
    own = [str(chrom) for (chrom,) in catalog.rows("SELECT chrom FROM data.chromosomes ORDER BY chrom_id")]
    what = f"chromosomes that the genome does not have: {some(unknown)} ({counts}); it has {some(own)}"
    return PeakFileError(what, where=where, fix=_fix(refused, "use files of the store's assembly"))


def _fix(refused: Mapping[str, int], first: str) -> str:
    return f"{first}, or leave such rows out: {' '.join(f'--drop {cause}' for cause in refused)}"


def refuse_names(catalog: Catalog, clean: CleanFile, bad: Mapping[str, NameParseError]) -> None:
    """Refuse experiment names that cannot be parsed, with the first line that has one."""
    first = catalog.one(
        "SELECT line, name FROM import_rows JOIN import_names USING (name_id) WHERE name IN (SELECT unnest(?))"
        " ORDER BY line LIMIT 1",
        [sorted(bad)],
    )
    line, name = first or (1, next(iter(bad)))
    raise NameParseError(
        f"{bad[str(name)].what} ({len(bad):,} such names{' or more' if len(bad) >= MAX_BAD_NAMES else ''})",
        where=f"{clean.source}:{source_line(clean.source, int(line))}",
        fix="write that in column 4, or make it with --name-from, or leave such rows out: --drop bad_name",
    )
