"""Selecting at ReMap's scale: import, subset, selection with a held-out family, and bedtools doing the same.

    python benchmarks/remap.py                                    # 2 M and 20 M peaks; 8 GB in a temporary folder
    python benchmarks/remap.py --folder DIR                       # keeps the generated files: the next run reads them
    python benchmarks/remap.py --folder DIR --sizes 200000 2000000

The files are those of ``remap_files``: hg38's chromosomes, 8,103 experiments, peaks crowded and named as ReMap's. Each
stage is a process of its own, so that its CPU seconds and its peak memory are its own:

- *import*: peaks into a store with the genome; *again*: the same file once more; *duckdb*: the peer, DuckDB alone
  reading the same file, numbering the names and writing rows sorted by them.
- *subset*: all peaks of 10 experiments through ``Store.sql``; the peer is awk over the same BED.gz.
- *select*: one million positives and three million negatives (random, scoped, gc), a factor family held out, two
  chromosomes for validation and test, leaks checked.
- *referee*: bedtools looks for the experiment's own peaks within the margin of every negative of that selection. It
  reads the BED file, not the catalog. One hit is a failure; so is a positive without one.
- *scoped*: pybedtools finds what *select* draws its scoped negatives from, peaks of the same biotype's other factors
  away from the experiment's own, for 20 experiments whose files are cut already; times 8,103 / 20 for all of them.

The last line is one JSON object; ``slope`` is what a further million rows costs the import between the two sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import remap_files

if TYPE_CHECKING:
    from tfbind_store.store.folder import Store

REMAP_ROWS = 182_000_000
N_SUBSET = 10
N_SCOPED = 20
POSITIVES = 1_000_000
MARGIN_BP = 512
Result = dict[str, Any]


def main() -> None:
    """Run every stage at every size and print what it took."""
    args = _arguments()
    if args.stage:
        print(json.dumps(STAGES[args.stage](args.folder, args.rows)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, dict[str, Result]] = {}
        for rows in args.sizes:
            found[str(rows)] = {stage: _run(stage, folder, rows) for stage in args.only or STAGES}
    print(json.dumps({"benchmark": "remap", "cores": os.cpu_count(), "sizes": found, "slope": _slope(found)}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to keep generated files; default: a temporary folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000_000, 20_000_000], help="peaks")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), help="stages to run, of stores that are there")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(stage: str, folder: Path, rows: int) -> Result:
    """Run a stage in a process of its own; seconds and peak memory are the process's and its children's."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder), "--rows", str(rows)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    anonymous = Anonymous(process.pid)
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{stage} of {rows:,} rows failed")
    took = {
        "wall_s": round(time.perf_counter() - begun, 2),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_gib": round(used.ru_maxrss / 2**20, 2),
        "peak_anonymous_gib": anonymous.peak_gib(),
    }
    result = {**took, **json.loads(said.splitlines()[-1])}
    print(
        f"{rows:>11,}  {stage:8s}", "  ".join(f"{name} {_short(value)}" for name, value in result.items()), flush=True
    )
    return result


class Anonymous:
    """Looks every 20 ms at how much memory of its own a process has: without pages of files, which cost nothing."""

    def __init__(self, pid: int) -> None:
        self._status, self._peak_kib = Path(f"/proc/{pid}/status"), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):  # the process is gone
            while found := re.search(r"RssAnon:\s+(\d+) kB", self._status.read_text()):
                self._peak_kib = max(self._peak_kib, int(found[1]))
                time.sleep(0.02)

    def peak_gib(self) -> float:
        """Return the most that was seen."""
        self._thread.join()
        return round(self._peak_kib / 2**20, 2)


def _short(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _slope(found: dict[str, dict[str, Result]]) -> Result:
    """Return what a million further rows costs the import, and what all of ReMap would at that rate."""
    sizes = sorted(map(int, found))
    if len(sizes) < 2 or "import" not in found[str(sizes[0])]:
        return {}
    low, high = found[str(sizes[0])]["import"], found[str(sizes[-1])]["import"]
    slope: Result = {}
    for name in ("wall_s", "cpu_s"):
        each = (high[name] - low[name]) / (sizes[-1] - sizes[0])
        slope[f"{name}_per_million_rows"] = round(each * 1e6, 3)
        slope[f"{name}_of_{REMAP_ROWS // 10**6}_million_rows"] = round(high[name] + each * (REMAP_ROWS - sizes[-1]), 1)
    return slope


def make(folder: Path, rows: int) -> Result:
    """Write what is not there yet: genome, store with it, proteins, peaks."""
    import numpy as np

    import tfbind_store
    from tfbind_store.ingest import import_proteins
    from tfbind_store.store.folder import Store

    rng = np.random.default_rng(0)
    factors = remap_files.factor_names(rng)
    names = remap_files.experiment_names(rng, factors)
    schema = Path(tfbind_store.__file__).with_name("schema.sql").read_bytes()
    base = folder / f"base-{hashlib.sha256(schema).hexdigest()[:8]}.store"  # a store of another schema is of no use
    if not base.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            remap_files.write_genome(Path(temporary) / "genome.fa")
            Store.create(Path(temporary) / "base.store", fasta=Path(temporary) / "genome.fa")
            os.rename(Path(temporary) / "base.store", base)
    if not _bed(folder, rows).exists():
        remap_files.write_peaks(_bed(folder, rows), rows, names)
    remap_files.write_proteins(folder / "proteins.fa.gz", factors)
    shutil.rmtree(_store(folder, rows), ignore_errors=True)
    shutil.copytree(base, _store(folder, rows), copy_function=_link_genome)
    import_proteins(Store.open(_store(folder, rows)), folder / "proteins.fa.gz")
    return {"bytes": _bed(folder, rows).stat().st_size}


def _link_genome(source: str, target: str) -> None:
    """Copy a file of a store; the genome, which is never written again, is linked."""
    (os.link if source.endswith("codes.u8") else shutil.copy2)(source, target)


def import_once(folder: Path, rows: int) -> Result:
    """Import the peaks."""
    from tfbind_store.ingest import import_peaks
    from tfbind_store.store.folder import Store

    store = Store.open(_store(folder, rows))
    report, seconds = _timed(lambda: import_peaks(store, _bed(folder, rows)))
    size = sum(path.stat().st_size for path in (store.path / "catalog").rglob("*.duckdb"))
    return {"s": seconds, "kept": report.rows_kept, "dropped": report.dropped, "catalog_bytes": size}


def import_again(folder: Path, rows: int) -> Result:
    """Import the same file once more: nothing may change."""
    from tfbind_store.ingest import import_peaks
    from tfbind_store.store.folder import Store

    store = Store.open(_store(folder, rows))
    before = store.snapshot
    report, seconds = _timed(lambda: import_peaks(store, _bed(folder, rows)))
    assert "nothing changed" in report.notes[0], report.notes
    assert store.snapshot == before
    return {"s": seconds, "kept": report.rows_kept}


def load_with_duckdb(folder: Path, rows: int) -> Result:
    """Load with the import's peer: no checks, no names parsed, no bins, no labels, no copy for readers."""
    import duckdb

    path = folder / "peer.duckdb"
    path.unlink(missing_ok=True)

    def load() -> None:
        with duckdb.connect(str(path), config={"memory_limit": "2500MB"}) as peer:
            peer.execute(
                f"""CREATE TEMP TABLE raw AS SELECT * FROM read_csv('{_bed(folder, rows)}', header=false,
                delim='\t', quote='', columns={{'chrom': 'VARCHAR', 's': 'INTEGER', 'e': 'INTEGER',
                'name': 'VARCHAR', 'score': 'FLOAT', 'strand': 'VARCHAR', 't': 'INTEGER', 't2': 'INTEGER',
                'colour': 'VARCHAR'}})"""
            )
            peer.execute(
                "CREATE TABLE names AS SELECT name, row_number() OVER () AS id FROM (SELECT DISTINCT name FROM raw)"
            )
            peer.execute(
                """CREATE TABLE peaks AS SELECT id, chrom, s, e, t, score FROM raw JOIN names USING (name)
                ORDER BY id, chrom, s"""
            )
            peer.execute("CHECKPOINT")

    _, seconds = _timed(load)
    path.unlink()
    return {"s": seconds}


def take_subset(folder: Path, rows: int) -> Result:
    """Take all peaks of 10 experiments, for five sets of ten; the first set also with awk."""
    from tfbind_store.store.folder import Store

    store, sets = Store.open(_store(folder, rows)), _experiments(folder, rows)
    query = """SELECT chrom, start, "end", experiment, score FROM peaks WHERE experiment IN (SELECT unnest($names))"""
    times, counts = [], []
    for names in sets:
        answer, seconds = _timed(lambda names=names: store.sql(query, {"names": names}, max_rows=None).arrays())
        times.append(seconds)
        counts.append(len(answer["chrom"]))
    wanted = folder / "wanted.txt"
    wanted.write_text("".join(f"{name}\n" for name in sets[0]))
    command = f"gzip -dc {_bed(folder, rows)} | awk -F'\\t' 'NR==FNR {{w[$1]; next}} $4 in w' {wanted} - | wc -l"
    said, peer = _timed(lambda: subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout)
    return {
        "first_s": times[0],
        "median_s": statistics.median(times),
        "peaks": counts[0],
        "awk_s": peer,
        "awk_peaks": int(said),  # the file also has the peaks in N that the store leaves out
        "times_faster": peer / statistics.median(times),
    }


def select_million(folder: Path, rows: int) -> Result:
    """Select one million positives and three million negatives, a family held out."""
    from tfbind_store.query.selection import SelectionConfig, make_selection
    from tfbind_store.query.splits import SplitConfig
    from tfbind_store.store.folder import Store

    store = Store.open(_store(folder, rows))
    config = SelectionConfig(
        negatives=("random:1.25", "scoped:1", "gc:1"),
        sample=min(1.0, POSITIVES / rows / 0.96),  # 4 % of the peaks lie in N or share their bin with another
        margin_bp=MARGIN_BP,
        split=SplitConfig(valid_chroms=("chr9",), test_chroms=("chr8",), hold_out={"factor": _family(store)}),
    )
    report, seconds = _timed(lambda: make_selection(store, "million", config, overwrite=True))
    return {"s": seconds, "rows": report.n_rows, "totals": report.info["totals"], "shortfall": report.info["shortfall"]}


def _family(store: Store) -> list[str]:
    """Return the largest family of which no member stands in a complex with another's: that one would leak."""
    with store.reader() as catalog:
        factors = [str(name) for (name,) in catalog.rows("SELECT DISTINCT factor FROM experiments ORDER BY 1")]
    stems = {factor: factor.rstrip("0123456789") for factor in factors if factor[-1].isdigit()}
    families: dict[str, list[str]] = {}
    for factor, stem in stems.items():
        families.setdefault(stem, []).append(factor)
    in_complexes = " ".join(factor for factor in factors if "-" in factor.removeprefix("NKX2-"))
    whole = [members for stem, members in families.items() if "-" not in stem and stem not in in_complexes]
    return max(whole, key=len)


def referee(folder: Path, rows: int) -> Result:
    """Have bedtools look for own peaks within the margin of every negative; both files are sorted before it starts."""
    import duckdb

    from tfbind_store.store.folder import Store

    store = Store.open(_store(folder, rows))
    grid, snapshot = store.grid, store.snapshots.newest()
    beds = {name: folder / f"{name}.bed" for name in ("negatives", "positives", "peaks")}
    as_bed = "(DELIMITER '\t', HEADER false, QUOTE '')"
    with duckdb.connect(config={"memory_limit": "2500MB", "temp_directory": str(folder / "spill")}) as work:
        work.execute(f"ATTACH '{snapshot}' AS c (READ_ONLY)")
        start = f'(r."window" - k.first_window) * {grid.stride_bp} + r.bin::BIGINT * {grid.bin_bp}'
        for name, sign in (("negatives", "<>"), ("positives", "=")):
            work.execute(
                f"""COPY (SELECT e.experiment || '|' || k.chrom AS line, greatest({start} - {MARGIN_BP}, 0) AS s,
                    {start} + {grid.bin_bp + MARGIN_BP} AS e
                FROM read_parquet('{store.selection_dir("million")}/rows.parquet') AS r
                JOIN c.data.windows AS w ON w.window_id = r."window" JOIN c.data.chromosomes AS k USING (chrom_id)
                JOIN c.data.experiments AS e ON e.experiment_id = r.experiment
                WHERE r.kind {sign} 'positive' ORDER BY line, s) TO '{beds[name]}' {as_bed}"""
            )
        work.execute(
            f"""COPY (SELECT column3 || '|' || column0 AS line, column1, column2 FROM read_csv('{_bed(folder, rows)}',
            header=false, delim='\t', quote='') ORDER BY line, column1) TO '{beds["peaks"]}' {as_bed}"""
        )
    hits, seconds = _timed(lambda: _hits(beds["negatives"], beds["peaks"]))
    controls = _hits(beds["positives"], beds["peaks"])
    n_negatives, n_positives = (_lines(beds[name]) for name in ("negatives", "positives"))
    for path in beds.values():
        path.unlink()
    assert hits == 0, f"{hits} of {n_negatives} negatives lie within {MARGIN_BP} bp of a peak of their experiment"
    assert controls == n_positives, "the referee does not see the peaks of the positives"
    return {"bedtools_s": seconds, "negatives": n_negatives, "near_a_peak": hits, "positives_near_a_peak": controls}


def _hits(rows: Path, peaks: Path) -> int:
    """Return how many rows bedtools finds to share a base with a peak."""
    command = ["bedtools", "intersect", "-sorted", "-u", "-a", str(rows), "-b", str(peaks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        return sum(1 for _ in process.stdout)


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def scope_with_pybedtools(folder: Path, rows: int) -> Result:
    """Time pybedtools on peaks of the same biotype's other factors that lie away from an experiment's own."""
    import duckdb

    names = [name for names in _experiments(folder, rows) for name in names][:N_SCOPED]
    biotypes = [name.split(".", 2)[2] for name in names]
    seconds, found = 0.0, 0
    with tempfile.TemporaryDirectory(dir=folder) as temporary, duckdb.connect() as work:
        work.execute(
            f"""CREATE TABLE peaks AS SELECT column0 AS chrom, column1 AS s, column2 AS e, column3 AS name,
                split_part(column3, '.', 2) AS factor, substr(column3, length(split_part(column3, '.', 1))
                + length(split_part(column3, '.', 2)) + 3) AS biotype
            FROM read_csv('{_bed(folder, rows)}', header=false, delim='\t', quote='')
            WHERE biotype IN (SELECT unnest(?))""",
            [biotypes],
        )
        for name, biotype in zip(names, biotypes, strict=True):
            own, others = Path(temporary) / "own.bed", Path(temporary) / "others.bed"
            for path, condition in ((own, "name = ?"), (others, "factor <> split_part(?, '.', 2)")):
                work.execute(
                    f"""COPY (SELECT chrom, s, e FROM peaks WHERE biotype = ? AND {condition} ORDER BY chrom, s)
                    TO '{path}' (DELIMITER '\t', HEADER false)""",
                    [biotype, name],
                )
            answer, took = _timed(lambda own=own, others=others: _away(others, own))
            seconds, found = seconds + took, found + answer
    everything = round(seconds * remap_files.N_EXPERIMENTS / N_SCOPED, 1)
    return {"pybedtools_s": seconds, "experiments": N_SCOPED, "peaks": found, "all_experiments_s": everything}


def _away(others: Path, own: Path) -> int:
    """Return how many of the others lie further than the margin from any of the experiment's own."""
    import pybedtools

    return int(pybedtools.BedTool(str(others)).window(str(own), w=MARGIN_BP, v=True).count())


def _experiments(folder: Path, rows: int) -> list[list[str]]:
    """Return five sets of ten experiments with peaks, by seed."""
    import numpy as np

    from tfbind_store.store.folder import Store

    with Store.open(_store(folder, rows)).reader() as catalog:
        names = [
            str(name) for (name,) in catalog.rows("SELECT experiment FROM experiments WHERE n_peaks > 0 ORDER BY 1")
        ]
    chosen = np.random.default_rng(1).choice(names, size=(5, N_SUBSET), replace=False)
    return [[str(name) for name in row] for row in chosen]


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    answer = call()
    return answer, round(time.perf_counter() - begun, 3)


def _bed(folder: Path, rows: int) -> Path:
    return folder / f"peaks_{rows}.bed.gz"


def _store(folder: Path, rows: int) -> Path:
    return folder / f"s{rows}.store"


STAGES: dict[str, Callable[[Path, int], Result]] = {
    "make": make,
    "import": import_once,
    "again": import_again,
    "duckdb": load_with_duckdb,
    "subset": take_subset,
    "select": select_million,
    "referee": referee,
    "scoped": scope_with_pybedtools,
}

if __name__ == "__main__":
    main()
