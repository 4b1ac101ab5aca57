"""The test of the project: FASTA + BED -> catalog -> toy embedder -> selection -> batches: is each row what it says?

The toy's columns say where a bin came from. What every row should hold is worked out here from the text of the FASTA
and BED files alone. Peaks sit at chromosome ends, at window edges and at the edge of a shard; rows are shuffled.
"""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from tests.query.world import random_sequence, write_fasta
from tfbind_store.ingest import import_biotypes, import_blacklist, import_peaks, import_proteins
from tfbind_store.loci import Grid
from tfbind_store.precompute.embedder import make_sequence_embedder, make_text_embedder, make_window_embedder
from tfbind_store.precompute.run import embed_contexts, embed_factors, embed_windows
from tfbind_store.query.loader import Arrays, Loader
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.store.folder import Store

BIN_BP, WINDOW_BINS = 16, 8
STRIDE_BP = BIN_BP * WINDOW_BINS
SHARD_BP = 32 * STRIDE_BP
GRID = Grid(window_bp=STRIDE_BP + 4 * BIN_BP, n_bins=WINDOW_BINS, bin_bp=BIN_BP)
LENGTHS = {"chr1": 2 * SHARD_BP + 77, "chr2": 2_999, "chrX": 1_024}
N_RUN = (1_000, 1_600)
CHROMS = {name: random_sequence(length, seed) for seed, (name, length) in enumerate(LENGTHS.items())}
CHROMS["chr1"] = CHROMS["chr1"][: N_RUN[0]] + "N" * (N_RUN[1] - N_RUN[0]) + CHROMS["chr1"][N_RUN[1] :]
PROTEINS = {"SOX2": "MSOXKKRPMNAF" * 4, "POU5F1": "MPQERVWFCNRRQK" * 3, "CTCF": "MCTCFHKCPDCDM" * 5}
EXPERIMENTS = ["E1.SOX2.H1", "E2.SOX2-POU5F1.H1", "E3.CTCF.H1", "E4.CTCF.HepG2"]
ARRAYS = Arrays("embeddings/windows", "proteins/composition", "contexts/hashed")


def summits() -> list[tuple[str, str, int]]:
    """(experiment, chromosome, summit): edges of everything, and some at random."""
    edges = [("chr1", place) for place in (0, 15, 16, STRIDE_BP - 1, STRIDE_BP, SHARD_BP - 1, SHARD_BP, SHARD_BP + 130)]
    edges += [(chrom, length - 1) for chrom, length in LENGTHS.items()]
    edges += [("chr1", N_RUN[0] - 1), ("chr1", N_RUN[1]), ("chr2", 0), ("chrX", 0), ("chr1", 2 * SHARD_BP)]
    rng = np.random.default_rng(5)
    found = [(EXPERIMENTS[place % 4], chrom, summit) for place, (chrom, summit) in enumerate(edges)]
    for experiment in EXPERIMENTS:
        for _ in range(12):
            chrom = str(rng.choice(list(LENGTHS)))
            summit = int(rng.integers(0, LENGTHS[chrom]))
            if CHROMS[chrom][summit] != "N":
                found.append((experiment, chrom, summit))
    return sorted(set(found))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("end_to_end")
    store = Store.create(folder / "store", fasta=write_fasta(folder / "genome.fa", CHROMS), grid=GRID)
    with gzip.open(folder / "peaks.bed.gz", "wt") as file:
        for place, (experiment, chrom, summit) in enumerate(summits()):
            # chromosome names without chr on purpose; nine columns as in ReMap, the summit in the seventh
            row = (chrom[3:], summit, summit + 1, experiment, place + 1, ".", summit, summit + 1, "0,0,0")
            file.write("\t".join(map(str, row)) + "\n")
    (folder / "proteins.fa").write_text("".join(f">{gene} gene={gene}\n{seq}\n" for gene, seq in PROTEINS.items()))
    (folder / "biotypes.tsv").write_text("biotype\tdescription\nH1\tembryonic stem cell\nHepG2\tliver carcinoma\n")
    (folder / "blacklist.bed").write_text("chr2\t500\t540\tbad\n")
    import_proteins(store, folder / "proteins.fa")
    import_peaks(store, folder / "peaks.bed.gz")
    import_biotypes(store, folder / "biotypes.tsv")
    import_blacklist(store, folder / "blacklist.bed")
    embed_windows(store, make_window_embedder("toy", {"bin_bp": BIN_BP}))
    embed_factors(store, make_sequence_embedder("composition"))
    embed_contexts(store, make_text_embedder("hashed"))
    return store


def expected_columns(chrom: str, number: int) -> list[float]:
    """The toy's columns of one bin, from the text of the FASTA."""
    text = CHROMS[chrom][number * BIN_BP : (number + 1) * BIN_BP]
    text += "." * (BIN_BP - len(text))
    code = {"A": 0, "C": 1, "G": 2, "T": 3, "N": 4, ".": 5}
    counts = [sum(map(text.count, "GC")), text.count("N"), text.count("."), text[: BIN_BP // 2].count("A")]
    return [list(CHROMS).index(chrom), number // 1024, number % 1024, *counts, code[text[0]]]


def expected_label(experiment: str, chrom: str, number: int) -> float:
    """1, 0 or NaN (as None) from the text of the BED files."""
    text = CHROMS[chrom][number * BIN_BP : (number + 1) * BIN_BP]
    if set(text) <= {"N"} or (chrom == "chr2" and number * BIN_BP < 540 and (number + 1) * BIN_BP > 500):
        return float("nan")
    return float(any((e, c, s // BIN_BP) == (experiment, chrom, number) for e, c, s in summits()))


def names_of(store: Store) -> dict[int, str]:
    with store.reader() as catalog:
        return dict(catalog.rows("SELECT experiment_id, experiment FROM data.experiments"))


@pytest.mark.parametrize("n_bins", [1, 3, 8])
@pytest.mark.parametrize("shuffle", [True, False])
def test_row_k_of_a_batch_is_exactly_the_locus_that_was_asked_for(store, n_bins, shuffle):
    split = SplitConfig(valid_chroms=("X",), test_chroms=("2",))
    config = SelectionConfig(n_bins=n_bins, margin_bp=16, split=split, negatives=("random:1", "scoped:1"))
    name = f"edges{n_bins}"
    make_selection(store, name, config, overwrite=True)
    selection, names, chroms = Selection.open(store, name), names_of(store), list(CHROMS)
    table = selection.columns()
    seen: list[int] = []
    positive_bins = set()
    for part in ("train", "valid", "test"):
        loader = Loader(store, selection, part, arrays=ARRAYS, batch_size=7, block_windows=5, shuffle=shuffle, seed=1)
        for batch in loader:
            for k, row in enumerate(batch.rows.tolist()):
                experiment = names[int(table["experiment"][row])]
                chrom = chroms[int(batch.dna[k, 0, 0])]
                first = int(batch.dna[k, 0, 1]) * 1024 + int(batch.dna[k, 0, 2])
                assert part == {"chr1": "train", "chrX": "valid", "chr2": "test"}[chrom]
                assert batch.dna[k].tolist() == [expected_columns(chrom, first + j) for j in range(n_bins)]
                labels = [expected_label(experiment, chrom, first + j) for j in range(n_bins)]
                np.testing.assert_array_equal(batch.labels[k], labels)
                if table["kind"][row] == "positive":
                    positive_bins |= {(experiment, chrom, first + j) for j in range(n_bins) if labels[j] == 1}
                else:
                    assert 1.0 not in labels
            seen += batch.rows.tolist()
    assert sorted(seen) == list(range(table.n))
    assert (seen != sorted(seen)) == shuffle
    with store.reader() as catalog:
        asked = catalog.rows("SELECT experiment, chrom, summit FROM peaks")
    wanted = {(e, c, s // BIN_BP) for e, c, s in asked if expected_label(e, c, s // BIN_BP) == 1}
    assert {(e, c, s // BIN_BP) for e, c, s in summits() if expected_label(e, c, s // BIN_BP) == 1} == wanted
    assert positive_bins == wanted, "each peak that SQL lists, in a row; nothing else labelled 1"


def test_the_edges_were_really_met(store):
    make_selection(store, "edges", SelectionConfig(n_bins=3, margin_bp=16), overwrite=True)
    table = Selection.open(store, "edges").columns()
    positive = table["kind"] == "positive"
    first = table["window"].astype(np.int64)[positive] * WINDOW_BINS + table["bin"][positive]
    last = first + 2
    assert ((first // WINDOW_BINS) != (last // WINDOW_BINS)).any(), "rows across a window's edge"
    assert (first // (32 * WINDOW_BINS) != last // (32 * WINDOW_BINS)).any(), "rows across a shard's edge"
    for chrom in range(3):
        bins = store.tiling.global_bins(chrom)
        assert (first == bins[0]).any(), "rows at a chromosome's beginning"
        assert (last == bins[-1]).any(), "rows at a chromosome's end"


def test_factors_and_contexts_of_a_row_are_those_of_its_experiment(store):
    make_selection(store, "sides", SelectionConfig(), overwrite=True)
    selection, names = Selection.open(store, "sides"), names_of(store)
    table = selection.columns()
    embedder = make_sequence_embedder("composition")
    residues = {gene: next(iter(embedder.embed([seq]))).values.astype(np.float16) for gene, seq in PROTEINS.items()}
    with store.reader() as catalog:
        texts = dict(catalog.rows("SELECT biotype, context FROM biotypes"))
    assert "liver carcinoma" in texts["HepG2"]
    vectors = {name: make_text_embedder("hashed").embed([text]).values[0] for name, text in texts.items()}
    for batch in Loader(store, selection, "train", arrays=ARRAYS, batch_size=16):
        assert len(batch.protein) == len({int(table["factor"][row]) for row in batch.rows})
        for k, row in enumerate(batch.rows.tolist()):
            _, factor, biotype = names[int(table["experiment"][row])].split(".")
            genes = factor.split("-")
            real = batch.mask[batch.factor_index[k]]
            want = np.concatenate([residues[gene] for gene in genes])
            np.testing.assert_array_equal(batch.protein[batch.factor_index[k]][real], want)
            subunit = np.repeat(np.arange(len(genes)), [len(PROTEINS[gene]) for gene in genes])
            assert batch.subunit[batch.factor_index[k]][real].tolist() == subunit.tolist()
            np.testing.assert_allclose(batch.context[batch.context_index[k]], vectors[biotype], atol=1e-6)


def test_sql_picks_the_rows(store):
    where = "factor = 'CTCF' AND biotype = 'HepG2' AND chrom <> 'chr2' AND score > 5"
    make_selection(store, "picked", SelectionConfig(where=where, negatives=()), overwrite=True)
    got = set()
    for batch in Loader(store, "picked", "train", arrays=ARRAYS):
        for k in range(len(batch.rows)):
            got.add((int(batch.dna[k, 0, 0]), int(batch.dna[k, 0, 1]) * 1024 + int(batch.dna[k, 0, 2])))
    want = {
        (list(CHROMS).index(chrom), summit // BIN_BP)
        for place, (experiment, chrom, summit) in enumerate(summits())
        if experiment == "E4.CTCF.HepG2" and chrom != "chr2" and place + 1 > 5
    }
    assert got == want
