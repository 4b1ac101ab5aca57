"""Heads of tracks of factors: two stores and one head, what is held out, resuming, and their bigWigs by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyBigWig
import pytest
import torch
from click.testing import CliRunner

from tests.planted import BIN_BP, Planted, make_planted
from tfbind_store.cli import main
from tfbind_store.errors import CheckpointError, ConfigError, SelectionError
from tfbind_store.feeding.feed import PairSource, choose_arrays
from tfbind_store.heads import load_checkpoint
from tfbind_store.ingest import import_peak_tracks
from tfbind_store.prediction.asked_pairs import Asked
from tfbind_store.prediction.tracks import TrackPredictConfig, predict_tracks
from tfbind_store.training.factor_tracks import FactorSource, FactorTrackConfig, train_factor_tracks
from tfbind_store.training.plain_tracks import PlainTrackConfig, SpeciesTracks, train_plain_tracks
from tfbind_store.training.track_steps import TrackRun

SMALL = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 16, "n_queries": 3, "dropout": 0.0}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Planted]:
    made = {}
    for seed, name in enumerate(("human", "mouse")):
        made[name] = make_planted(tmp_path_factory.mktemp(name), seed=seed)
        import_peak_tracks(made[name].store, name="all")
    return made


def sources(two: dict[str, Planted]) -> dict[str, FactorSource]:
    return {name: FactorSource(planted.store, "tracks/all") for name, planted in two.items()}


def choices(**changes: Any) -> FactorTrackConfig:
    return FactorTrackConfig(**{"options": SMALL, "valid_chroms": ("chr3",), "device": "cpu", "lr": 1e-2, **changes})


@pytest.fixture(scope="module")
def trained(two: dict[str, Planted], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    path = tmp_path_factory.mktemp("head") / "h.safetensors"
    config = choices(steps=150, hold_out={"factor": ("OLA",)}, loss="poisson")
    result = train_factor_tracks(sources(two), path, config)
    assert not result.was_resumed
    return path, result.scores


def test_one_head_learns_the_tracks_of_two_stores(trained: tuple[Path, dict[str, float]]) -> None:
    path, scores = trained
    for name in ("human", "mouse"):  # of OLA alone, which nobody trained on, by its protein's kin
        assert scores[f"{name}_valid_pearson"] > 0.6
    header = load_checkpoint(path).header
    assert "OLA" not in header.trained_on["factors"]
    assert header.trained_on["chromosomes"] == ["chr1", "chr2", "chr4"]
    assert set(header.train["tracks"]["species"]) == {"human", "mouse"}


def test_bigwigs_are_the_rates_recomputed_by_hand(
    two: dict[str, Planted], trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    store, path = two["mouse"].store, trained[0]
    asked = Asked(factors=("OLA", "WEB"), biotype="cellB")
    result = predict_tracks(path, store, tmp_path, TrackPredictConfig(asked=asked))
    assert [file.name for file in result.files] == ["OLA.cellB.bw", "WEB.cellB.bw"]
    assert result.species == "mouse"
    head = load_checkpoint(path).head
    with store.reader() as catalog:
        ids = [int(i) for (i,) in catalog.rows("SELECT factor_id FROM data.factors WHERE factor = 'OLA'")]
        cell = [int(i) for (i,) in catalog.rows("SELECT biotype_id FROM data.biotypes WHERE biotype = 'cellB'")]
    pairs = PairSource(store, choose_arrays(store)).encode(head, np.array(ids), np.array(cell))
    bins = np.array([3, 17, 101, 187])
    first = int(store.tiling.first_window[3]) * store.grid.n_bins
    dna = torch.from_numpy(store.array("embeddings/windows").gather_bins(first + bins)[:, 0])
    with torch.inference_mode():
        wanted = torch.log1p(torch.exp(head.score_pairs(dna, pairs)))[:, 0].numpy()
    with pyBigWig.open(str(result.files[0])) as file:
        found = [file.values("chr4", int(b) * BIN_BP + 3, int(b) * BIN_BP + 4)[0] for b in bins]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_stopped_training_goes_on_to_the_same_bytes(
    two: dict[str, Planted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = choices(steps=14, save_every=5)
    whole = train_factor_tracks(sources(two), tmp_path / "whole.safetensors", config)
    step, out = TrackRun.step, tmp_path / "stopped.safetensors"

    def dies(self: TrackRun) -> dict[str, float]:
        if self.steps == 8:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(TrackRun, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train_factor_tracks(sources(two), out, config)
    assert not out.exists()
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="other choices"):
        train_factor_tracks(sources(two), out, choices(steps=14, save_every=5, lr=1e-3))
    resumed = train_factor_tracks(sources(two), out, config)
    assert resumed.was_resumed
    assert resumed.losses == whole.losses[5:]
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.safetensors", "whole.safetensors"]


def test_mistakes_are_told(
    two: dict[str, Planted],
    trained: tuple[Path, dict[str, float]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with pytest.raises(ConfigError, match="not 'chrom'"):
        choices(hold_out={"chrom": ("chr1",)})
    with pytest.raises(SelectionError, match="16 of them held out"):
        train_factor_tracks(sources(two), tmp_path / "x", choices(hold_out={"biotype": ("cellA", "cellB")}))
    with pytest.raises(ConfigError, match="did you mean 'n_queries'"):
        train_factor_tracks(sources(two), tmp_path / "x", choices(options={"n_querys": 3}))
    store = two["mouse"].store
    with pytest.raises(ConfigError, match="gives tracks of factors"):
        predict_tracks(trained[0], store, tmp_path, TrackPredictConfig())
    with pytest.raises(ConfigError, match="no tracks of its own"):
        predict_tracks(trained[0], store, tmp_path, TrackPredictConfig(tracks=("a",), asked=Asked(factors=("OLA",))))
    plain = {"mouse": SpeciesTracks(store, tracks="tracks/all")}
    train_plain_tracks(plain, tmp_path / "plain", PlainTrackConfig(steps=1))
    with pytest.raises(CheckpointError):
        predict_tracks(tmp_path / "plain", store, tmp_path, TrackPredictConfig(asked=Asked(factors=("OLA",))))
    other = make_planted(tmp_path_factory.mktemp("other"), seed=5)
    with pytest.raises(CheckpointError, match="other embeddings"):
        predict_tracks(trained[0], other.store, tmp_path, TrackPredictConfig(asked=Asked(factors=("OLA",))))


@pytest.mark.parametrize("wrong", [("--by-factor", "--width", "3"), ("--head", "linear"), ("--hold-out", "factor=A")])
def test_options_of_the_other_kind_are_refused(two: dict[str, Planted], tmp_path: Path, wrong: tuple[str, ...]) -> None:
    species = f"human={two['human'].store.path}"
    done = CliRunner().invoke(main, ["train-tracks", str(tmp_path / "x"), "--species", species, *wrong])
    assert done.exit_code == 1
    assert "for --by-factor" in done.output
