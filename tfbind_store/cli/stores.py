"""Commands that fill a store and look into it: init, info, sql."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfbind_store.cli.frame import Command, emit, json_option, key_values, size_text, table

if TYPE_CHECKING:
    from tfbind_store.store.folder import Store

MAX_PRINTED_ROWS = 100_000
STORE = click.argument("store", type=click.Path(path_type=Path))
VERIFY = click.option(
    "--verify",
    type=click.Choice(["index", "first-touch"]),
    default="index",
    show_default=True,
    help="first-touch also checks the hash of each stored window when it is first read.",
)


@click.command(
    cls=Command,
    examples=[
        "tfbind init yeast.store genome.fa.gz --window-bp 4096 --bins 16",
        "tfbind init chr2.store genome.fa.gz --only chrII --window-bp 4096 --bins 16 --json",
    ],
)
@STORE
@click.argument("fasta", type=click.Path(path_type=Path))
@click.option("--window-bp", default=196_608, show_default=True, help="Bases that the trunk reads at once.")
@click.option("--bins", default=896, show_default=True, help="Bins kept from the middle of each window.")
@click.option("--bin-bp", default=128, show_default=True, help="Bases per bin.")
@click.option("--only", multiple=True, metavar="CHROM", help="Take only this chromosome of the FASTA. Repeatable.")
@click.option("--chrom-sizes", type=click.Path(path_type=Path), help="Names and lengths that the FASTA must have.")
@click.option("--aliases", type=click.Path(path_type=Path), help="Two columns: another name, the FASTA's name.")
@json_option
def init(
    store: Path,
    fasta: Path,
    window_bp: int,
    bins: int,
    bin_bp: int,
    only: tuple[str, ...],
    chrom_sizes: Path | None,
    aliases: Path | None,
    as_json: bool,
) -> None:
    """Make a store from a genome.

    FASTA may be plain, gzip or bgzip. Every base that is not A, C, G or T counts as N. The grid of windows and bins is
    fixed from here on: the defaults are Enformer's. Peaks that say 1, chr1 or chrI find their chromosome by themselves.
    """
    from tfbind_store.ingest.aliases import read_aliases
    from tfbind_store.loci import Grid
    from tfbind_store.store.folder import Store

    made = Store.create(
        store,
        fasta=fasta,
        grid=Grid(window_bp=window_bp, n_bins=bins, bin_bp=bin_bp),
        aliases=read_aliases(aliases) if aliases else None,
        chrom_sizes=chrom_sizes,
        only=list(only) or None,
    )
    described = _describe_genome(made)
    text = [
        f"{store}: {described['n_chromosomes']} chromosomes, {described['length_bp']:,} bp, "
        f"{described['n_bp']:,} of them N",
        f"grid: {window_bp:,} bp read, {bins} bins of {bin_bp} bp kept; {made.tiling.n_windows:,} windows",
        f"next: tfbind import peaks {store} PEAKS.bed.gz",
    ]
    emit(described, text, as_json=as_json)


def _describe_genome(store: Store) -> dict[str, Any]:
    chromosomes = store.genome.chromosomes
    return {
        "store": str(store.path),
        "genome": store.genome.digest,
        "n_chromosomes": len(chromosomes),
        "length_bp": sum(c.length_bp for c in chromosomes),
        "n_bp": sum(c.n_bp for c in chromosomes),
        "grid": {"window_bp": store.grid.window_bp, "n_bins": store.grid.n_bins, "bin_bp": store.grid.bin_bp},
        "n_windows": store.tiling.n_windows,
    }


_COUNTED = ("factors", "biotypes", "experiments", "peaks", "proteins", "blacklist", "loci")


@click.command(cls=Command, examples=["tfbind info yeast.store", "tfbind info yeast.store --json"])
@STORE
@json_option
def info(store: Path, as_json: bool) -> None:
    """Show what a store holds: its genome, catalog, arrays, selections and runs."""
    from tfbind_store.store.folder import Store

    opened = Store.open(store)
    with opened.reader() as catalog:
        counts = {name: int(catalog.rows(f"SELECT count(*) FROM {name}")[0][0]) for name in _COUNTED}
        imports = catalog.rows("SELECT kind, path, rows_read, rows_kept FROM imports")
    arrays = opened.arrays()
    names = {array.spec.fingerprint: array.name for array in arrays}
    value = {
        **_describe_genome(opened),
        "catalog": counts,
        "arrays": [_array_row(array, names) for array in arrays],
        "unreadable_arrays": {name: error.what for name, error in opened.unreadable_arrays().items()},
        "imports": [dict(zip(("kind", "path", "rows_read", "rows_kept"), row, strict=True)) for row in imports],
        "selections": list(opened.selections()),
        "runs": list(opened.runs()),
    }
    emit(value, _info_lines(value), as_json=as_json)


def _array_row(array: Any, names: Mapping[str, str]) -> dict[str, Any]:
    done = array.completeness
    return {
        "name": array.name,
        "shape": list(array.shape),
        "dtype": array.spec.dtype,
        "embedder": array.spec.embedder,
        "on_reading": array.spec.identity.get("on_reading", {}),
        "projected": _projected(array.spec, names),
        "fingerprint": array.spec.fingerprint,
        "done": done.n_ok + done.n_all_n,
        "failed": done.n_failed,
        "damaged_shards": array.n_damaged,
        # rows that only fill up the last shard of proteins or contexts were never planned
        "planned": done.n_planned if array.spec.kind == "windows" else done.n_planned - done.n_not_asked,
        "size_bytes": array.size_bytes,
    }


def _projected(spec: Any, names: Mapping[str, str]) -> dict[str, Any] | None:
    """Return from which array another one was derived and what was lost; None for one that was embedded."""
    from tfbind_store.spec import PROJECTED

    if spec.embedder != PROJECTED:
        return None
    said, source = (spec.identity.get(key) for key in ("projection", "source"))
    lost = said.get("reconstruction_rms") if isinstance(said, dict) else None
    fingerprint = str(source.get("fingerprint")) if isinstance(source, dict) else ""
    return {"source": names.get(fingerprint, fingerprint), "reconstruction_rms": lost}


def _array_notes(arrays: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for array in arrays:
        if array["projected"]:
            lost = array["projected"]["reconstruction_rms"]
            share = f"{lost:.2%}" if isinstance(lost, int | float) else "an unknown share"
            lines.append(f"{array['name']}: made from {array['projected']['source'] or 'nothing'}, {share} lost (rms)")
        if "pointwise" in array["on_reading"]:
            lines.append(f"{array['name']}: the trunk's last layer is applied as rows are read")
    return lines


def _info_lines(value: Mapping[str, Any]) -> list[str]:
    grid = value["grid"]
    lines = [
        f"store: {value['store']}",
        f"genome: {value['genome'][:12]}, {value['n_chromosomes']} chromosomes, {value['length_bp']:,} bp, "
        f"{value['n_bp']:,} of them N",
        f"grid: {grid['window_bp']:,} bp read, {grid['n_bins']} bins of {grid['bin_bp']} bp kept; "
        f"{value['n_windows']:,} windows",
        "catalog: " + ", ".join(f"{count:,} {name}" for name, count in value["catalog"].items() if count),
    ]
    if value["arrays"]:
        rows = [
            (a["name"], "x".join(map(str, a["shape"])), a["dtype"], a["embedder"], _done(a), size_text(a["size_bytes"]))
            for a in value["arrays"]
        ]
        lines += ["", *table(("array", "shape", "dtype", "embedder", "done", "bytes"), rows)]
        lines += _array_notes(value["arrays"])
    lines += [f"unreadable: {name}: {what}; see tfbind verify" for name, what in value["unreadable_arrays"].items()]
    for kind in ("selections", "runs"):
        if value[kind]:
            lines.append(f"{kind}: {', '.join(map(str, value[kind]))}")
    return lines


def _done(array: Mapping[str, Any]) -> str:
    failed = f", {array['failed']:,} failed" if array["failed"] else ""
    damaged = f", {array['damaged_shards']:,} shards damaged" if array["damaged_shards"] else ""
    return f"{array['done']:,} / {array['planned']:,}{failed}{damaged}"


@click.command(
    cls=Command,
    examples=[
        'tfbind sql yeast.store "SELECT factor, count(*) AS n FROM peaks GROUP BY factor ORDER BY n DESC LIMIT 5"',
        'tfbind sql yeast.store "SELECT * FROM peaks WHERE factor = $factor LIMIT 3" -p factor=REB1 --csv',
        'tfbind sql yeast.store "SELECT * FROM peaks WHERE factor = $factor" -p factor=REB1 --out reb1.bed',
        "tfbind sql yeast.store --schema",
    ],
)
@STORE
@click.argument("query", required=False)
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="Value bound to $NAME. Repeatable.")
@click.option("--schema", is_flag=True, help="Explain the views and their columns instead.")
@click.option("--explain", is_flag=True, help="Show how DuckDB would answer the query instead.")
@click.option("--csv", "shape", flag_value="csv", help="Print CSV.")
@click.option("--json", "shape", flag_value="json", help="Print JSON, one object per row.")
@click.option("--bed", "shape", flag_value="bed", help="Print BED: columns chrom, start, end; name, score, strand.")
@click.option("--table", "shape", flag_value="table", default="table", help="Print an aligned table (the default).")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a file instead: .csv, .json, .bed or .parquet, by its name's end.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Stop the query after this long.",
)
@click.option("--memory", default="2GB", show_default=True, help="Memory that the query may take.")
@click.option(
    "--max-rows",
    type=click.IntRange(min=1),
    help="Rows returned at most.  [default: 100000 on the screen, all into a file]",
)
def sql(
    store: Path,
    query: str | None,
    params: tuple[str, ...],
    schema: bool,
    explain: bool,
    shape: str,
    out: Path | None,
    seconds: float,
    memory: str,
    max_rows: int | None,
) -> None:
    """Ask the catalog: one SELECT, read-only, with bound parameters.

    The views are chromosomes, windows, bins, factors, proteins, biotypes, experiments, peaks, blacklist, loci and
    imports; --schema says what each of their columns means. The query runs in a process of its own that can open no
    file, and ends when its time or memory is used up.
    """
    from tfbind_store.catalog.strangers import Limits
    from tfbind_store.store.answers import WRITERS, write_file
    from tfbind_store.store.folder import Store

    with Store.open(store).reader() as catalog:
        if schema:
            _print_schema(catalog.described(), shape)
            return
        if not query:
            raise click.UsageError("no query given")
        values, limits = key_values(params, option="-p"), Limits(seconds, memory)
        if explain:
            plan = catalog.untrusted_plan(query, values, limits=limits)
            emit({"plan": plan.splitlines()}, plan, as_json=shape == "json")
            return
        most = max_rows or (None if out else MAX_PRINTED_ROWS)
        with catalog.untrusted_stream(query, values, limits=limits, max_rows=most) as found:
            if out:
                sizes: list[int] = []
                write_file(out, None, found.columns, found.types, _counted(found.batches(), sizes))
                click.echo(f"{sum(sizes):,} rows in {out}")
            elif shape == "table":
                emit(None, table(found.columns, [row for batch in found.batches() for row in batch]), as_json=False)
            else:
                WRITERS[shape](sys.stdout, found.columns, found.batches())
    if found.is_cut:
        click.echo(f"cut at {most:,} rows: --max-rows says how many", err=True)


def _counted(batches: Iterator[list[list[Any]]], sizes: list[int]) -> Iterator[list[list[Any]]]:
    """Pass batches on and note how many rows each has."""
    for batch in batches:
        sizes.append(len(batch))
        yield batch


def _print_schema(columns: list[tuple[str, str, str, str, str]], shape: str) -> None:
    """Print what each view and each of its columns means."""
    if shape == "json":
        keys = ("view", "holds", "column", "type", "means")
        emit([dict(zip(keys, row, strict=True)) for row in columns], "", as_json=True)
        return
    lines: list[str] = []
    for view, rows in itertools.groupby(columns, key=lambda row: row[:2]):
        lines += ["", f"{view[0]}: {view[1]}"] if lines else [f"{view[0]}: {view[1]}"]
        lines += [f"  {line}" for line in table(("column", "type", "meaning"), [row[2:] for row in rows])[1:]]
    emit(None, lines, as_json=False)
