"""A small invented genome with planted binding sites, and the files a user would bring for it.

Everything is drawn from one seed: chromosomes whose GC content wanders, sites of four families of factors planted in
them (a palindromic motif twice), decoys (its letters in another order) that nobody binds, proteins in which the members
of a family share a DNA-binding domain, two cell types with texts, and peaks as a ChIP experiment would call them
(summits a few bp off, some sites missed, some peaks on nothing). One factor binds in one cell type only. Coordinates
are 0-based, half-open; bases are codes A0 C1 G2 T3 N4. Names of factors and cell types are invented; the domains are
family consensus sequences. Nothing here knows about stores: ``demo`` runs the stages.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
LINKER_RESIDUES = "SSSSGGGPPPQQQNNEEDTTAAKLMVY"  # disordered stretches: many small and polar residues
FASTA_LINE_LENGTH = 60
MEMBERS_PER_FAMILY = 5


class Family(NamedTuple):
    """Factors that share a DNA-binding domain and therefore a motif."""

    name: str
    stem: str
    """Factors are called by this and a digit."""
    motif: str
    decoy: str
    """The motif's letters in another order: same composition, nobody binds it."""
    domain: str
    """The DNA-binding domain, one letter a residue."""


FAMILIES = (
    Family(
        "homeodomain",
        "HDX",
        "TGCTAATTAGCA",
        "CATAGTACTATG",
        "RKRGRQTYTRYQTLELEKEFHFNRYLTRRRRIEIAHALCLTERQIKIWFQNRRMKWKKEN",
    ),
    Family(
        "nuclear receptor",
        "NRX",
        "AGGTCATGACCT",
        "GACGTATACGTC",
        "TRYCAVCNDYASGYHYGVWSCEGCKAFFKRSIQGHNDYMCPATNQCTIDKNRRKSCQACRLRKCYEVGMMKGG",
    ),
    Family(
        "bHLH",
        "BHX",
        "GAACAGCTGTTC",
        "AGCAGATCTGCT",
        "ADRRKAATMRERRRLSKVNEAFETLKRCTSSNPNQRLPKVEILRNAIRYIEGLQALLR",
    ),
    Family(
        "ETS",
        "ETX",
        "ACTTCCGGAAGT",
        "CTCATCGATGAG",
        "PIQLWQFLLELLTDKSCQSFISWTGDGWEFKLSDPDEVARRWGKRKNKPKMNYEKLSRGLRYYYDKNIIHKTAGKRYVYRFVC",
    ),
)
REGULATED_DOMAIN = "WELLPTVRLLHDCYKRAVDAGVHLEHLWEMTCQLPPLCDFLRCLAEVEHAYQLMSWCDKLFG"
"""An extra, invented domain carried by the one factor that binds in one cell type only."""


class CellType(NamedTuple):
    """One biotype and what is known about it."""

    biotype: str
    tissue: str
    description: str


CELL_TYPES = (
    CellType("HEPA-7", "liver", "hepatocyte-like cell line, epithelial, metabolically active"),
    CellType("NEUR-3", "brain", "cortical neuron culture, post-mitotic, electrically active"),
)


@dataclass(frozen=True, kw_only=True)
class DemoGenomeConfig:
    """How the invented genome is made."""

    n_chroms: int = 10
    """Chromosomes, named chr1, chr2, …"""
    chrom_bp: int = 160_000
    """Mean length; chromosomes differ by up to a tenth."""
    sites_per_kb: float = 0.25
    """Planted sites of each family, and as many of each decoy; a site is the motif twice, a few bp apart."""
    longest_gap_bp: int = 6
    """Between the two copies."""
    consensus_share: float = 0.96
    """How often a position of a planted motif is surely its consensus base; else it is any base."""
    occupancy: float = 0.93
    """How often an experiment of a family's member finds a planted site."""
    stray_share: float = 0.02
    """Peaks on nothing, as a share of an experiment's peaks."""
    summit_error_bp: float = 3.0
    """Standard deviation of the called summit about the motif's middle."""
    cell_specific_factor: str = "ETX5"
    """Binds in the first cell type only; its experiment in the second found nothing."""


class Sites(NamedTuple):
    """Planted sites as columns: bound ones and decoys, sorted by place."""

    chrom: np.ndarray
    """Chromosome index."""
    start: np.ndarray
    length_bp: np.ndarray
    family: np.ndarray
    """Index into ``FAMILIES``."""
    is_decoy: np.ndarray


class DemoPeak(NamedTuple):
    """One called peak."""

    chrom: str
    start: int
    end: int
    summit: int
    experiment: str
    score: int


@dataclass(frozen=True, kw_only=True)
class DemoGenome:
    """The invented genome and everything measured in it."""

    config: DemoGenomeConfig
    sequences: Mapping[str, UInt8[np.ndarray, " length"]]
    """Base codes of each chromosome."""
    sites: Sites
    proteins: Mapping[str, str]
    """Factor to protein sequence."""
    experiments: tuple[tuple[str, str, str], ...]
    """Accession, factor, biotype of each."""
    peaks: tuple[DemoPeak, ...]
    blacklist: tuple[tuple[str, int, int], ...]


class DemoFiles(NamedTuple):
    """Where the files of an invented genome were written."""

    genome: Path
    peaks: Path
    proteins: Path
    biotypes: Path
    experiments: Path
    blacklist: Path


def factor_families() -> dict[str, int]:
    """Return every factor with the index of its family.

    Examples
    --------
    >>> list(factor_families())[:6]
    ['HDX1', 'HDX2', 'HDX3', 'HDX4', 'HDX5', 'NRX1']
    """
    members = range(1, MEMBERS_PER_FAMILY + 1)
    return {f"{family.stem}{member}": index for index, family in enumerate(FAMILIES) for member in members}


def make_demo_genome(config: DemoGenomeConfig | None = None, *, seed: int = 0) -> DemoGenome:
    """Draw an invented genome, its proteins and its experiments from `seed`."""
    config = config or DemoGenomeConfig()
    rng_sequence, rng_protein, rng_peaks = (np.random.default_rng([seed, part]) for part in range(3))
    sequences = _background(config, rng_sequence)
    sites = _plant(sequences, config, rng_sequence)
    blacklist = _n_runs_and_blacklist(sequences, sites, rng_sequence)
    experiments = tuple(
        (f"DEMO{1 + index:03d}", factor, cell.biotype)
        for index, (factor, cell) in enumerate((f, c) for f in factor_families() for c in CELL_TYPES)
    )
    return DemoGenome(
        config=config,
        sequences=sequences,
        sites=sites,
        proteins=_proteins(config, rng_protein),
        experiments=experiments,
        peaks=tuple(_peaks(config, sequences, sites, experiments, rng_peaks)),
        blacklist=blacklist,
    )


def mutate_sites(genome: DemoGenome, chroms: Sequence[str], *, seed: int = 0) -> DemoGenome:
    """Return `genome` with every bound site on `chroms` scrambled; peaks, decoys and all else stay.

    Each site keeps its letters and loses their order, so that composition says no less than before.
    """
    rng = np.random.default_rng([seed, 7])
    names = list(genome.sequences)
    sequences = {chrom: codes.copy() for chrom, codes in genome.sequences.items()}
    wanted = {names.index(chrom) for chrom in chroms}
    for chrom, start, length, _, is_decoy in zip(*genome.sites, strict=True):
        if chrom in wanted and not is_decoy:
            site = sequences[names[chrom]][start : start + length]
            site[:] = _scrambled(site, rng)
    return replace(genome, sequences=sequences)


def swap_proteins(genome: DemoGenome, one: str, other: str) -> DemoGenome:
    """Return `genome` with the proteins of two factors exchanged; peaks and all else stay."""
    proteins = dict(genome.proteins)
    proteins[one], proteins[other] = proteins[other], proteins[one]
    return replace(genome, proteins=proteins)


def write_demo_files(genome: DemoGenome, folder: Path) -> DemoFiles:
    """Write `genome` as the files a user would bring: FASTA, ReMap-style BED, proteins, tables, blacklist."""
    folder.mkdir(parents=True, exist_ok=True)
    files = DemoFiles(
        genome=folder / "genome.fa.gz",
        peaks=folder / "peaks.remap.bed.gz",
        proteins=folder / "proteins.fa",
        biotypes=folder / "biotypes.tsv",
        experiments=folder / "experiments.tsv",
        blacklist=folder / "blacklist.bed",
    )
    _write_gzip(files.genome, "".join(_fasta(name, _text(codes)) for name, codes in genome.sequences.items()))
    _write_gzip(files.peaks, "".join(_bed_line(peak) for peak in genome.peaks))
    files.proteins.write_text(
        "".join(_fasta(f"DEMO_{factor} gene={factor}", protein) for factor, protein in genome.proteins.items())
    )
    files.biotypes.write_text(_table(("biotype", "tissue", "description"), CELL_TYPES))
    rows = [(f"{accession}.{factor}.{biotype}", accession, factor, biotype, files.peaks.name)
            for accession, factor, biotype in genome.experiments]  # fmt: skip
    files.experiments.write_text(_table(("experiment", "accession", "factor", "biotype", "source"), rows))
    files.blacklist.write_text("".join(f"{chrom}\t{start}\t{end}\n" for chrom, start, end in genome.blacklist))
    return files


def _background(config: DemoGenomeConfig, rng: np.random.Generator) -> dict[str, UInt8[np.ndarray, " length"]]:
    """Return random chromosomes whose GC share wanders between 0.32 and 0.6 over stretches of a few kb."""
    sequences = {}
    for number in range(1, config.n_chroms + 1):
        length = int(config.chrom_bp * rng.uniform(0.9, 1.1))
        knots = rng.uniform(0.32, 0.6, size=length // 3_000 + 2)
        gc_share = np.interp(np.arange(length), np.arange(len(knots)) * 3_000, knots)
        is_gc = rng.random(length) < gc_share
        second = rng.integers(0, 2, size=length)
        sequences[f"chr{number}"] = np.where(is_gc, 1 + second, 3 * second).astype(np.uint8)
    return sequences


def _plant(sequences: Mapping[str, np.ndarray], config: DemoGenomeConfig, rng: np.random.Generator) -> Sites:
    """Write sites and decoys into the chromosomes, apart from each other; the motifs read the same on both strands."""
    kinds = [(family, is_decoy) for family in range(len(FAMILIES)) for is_decoy in (False, True)]
    rows: list[tuple[int, int, int, int, bool]] = []
    for index, codes in enumerate(sequences.values()):
        n_each = round(config.sites_per_kb * len(codes) / 1_000)
        places = _spaced_places(len(codes), n_each * len(kinds), rng)
        for place, kind in zip(places, rng.permutation(len(places)) % len(kinds), strict=True):
            family, is_decoy = kinds[kind]
            word = _codes(FAMILIES[family].decoy if is_decoy else FAMILIES[family].motif)
            second = place + len(word) + int(rng.integers(2, config.longest_gap_bp + 1))
            for start in (place, second):
                noise = rng.random(len(word)) > config.consensus_share
                codes[start : start + len(word)] = np.where(noise, rng.integers(0, 4, len(word)), word)
            rows.append((index, place, second + len(word) - place, family, is_decoy))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Sites(*columns)


def _spaced_places(length_bp: int, count: int, rng: np.random.Generator) -> list[int]:
    """Return `count` sorted starts, at least 60 bp from each other and 100 bp from the ends."""
    apart_bp, edge_bp = 60, 100
    free_bp = length_bp - 2 * edge_bp - count * apart_bp
    return [int(p) + edge_bp + i * apart_bp for i, p in enumerate(np.sort(rng.integers(0, free_bp, size=count)))]


def _n_runs_and_blacklist(
    sequences: Mapping[str, np.ndarray], sites: Sites, rng: np.random.Generator
) -> tuple[tuple[str, int, int], ...]:
    """Blank the first 1,500 bp of the first two chromosomes and draw one 600-bp blacklisted locus on every third."""
    names = list(sequences)
    for name in names[:2]:
        sequences[name][:1_500] = 4
    starts = {name: int(rng.integers(2_000, len(sequences[name]) - 2_000)) for name in names[::3]}
    return tuple((name, start, start + 600) for name, start in starts.items())


def _proteins(config: DemoGenomeConfig, rng: np.random.Generator) -> dict[str, str]:
    """Return a protein per factor: linker, its family's domain with a few residues changed, linker."""
    proteins = {}
    for factor, family in factor_families().items():
        domain = _mutated_protein(FAMILIES[family].domain, 0.08, rng)
        before, after = (_linker(int(rng.integers(20, 50)), rng) for _ in range(2))
        extra = REGULATED_DOMAIN if factor == config.cell_specific_factor else ""
        proteins[factor] = "M" + before + domain + after + extra
    return proteins


def _linker(length: int, rng: np.random.Generator) -> str:
    return "".join(rng.choice(list(LINKER_RESIDUES), size=length))


def _mutated_protein(sequence: str, share: float, rng: np.random.Generator) -> str:
    changed = rng.random(len(sequence)) < share
    return "".join(str(rng.choice(list(RESIDUES))) if c else r for c, r in zip(changed, sequence, strict=True))


def _peaks(
    config: DemoGenomeConfig,
    sequences: Mapping[str, np.ndarray],
    sites: Sites,
    experiments: Sequence[tuple[str, str, str]],
    rng: np.random.Generator,
) -> list[DemoPeak]:
    """Call peaks: most planted sites of the factor's family, a few on nothing; none on N; sorted as BED is."""
    names, families = list(sequences), factor_families()
    silent = (config.cell_specific_factor, CELL_TYPES[1].biotype)
    found: list[DemoPeak] = []
    for accession, factor, biotype in experiments:
        if (factor, biotype) == silent:
            continue
        own = np.flatnonzero((sites.family == families[factor]) & ~sites.is_decoy)
        own = own[rng.random(len(own)) < config.occupancy]
        middle = sites.start[own] + sites.length_bp[own] // 2
        chroms, places = _with_strays(sites.chrom[own], middle, sequences, config.stray_share, rng)
        summits = np.rint(places + rng.normal(0, config.summit_error_bp, len(places))).astype(int)
        for chrom, summit in zip(chroms, summits, strict=True):
            if sequences[names[chrom]][summit] != 4:
                left, right = rng.integers(60, 150, size=2)
                end = min(summit + int(right), len(sequences[names[chrom]]))
                name = f"{accession}.{factor}.{biotype}"
                score = int(rng.integers(100, 1000))
                found.append(DemoPeak(names[chrom], max(0, int(summit - left)), end, int(summit), name, score))
    order = {name: index for index, name in enumerate(names)}
    return sorted(found, key=lambda peak: (order[peak.chrom], peak.start, peak.experiment))


def _with_strays(
    chroms: np.ndarray, places: np.ndarray, sequences: Mapping[str, np.ndarray], share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Add peaks on nothing, uniform over the genome."""
    lengths = np.array([len(codes) for codes in sequences.values()])
    n_strays = rng.binomial(len(places), share)
    stray_chroms = rng.choice(len(lengths), size=n_strays, p=lengths / lengths.sum())
    stray_places = rng.integers(200, lengths[stray_chroms] - 200)
    return np.concatenate([chroms, stray_chroms]), np.concatenate([places, stray_places])


def _scrambled(site: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the letters of `site` in an order that agrees with the old one, on either strand, in few places."""
    tries = [rng.permutation(site) for _ in range(50)]
    agreement = [max((t == site).sum(), (3 - t[::-1] == site).sum()) for t in tries]
    return tries[int(np.argmin(agreement))]


def _codes(text: str) -> np.ndarray:
    return np.array(["ACGT".index(letter) for letter in text], dtype=np.uint8)


def _text(codes: np.ndarray) -> str:
    return str(LETTERS[codes].tobytes(), "ascii")


def _fasta(header: str, sequence: str) -> str:
    lines = [sequence[i : i + FASTA_LINE_LENGTH] for i in range(0, len(sequence), FASTA_LINE_LENGTH)]
    return "\n".join([f">{header}", *lines]) + "\n"


def _bed_line(peak: DemoPeak) -> str:
    """Return one line of ReMap's nine columns: the thick part is the summit."""
    fields = (peak.chrom, peak.start, peak.end, peak.experiment, peak.score, ".", peak.summit, peak.summit + 1, "0,0,0")
    return "\t".join(map(str, fields)) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in (header, *rows))


def _write_gzip(path: Path, text: str) -> None:
    # mtime 0: the same genome gives the same bytes
    path.write_bytes(gzip.compress(text.encode("ascii"), compresslevel=6, mtime=0))
