"""Have the catalog read a BED-like file, place its rows on the genome, and say what is wrong with which.

The result is a temporary table ``import_rows``: line, chrom_name, chrom_id, start_bp, end_bp, summit_bp, score, name,
c5, cause. ``cause`` is NULL where the row is good. Lines are numbered in the clean copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from tfbind_store.catalog import Catalog
from tfbind_store.errors import NameParseError, PeakFileError
from tfbind_store.ingest.sources import in_words, some
from tfbind_store.peaks import GOOD_ROW_SQL, CleanFile, first_bad_line, source_line

N_COLUMNS = 10
MAX_FAST_COLUMNS = 30
MAX_BAD_NAMES = 1000
"""So many names that are no experiments are enough to refuse a file."""


class Placed(NamedTuple):
    """How many rows a file has, and what is wrong with how many of them."""

    n_rows: int
    bad: dict[str, int]


def place_rows(catalog: Catalog, clean: CleanFile, *, drop: Collection[str], needs_name: bool = False) -> Placed:
    """Read a file into ``import_rows``; refuse it if rows are bad for a cause that may not be dropped.

    Raises
    ------
    PeakFileError
        With the count of each cause and the first line that has it.
    """
    named = " AND c4 IS NOT NULL AND trim(c4) <> ''" if needs_name else ""
    n_fields = max(clean.format.min_columns, 4 if needs_name else 3)
    with _lines(catalog, clean) as (lines, params):
        catalog.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE import_rows AS
            SELECT line, chrom_name, c.chrom_id, start_bp, end_bp, {clean.format.summit_sql()} AS summit_bp,
                   {clean.format.score_sql()} AS score, c4 AS name, c5,
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
    bad = _causes(catalog)
    refused = {cause: count for cause, count in bad.items() if cause not in drop}
    if refused:
        raise _refusal(catalog, clean, refused, needs_name=needs_name)
    return Placed(clean.n_rows, bad)


@contextlib.contextmanager
def _lines(catalog: Catalog, clean: CleanFile) -> Iterator[tuple[str, list[str]]]:
    """Give SQL, with its parameters, that reads the clean copy as text columns c1 to c10 with line and n_fields.

    Where all rows have one number of columns, DuckDB splits the lines itself, three times as fast; else each line is
    split on its own, so that short and long ones can be told.
    """
    names = [f"c{place}" for place in range(1, max(N_COLUMNS, clean.n_columns) + 1)]
    if clean.is_rectangular and clean.n_columns <= MAX_FAST_COLUMNS:
        own = ", ".join(f"'{name}': 'VARCHAR'" for name in names[: clean.n_columns])
        absent = "".join(f", NULL::VARCHAR AS {name}" for name in names[clean.n_columns : N_COLUMNS])
        yield (
            f"(SELECT row_number() OVER () AS line, {clean.n_columns} AS n_fields, *{absent} FROM read_csv(?,"
            " auto_detect=false, header=false, delim='\t', quote='', escape='', strict_mode=false,"
            f" columns={{{own}}}))",
            [str(clean.copy)],
        )
        return
    columns = dict.fromkeys(names[:N_COLUMNS], "VARCHAR")
    catalog.read_delimited(clean.copy, columns, "import_lines", skip_prefixes=())
    yield "import_lines", []
    catalog.execute("DROP TABLE import_lines")


def _causes(catalog: Catalog) -> dict[str, int]:
    rows = catalog.rows("SELECT cause, count(*) FROM import_rows WHERE cause IS NOT NULL GROUP BY cause ORDER BY cause")
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
        "SELECT line, chrom_name, start_bp, end_bp, length_bp FROM import_rows LEFT JOIN data.chromosomes"
        " USING (chrom_id) WHERE cause = ? ORDER BY line LIMIT 1",
        [cause],
    )
    assert row is not None
    where = f"{clean.source}:{source_line(clean.source, int(row[0]))}"
    if cause == "beyond_end":
        what = f"{row[1]}:{row[2]}-{row[3]} ends past the chromosome's {row[4]:,} bp ({counts})"
        return PeakFileError(what, where=where, fix=_fix(refused, "use peaks of the store's assembly"))
    unknown = [str(name) for (name,) in catalog.rows(
        "SELECT chrom_name FROM import_rows WHERE cause = ? GROUP BY 1 ORDER BY min(line)", [cause]
    )]  # fmt: skip
    own = [str(chrom) for (chrom,) in catalog.rows("SELECT chrom FROM data.chromosomes ORDER BY chrom_id")]
    what = f"chromosomes that the genome does not have: {some(unknown)} ({counts}); it has {some(own)}"
    return PeakFileError(what, where=where, fix=_fix(refused, "use files of the store's assembly"))


def _fix(refused: Mapping[str, int], first: str) -> str:
    return f"{first}, or leave such rows out: {' '.join(f'--drop {cause}' for cause in refused)}"


def refuse_names(catalog: Catalog, clean: CleanFile, bad: Mapping[str, NameParseError]) -> None:
    """Refuse experiment names that cannot be parsed, with the first line that has one."""
    first = catalog.one(
        "SELECT line, name FROM import_rows WHERE name IN (SELECT unnest(?)) ORDER BY line LIMIT 1",
        [sorted(bad)],
    )
    line, name = first or (1, next(iter(bad)))
    raise NameParseError(
        f"{bad[str(name)].what} ({len(bad):,} such names{' or more' if len(bad) >= MAX_BAD_NAMES else ''})",
        where=f"{clean.source}:{source_line(clean.source, int(line))}",
        fix="write that in column 4, or make it with --name-from, or leave such rows out: --drop bad_name",
    )
