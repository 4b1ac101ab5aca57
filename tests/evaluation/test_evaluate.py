import csv
import json

import numpy as np
import pytest
import torch

from tests.planted import CHROMS, make_planted
from tests.query.world import busy_world
from tests.tracks.test_binning import write_bigwig
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import ConfigError
from tfbind_store.evaluation.baselines import LOWEST
from tfbind_store.evaluation.evaluate import EvaluateConfig, _correlations, evaluate_run
from tfbind_store.evaluation.holdouts import label_column
from tfbind_store.ingest import import_tracks
from tfbind_store.metrics.ranking import score_binary
from tfbind_store.query.labels import load_truth
from tfbind_store.query.selection import SelectionConfig, make_selection
from tfbind_store.scoring.bins import score_genome
from tfbind_store.training.train import TrainConfig, train_head

OPTIONS = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3}
COLUMNS = [
    "run", "scorer", "factor", "biotype", "experiment", "chroms", "holdout", "n_bins", "n_positive", "prevalence",
    "auroc", "auprc", "auprc_over_prevalence", "recall_at_fdr_5", "recall_at_fdr_10", "recall_at_fdr_25",
    "recall_at_fdr_50", "precision_at_recall_5", "f1_best", "f1_cutoff", "auroc_low", "auroc_high", "auprc_low",
    "auprc_high", "model_ahead", "brier", "accuracy", "calibration_error", "pearson", "spearman", "nearest",
    "similarity",
]  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    torch.set_num_threads(1)
    made = make_planted(tmp_path_factory.mktemp("planted"))
    settings = {"options": OPTIONS, "bins_per_step": 128, "pairs_per_step": 6, "device": "cpu", "lr": 3e-3}
    train_head(made.store, made.selection, TrainConfig(steps=150, validate_every=150, **settings), "good")
    return made


@pytest.fixture(scope="module")
def scored(planted):
    return evaluate_run(planted.store, "good")


def rows(result, **wanted):
    names = list(result.columns)
    table = [dict(zip(names, row, strict=True)) for row in result.columns.rows()]
    return [row for row in table if all(row[key] == value for key, value in wanted.items())]


def test_columns_are_those_of_the_format(scored):
    assert list(Catalog.read_parquet(scored.path)) == COLUMNS
    assert scored.n_rows == len(rows(scored))


def test_mean_curves_of_factors_with_enough_peaks_lie_beside_the_scores(scored):
    """Of the held-out factor on training chromosomes: on the test chromosome no factor has 20 peaks."""
    curves = Catalog.read_parquet(scored.path.with_name("curves.parquet"))
    of_model = [row for row in curves.rows() if tuple(row[:3]) == ("roc", "unseen_factor", "model")]
    assert len(of_model) == 101
    under = float(np.trapezoid([row[5] for row in of_model], [row[4] for row in of_model]))
    counted = rows(scored, holdout="unseen_factor", scorer="model")
    assert min(row["n_positive"] for row in counted) >= 20
    assert under == pytest.approx(np.mean([row["auroc"] for row in counted]), abs=0.02)


def test_seen_factors_are_scored_on_test_chromosomes_only(scored):
    seen = rows(scored, factor="WEA", scorer="model")
    assert {(row["holdout"], row["chroms"]) for row in seen} == {("unseen_chromosome", "chr4")}
    assert len(seen) == 2
    assert seen[0]["n_bins"] == -(-CHROMS["chr4"] // 32)


def test_held_out_factor_is_scored_on_both_kinds_of_chromosome(scored):
    unseen = rows(scored, factor="OLA", biotype="cellA", scorer="model")
    assert {(row["holdout"], row["chroms"]) for row in unseen} == {
        ("unseen_chromosome+unseen_factor", "chr4"),
        ("unseen_factor", "chr1,chr2"),
    }


def test_model_finds_planted_sites_of_seen_and_held_out_factors(scored):
    for holdout in ("unseen_chromosome", "unseen_chromosome+unseen_factor"):
        found = [row["auroc"] for row in rows(scored, scorer="model", holdout=holdout) if row["n_positive"]]
        assert np.median(found) > 0.95


def test_scores_equal_those_of_the_genome_pass(planted, scored):
    row = rows(scored, factor="WEB", biotype="cellB", scorer="model")[0]
    block = next(score_genome(planted.store, "good", [1], 1, chroms=["chr4"]))
    truth = load_truth(planted.store)
    experiment = 8 + 1
    expected = score_binary(truth.labels(experiment, block.global_bins), block.scores[:, 0])
    assert row["auroc"] == pytest.approx(expected.auroc, abs=1e-9)
    assert row["auprc"] == pytest.approx(expected.auprc, abs=1e-9)


def test_baselines_and_oracle_stand_beside_the_model(scored):
    scorers = {row["scorer"] for row in rows(scored, factor="WEA", biotype="cellA")}
    assert scorers == {"model", "nearest_factor", "training_mean", "gc_content", "prevalence", "oracle"}


def test_binding_of_training_factors_is_a_baseline_only_where_it_was_trained_on(scored):
    """OLA is held out: on chr1 and chr2 the peaks of OLB and OLC were in training, on chr4 nobody's were."""
    on_training = {row["scorer"]: row for row in rows(scored, factor="OLA", biotype="cellA", chroms="chr1,chr2")}
    assert on_training["training_binding"]["auprc"] > 3 * on_training["prevalence"]["auprc"]
    elsewhere = {row["scorer"] for row in rows(scored) if "chr4" in row["chroms"]}
    assert "training_binding" not in elsewhere


def test_intervals_hold_the_score_and_the_model_is_ahead_of_prevalence(scored):
    for row in rows(scored, scorer="model"):
        if row["n_positive"] > 10:
            assert row["auprc_low"] <= row["auprc"] <= row["auprc_high"]
            assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
    assert all(row["model_ahead"] == 1 for row in rows(scored, scorer="prevalence") if row["n_positive"] > 10)
    assert all(np.isnan(row["model_ahead"]) for row in rows(scored, scorer="model"))


def test_probabilities_of_the_model_are_calibrated_on_validation(scored):
    said = json.loads(scored.path.with_name("evaluation.json").read_text())
    assert said["probability"] == "isotonic on validation bins"
    for row in rows(scored):
        assert np.isnan(row["brier"]) == (row["scorer"] != "model")
    model = [row for row in rows(scored, scorer="model") if row["n_positive"]]
    assert np.median([row["brier"] for row in model]) < np.median([row["prevalence"] for row in model])
    curve = Catalog.read_parquet(scored.path.with_name("reliability.parquet"))
    assert set(curve["kind"]) == {"own", "calibrated"}
    assert curve["n"].sum() == 2 * sum(row["n_bins"] for row in rows(scored, scorer="model"))


def test_csv_and_json_say_what_the_parquet_says(scored):
    with scored.path.with_suffix(".csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    said = json.loads(scored.path.with_suffix(".json").read_text())
    assert len(table) == len(said) == scored.n_rows
    for text, value, row in zip(table, said, rows(scored), strict=True):
        assert list(text) == list(value) == COLUMNS
        for name in ("auprc", "brier", "model_ahead"):
            missing = np.isnan(row[name])
            assert (value[name] is None, text[name] == "") == (missing, missing)
            assert missing or float(text[name]) == value[name] == pytest.approx(row[name], abs=0)


def test_each_chromosome_is_scored_alone_where_there_are_several(scored):
    table = Catalog.read_parquet(scored.path.with_name("chromosomes.parquet"))
    one = [dict(zip(table, row, strict=True)) for row in table.rows()]
    assert {row["chrom"] for row in one} == {"chr1", "chr2"}
    whole = rows(scored, factor="OLA", biotype="cellA", scorer="model", chroms="chr1,chr2")[0]
    parts = [r for r in one if (r["factor"], r["biotype"], r["scorer"]) == ("OLA", "cellA", "model")]
    assert sum(row["n_positive"] for row in parts) == whole["n_positive"]
    said = json.loads(scored.path.with_name("evaluation.json").read_text())
    assert {row["chrom"] for row in said["by"]["chrom"]} == {"chr1", "chr2"}
    assert {row["biotype"] for row in said["by"]["biotype"]} == {"cellA", "cellB"}


def test_loci_for_the_report_are_kept_with_prediction_and_label(scored):
    loci = Catalog.read_parquet(scored.path.with_name("loci.parquet"))
    assert set(loci["holdout"]) <= {row["holdout"] for row in rows(scored)}
    assert ((loci["probability"] >= 0) & (loci["probability"] <= 1)).all()
    assert np.nansum(loci["label"]) > 0


def test_ambiguous_bins_are_in_no_score(tmp_path):
    """Bins that a lenient call touches and no peak binds are neither bound nor unbound, as in the DREAM challenge."""
    world = busy_world(tmp_path)
    store = world.write()
    truth = load_truth(store)
    labels = label_column(truth, 0, store.tiling.global_bins(0), at_once=7)
    with_lenient_calls, without = np.isnan(labels).sum(), np.isnan(truth.labels(3, store.tiling.global_bins(0))).sum()
    assert with_lenient_calls > without
    assert score_binary(labels, np.zeros(len(labels))).n_bins == len(labels) - with_lenient_calls


def test_little_memory_gives_the_same_scores(planted, scored):
    wanted = {(r["scorer"], r["factor"], r["biotype"], r["holdout"]): r["auprc"] for r in rows(scored)}
    got = evaluate_run(planted.store, "good", EvaluateConfig(memory_gb=1e-6))
    assert got.n_rows == scored.n_rows
    for row in rows(got):
        expected = wanted[row["scorer"], row["factor"], row["biotype"], row["holdout"]]
        assert row["auprc"] == pytest.approx(expected, rel=1e-3, nan_ok=True)


def test_prevalence_scores_half_and_itself(scored):
    for row in rows(scored, scorer="prevalence"):
        if row["n_positive"]:
            assert row["auroc"] == 0.5
            assert row["auprc"] == pytest.approx(row["prevalence"])


def test_nearest_factor_of_a_held_out_one_is_of_its_family(planted, scored):
    near = rows(scored, factor="OLA", biotype="cellA", scorer="nearest_factor", chroms="chr4")[0]
    assert near["auroc"] > 0.95


def test_experiment_without_positives_has_a_prevalence_only(scored):
    row = rows(scored, factor="OGA", biotype="cellB", scorer="model")[0]
    assert (row["n_positive"], row["prevalence"]) == (0, 0.0)
    assert np.isnan(row["auroc"])


def test_motif_scan_joins_where_there_is_a_matrix(planted, tmp_path):
    pytest.importorskip("lightmotif")
    lines = {base: " ".join(str(9 * (letter == base)) for letter in "TGACGTCAAG") for base in "ACGT"}
    path = tmp_path / "we.jaspar"
    path.write_text(">M1\tWEA\n" + "".join(f"{base}  [ {row} ]\n" for base, row in lines.items()))
    result = evaluate_run(planted.store, "good", EvaluateConfig(motifs=path, factors=("WEA", "OLB")))
    assert {row["factor"] for row in rows(result, scorer="motif")} == {"WEA"}
    assert all(row["auprc"] > 0.95 for row in rows(result, scorer="motif"))


def test_named_chromosomes_and_factors_are_scored_as_what_they_are(planted):
    config = EvaluateConfig(chroms=("1", "chr4"), factors=("WEA",), with_oracle=False)
    result = evaluate_run(planted.store, "good", config)
    kinds = {(row["holdout"], row["chroms"]) for row in rows(result)}
    assert kinds == {("seen", "chr1"), ("unseen_chromosome", "chr4")}
    assert not rows(result, scorer="oracle")
    said = json.loads(result.path.with_name("evaluation.json").read_text())
    assert said["rule"] == "summit"
    assert said["config"]["chroms"] == ["1", "chr4"]


def test_unknown_names_give_the_nearest(planted):
    with pytest.raises(ConfigError) as caught:
        evaluate_run(planted.store, "good", EvaluateConfig(chroms=("chr44",)))
    assert "did you mean chr4?" in caught.value.fix
    with pytest.raises(ConfigError) as caught:
        evaluate_run(planted.store, "good", EvaluateConfig(factors=("WEAA",)))
    assert "did you mean" in caught.value.fix


def test_selection_without_test_rows_says_so(planted):
    make_selection(planted.store, "no-test", SelectionConfig())
    config = TrainConfig(steps=1, options=OPTIONS, bins_per_step=8, pairs_per_step=2, device="cpu")
    result = train_head(planted.store, "no-test", config, "no-test")
    assert result.metrics == {"step": 1.0}
    from tfbind_store.errors import SelectionError

    with pytest.raises(SelectionError, match="no test rows"):
        evaluate_run(planted.store, "no-test")


def test_predictions_are_correlated_with_the_factors_own_track(planted, scored, tmp_path):
    """A track of WEA in cellA that rises with the model's own scores there; no other experiment has one."""
    assert np.isnan(scored.columns["pearson"]).all()
    store, bins = planted.store, planted.store.tiling.global_bins(3)
    scores = next(score_genome(store, "good", [0], 0, chroms=["chr4"])).scores[:, 0]
    (tmp_path / "bw").mkdir()
    values = [
        ("chr4", 32 * at, min(32 * at + 32, CHROMS["chr4"]), float(score) + 20) for at, score in enumerate(scores)
    ]
    write_bigwig(tmp_path / "bw" / "T1.bw", dict(CHROMS), values[: len(bins) - 9])
    table = tmp_path / "tracks.tsv"
    table.write_text("track\tfactor\tbiotype\nT1\tWEA\tcellA\n")
    import_tracks(store, tmp_path / "bw", annotation=table)
    got = evaluate_run(store, "good", EvaluateConfig(factors=("WEA", "WEB")))
    model = {(row["factor"], row["biotype"]): row for row in rows(got, scorer="model")}
    assert model["WEA", "cellA"]["pearson"] == pytest.approx(1, abs=1e-5)
    assert model["WEA", "cellA"]["spearman"] == pytest.approx(1, abs=1e-5)
    assert np.isnan(model["WEA", "cellB"]["pearson"])
    assert np.isnan(model["WEB", "cellA"]["pearson"])
    of_gc = rows(got, scorer="gc_content", factor="WEA", biotype="cellA")[0]
    assert abs(of_gc["pearson"]) < 0.5


def test_bins_that_a_motif_cannot_be_scanned_on_do_not_count_in_correlations():
    track, scores = np.array([1, 2, 4, 3, np.nan], np.float32), np.array([1, 2, 3, LOWEST, 9], np.float32)
    found = _correlations(scores, track)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 2, 3], [1, 2, 4])[0, 1])
    assert found["spearman"] == pytest.approx(1)


@pytest.mark.parametrize("memory_gb", [0, -1, float("nan"), float("inf")])
def test_memory_that_is_no_size_is_refused(memory_gb):
    with pytest.raises(ConfigError, match="memory_gb"):
        EvaluateConfig(memory_gb=memory_gb)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(planted):
    with pytest.raises(ConfigError, match="no GPU"):
        evaluate_run(planted.store, "good", EvaluateConfig(device="cuda"))
