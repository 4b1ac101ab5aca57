"""An unseen cell type becomes predictable by its own signal: on a planted genome factors bind open motifs only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyBigWig
import pytest
import torch

from tests.planted import BIN_BP, CHROMS, FACTORS, N_BINS, MotifEmbedder, planted_genome, planted_protein
from tests.query.world import World
from tfbind_store.errors import CheckpointError, ConfigError, SelectionError, StoreMissing
from tfbind_store.evaluation.evaluate import EvaluateConfig, evaluate_run
from tfbind_store.heads import load_checkpoint, save_checkpoint
from tfbind_store.heads.signal_gate import SignalGate, load_gate, save_gate
from tfbind_store.ingest import import_signals
from tfbind_store.interpretation.residue_maps import residue_map
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.metrics.ranking import score_binary
from tfbind_store.precompute.composition import CompositionEmbedder
from tfbind_store.precompute.embedder import make_text_embedder
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.precompute.run import embed_windows
from tfbind_store.prediction.asked_pairs import Asked
from tfbind_store.prediction.predict import PredictConfig, predict
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.scoring.bins import LoadedRun, load_run, score_bins
from tfbind_store.scoring.gate import open_gate
from tfbind_store.scoring.signals import HALF_WIDTHS, GenomeSignal, Signals
from tfbind_store.store.folder import Store
from tfbind_store.training.folds import cross_validate, fold_names
from tfbind_store.training.signal_training import SignalConfig, train_declared_gate, train_gate, validate_gated
from tfbind_store.training.train import TrainConfig, train_head

CELLS = ("cellA", "cellB", "cellC", "cellD")
OPTIONS = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3, "summary_dim": 16}
CONFIG = TrainConfig(steps=200, options=OPTIONS, bins_per_step=128, pairs_per_step=8, device="cpu", lr=5e-3)
TOWER = {"width": 16, "n_queries": 3, "latents": 4, "latent_dim": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_open(tmp_path_factory.mktemp("open"))


def make_open(folder: Path, *, shy: tuple[str, ...] = ()) -> Store:
    """A store with cell types whose factors bind open motifs only, but for shy families, which bind closed ones."""
    chroms, sites = planted_genome(3)
    world = World(folder, chroms, Grid(window_bp=N_BINS * BIN_BP, n_bins=N_BINS, bin_bp=BIN_BP))
    source = world.source()
    for factor in FACTORS:
        world.factor(factor, sequence=planted_protein(factor))
    rng = np.random.default_rng(5)
    opened = {cell: {c: rng.random(n // (8 * BIN_BP) + 1) < 0.4 for c, n in CHROMS.items()} for cell in CELLS}
    for cell in CELLS:
        for factor in FACTORS:
            peaks = [
                (chrom, start, start + 10, start, 100.0)
                for chrom, families in sites.items()
                for start in families[factor[:2]]
                if opened[cell][chrom][start // (8 * BIN_BP)] != (factor[:2] in shy)
            ]
            world.experiment(f"E{cell[-1]}.{factor}.{cell}", peaks, source=source)
    made = world.write()
    (folder / "bw").mkdir()
    for place, cell in enumerate(CELLS[:3]):  # cellD has none
        file = pyBigWig.open(str(folder / "bw" / f"{cell}.bw"), "w")
        file.addHeader(list(CHROMS.items()))
        for chrom, length in CHROMS.items():
            level = np.repeat(opened[cell][chrom], 8 * BIN_BP)[:length] * 5.0 * (place + 1)
            noise = np.repeat(rng.gamma(1.0, 1.0, length // 16 + 1), 16)[:length]
            file.addEntries(chrom, 0, values=level + noise, span=1, step=1)
        file.close()
    (folder / "s.tsv").write_text("track\tbiotype\n" + "".join(f"{cell}\t{cell}\n" for cell in CELLS[:3]))
    import_signals(made, folder / "bw", annotation=folder / "s.tsv")
    embed_windows(made, MotifEmbedder())
    embed_factors(made, CompositionEmbedder())
    embed_contexts(made, make_text_embedder("hashed"))
    split = SplitConfig(valid_chroms=("chr3",), test_chroms=("chr4",), hold_out={"biotype": ["cellC"]})
    make_selection(made, "all", SelectionConfig(n_bins=4, margin_bp=0, split=split, signals="signals"))
    train_head(made, "all", replace(CONFIG, signals="gate"), "few")
    return made


def median_auprc(store: Store, scores: np.ndarray, cell: str, bins: np.ndarray) -> float:
    return float(np.median(auprcs(store, scores, cell, bins)))


def auprcs(store: Store, scores: np.ndarray, cell: str, bins: np.ndarray) -> list[float]:
    with store.reader() as catalog:
        rows = catalog.rows(
            "SELECT f.factor_id, p.window_id * $n + p.bin FROM data.peaks p"
            " JOIN data.experiments e USING (experiment_id) JOIN data.factors f USING (factor_id)"
            " JOIN data.biotypes b USING (biotype_id) WHERE b.biotype = $cell",
            {"n": N_BINS, "cell": cell},
        )
    found = []
    for place in range(len(FACTORS)):
        bound = {int(b) for factor, b in rows if factor == place}
        labels = np.isin(bins, list(bound)).astype(np.float32)
        found.append(score_binary(labels, scores[:, place]).auprc)
    return found


def score_with_signal(
    store: Store, run: LoadedRun, factors: np.ndarray, cells: np.ndarray, bins: np.ndarray
) -> np.ndarray:
    """Logits with the run's gate; a cell type without a signal has them too."""
    gate = open_gate(store, run.name)
    assert gate is not None
    blocks = score_bins(run.head, run.source, factors, cells, bins)
    return np.concatenate([gate.apply(block.scores, cells, block.global_bins) for block in blocks])


def test_a_held_out_cell_type_is_predicted_by_its_signal(store: Store) -> None:
    result = train_gate(store, "few", SignalConfig(steps=200))
    assert result.n_biotypes == 2  # cellC is held out, cellD has none
    run = load_run(store, "few")
    bins = store.tiling.global_bins(store.tiling.chrom_index["chr4"])
    factors = np.arange(len(FACTORS))
    with store.reader() as catalog:
        ids = {str(name): int(key) for name, key in catalog.rows("SELECT biotype, biotype_id FROM data.biotypes")}
    cell = np.full(len(factors), ids["cellC"])
    alone = np.concatenate([b.scores for b in score_bins(run.head, run.source, factors, cell, bins)])
    gated = score_with_signal(store, run, factors, cell, bins)
    without, with_signal = (median_auprc(store, scores, "cellC", bins) for scores in (alone, gated))
    print(f"held-out biotype, median AUPRC: {without:.3f} without its signal, {with_signal:.3f} with it")
    assert with_signal > without + 0.2
    gate = open_gate(store, "few")
    assert gate is not None
    of_another = gate.apply(alone, np.full(len(factors), ids["cellA"]), bins)
    assert median_auprc(store, of_another, "cellC", bins) < with_signal - 0.2  # another cell type's does not do
    # a cell type without a signal is no worse off than by the head alone
    other = np.full(len(factors), ids["cellD"])
    head_only = np.concatenate([b.scores for b in score_bins(run.head, run.source, factors, other, bins)])
    no_signal = score_with_signal(store, run, factors, other, bins)
    assert median_auprc(store, no_signal, "cellD", bins) == pytest.approx(
        median_auprc(store, head_only, "cellD", bins), abs=1e-6
    )


def test_prediction_uses_the_stored_signal_or_a_bigwig_of_the_same_cells(store: Store, tmp_path: Path) -> None:
    if not (store.run_dir("few") / "signal.safetensors").exists():
        train_gate(store, "few", SignalConfig(steps=200))
    run = load_run(store, "few")
    with store.reader() as catalog:
        ids = {str(name): int(key) for name, key in catalog.rows("SELECT biotype, biotype_id FROM data.biotypes")}
    asked = Asked(factors=("WEA",), biotype="cellC")
    bigwig = store.path.parent / "bw" / "cellC.bw"
    for name, signal in (("stored", None), ("given", bigwig)):
        out = tmp_path / f"{name}.bw"
        files = (out, tmp_path / "x.bed")
        predict(store, "few", PredictConfig(asked=asked, out=files, raw=True, signal=signal, fdr=0.5))
        bins = store.tiling.global_bins(3)
        wanted = score_with_signal(store, run, np.array([0]), np.array([ids["cellC"]]), bins)[:, 0]
        found = np.array(pyBigWig.open(str(out)).values("chr4", 0, CHROMS["chr4"]))[::BIN_BP]
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (store.run_dir("few") / "calibration_signal.json").exists()


def test_a_selection_declares_its_signals_and_evaluation_uses_them(store: Store) -> None:
    info = Selection.open(store, "all").info["signals"]
    assert info == {"array": "signals/signals", "with": ["cellA", "cellB", "cellC"], "without": ["cellD"]}
    result = train_declared_gate(store, "few")
    assert result is not None
    assert result.n_biotypes == 2
    found = {}
    for with_signal in (True, False):
        columns = evaluate_run(store, "few", EvaluateConfig(with_signal=with_signal, with_oracle=False)).columns
        said = json.loads((store.run_dir("few") / "evaluation.json").read_text())
        assert said["signals"] == ("signals/signals" if with_signal else None)
        mine = (columns["scorer"] == "model") & (columns["biotype"] == "cellC")
        assert {"cellC"} == set(columns["biotype"][mine].tolist())
        alone = (columns["scorer"] == "accessibility") & (columns["biotype"] == "cellC")
        assert alone.sum() == mine.sum()
        assert np.nanmedian(columns["auroc"][alone].astype(float)) > 0.6
        found[with_signal] = float(np.nanmedian(columns["auprc"][mine].astype(float)))
    assert found[True] > found[False] + 0.2


def scores_of(store: Store, run_name: str, cell: str, *, signal_of: str | None) -> np.ndarray:
    """Logits of all factors over chr4 in a cell type, with the signal of this or another one, or with none."""
    run = load_run(store, run_name)
    with store.reader() as catalog:
        ids = {str(name): int(key) for name, key in catalog.rows("SELECT biotype, biotype_id FROM data.biotypes")}
    if signal_of is None:
        run.source.signals = None
    elif signal_of != cell:
        assert isinstance(run.source.signals, Signals)
        run.source.signals.rows = {ids[cell]: run.source.signals.rows[ids[signal_of]]}
    bins = store.tiling.global_bins(store.tiling.chrom_index["chr4"])
    pairs = np.arange(len(FACTORS)), np.full(len(FACTORS), ids[cell])
    return np.concatenate([block.scores for block in score_bins(run.head, run.source, *pairs, bins)])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("inside", {}),
        ("tower", {"head": "two_tower", "options": TOWER}),
        ("rows", {"pairing": "rows", "batch_rows": 128}),
    ],
)
def test_a_head_reads_the_signal_itself(store: Store, name: str, changes: dict[str, Any]) -> None:
    train_head(store, "all", replace(CONFIG, **changes), name)
    header = load_run(store, name).header
    assert header.signals["name"] == "signals/signals"
    assert header.options["signal_scales"] == len(HALF_WIDTHS)
    bins = store.tiling.global_bins(store.tiling.chrom_index["chr4"])
    found = {of: median_auprc(store, scores_of(store, name, "cellC", signal_of=of), "cellC", bins)
             for of in ("cellC", "cellA", None)}  # fmt: skip
    print(f"{name}: held-out biotype, median AUPRC by whose signal is read: {found}")
    assert found["cellC"] > found[None] + 0.2
    assert found["cellA"] < found["cellC"] - 0.2
    with pytest.raises(ConfigError, match="reads signals itself"):
        train_gate(store, name)
    assert train_declared_gate(store, name) is None


def test_each_factor_may_take_the_signal_in_its_own_way(tmp_path: Path) -> None:
    store = make_open(tmp_path, shy=("OG",))
    gate = train_gate(store, "few", SignalConfig(steps=200))
    assert gate.losses[-1] < gate.losses[0]
    train_head(store, "all", CONFIG, "inside")
    opened = open_gate(store, "few")
    assert opened is not None
    bins = store.tiling.global_bins(store.tiling.chrom_index["chr4"])
    alone = scores_of(store, "few", "cellC", signal_of=None)
    with store.reader() as catalog:
        ((cell,),) = catalog.rows("SELECT biotype_id FROM data.biotypes WHERE biotype = 'cellC'")
    found = {
        "neither": alone,
        "gate": opened.apply(alone, np.full(len(FACTORS), cell), bins),
        "head": scores_of(store, "inside", "cellC", signal_of="cellC"),
    }
    medians = {name: median_auprc(store, scores, "cellC", bins) for name, scores in found.items()}
    lowest = {name: min(auprcs(store, scores, "cellC", bins)) for name, scores in found.items()}
    print(f"families that want open or closed motifs, held-out biotype, AUPRC: median {medians}, lowest {lowest}")
    assert lowest["head"] > lowest["gate"] + 0.2
    assert medians["head"] >= medians["gate"] > medians["neither"]


def test_everything_that_scores_reads_it(store: Store, tmp_path: Path) -> None:
    if not (store.run_dir("inside") / "head.safetensors").exists():
        train_head(store, "all", CONFIG, "inside")
    wanted = scores_of(store, "inside", "cellC", signal_of="cellC")[:, FACTORS.index("WEA")]
    bigwig = store.path.parent / "bw" / "cellC.bw"
    for name, biotype, signal in (("stored", "cellC", None), ("given", "cellC", bigwig)):
        out = tmp_path / f"{name}.bw"
        asked = Asked(factors=("WEA",), biotype=biotype)
        predict(
            store, "inside", PredictConfig(asked=asked, out=(out, tmp_path / "x.bed"), raw=True, signal=signal, fdr=0.5)
        )
        found = np.array(pyBigWig.open(str(out)).values("chr4", 0, CHROMS["chr4"]))[::BIN_BP]
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    seen = residue_map(store, "inside", "WEA", "cellC", Locus("chr4", 640, 1_600))
    np.testing.assert_allclose(seen.logits, wanted[640 // BIN_BP : 1_600 // BIN_BP], atol=1e-4)
    found = {}
    for with_signal in (True, False):
        columns = evaluate_run(store, "inside", EvaluateConfig(with_signal=with_signal, with_oracle=False)).columns
        said = json.loads((store.run_dir("inside") / "evaluation.json").read_text())
        assert said["signals"] == ("signals/signals" if with_signal else None)
        mine = (columns["scorer"] == "model") & (columns["biotype"] == "cellC")
        found[with_signal] = float(np.nanmedian(columns["auprc"][mine].astype(float)))
    assert found[True] > found[False] + 0.2
    assert (store.run_dir("inside") / "calibration_no_signal.json").exists()


def test_a_head_that_reads_no_signal_refuses_a_bigwig(store: Store, tmp_path: Path) -> None:
    train_head(store, "all", replace(CONFIG, steps=1, signals="none"), "blind")
    assert train_declared_gate(store, "blind") is None
    asked = Asked(factors=("WEA",), biotype="cellC")
    config = PredictConfig(
        asked=asked, out=(tmp_path / "x.bw",), raw=True, signal=store.path.parent / "bw" / "cellC.bw"
    )
    with pytest.raises(ConfigError, match="reads no signal"):
        predict(store, "blind", config)


@pytest.mark.parametrize("signals", ["head", "gate"])
def test_folds_are_judged_with_their_signals(store: Store, signals: str) -> None:
    split = SplitConfig(test_chroms=("chr4",), folds=2, fold_by=("biotype",))
    make_selection(store, "cv", SelectionConfig(n_bins=4, margin_bp=0, split=split, signals="signals"), overwrite=True)
    config = replace(CONFIG, steps=120, signals=signals, validate_every=1000)
    name = f"cv-{signals}"
    result = cross_validate(store, fold_names(store, "cv"), config, name)
    for fold in result.folds:
        if signals == "gate":
            assert fold.metrics["valid_auprc"] == pytest.approx(validate_gated(store, fold.run)["valid_auprc"])
            assert (store.run_dir(fold.run) / "signal.safetensors").exists()
        else:
            assert load_run(store, fold.run).head.signal is not None
    again = cross_validate(store, fold_names(store, "cv"), config, name)
    assert all(fold.was_done for fold in again.folds)
    assert again.mean["valid_auprc"] == pytest.approx(result.mean["valid_auprc"])


def test_signals_that_are_not_there_cannot_be_declared(store: Store) -> None:
    for name, said in (("signal", "did you mean signals"), ("atac", "import them")):
        with pytest.raises(SelectionError) as caught:
            make_selection(store, "other", SelectionConfig(signals=name))
        assert said in caught.value.fix
    with pytest.raises(SelectionError, match="none of the 1 biotypes"):
        make_selection(store, "other", SelectionConfig(where="biotype = 'cellD'", signals="signals"))


def test_a_gate_of_an_earlier_head_is_refused(store: Store) -> None:
    train_gate(store, "few", SignalConfig(steps=1))
    path = store.run_dir("few") / "head.safetensors"
    before = path.read_bytes()
    head, header = load_checkpoint(path)
    save_checkpoint(path, head, replace(header, metrics={"another": 1}))
    try:
        with pytest.raises(CheckpointError, match="another head"):
            open_gate(store, "few")
    finally:
        path.write_bytes(before)


class TestGate:
    def test_begins_as_the_head_alone(self) -> None:
        logits = torch.randn(5, 3)
        gated = SignalGate(4)(logits, torch.randn(5, 2, 4), torch.tensor([0, 1, 1]))
        torch.testing.assert_close(gated, logits)

    def test_a_signal_that_is_absent_is_a_learned_number_and_never_nan(self) -> None:
        gate = SignalGate(2)
        signal = torch.full((3, 1, 2), float("nan"))
        out = gate(torch.ones(3, 1), signal, torch.tensor([0]))
        out.sum().backward()
        assert out.isfinite().all()
        assert gate.absent.grad is not None
        assert (gate.absent.grad != 0).any()
        assert all(p.grad is None or p.grad.isfinite().all() for p in gate.parameters())

    def test_comes_back_from_its_file(self, tmp_path: Path) -> None:
        gate = SignalGate(3, width=5)
        torch.nn.init.normal_(gate.out.weight)
        save_gate(tmp_path / "g", gate)
        logits, signal, index = torch.randn(4, 2), torch.randn(4, 1, 3), torch.tensor([0, 0])
        torch.testing.assert_close(load_gate(tmp_path / "g")(logits, signal, index), gate(logits, signal, index))
        (tmp_path / "g").write_bytes(b"nothing")
        with pytest.raises(CheckpointError):
            load_gate(tmp_path / "g")


def features(values: np.ndarray, tiling: Tiling) -> np.ndarray:
    return GenomeSignal(lambda: values, tiling).at(np.arange(tiling.n_bins))


class TestFeatures:
    TILING = Tiling.over(Grid(window_bp=32, n_bins=4, bin_bp=8), {"a": 40, "b": 24})

    def test_means_stay_on_their_chromosome_and_skip_what_is_missing(self) -> None:
        values = np.full(self.TILING.n_bins, np.nan, dtype=np.float32)
        values[[0, 1, 2, 4]] = [0, 1, 2, 3]  # bin 3 is missing; 5 to 7 are past the end of a
        values[8:11] = [10, 20, 30]
        found = features(values, self.TILING)
        some = np.array([9, 3, 2, 11, 0])  # alone and in any order they are the same
        np.testing.assert_array_equal(GenomeSignal(lambda: values, self.TILING).at(some), found[some])
        logs = np.log1p([0, 1, 2, 3, 10, 20, 30])
        z = (logs - logs.mean()) / logs.std()
        assert HALF_WIDTHS[:2] == (0, 2)
        np.testing.assert_allclose(found[[0, 1, 2, 4, 8, 9, 10], 0], z, rtol=1e-5)
        assert np.isnan(found[3, 0])
        assert found[3, 1] == pytest.approx(z[[1, 2, 3]].mean(), rel=1e-5)
        assert found[4, 1] == pytest.approx(z[[2, 3]].mean(), rel=1e-5)
        np.testing.assert_allclose(found[8, 1:], z[4:].mean(), rtol=1e-5)
        assert np.isnan(found[5:8]).all()

    def test_depth_of_sequencing_does_not_matter_much(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.gamma(2, 50, self.TILING.n_bins).astype(np.float32)
        one, ten = features(values, self.TILING), features(values * 10, self.TILING)
        np.testing.assert_allclose(one[self.TILING.global_bins(0)], ten[self.TILING.global_bins(0)], atol=0.1)


def test_what_cannot_be_trained_is_refused(store: Store) -> None:
    with pytest.raises(StoreMissing):
        Signals(store, "signals/other")
    with pytest.raises(ConfigError):
        SignalConfig(drop=1.0)


def test_training_biotypes_without_a_signal_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfbind_store.training.signal_training.Signals.rows", {}, raising=False)

    def only_held_out(self: Signals, of: Store, name: str) -> None:
        self.array_name, self.rows = name, {2: 0}

    monkeypatch.setattr(Signals, "__init__", only_held_out)
    with pytest.raises(SelectionError, match="none of the 3 training biotypes"):
        train_gate(store, "few")
