"""Files as large and as odd as ReMap's, made by seed: a genome with hg38's chromosomes, peaks, proteins with families.

What is kept of the real catalog: 8,103 experiments of about 1,200 factors in 700 cell types, most of them small and
some huge; names with dots, hyphens, complexes, modifications and treatments; nine columns, sorted by place; peaks
crowded at a few hundred thousand places where many factors bind; lengths of some hundred bp; one gzip member.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import duckdb
import numpy as np

HG38 = {
    "chr1": 248_956_422, "chr2": 242_193_529, "chr3": 198_295_559, "chr4": 190_214_555, "chr5": 181_538_259,
    "chr6": 170_805_979, "chr7": 159_345_973, "chr8": 145_138_636, "chr9": 138_394_717, "chr10": 133_797_422,
    "chr11": 135_086_622, "chr12": 133_275_309, "chr13": 114_364_328, "chr14": 107_043_718, "chr15": 101_991_189,
    "chr16": 90_338_345, "chr17": 83_257_441, "chr18": 80_373_285, "chr19": 58_617_616, "chr20": 64_444_167,
    "chr21": 46_709_983, "chr22": 50_818_468, "chrX": 156_040_895, "chrY": 57_227_415,
}  # fmt: skip
N_EXPERIMENTS = 8103
TELOMERE_BP = 10_000
LINE_BP = 1_000_000
STEM_TEXT = """ZNF SOX FOX HOXA HOXB HOXC KLF GATA STAT E2F SMAD POU TBX PAX NKX IRF ETV ELF NR SIX TEAD ATF CEBP
    MEF RFX ZBTB LHX DLX TFAP RUNX FOS JUN MAF MYC BHLHE HES ID TCF ZSCAN ZKSCAN"""
LINE_TEXT = """MCF-7 K-562 Hep-G2 HeLa U2.OS LNCaP HEK293 A-549 GM12878 H1-hESC VCaP T-47D Jurkat HCT-116 IMR-90
    THP-1"""
STEMS, LINES = STEM_TEXT.split(), LINE_TEXT.split()
TREATMENTS = (
    "E2",
    "DHT",
    "dex",
    "TNF",
    "DMSO",
    "siRNA",
    "shRNA",
    "R1881",
    "4OHT",
    "hypoxia",
    "serum",
    "FOXA1-KD",
    "24h",
)
AMINO_ACIDS = "ARNDCQEGHILKMFPSTWYV"


def write_genome(path: Path, seed: int = 0) -> None:
    """Write a FASTA with hg38's chromosomes: random bases, N at both ends and in the middle third's first 2 %."""
    rng = np.random.default_rng(seed)
    stock = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, 64 * LINE_BP, dtype=np.uint8)]
    with path.open("wb") as file:
        for chrom, length in HG38.items():
            file.write(f">{chrom}\n".encode())
            for start in range(0, length, LINE_BP):
                size = min(LINE_BP, length - start)
                place = int(rng.integers(0, len(stock) - size))
                line = stock[place : place + size].copy()
                if length // 3 <= start < length // 3 + length // 50:
                    line[:] = ord("N")
                if start == 0:
                    line[:TELOMERE_BP] = ord("N")
                if start + size == length:
                    line[-TELOMERE_BP:] = ord("N")
                file.write(line.tobytes() + b"\n")


def factor_names(rng: np.random.Generator) -> list[str]:
    """Return about 1,200 gene symbols in families of 1 to 300, a few with a hyphen as NKX3-1 has."""
    sizes = {stem: int(size) for stem, size in zip(STEMS, rng.integers(2, 40, len(STEMS)), strict=True)}
    sizes["ZNF"] = 300
    names = [f"{stem}{number}" for stem, size in sizes.items() for number in range(1, size + 1)]
    names = [name.replace("NKX", "NKX2-") if name.startswith("NKX") else name for name in names]
    first = ["CTCF", "ESR1", "AR", "EP300", "BRD4", "REST", "NR3C1", "SPI1", "TP53"]
    return [*first, *names]


def write_proteins(path: Path, factors: list[str], seed: int = 0) -> None:
    """Write a protein for each factor; those of one stem are copies with 5 to 60 % of the residues changed."""
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(AMINO_ACIDS.encode(), np.uint8)
    roots: dict[str, np.ndarray] = {}
    with gzip.open(path, "wt", compresslevel=1) as file:
        for number, factor in enumerate(factors):
            stem = factor.rstrip("0123456789-")
            root = roots.setdefault(stem, letters[rng.integers(0, 20, int(rng.integers(150, 900)))])
            changed = rng.random(len(root)) < rng.uniform(0.05, 0.6)
            protein = np.where(changed, letters[rng.integers(0, 20, len(root))], root).astype(np.uint8)
            file.write(f">sp|P{number:05d}|{factor}_HUMAN OX=9606 GN={factor}\n{protein.tobytes().decode()}\n")


def experiment_names(rng: np.random.Generator, factors: list[str]) -> list[str]:
    """Return 8,103 names as ReMap writes them: few factors in hundreds of experiments, most in one or two."""
    share = 1 / np.arange(1, len(factors) + 1) ** 0.8
    cells = [*LINES, *(f"CL-{number}" for number in range(700 - len(LINES)))]
    cell_share = 1 / np.arange(1, len(cells) + 1) ** 0.7
    names: dict[str, None] = {}
    while len(names) < N_EXPERIMENTS:
        factor = factors[rng.choice(len(factors), p=share / share.sum())]
        odd = rng.random()
        if odd < 0.01:
            factor = f"{factor}-{factors[rng.integers(0, len(factors))]}"
        elif odd < 0.03:
            factor = f"{factor}_K{rng.integers(1, 400)}ac"
        cell = cells[rng.choice(len(cells), p=cell_share / cell_share.sum())]
        if rng.random() < 0.4:
            cell = f"{cell}_{TREATMENTS[rng.integers(0, len(TREATMENTS))]}"
        number = rng.integers(10_000, 200_000)
        accession = f"GSE{number}" if rng.random() < 0.7 else f"ENCSR{number:06d}"
        names[f"{accession}.{factor}.{cell}"] = None
    return list(names)


def write_peaks(path: Path, n_rows: int, names: list[str], seed: int = 0) -> None:
    """Write `n_rows` peaks in ReMap's nine columns, sorted by place."""
    rng = np.random.default_rng([seed, n_rows])
    size = rng.lognormal(0, 1.5, len(names))
    lengths = np.array(list(HG38.values()))
    counts = rng.multinomial(n_rows, lengths / lengths.sum())
    with duckdb.connect(str(path.with_suffix(".work.duckdb")), config={"memory_limit": "1GB"}) as work:
        work.execute("CREATE TABLE peaks (chrom VARCHAR, s INTEGER, e INTEGER, n SMALLINT, score SMALLINT, t INTEGER)")
        work.register("names", {"n": np.arange(len(names)), "name": np.array(names, dtype=object)})
        for (chrom, length), count in zip(HG38.items(), counts.tolist(), strict=True):
            columns = _peaks(rng, length, count, size / size.sum())
            work.register("columns", columns)
            work.execute("INSERT INTO peaks SELECT ?, s, e, n, score, t FROM columns", [chrom])
            work.unregister("columns")
        temporary = path.with_suffix(".part")
        work.execute(
            f"""COPY (SELECT chrom, s, e, name, score, '.', t, t + 1, '137,17,0' FROM peaks JOIN names USING (n)
            ORDER BY peaks.rowid) TO '{temporary}' (FORMAT csv, DELIMITER '\t', HEADER false, QUOTE '',
            COMPRESSION gzip)"""
        )
        temporary.rename(path)
    path.with_suffix(".work.duckdb").unlink()


def _peaks(rng: np.random.Generator, length: int, count: int, share: np.ndarray) -> dict[str, np.ndarray]:
    """Return the peaks of one chromosome by start: three of four at crowded places, the others anywhere."""
    crowded = rng.integers(TELOMERE_BP, length - TELOMERE_BP, max(length // 10_000, 1))
    weight = rng.lognormal(0, 1.2, len(crowded))
    at_crowd = rng.random(count) < 0.75
    place = crowded[np.searchsorted(np.cumsum(weight / weight.sum())[:-1], rng.random(count))]
    middle = np.where(
        at_crowd, place + rng.normal(0, 150, count).astype(np.int64), rng.integers(TELOMERE_BP, length, count)
    )
    width = np.clip(rng.lognormal(np.log(260), 0.5, count), 20, 4000).astype(np.int64)
    start = np.clip(middle - width // 2, 0, length - 20)
    end = np.minimum(start + width, length)
    summit = start + ((end - start) * rng.beta(5, 5, count)).astype(np.int64)
    experiment = np.searchsorted(np.cumsum(share)[:-1], rng.random(count))
    order = np.argsort(start, kind="stable")
    columns = {"s": start, "e": end, "n": experiment, "score": rng.integers(1, 1000, count), "t": summit}
    return {name: column[order].astype(np.int64) for name, column in columns.items()}
