"""A trunk and a head that learned planted motifs: do contributions point at the planted bases?

One motif of ten bases for each family, on one strand, one site every 250 bases, and nothing else to learn. The trunk is
a small Enformer trained from scratch; chr4 is seen by neither trunk nor head, OLA by neither either.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.planted import FACTORS, LETTERS, MOTIFS, planted_protein
from tests.query.world import World
from tfbind_store.interpretation.interpret import InterpretConfig, open_explainer
from tfbind_store.loci import Grid, Locus
from tfbind_store.precompute.composition import CompositionEmbedder
from tfbind_store.precompute.embedder import make_text_embedder, make_window_embedder
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.precompute.run import embed_windows
from tfbind_store.prediction.asked_pairs import Asked
from tfbind_store.pretraining.pretrain import PretrainConfig, TrunkConfig, pretrain_trunk
from tfbind_store.query.selection import SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.store.folder import Store
from tfbind_store.training.train import TrainConfig, train_head

pytestmark = pytest.mark.slow
CHROMS = {"chr1": 200_000, "chr2": 200_000, "chr3": 40_000, "chr4": 60_000}
SPACING_BP = 250
WIDTH = 10
TRUNK = TrunkConfig(dim=48, depth=1, heads=2, attn_dim_key=12, dim_divisible_by=8)
Sites = dict[str, dict[str, list[int]]]


def genome() -> tuple[dict[str, str], Sites]:
    rng = np.random.default_rng(0)
    chroms, sites = {}, {}
    for chrom, length in CHROMS.items():
        letters = LETTERS[rng.integers(0, 4, length)].copy()
        sites[chrom] = {family: [] for family in MOTIFS}
        for place in range(100, length - 2 * SPACING_BP, SPACING_BP):
            family = list(MOTIFS)[int(rng.integers(len(MOTIFS)))]
            start = place + int(rng.integers(0, SPACING_BP - 50))
            letters[start : start + WIDTH] = np.frombuffer(MOTIFS[family].encode(), dtype=np.uint8)
            sites[chrom][family].append(start)
        chroms[chrom] = letters.tobytes().decode()
    return chroms, sites


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path, Sites]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("motifs")
    chroms, sites = genome()
    world = World(folder, chroms, Grid(window_bp=1_024, n_bins=32, bin_bp=32))
    source = world.source()
    for factor in FACTORS:
        world.factor(factor, sequence=planted_protein(factor))
    for factor in FACTORS:
        peaks = [
            (chrom, start, start + WIDTH, start + WIDTH // 2, 100.0)
            for chrom, families in sites.items()
            for start in families[factor[:2]]
        ]
        world.experiment(f"E.{factor}.cellA", peaks, source=source)
    store = world.write()
    embed_factors(store, CompositionEmbedder())
    embed_contexts(store, make_text_embedder("hashed"))
    split = SplitConfig(valid_chroms=("chr3",), test_chroms=("chr4",), hold_out={"factor": ["OLA"]})
    make_selection(store, "all", SelectionConfig(n_bins=4, margin_bp=0, split=split, allow_leaks=("paralog",)))
    config = PretrainConfig(
        trunk=TRUNK, passes=5, window_bp=1_024, batch_size=8, lr=3e-3, validate_every=0, device="cpu"
    )
    pretrain_trunk(store, "all", config, folder / "trunk")
    embed_windows(store, make_window_embedder("enformer", {"checkpoint": str(folder / "trunk"), "device": "cpu"}))
    options = {"width": 32, "filip_heads": 8, "tower_dim": 32}
    train_head(
        store, "all", TrainConfig(steps=200, options=options, bins_per_step=256, pairs_per_step=8, device="cpu"), "few"
    )
    return store, folder / "trunk", sites


def shares(learned: tuple[Store, Path, Sites], method: str) -> np.ndarray:
    """Return, for sites of four factors on the unseen chromosome, how many of the ten best bases are planted ones."""
    store, trunk, sites = learned
    found = []
    for factor in ("WEA", "OLB", "OLA", "OGA"):
        asked = Asked(factors=(factor,), biotype="cellA")
        explainer = open_explainer(store, "few", InterpretConfig(asked=asked, method=method, checkpoint=str(trunk)))
        for site in sites["chr4"][factor[:2]][:12]:
            importance = explainer.explain(Locus("chr4", site - 45, site + 55)).importance
            top = np.argsort(-importance)[:WIDTH] - 45
            found.append(np.mean((top >= 0) & (top < WIDTH)))
    return np.array(found)


def test_mutagenesis_finds_the_planted_bases(learned: tuple[Store, Path, Sites]) -> None:
    """Of 100 bases the ten best: in nine of ten cases all of them, but for one at most, are the motif's."""
    inside = shares(learned, "ism")
    assert len(inside) == 48
    assert inside.mean() >= 0.95
    assert np.mean(inside >= 0.9) >= 0.9


def test_gradients_find_most_of_them(learned: tuple[Store, Path, Sites]) -> None:
    """A slope says what an infinitely small change would do, no change of a letter is: it is the weaker of the two.

    Ten bases drawn at random would be a tenth planted ones.
    """
    assert shares(learned, "gradient").mean() >= 0.5
