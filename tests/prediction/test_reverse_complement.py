"""A genome and its reverse complement: the same predictions mirrored, the same scores of the same variants.

The trunk reads both strands and stores their mean. Chromosomes are whole windows long, so that windows and bins of one
genome lie on those of the other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyBigWig
import pytest
import torch

from tests.query.world import World, random_sequence
from tfbind_store.heads import Geometry, header_for, make_head, save_checkpoint
from tfbind_store.loci import Grid
from tfbind_store.precompute.composition import CompositionEmbedder
from tfbind_store.precompute.embedder import make_text_embedder
from tfbind_store.precompute.enformer import EnformerEmbedder, random_trunk
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.precompute.run import embed_windows
from tfbind_store.prediction.asked_pairs import Asked
from tfbind_store.prediction.predict import PredictConfig, predict
from tfbind_store.prediction.variants import VariantConfig, score_vcf
from tfbind_store.store.folder import Store

GRID = Grid(window_bp=512, n_bins=8, bin_bp=32)
LENGTHS = {"chr1": 3 * 256, "chr2": 2 * 256}
COMPLEMENT = str.maketrans("ACGT", "TGCA")
TRUNK = {"dim": 24, "depth": 1, "heads": 2, "attn_dim_key": 6, "num_downsamples": 5, "dim_divisible_by": 4}
ASKED = Asked(factors=("AAA",), biotype="cell")


def reverse_complement(sequence: str) -> str:
    return sequence.translate(COMPLEMENT)[::-1]


@pytest.fixture(scope="module")
def genome() -> dict[str, str]:
    return {chrom: random_sequence(length, seed) for seed, (chrom, length) in enumerate(LENGTHS.items())}


@pytest.fixture(scope="module")
def embedder() -> EnformerEmbedder:
    return EnformerEmbedder(random_trunk(TRUNK, seed=0), strand="mean", device="cpu")


def made(folder: Path, chroms: dict[str, str], embedder: EnformerEmbedder) -> Store:
    """A store with one factor, and a run whose head is the same whatever the genome."""
    world = World(folder, chroms, GRID)
    world.experiment("E1.AAA.cell", [("chr1", 10, 20, 15, 1.0)], source=world.source())
    store = world.write()
    embed_windows(store, embedder, name="windows")
    embed_factors(store, CompositionEmbedder(), name="p")
    embed_contexts(store, make_text_embedder("hashed"), name="c")
    names = {"windows": "embeddings/windows", "proteins": "proteins/p", "contexts": "contexts/c"}
    geometry = Geometry(*(store.array(name).shape[-1] for name in names.values()))
    torch.manual_seed(0)
    head = make_head("adapter", geometry, {"width": 16, "filip_heads": 4, "tower_dim": 8, "n_queries": 2})
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    arrays = {kind: {"name": name, "fingerprint": store.array(name).spec.fingerprint} for kind, name in names.items()}
    (store.path / "runs" / "x").mkdir(parents=True)
    save_checkpoint(store.run_dir("x") / "head.safetensors", head.eval(), header_for(head, arrays=arrays))
    return store


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, genome: dict[str, str], embedder: EnformerEmbedder
) -> tuple[Store, Store]:
    turned = {chrom: reverse_complement(sequence) for chrom, sequence in genome.items()}
    stores = [made(tmp_path_factory.mktemp(name), chroms, embedder) for name, chroms in (("g", genome), ("r", turned))]
    return stores[0], stores[1]


def test_predictions_of_the_other_strand_are_mirrored(both: tuple[Store, Store], tmp_path: Path) -> None:
    for name, store in zip("gr", both, strict=True):
        predict(store, "x", PredictConfig(asked=ASKED, out=(tmp_path / f"{name}.bw",), raw=True))
    for chrom, length in LENGTHS.items():
        one, other = (
            np.array(pyBigWig.open(str(tmp_path / f"{name}.bw")).values(chrom, 0, length)) for name in ("g", "r")
        )
        assert np.ptp(one) > 0.05
        # embeddings are float16
        np.testing.assert_allclose(one, other[::-1], atol=0.02 * np.ptp(one))
        assert np.abs(one - other).max() > 0.2 * np.ptp(one)


def test_variants_have_the_scores_of_their_reverse_complement(
    both: tuple[Store, Store], genome: dict[str, str], embedder: EnformerEmbedder, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    written: dict[str, list[str]] = {"g": [], "r": []}
    for number in range(12):
        chrom = list(LENGTHS)[number % 2]
        n_bases, sequence = 1 + number % 3, genome[chrom]
        start = int(rng.integers(0, len(sequence) - n_bases)) if number > 1 else number * (len(sequence) - n_bases)
        ref = sequence[start : start + n_bases]
        alt = "".join("ACGT"[("ACGT".index(letter) + 1 + number % 3) % 4] for letter in ref)
        end = len(sequence) - start
        written["g"].append(f"{chrom}\t{start + 1}\tv{number}\t{ref}\t{alt}\t.\t.\t.")
        turned = reverse_complement(ref), reverse_complement(alt)
        written["r"].append(f"{chrom}\t{end - n_bases + 1}\tv{number}\t{turned[0]}\t{turned[1]}\t.\t.\t.")
    scores = {}
    for name, store in zip("gr", both, strict=True):
        rows = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "\n".join(written[name]) + "\n"
        (tmp_path / f"{name}.vcf").write_text("##fileformat=VCFv4.2\n" + rows)
        config = VariantConfig(asked=ASKED, flank_bp=32)
        out = tmp_path / f"{name}.tsv"
        assert score_vcf(store, "x", tmp_path / f"{name}.vcf", out, config, embedder=embedder).n_scored == 12
        header, *lines = (line.split("\t") for line in out.read_text().splitlines())
        scores[name] = [dict(zip(header, line, strict=True)) for line in lines]
    for column in ("ref_logit", "alt_logit", "difference"):
        one, other = (np.array([float(row[column]) for row in scores[name]]) for name in ("g", "r"))
        # columns that windows share: a variant whose flank leaves its window is scored in that window alone
        inside = np.array([row["bins_beyond"] == "0" for row in scores["g"]])
        assert inside.sum() >= 6
        np.testing.assert_allclose(one[inside], other[inside], atol=0.01)
