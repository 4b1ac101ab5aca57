"""A small embedded store in which DNA, proteins and cell types carry everything there is to learn.

Three families of factors read three motifs; the members of a family share a protein domain. Each motif stands in some
bins, and its family's factors bind exactly there: in both cell types, but for OGA, which binds in cellA only. The
embedding of a bin says which motifs begin in it, beside noise. chr1 and chr2 are for training, chr3 validates, chr4
tests; OLA is held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.query.world import World
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.composition import CompositionEmbedder
from tfbind_store.precompute.embedder import Codes, TrunkGeometry, WindowEmbedding, make_text_embedder
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.precompute.run import embed_windows
from tfbind_store.query.selection import SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import Store

MOTIFS = {"WE": "TGACGTCAAG", "OL": "CCGATTAGCC", "OG": "GGAATTTCCG"}
FACTORS = ["WEA", "WEB", "WEC", "OLA", "OLB", "OLC", "OGA", "OGB"]
DOMAINS = {"WE": "RKRRKSRKQRRKAEEDLRR", "OL": "HHCCGHTCPICHKTFHRCC", "OG": "WFDYWNFAWYDLFNWFAYD"}
BIN_BP, N_BINS, DIM = 32, 16, 6
CHROMS = {"chr1": 12_000, "chr2": 6_010, "chr3": 4_000, "chr4": 6_005}
LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)


class MotifEmbedder:
    """One channel per motif that begins in the bin, the rest noise that only sequence decides."""

    geometry = TrunkGeometry(bin_bp=BIN_BP, dim=DIM)

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        where = {"window_bp": grid.window_bp, "n_bins": grid.n_bins, "bin_bp": grid.bin_bp}
        identity = {"class": "motifs", "trained_on": {"factors": ["WEA"], "chromosomes": ["chr1"], "biotypes": []}}
        return EmbeddingSpec(
            kind="windows", embedder="motifs", dim=DIM, identity=identity, grid=where, genome=genome_digest
        )

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        for window in windows:
            kept = tiling.kept(window)
            read = codes(kept._replace(end=kept.end + 16))
            text = np.frombuffer(b"ACGTNN", dtype=np.uint8)[read].tobytes().decode()
            values = np.zeros((N_BINS, DIM), dtype=np.float32)
            for channel, motif in enumerate(MOTIFS.values()):
                for place in range(N_BINS):
                    found = text[place * BIN_BP : (place + 1) * BIN_BP + len(motif) - 1].find(motif)
                    values[place, channel] = 0 <= found < BIN_BP
            values[:, len(MOTIFS) :] = np.random.default_rng(window).normal(size=(N_BINS, DIM - len(MOTIFS)))
            yield WindowEmbedding(window, values)


class Planted(NamedTuple):
    store: Store
    selection: str
    sites: dict[str, dict[str, list[int]]]
    """Chromosome and family: first base of each motif."""


def planted_genome(seed: int) -> tuple[dict[str, str], dict[str, dict[str, list[int]]]]:
    rng = np.random.default_rng(seed)
    chroms, sites = {}, {}
    for chrom, length in CHROMS.items():
        letters = LETTERS[rng.integers(0, 4, length)].copy()
        sites[chrom] = {family: [] for family in MOTIFS}
        for place in rng.permutation(np.arange(1, length // BIN_BP - 1))[: length // BIN_BP // 4]:
            family = list(MOTIFS)[int(rng.integers(len(MOTIFS)))]
            start = int(place) * BIN_BP + int(rng.integers(0, BIN_BP - 10))
            letters[start : start + 10] = np.frombuffer(MOTIFS[family].encode(), dtype=np.uint8)
            sites[chrom][family].append(start)
        chroms[chrom] = letters.tobytes().decode()
    return chroms, sites


def planted_protein(factor: str) -> str:
    rng = np.random.default_rng(sum(map(ord, factor)))
    loop = "".join(np.array(list("SGPQNEDTAK"))[rng.integers(0, 10, 12)])
    return "M" + loop + DOMAINS[factor[:2]] + loop[::-1]


def make_planted(folder: Path, *, seed: int = 0) -> Planted:
    chroms, sites = planted_genome(seed)
    grid = Grid(window_bp=N_BINS * BIN_BP, n_bins=N_BINS, bin_bp=BIN_BP)
    world = World(folder, chroms, grid)
    source = world.source()
    for factor in FACTORS:
        world.factor(factor, sequence=planted_protein(factor))
    for cell in ("cellA", "cellB"):
        for factor in FACTORS:
            binds = not (factor == "OGA" and cell == "cellB")
            peaks = [
                (chrom, start, start + 10, start, 100.0)
                for chrom, families in sites.items()
                for start in families[factor[:2]]
                if binds
            ]
            world.experiment(f"E{cell[-1]}.{factor}.{cell}", peaks, source=source)
    store = world.write()
    embed_windows(store, MotifEmbedder())
    embed_factors(store, CompositionEmbedder())
    embed_contexts(store, make_text_embedder("hashed"))
    split = SplitConfig(valid_chroms=("chr3",), test_chroms=("chr4",), hold_out={"factor": ["OLA"]})
    make_selection(store, "all", SelectionConfig(n_bins=4, margin_bp=0, split=split, allow_leaks=("paralog",)))
    return Planted(store, "all", sites)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Planted:
    return make_planted(tmp_path_factory.mktemp("planted"))
