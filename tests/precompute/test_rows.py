"""Embedding proteins and texts: where they lie, growing, resuming, and what fails."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.precompute.small import make_store
from tfbind_store.errors import EmbeddingError, Interrupted, NoSpace, SpecError, StoreError
from tfbind_store.precompute import rows as rows_module
from tfbind_store.precompute import upkeep
from tfbind_store.precompute.composition import CompositionEmbedder
from tfbind_store.precompute.embedder import SequenceEmbedding, TextEmbedding, make_sequence_embedder
from tfbind_store.precompute.hashed import HashedEmbedder, HashedOptions
from tfbind_store.precompute.run import embed_contexts, embed_factors
from tfbind_store.store.folder import FactorProteins, Store

PROTEINS = {"ABF1": "MDKLVVNYYEYK" * 50, "REB1": "MPSGHNDKNANQ" * 40, "MCM1": "MSDIEEGTPTNN" * 24}
FACTORS = {0: ("ABF1",), 1: ("REB1", "MCM1"), 2: ("ABF1", "ABF1"), 3: ("LOST",)}
TEXTS = {0: "yeast in YPD", 1: "yeast in YPD", 2: "yeast, heat shock"}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A store whose catalog has factors (one a complex, one without protein) and biotypes, two with the same text."""
    store = make_store(tmp_path_factory.mktemp("template"))
    with store.writer() as catalog:
        add_proteins(catalog, PROTEINS)
        add_factors(catalog)
        catalog.insert("data.biotypes", {
            "biotype_id": list(TEXTS), "biotype": [f"b{i}" for i in TEXTS], "base_biotype": [f"b{i}" for i in TEXTS],
            "treatment": [None] * 3, "metadata": ["{}"] * 3,
        })  # fmt: skip
        add_texts(catalog, TEXTS)
    return store.path


def add_proteins(catalog, proteins: dict[str, str], first_id: int = 0) -> None:
    for number, (symbol, sequence) in enumerate(proteins.items(), start=first_id):
        catalog.execute(
            "INSERT INTO data.proteins VALUES (?, ?, NULL, NULL, NULL, ?, ?, ?, 'only entry', 0)",
            [number, symbol, sequence, sha(sequence), len(sequence)],
        )


def add_factors(catalog) -> None:
    for factor_id, genes in FACTORS.items():
        catalog.execute(
            "INSERT INTO data.factors VALUES (?, ?, ?, ?, NULL)",
            [factor_id, f"{factor_id}-{'-'.join(genes)}", list(genes), genes != ("LOST",)],
        )
        for position, gene in enumerate(genes):
            protein = list(PROTEINS).index(gene) if gene in PROTEINS else None
            catalog.execute(
                "INSERT INTO data.factor_subunits VALUES (?, ?, ?, ?)", [factor_id, position, gene, protein]
            )


def add_texts(catalog, texts: dict[int, str]) -> None:
    for number, text in texts.items():
        catalog.execute("INSERT INTO data.contexts VALUES (?, ?, ?, 'template')", [number, number, text])


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def store(template, tmp_path) -> Store:
    shutil.copytree(template, tmp_path / "store")
    return Store.open(tmp_path / "store")


class WatchedProteins(CompositionEmbedder):
    def __init__(self, *, broken=(), between=None) -> None:
        super().__init__()
        self.broken, self.between, self.asked = broken, between, []

    def embed(self, sequences):
        for sequence in sequences:
            self.asked.append(sequence)
            values = self._one(sequence)
            if sequence in self.broken:
                values[0, 0] = np.nan
            if self.between:
                self.between(len(self.asked))
            yield SequenceEmbedding(values, False)


class WatchedTexts(HashedEmbedder):
    def __init__(self, *, broken=(), dim=8) -> None:
        super().__init__(HashedOptions(dim=dim))
        self.broken, self.asked = broken, []

    def embed(self, texts):
        self.asked += texts
        result = super().embed(texts)
        for row, text in enumerate(texts):
            if text in self.broken:
                result.values[row] = np.inf
        return TextEmbedding(result.values, np.array(["heat" in text for text in texts], dtype=bool))


def expected(sequence: str) -> np.ndarray:
    return CompositionEmbedder()._one(sequence).astype(np.float16)


class TestFactors:
    def test_residues_of_factors_and_complexes_come_back(self, store):
        embedder = WatchedProteins()
        report = embed_factors(store, embedder)
        assert (report.array, report.n_asked, report.n_computed) == ("proteins/composition", 3, 3)
        assert report.is_complete
        assert embedder.asked == list(PROTEINS.values())
        found = FactorProteins(store, "proteins/composition").get(np.array([1, 0, 2]))
        assert found.mask.sum(1).tolist() == [480 + 288, 600, 1200]
        np.testing.assert_array_equal(found.protein[0, :480], expected(PROTEINS["REB1"]))
        np.testing.assert_array_equal(found.protein[0, 480:768], expected(PROTEINS["MCM1"]))
        np.testing.assert_array_equal(found.protein[1, :600], expected(PROTEINS["ABF1"]))
        np.testing.assert_array_equal(found.protein[2, 600:1200], expected(PROTEINS["ABF1"]))
        assert found.subunit[0, [0, 479, 480, 767, 768]].tolist() == [0, 0, 1, 1, -1]

    def test_a_protein_may_cross_shards(self, store, monkeypatch):
        monkeypatch.setattr(rows_module, "PROTEIN_SHARD_BYTES", 64)
        monkeypatch.setattr(rows_module, "LEAST_PROTEIN_ROWS", 128)
        embed_factors(store, CompositionEmbedder())
        array = store.array("proteins/composition")
        assert (array.shard_rows, array.n_shards) == (128, 11)
        found = FactorProteins(store, "proteins/composition").get(np.array([1]))
        np.testing.assert_array_equal(found.protein[0, 480:768], expected(PROTEINS["MCM1"]))

    def test_again_does_nothing_and_new_proteins_begin_at_a_fresh_shard(self, store):
        embed_factors(store, CompositionEmbedder())
        before = {path: path.read_bytes() for path in (store.path / "proteins").rglob("c.*")}
        snapshot = store.snapshot
        embedder = WatchedProteins()
        assert embed_factors(store, embedder).n_done_before == 3
        assert (embedder.asked, store.snapshot) == ([], snapshot)
        with store.writer() as catalog:
            add_proteins(catalog, {"LOST": "MACDEFGH" * 10}, first_id=9)
            catalog.execute("UPDATE data.factor_subunits SET protein_id = 9 WHERE gene = 'LOST'")
        report = embed_factors(store, embedder)
        assert (report.n_asked, report.n_computed, report.is_complete) == (4, 1, True)
        for path, content in before.items():
            assert path.read_bytes() == content
        found = FactorProteins(store, "proteins/composition").get(np.array([3, 0]))
        np.testing.assert_array_equal(found.protein[0, :80], expected("MACDEFGH" * 10))
        np.testing.assert_array_equal(found.protein[1, :600], expected(PROTEINS["ABF1"]))

    def test_one_factor_added_later_is_the_only_one_computed_and_the_log_says_so(self, store, caplog):
        embed_factors(store, CompositionEmbedder())
        with store.writer() as catalog:
            add_proteins(catalog, {"LOST": "MACDEFGH" * 10}, first_id=9)
            catalog.execute("UPDATE data.factor_subunits SET protein_id = 9 WHERE gene = 'LOST'")
        with caplog.at_level(logging.INFO, logger="tfbind_store"):
            embed_factors(store, CompositionEmbedder())
        told = [record.getMessage() for record in caplog.records if record.name.endswith("rows")]
        reused = [f"reused {gene} of proteins/composition" for gene in PROTEINS]
        assert told == [*reused, "computed LOST: 80 rows"]

    def test_pooled_and_cut_proteins_take_only_their_own_rows(self, store):
        for name, options, n_rows in (
            ("pooled", {"pooling": "mean"}, [1, 2]),
            ("cut", {"long_proteins": "first", "window": 100}, [100, 200]),
        ):
            embedder = make_sequence_embedder("esm", {"num_layers": 1, "embed_dim": 16, "device": "cpu", **options})
            report = embed_factors(store, embedder, name=name)
            assert (report.n_truncated, report.is_complete) == (3 if name == "cut" else 0, True)
            found = FactorProteins(store, f"proteins/{name}").get(np.array([0, 1]))
            assert found.mask.sum(1).tolist() == n_rows

    def test_a_refused_protein_does_not_stop_those_of_its_batch(self, store):
        with store.writer() as catalog:
            catalog.execute(
                "UPDATE data.proteins SET sequence = 'MK*K', sha256 = ? WHERE symbol = 'REB1'", [sha("MK*K")]
            )
        embedder = make_sequence_embedder("esm", {"num_layers": 1, "embed_dim": 16, "device": "cpu"})
        report = embed_factors(store, embedder)
        assert [f.name for f in report.failures] == ["REB1"]
        assert FactorProteins(store, "proteins/esm").get(np.array([2])).mask.sum() == 1200

    def test_the_encoder_is_let_go_at_the_end(self, store):
        embedder = WatchedProteins()
        embedder.release = lambda: embedder.asked.append("released")
        embed_factors(store, embedder)
        assert embedder.asked[-1] == "released"

    def test_proteins_of_no_factor_only_when_asked_for(self, store):
        with store.writer() as catalog:
            add_proteins(catalog, {"OTHER": "MKKK"}, first_id=9)
        assert embed_factors(store, CompositionEmbedder()).n_asked == 3
        assert embed_factors(store, CompositionEmbedder(), every_protein=True).n_computed == 1

    def test_a_failed_protein_is_reported_and_the_others_finish(self, store):
        report = embed_factors(store, WatchedProteins(broken=[PROTEINS["REB1"]]))
        assert [(f.name, f.reason) for f in report.failures] == [("REB1", "1 of 62880 numbers are not finite")]
        with pytest.raises(EmbeddingError, match="1 of 3 proteins failed; first REB1"):
            report.require_complete()
        proteins = FactorProteins(store, "proteins/composition")
        assert [proteins.has(factor) for factor in (0, 1, 2, 3)] == [True, False, True, False]
        assert embed_factors(store, CompositionEmbedder()).is_complete
        assert FactorProteins(store, "proteins/composition").has(1)

    def test_a_protein_that_the_embedder_refuses_is_reported(self, store):
        with store.writer() as catalog:
            catalog.execute(
                "UPDATE data.proteins SET sequence = 'MK*K', sha256 = ? WHERE symbol = 'MCM1'", [sha("MK*K")]
            )
        report = embed_factors(store, CompositionEmbedder())
        assert [f.name for f in report.failures] == ["MCM1"]
        assert report.failures[0].reason == "letter '*' at residue 3 is no amino acid"

    def test_a_signal_keeps_what_was_computed(self, store):
        def between(count):
            if count == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Interrupted):
            embed_factors(store, WatchedProteins(between=between))
        proteins = FactorProteins(store, "proteins/composition")
        assert [proteins.has(factor) for factor in (0, 1, 2)] == [True, False, True]
        rest = WatchedProteins()
        assert embed_factors(store, rest).is_complete
        assert rest.asked == [PROTEINS["MCM1"]]

    def test_a_lost_shard_is_embedded_again(self, store):
        embed_factors(store, CompositionEmbedder())
        next((store.path / "proteins").rglob("c.0.*")).unlink()
        assert embed_factors(store, CompositionEmbedder()).n_computed == 3
        found = FactorProteins(store, "proteins/composition").get(np.array([0]))
        np.testing.assert_array_equal(found.protein[0], expected(PROTEINS["ABF1"]))

    def test_a_protein_that_lost_one_of_its_shards_is_embedded_again(self, store, monkeypatch):
        monkeypatch.setattr(rows_module, "PROTEIN_SHARD_BYTES", 64)
        monkeypatch.setattr(rows_module, "LEAST_PROTEIN_ROWS", 512)
        embed_factors(store, CompositionEmbedder())  # ABF1 has rows 0 to 600, so it is named in shard 1
        next((store.path / "proteins").rglob("c.0.*")).unlink()
        rest = WatchedProteins()
        assert embed_factors(store, rest).is_complete
        assert rest.asked == [PROTEINS["ABF1"]]
        found = FactorProteins(store, "proteins/composition").get(np.array([0, 1]))
        np.testing.assert_array_equal(found.protein[0, :600], expected(PROTEINS["ABF1"]))
        np.testing.assert_array_equal(found.protein[1, :480], expected(PROTEINS["REB1"]))

    def test_another_spec_under_the_same_name_is_refused(self, store):
        embed_factors(store, CompositionEmbedder())
        with pytest.raises(SpecError, match="stored with"):
            embed_factors(store, CompositionEmbedder((1, 9)))
        assert embed_factors(store, CompositionEmbedder((1, 9)), name="narrow").array == "proteins/narrow"

    def test_no_room_and_no_proteins(self, store, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(upkeep, "free_bytes", lambda path: 10)
            with pytest.raises(NoSpace, match="the disk has 10"):
                embed_factors(store, CompositionEmbedder())
        assert store.array_names() == []
        with store.writer() as catalog:
            catalog.execute("DELETE FROM data.factor_subunits")
        with pytest.raises(StoreError, match="no factor has a protein"):
            embed_factors(store, CompositionEmbedder())


class TestContexts:
    def test_equal_texts_share_a_row(self, store):
        embedder = WatchedTexts()
        report = embed_contexts(store, embedder)
        assert (report.array, report.n_asked, report.n_truncated, report.is_complete) == ("contexts/hashed", 2, 1, True)
        assert embedder.asked == ["yeast in YPD", "yeast, heat shock"]
        values = store.contexts("contexts/hashed", np.array([2, 0, 1]))
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values[1], values[2])
        np.testing.assert_array_equal(values, WatchedTexts().embed([TEXTS[2], TEXTS[0], TEXTS[1]]).values)

    def test_new_texts_fill_the_shard_up_and_then_the_next(self, store, monkeypatch):
        monkeypatch.setattr(rows_module, "TEXTS_PER_SHARD", 3)
        embed_contexts(store, WatchedTexts())
        with store.writer() as catalog:
            for number in range(3, 8):
                catalog.execute("INSERT INTO data.biotypes VALUES (?, ?, ?, NULL, '{}')", [number, f"b{number}", "b"])
            add_texts(catalog, {number: f"text {number}" for number in range(3, 8)})
        embedder = WatchedTexts()
        assert embed_contexts(store, embedder).n_computed == 5
        assert embedder.asked == [f"text {number}" for number in range(3, 8)]
        assert store.array("contexts/hashed").n_shards == 3
        texts = [TEXTS[0], TEXTS[2], *(f"text {number}" for number in range(3, 8))]
        np.testing.assert_array_equal(
            store.contexts("contexts/hashed", np.array([0, 2, 3, 4, 5, 6, 7])), WatchedTexts().embed(texts).values
        )
        again = WatchedTexts()
        assert embed_contexts(store, again).n_done_before == 7
        assert again.asked == []

    def test_a_failed_text_is_reported_and_the_others_finish(self, store):
        report = embed_contexts(store, WatchedTexts(broken=["yeast in YPD"]))
        assert [(f.name, f.reason) for f in report.failures] == [("yeast in YPD", "8 of 8 numbers are not finite")]
        with pytest.raises(StoreError, match="b0"):
            store.contexts("contexts/hashed", np.array([0]))
        assert embed_contexts(store, WatchedTexts()).is_complete
        np.testing.assert_array_equal(
            store.contexts("contexts/hashed", np.array([0, 2])), WatchedTexts().embed([TEXTS[0], TEXTS[2]]).values
        )

    def test_another_spec_under_the_same_name_is_refused(self, store):
        embed_contexts(store, WatchedTexts())
        with pytest.raises(SpecError, match="dim"):
            embed_contexts(store, WatchedTexts(dim=16))
