"""Tracks in, tracks out: binning bigWigs, predicting a genome for many factors, memory on a genome of hg38's size.

    python benchmarks/tracks.py                                   # bigWigs of $TFBIND_TEST_DATA, hg38-sized store
    python benchmarks/tracks.py --store yeast.store --run adapter # and 50 factors over that store's genome
    python benchmarks/tracks.py --skip-large                      # without the store of hg38's size (1.5 GB of disk)

Binning: CPU time of `bin_bigwig` over whole files, against what the reference does for each locus of its loci:
``values()`` as a list, an array of it, reshaped and summed without NaN; the loci tile the chromosomes that the file
has, in turns with ours, and every sum is compared. Prediction: a process of its own, wall and CPU time and highest
memory, all files written. Memory: the same prediction over chr21, chr1 and the whole of a genome with hg38's lengths,
each in its own process. Variants: a reference and eight substitutions through a random Enformer (dim 384, depth 4,
windows of 196,608 bp), every window whole against convolutions only where bases are new, in turns, outputs compared.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyBigWig

from tfbind_store.loci import Grid, Tiling
from tfbind_store.names import chromosome_aliases
from tfbind_store.tracks.binning import Binning, bin_bigwig

LOCUS_BP = 131_072
BIN_BP = 128
HG38_MB = (
    249, 242, 198, 190, 182, 171, 159, 145, 138, 134, 135, 133, 114, 107, 102, 90, 83, 80, 59, 64, 47, 51, 156, 57,
)  # fmt: skip
CHILD = """
import json, sys, time
from pathlib import Path
from tfbind_store.prediction.asked_pairs import Asked
from tfbind_store.prediction.predict import PredictConfig, predict
from tfbind_store.store.folder import Store
store, run, factors, chroms, out, raw = json.loads(sys.argv[1])
wall, cpu = time.perf_counter(), time.process_time()
asked = Asked(factors=tuple(factors))
config = PredictConfig(asked=asked, out=(Path(out),), chroms=tuple(chroms), raw=raw)
done = predict(Store.open(store), run, config)
status = Path("/proc/self/status").read_text()  # getrusage would count what the parent had before exec
peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024**2
print(json.dumps({"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "peak_gib": peak,
                  "bins": done.n_bins, "files": len(done.files)}))
"""


def as_the_reference_does(path: Path) -> dict[tuple[str, int], np.ndarray]:
    """Return the sums of each locus, read base by base into a list."""
    sums = {}
    with pyBigWig.open(str(path)) as file:
        for chrom, length in file.chroms().items():
            for start in range(0, length, LOCUS_BP):
                # it asks for whole loci; past the end it raises, so the last one is cut here
                values = np.array(file.values(chrom, start, min(start + LOCUS_BP, length)), dtype=np.float64)
                padded = np.concatenate([values, np.full(-len(values) % BIN_BP, np.nan)])
                sums[chrom, start] = np.nansum(padded.reshape(-1, BIN_BP), axis=-1)
    return sums


def binning(paths: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Compare both ways on every file."""
    ratios, n_bins, ours_s, theirs_s = [], 0, [], []
    for path in paths:
        with pyBigWig.open(str(path)) as file:
            lengths = dict(file.chroms())
        tiling = Tiling.over(Grid(window_bp=16_384, n_bins=96), lengths)
        for number in range(rounds + 1):
            begin = time.process_time()
            found = bin_bigwig(path, tiling, chromosome_aliases(tuple(lengths)), Binning(statistic="sum")).values
            middle = time.process_time()
            expected = as_the_reference_does(path)
            end = time.process_time()
            if number == 0:  # the files are in memory from here on; equal output is asked for once
                n_bins += compare(found, expected, tiling)
                continue
            ours_s.append(middle - begin)
            theirs_s.append(end - middle)
            ratios.append((end - middle) / (middle - begin))
    return {
        "files": len(paths), "bins_compared": n_bins, "ratio_to_values_and_reshape": statistics.median(ratios),
        "lowest_ratio": min(ratios), "ours_cpu_s": statistics.median(ours_s),
        "theirs_cpu_s": statistics.median(theirs_s),
    }  # fmt: skip


def compare(found: np.ndarray, expected: dict[tuple[str, int], np.ndarray], tiling: Tiling) -> int:
    """Refuse a difference; return how many bins were compared."""
    flat, n_bins = np.nan_to_num(found.reshape(-1)), 0
    for (chrom, start), sums in expected.items():
        base = int(tiling.first_window[tiling.chrom_index[chrom]]) * tiling.grid.n_bins + start // BIN_BP
        np.testing.assert_array_equal(flat[base : base + len(sums)], sums.astype(np.float32))
        n_bins += len(sums)
    return n_bins


def child(
    store: Path, run: str, factors: Sequence[str], chroms: Sequence[str], out: Path, *, raw: bool
) -> dict[str, Any]:
    """Predict in a process of its own."""
    argument = json.dumps([str(store), run, list(factors), list(chroms), str(out), raw])
    done = subprocess.run([sys.executable, "-c", CHILD, argument], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def many_factors(store: Path, run: str, n_factors: int, folder: Path) -> dict[str, Any]:
    """Predict a store's genome for many factors; the second time, so that the calibration is there."""
    from tfbind_store.store.folder import Store

    with Store.open(store).reader() as catalog:
        sql = "SELECT factor FROM factors WHERE has_protein ORDER BY factor LIMIT ?"
        factors = [str(name) for (name,) in catalog.rows(sql, [n_factors])]
    child(store, run, factors[:1], [], folder / "first.bw", raw=False)
    return {"factors": len(factors), "run": run, **child(store, run, factors, [], folder / "all.bw", raw=False)}


def large_store(folder: Path) -> Path:
    """Make a store of hg38's size: a genome of nothing but A that takes no room, small embeddings, a linear head."""
    import torch

    from tfbind_store.arrays.sharded import WindowState, publish_shard
    from tfbind_store.genome import ChromosomeInfo, GenomeImport
    from tfbind_store.heads import Geometry, header_for, make_head, save_checkpoint
    from tfbind_store.ingest import import_peaks, import_proteins
    from tfbind_store.precompute.composition import CompositionEmbedder
    from tfbind_store.precompute.embedder import make_text_embedder
    from tfbind_store.precompute.rows import embed_contexts, embed_factors
    from tfbind_store.spec import EmbeddingSpec
    from tfbind_store.store.folder import Store
    from tfbind_store.store.identity import meta_bytes, new_meta
    from tfbind_store.store.stock import fill_genome

    path, dim = folder / "large.store", 8
    (path / "genome").mkdir(parents=True)
    names = [f"chr{number}" for number in (*range(1, 23), "X", "Y")]
    infos, offset = [], 0
    for name, mega in zip(names, HG38_MB, strict=True):
        infos.append(ChromosomeInfo(name, mega * 1_000_000, "0" * 32, 0, offset))
        offset += mega * 1_000_000
    with (path / "genome" / "codes.u8").open("wb") as file:
        file.truncate(offset)
    meta = new_meta(GenomeImport(tuple(infos), {}, ()), Grid(), {})
    (path / "store.json").write_bytes(meta_bytes(meta))
    store = Store(path, meta)
    with store.writer() as catalog:
        fill_genome(catalog, meta, store.genome, store.tiling)
    (folder / "p.fa").write_text(">SOX2 gene=SOX2\nMYNMMETELKPPGPQQTSGGGGGNSTAAAAGGNQKNSPDRVKRPMNAFMVWSRGQRRK\n")
    (folder / "p.bed").write_text("chr1\t1000\t1100\tE1.SOX2.H1\t5\t.\n")
    import_proteins(store, folder / "p.fa")
    import_peaks(store, folder / "p.bed")
    embed_factors(store, CompositionEmbedder())
    embed_contexts(store, make_text_embedder("hashed"))
    grid = {"window_bp": meta.grid.window_bp, "n_bins": meta.grid.n_bins, "bin_bp": meta.grid.bin_bp}
    spec = EmbeddingSpec(kind="windows", embedder="invented", dim=dim, grid=grid, genome=meta.genome)
    array = store.create_array("embeddings/windows", spec, (store.tiling.n_windows, meta.grid.n_bins, dim), 32)
    rng = np.random.default_rng(0)
    block = rng.normal(size=(32, meta.grid.n_bins, dim)).astype(np.float16)
    for shard in range(array.n_shards):
        rows = array.layout.rows_in(shard)
        publish_shard(array, shard, block[:rows], [WindowState.ok] * rows)
    torch.manual_seed(0)
    arrays = {"windows": "embeddings/windows", "proteins": "proteins/composition", "contexts": "contexts/hashed"}
    found = {kind: store.array(name) for kind, name in arrays.items()}
    head = make_head("linear", Geometry(*(one.shape[-1] for one in found.values())))
    described = {kind: {"name": arrays[kind], "fingerprint": one.spec.fingerprint} for kind, one in found.items()}
    store.run_dir("linear").mkdir(parents=True)
    save_checkpoint(store.run_dir("linear") / "head.safetensors", head, header_for(head, arrays=described))
    return path


def memory(folder: Path) -> dict[str, Any]:
    """Predict a small part and the whole of a genome of hg38's size."""
    path = large_store(folder)
    part = child(path, "linear", ["SOX2"], ["chr21"], folder / "part.bw", raw=True)
    largest = child(path, "linear", ["SOX2"], ["chr1"], folder / "largest.bw", raw=True)
    whole = child(path, "linear", ["SOX2"], [], folder / "whole.bw", raw=True)
    growth = whole["peak_gib"] / largest["peak_gib"]
    return {"chr21": part, "chr1": largest, "genome": whole, "peak_of_genome_to_chr1": growth}


def variants(rounds: int, n_alleles: int = 8) -> dict[str, Any]:
    """Compare alleles one by one with alleles that share what they have in common."""
    import torch

    from tfbind_store.loci import Locus
    from tfbind_store.precompute.enformer import EnformerEmbedder
    from tfbind_store.precompute.random_trunk import random_trunk
    from tfbind_store.precompute.versions import embed_versions

    grid = Grid()
    tiling = Tiling.over(grid, {"a": 3 * grid.stride_bp})
    bases = np.random.default_rng(0).integers(0, 4, 3 * grid.stride_bp + 2 * grid.window_bp).astype(np.uint8)

    def version(site: int | None) -> Any:
        own = bases.copy()
        if site is not None:
            own[site + grid.window_bp] = (own[site + grid.window_bp] + 1) % 4

        def read(locus: Locus) -> np.ndarray:
            return own[locus.start + grid.window_bp : locus.end + grid.window_bp]

        return read

    versions = [version(None), *(version(tiling.kept(1).start + 5_000 + 7_919 * i) for i in range(n_alleles))]
    torch.set_num_threads(1)
    shape = {"dim": 384, "depth": 4, "heads": 8, "dim_divisible_by": 64, "output_heads": {}}
    plain = EnformerEmbedder(random_trunk(shape, seed=0), device="cpu")
    whole_s, ours_s, largest = [], [], 0.0
    for number in range(rounds + 1):
        begin = time.process_time()
        expected = embed_versions(plain, 1, versions, tiling, together=False)
        middle = time.process_time()
        found = embed_versions(plain.remembering(), 1, versions, tiling, together=True)
        end = time.process_time()
        largest = max(largest, *(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)))
        if number:  # the first lays out the weights
            whole_s.append(middle - begin)
            ours_s.append(end - middle)
    ratio = statistics.median(a / b for a, b in zip(whole_s, ours_s, strict=True))
    return {
        "alleles": n_alleles, "ratio_to_whole_windows": ratio, "largest_difference": largest,
        "whole_cpu_s": statistics.median(whole_s), "ours_cpu_s": statistics.median(ours_s),
    }  # fmt: skip


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TFBIND_TEST_DATA", "data")))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path, help="An embedded store with a run.")
    parser.add_argument("--run", default="adapter")
    parser.add_argument("--factors", type=int, default=50)
    parser.add_argument("--skip-large", action="store_true")
    asked = parser.parse_args()
    result: dict[str, Any] = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
    paths = sorted(asked.data.glob("yeast_sacCer3/bigwig/*.bw"))
    if paths:
        result["binning"] = found = binning(paths, asked.rounds)
        ratio, n = found["ratio_to_values_and_reshape"], found["bins_compared"]
        lowest = found["lowest_ratio"]
        print(f"binning: {ratio:.1f} times less CPU time than values() and reshape (lowest {lowest:.1f}),")
        print(f"  {n:,} bins of {len(paths)} files equal")
    else:
        print(f"no bigWigs under {asked.data}: --data FOLDER")
    result["variants"] = found = variants(asked.rounds)
    print(f"{found['alleles']} alleles of one window: {found['ratio_to_whole_windows']:.1f} times less CPU time than")
    print(f"  whole windows, largest difference {found['largest_difference']:g}")
    with tempfile.TemporaryDirectory(prefix="tracks-") as name:
        if asked.store:
            result["many"] = found = many_factors(asked.store, asked.run, asked.factors, Path(name))
            print(f"{found['factors']} factors over {found['bins']:,} bins with {asked.run}: {found['wall_s']:.1f} s,")
            print(f"  {found['cpu_s']:.1f} s of CPU, {found['peak_gib']:.2f} GiB at most")
        if not asked.skip_large:
            result["memory"] = found = memory(Path(name))
            for what in ("chr21", "chr1", "genome"):
                one = found[what]
                print(f"{what}: {one['bins']:,} bins, {one['peak_gib']:.2f} GiB at most, {one['cpu_s']:.0f} s of CPU")
            print(f"memory of the whole genome to that of chr1: {found['peak_of_genome_to_chr1']:.2f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
