"""Predictions into files: numbers recomputed from the parts, edges, resuming, calibration, factors never imported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyBigWig
import pytest

from tests.planted import Planted, make_planted, planted_protein
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import CheckpointError, ConfigError
from tfbind_store.ingest import import_proteins
from tfbind_store.precompute.composition import CompositionEmbedder
from tfbind_store.precompute.rows import embed_factors
from tfbind_store.prediction.asked_pairs import Asked
from tfbind_store.prediction.calibration import FILE_NAME, Calibration, calibrate, fit
from tfbind_store.prediction.parts import Parts
from tfbind_store.prediction.predict import PredictConfig, predict
from tfbind_store.scoring.bins import load_run, score_bins
from tfbind_store.training.train import TrainConfig, train_head

OPTIONS = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    made = make_planted(tmp_path_factory.mktemp("planted"))
    config = TrainConfig(steps=60, options=OPTIONS, bins_per_step=64, pairs_per_step=8, device="cpu", lr=3e-3)
    train_head(made.store, made.selection, config, "few")
    return made


def ask(*factors: str, biotype: str = "cellA", **more: object) -> Asked:
    return Asked(factors=factors, biotype=biotype, **more)  # type: ignore[arg-type]


def expected_logits(planted: Planted, factor: int, chrom: str) -> np.ndarray:
    run = load_run(planted.store, "few")
    bins = planted.store.tiling.global_bins(planted.store.tiling.chrom_index[chrom])
    blocks = score_bins(run.head, run.source, np.array([factor]), np.array([0]), bins)
    return np.concatenate([block.scores[:, 0] for block in blocks])


def test_a_bigwig_holds_every_bin_of_the_genome_to_its_last_base(planted: Planted, tmp_path: Path) -> None:
    out = tmp_path / "x.bw"
    result = predict(planted.store, "few", PredictConfig(asked=ask("WEA"), out=(out,), raw=True))
    tiling = planted.store.tiling
    lengths = dict(zip(tiling.chroms, tiling.lengths_bp, strict=True))
    file = pyBigWig.open(str(out))
    assert file.chroms() == lengths
    assert list(file.chroms()) == sorted(lengths)
    assert file.header()["nBasesCovered"] == sum(lengths.values())
    assert result.n_bins == sum(tiling.n_real_bins(number) for number in range(4))
    for chrom, length in lengths.items():
        found = np.array(file.values(chrom, 0, length))
        wanted = np.repeat(expected_logits(planted, 0, chrom), tiling.grid.bin_bp)[:length]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert file.intervals("chr2")[-1][1] == 6_010  # not a whole bin
    assert not list(tmp_path.glob(".*"))


def test_several_factors_have_a_file_each_and_equal_those_alone(planted: Planted, tmp_path: Path) -> None:
    many = PredictConfig(asked=ask("WEA", "OLA"), out=(tmp_path / "x.bw",))
    result = predict(planted.store, "few", many)
    assert [path.name for path in result.files] == ["x.WEA.cellA.bw", "x.OLA.cellA.bw"]
    predict(planted.store, "few", PredictConfig(asked=ask("OLA"), out=(tmp_path / "one.bw",)))
    both, alone = pyBigWig.open(str(result.files[1])), pyBigWig.open(str(tmp_path / "one.bw"))
    np.testing.assert_allclose(both.values("chr4", 0, 6_005), alone.values("chr4", 0, 6_005), atol=1e-3)


def test_a_stopped_prediction_goes_on_and_gives_the_same_bytes(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfbind_store.prediction.parts.PART_BINS", 64)
    config = PredictConfig(asked=ask("WEA"), out=(tmp_path / "x.bw",))
    predict(planted.store, "few", config)
    whole = (tmp_path / "x.bw").read_bytes()
    (tmp_path / "x.bw").unlink()
    write, written = Parts.write, []

    def dies(self: Parts, part: int, scores: np.ndarray) -> None:
        if part == 5:
            raise KeyboardInterrupt
        write(self, part, scores)

    monkeypatch.setattr(Parts, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(planted.store, "few", config)
    assert not (tmp_path / "x.bw").exists()
    monkeypatch.setattr(Parts, "write", lambda self, part, scores: (written.append(part), write(self, part, scores)))
    result = predict(planted.store, "few", config)
    assert result.was_resumed
    assert min(written) == 5
    assert (tmp_path / "x.bw").read_bytes() == whole


def test_parts_of_another_question_are_never_used(planted: Planted, tmp_path: Path) -> None:
    folder = tmp_path / ".x.bw.parts"
    folder.mkdir()
    (folder / "plan.json").write_text("{}")
    (folder / "000000.f32").write_bytes(b"\0" * 4 * 64 * 16)
    result = predict(planted.store, "few", PredictConfig(asked=ask("WEA"), out=(tmp_path / "x.bw",), raw=True))
    assert not result.was_resumed


def test_a_protein_that_was_never_imported_scores_as_if_it_had_been(planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "new.fa").write_text(f">anything\n{planted_protein('WEA')}\n")
    stored = PredictConfig(asked=ask("WEA"), out=(tmp_path / "a.bw",), raw=True)
    unknown = PredictConfig(asked=ask("NEW", proteins=tmp_path / "new.fa"), out=(tmp_path / "b.bw",), raw=True)
    predict(planted.store, "few", stored)
    assert predict(planted.store, "few", unknown).new_factors == ("NEW",)
    a, b = (pyBigWig.open(str(tmp_path / f"{name}.bw")).values("chr1", 0, 12_000) for name in "ab")
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("is_embedded", [False, True])
def test_a_protein_that_no_experiment_is_of_needs_no_fasta(planted: Planted, tmp_path: Path, is_embedded: bool) -> None:
    """It is the store's own, under its symbol or a synonym, alone or in a complex."""
    store = planted.store
    (tmp_path / "more.fa").write_text(f">sp|P9|SPARE_HUMAN GN=SPARE\n{planted_protein('OGX')}\n")
    (tmp_path / "names.tsv").write_text("synonym\tsymbol\nOLDNAME\tSPARE\n")
    import_proteins(store, tmp_path / "more.fa", synonyms=[tmp_path / "names.tsv"])
    if is_embedded:
        embed_factors(store, CompositionEmbedder(), every_protein=True)
    names = {"a": ask("NEW", proteins=tmp_path / "more.fa"), "b": ask("SPARE"), "c": ask("OLDNAME")}
    for file, asked in names.items():
        config = PredictConfig(asked=asked, out=(tmp_path / f"{file}.bw",), raw=True)
        assert predict(store, "few", config).new_factors == asked.factors
    a, b, c = (pyBigWig.open(str(tmp_path / f"{file}.bw")).values("chr1", 0, 12_000) for file in names)
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert b == c


def test_two_factors_never_share_a_file(planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "two.fa").write_text(f">a GN=A,B\n{planted_protein('OGX')}\n>b GN=A_B\n{planted_protein('WEX')}\n")
    asked = ask("A,B", "A_B", proteins=tmp_path / "two.fa")
    with pytest.raises(ConfigError, match="would hold A,B and A_B"):
        predict(planted.store, "few", PredictConfig(asked=asked, out=(tmp_path / "x.bw",), raw=True))
    assert not list(tmp_path.glob("*.bw"))


def test_any_text_may_be_the_context(planted: Planted, tmp_path: Path) -> None:
    """The text of a stored biotype gives that biotype's scores."""
    asked = Asked(factors=("OGA",), context="cells cellB")
    predict(planted.store, "few", PredictConfig(asked=asked, out=(tmp_path / "a.bw",), raw=True))
    predict(planted.store, "few", PredictConfig(asked=ask("OGA", biotype="cellB"), out=(tmp_path / "b.bw",), raw=True))
    a, b = (pyBigWig.open(str(tmp_path / f"{name}.bw")).values("chr1", 0, 12_000) for name in "ab")
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_loci_get_the_best_of_the_bins_they_touch(planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "l.bed").write_text("chr2\t6000\t6010\nchr1\t31\t33\nchr1\t0\t100\n")
    out = tmp_path / "x.parquet"
    predict(planted.store, "few", PredictConfig(asked=ask("WEA", "OLA"), out=(out,), loci=tmp_path / "l.bed"))
    found = Catalog.read_parquet(out)
    assert found["factor"].tolist() == ["WEA", "OLA"] * 3
    first, second = expected_logits(planted, 0, "chr2"), expected_logits(planted, 0, "chr1")
    wanted = [first[187:188].max(), second[0:2].max(), second[0:4].max()]
    np.testing.assert_allclose(found["logit"][::2], wanted, atol=1e-5)


def test_peaks_are_the_bins_above_the_cutoff(planted: Planted, tmp_path: Path) -> None:
    out = tmp_path / "x.narrowPeak"
    result = predict(planted.store, "few", PredictConfig(asked=ask("WEA"), out=(out, tmp_path / "x.bed"), fdr=0.3))
    calibration = calibrate(planted.store, load_run(planted.store, "few"))
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    called = 0
    for chrom in planted.store.tiling.chroms:
        logits = expected_logits(planted, 0, chrom)
        own = [(int(row[1]), int(row[2])) for row in rows if row[0] == chrom]
        inside = np.zeros(len(logits), dtype=bool)
        for start, end in own:
            inside[start // 32 : -(-end // 32)] = True
        clear = np.abs(logits - calibration.cutoff(0.3)) > 1e-4
        np.testing.assert_array_equal(inside[clear], (logits >= calibration.cutoff(0.3))[clear])
        called += len(own)
    assert called == len(rows) == result.n_peaks[str(out)] > 0
    assert all(int(row[1]) + int(row[9]) < int(row[2]) for row in rows)
    assert [line.split("\t")[:3] for line in (tmp_path / "x.bed").read_text().splitlines()] == [row[:3] for row in rows]


class TestCalibration:
    def test_lies_with_the_run_and_belongs_to_its_head(self, planted: Planted) -> None:
        run = load_run(planted.store, "few")
        path = planted.store.run_dir("few") / FILE_NAME
        path.unlink(missing_ok=True)
        made = calibrate(planted.store, run)
        stamp = path.stat().st_mtime_ns
        again = calibrate(planted.store, run)
        assert path.stat().st_mtime_ns == stamp
        np.testing.assert_array_equal(made.probabilities, again.probabilities)
        path.write_text("{}")
        assert calibrate(planted.store, run).n_cells == made.n_cells

    @pytest.mark.parametrize("method", ["isotonic", "platt"])
    def test_probabilities_are_shares_of_bound_bins(self, method: str) -> None:
        rng = np.random.default_rng(0)
        logits = rng.normal(size=50_000).astype(np.float32)
        labels = rng.random(50_000) < 1 / (1 + np.exp(-(2 * logits - 1)))
        found = fit(logits, labels, method=method).probability(np.array([-1, 0, 1, np.nan], dtype=np.float32))  # type: ignore[arg-type]
        np.testing.assert_allclose(found[:3], 1 / (1 + np.exp([3, 1, -1])), atol=0.04)
        assert np.isnan(found[3])

    def test_a_cutoff_keeps_its_rate(self) -> None:
        logits = np.array([5, 4, 4, 3, 2, 1], dtype=np.float32)
        labels = np.array([1, 1, 0, 1, 0, 0], dtype=bool)
        found = fit(logits, labels, method="isotonic")
        assert found.cutoff(0.05) == 5
        assert found.cutoff(0.25) == 3  # one of four
        assert found.cutoff(0.3) == 3
        assert found.rate(4.0) == pytest.approx(0.25)

    def test_a_rate_that_was_never_reached_is_refused(self) -> None:
        found = fit(np.array([2, 1], dtype=np.float32), np.array([False, True]), method="isotonic")
        with pytest.raises(ConfigError, match=r"the lowest was 0\.5"):
            found.cutoff(0.1)
        with pytest.raises(ConfigError, match="not between"):
            found.cutoff(1.5)

    def test_nothing_to_calibrate_on_is_refused(self) -> None:
        with pytest.raises(CheckpointError, match="0 of 3 validation bins"):
            fit(np.zeros(3, dtype=np.float32), np.zeros(3, dtype=bool), method="platt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"asked": ask("WEX")}, "no factor or protein 'WEX'"),
        ({"asked": ask("WEA", "WEB", "WEA")}, "'WEA' is named twice"),
        ({"asked": Asked(factors=("WEA",), context=" ")}, "context is empty"),
        ({"out": (Path("x.bw"), Path("x.bw"))}, "named twice"),
        ({"asked": ask("WEA", biotype="cellX")}, "no biotype 'cellX'"),
        ({"asked": Asked(factors=("WEA",))}, "the store has 2 biotypes"),
        ({"asked": ask()}, "no factor is named"),
        ({"out": (Path("x.wig"),)}, "no kind of file"),
        ({"out": (Path("x.parquet"),)}, "scores of loci"),
        ({"chroms": ("chr9",)}, "no chromosome 'chr9'"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = PredictConfig(**{"asked": ask("WEA"), "out": (Path("x.bw"),), "raw": True, **change})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        predict(planted.store, "few", config)
    assert not list(tmp_path.iterdir())


def test_a_calibration_is_read_as_it_was_written(planted: Planted) -> None:
    run = load_run(planted.store, "few")
    made = calibrate(planted.store, run, method="platt")
    assert isinstance(made, Calibration)
    assert made.logits.shape == (2,)
    assert calibrate(planted.store, run, method="isotonic").method == "isotonic"
