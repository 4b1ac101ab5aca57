"""The demo learns, and what it learned is the planted truth: motif, protein and cell type, each on its own."""

from dataclasses import replace

import numpy as np
import pytest

from tfbind_store.demo.genome import (
    CELL_TYPES,
    DemoGenomeConfig,
    make_demo_genome,
    mutate_sites,
    swap_proteins,
    write_demo_files,
)
from tfbind_store.demo.run import (
    RUN,
    UNSEEN_BOTH,
    UNSEEN_CHROMOSOME,
    DemoConfig,
    demo_table,
    embed_genome,
    make_store,
    run_demo,
    split_chroms,
)
from tfbind_store.errors import ConfigError, StoreExists

HERE, ELSEWHERE = (cell.biotype for cell in CELL_TYPES)
ONE_FAMILY, ANOTHER = "HDX1", "ETX1"


class TestRefusals:
    def test_a_folder_with_something_in_it_is_refused(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(StoreExists, match="something at this path"):
            run_demo(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_chromosomes_must_be_left_for_training(self):
        genome = make_demo_genome(DemoGenomeConfig(n_chroms=3, chrom_bp=20_000))
        with pytest.raises(ConfigError, match="3 chromosomes held out of 3"):
            split_chroms(genome, DemoConfig())


def test_the_last_chromosomes_are_held_out():
    genome = make_demo_genome(DemoGenomeConfig(n_chroms=5, chrom_bp=20_000))
    assert split_chroms(genome, DemoConfig()) == (("chr3",), ("chr4", "chr5"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("demo") / "out", seed=0)


@pytest.fixture(scope="module")
def genome():
    return make_demo_genome(DemoConfig().genome, seed=0)


@pytest.fixture(scope="module")
def scores_of(demo):
    """Return a function that scores bins of the test chromosomes of some store by the demo's head."""
    import torch

    from tfbind_store.feeding.feed import PairSource
    from tfbind_store.heads import load_checkpoint
    from tfbind_store.query.loader import Arrays
    from tfbind_store.scoring.bins import scorable_bins, score_bins
    from tfbind_store.store.folder import Store

    head, header = load_checkpoint(demo.store / "runs" / RUN / "head.safetensors")
    arrays = Arrays(**{kind: array["name"] for kind, array in header.arrays.items()})

    def score(path, pairs, chroms):
        store = Store.open(path)
        with store.reader() as catalog:
            factors = dict(catalog.rows("SELECT factor, factor_id FROM data.factors"))
            biotypes = dict(catalog.rows("SELECT biotype, biotype_id FROM data.biotypes"))
        ids = np.array([(factors[factor], biotypes[biotype]) for factor, biotype in pairs])
        bins = scorable_bins(store, arrays.windows, chroms)
        source = PairSource(store, arrays, torch.device("cpu"))
        blocks = list(score_bins(head, source, ids[:, 0], ids[:, 1], bins))
        return bins, np.concatenate([block.scores for block in blocks])

    return score


def bound(genome, store_tiling, experiment, bins):
    """Return which bins hold a summit of an experiment, given as FACTOR.BIOTYPE."""
    peaks = [peak for peak in genome.peaks if peak.experiment.endswith(f".{experiment}")]
    chroms = [store_tiling.chrom_index[peak.chrom] for peak in peaks]
    address = store_tiling.address(chroms, [peak.summit for peak in peaks])
    return np.isin(bins, address.window * store_tiling.grid.n_bins + address.bin)


def auroc(labels, scores):
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    n_positive = labels.sum()
    return (ranks[labels].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * (len(labels) - n_positive))


@pytest.fixture(scope="module")
def another_store(demo, genome, tmp_path_factory):
    """Return a function that makes a store of a changed genome, embedded by the demo's trunk."""
    from tfbind_store.precompute.embedder import make_sequence_embedder, make_text_embedder
    from tfbind_store.precompute.run import embed_contexts, embed_factors

    def make(changed, name):
        folder = tmp_path_factory.mktemp(name)
        store = make_store(folder / "s.store", write_demo_files(changed, folder / "inputs"), DemoConfig().grid)
        embed_factors(store, make_sequence_embedder("composition", {}))
        embed_contexts(store, make_text_embedder("hashed", {}))
        embed_genome(store, demo.trunk, name=RUN)
        return store

    return make


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestLearned:
    def test_held_out_chromosomes_of_seen_factors(self, demo):
        line = demo.score(UNSEEN_CHROMOSOME)
        assert line.auroc >= 0.90
        assert line.auprc > 10 * line.prevalence

    def test_a_factor_that_was_never_seen(self, demo):
        line = demo.score(UNSEEN_BOTH)
        assert line.auroc >= 0.85
        assert line.auprc > 5 * line.prevalence

    def test_the_control_learns_nothing(self, demo):
        line = demo.score(UNSEEN_CHROMOSOME, run="control")
        assert abs(line.auroc - 0.5) <= 0.05
        assert line.auprc < 2 * line.prevalence

    def test_the_table_names_every_line_and_the_report_is_there(self, demo):
        text = "\n".join(demo_table(demo))
        for words in ("seen factors, unseen chromosomes", "unseen factor", "nearest factor", "prevalence", "control"):
            assert words in text
        assert f"{demo.score(UNSEEN_CHROMOSOME).auroc:.3f}" in text
        assert demo.report.read_text().lstrip().lower().startswith("<!doctype html")
        assert str(demo.report) in text


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestLearnedTheRightThing:
    def test_without_the_motifs_nothing_is_left(self, genome, scores_of, another_store):
        _, chroms = split_chroms(genome, DemoConfig())
        store = another_store(mutate_sites(genome, chroms), "mutated")
        pairs = [(factor, HERE) for factor in genome.proteins]
        bins, scores = scores_of(store.path, pairs, chroms)
        found = [
            auroc(bound(genome, store.tiling, f"{factor}.{biotype}", bins), scores[:, column])
            for column, (factor, biotype) in enumerate(pairs)
        ]
        assert np.median(found) < 0.6

    def test_factors_with_swapped_proteins_swap_their_scores(self, demo, genome, scores_of, another_store):
        _, chroms = split_chroms(genome, DemoConfig())
        pairs = [(ONE_FAMILY, HERE), (ANOTHER, HERE)]
        before = scores_of(demo.store, pairs, chroms)
        store = another_store(swap_proteins(genome, ONE_FAMILY, ANOTHER), "swapped")
        after = scores_of(store.path, pairs, chroms)
        np.testing.assert_allclose(after[1], before[1][:, ::-1], atol=1e-3)
        for column, (factor, biotype) in enumerate(pairs):
            labels = bound(genome, store.tiling, f"{factor}.{biotype}", before[0])
            assert auroc(labels, before[1][:, column]) > 0.9
            assert auroc(labels, after[1][:, column]) < 0.6

    def test_the_right_motif_in_the_wrong_cell_type_scores_low(self, demo, genome, scores_of):
        from tfbind_store.store.folder import Store

        _, chroms = split_chroms(genome, DemoConfig())
        specific = genome.config.cell_specific_factor
        paralog = f"{specific[:-1]}1"
        pairs = [(specific, HERE), (specific, ELSEWHERE), (paralog, ELSEWHERE)]
        bins, scores = scores_of(demo.store, pairs, chroms)
        labels = bound(genome, Store.open(demo.store).tiling, f"{specific}.{HERE}", bins)
        chance = 1 / (1 + np.exp(-scores[labels]))
        right, wrong, paralog_there = np.median(chance, axis=0)
        assert right > 0.3
        assert paralog_there > 0.3
        assert wrong < 0.2 * right

    def test_another_seed_gives_another_genome_that_is_learned_too(self, tmp_path):
        config = DemoConfig()
        small = replace(config, genome=replace(config.genome, n_chroms=8))
        assert run_demo(tmp_path / "out", seed=5, config=small).score(UNSEEN_CHROMOSOME).auroc >= 0.90
