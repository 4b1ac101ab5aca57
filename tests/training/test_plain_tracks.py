"""Plain track heads: two species on one layer, masked losses against formulas, splits, correlations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.planted import Planted, make_planted
from tfbind_store.errors import CheckpointError, ConfigError, SelectionError
from tfbind_store.heads.plain_tracks import PlainTracks, load_tracks
from tfbind_store.heads.track_losses import mean_loss
from tfbind_store.ingest import import_loci, import_peak_tracks
from tfbind_store.training.plain_tracks import PlainTrackConfig, SpeciesTracks, train_plain_tracks


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Planted]:
    made = {}
    for seed, name in enumerate(("h.sapiens", "mouse")):
        made[name] = make_planted(tmp_path_factory.mktemp(f"s{seed}"), seed=seed)
        import_peak_tracks(made[name].store, name="all", factor=None if seed else "WEA")
    return made


def sources(two: dict[str, Planted]) -> dict[str, SpeciesTracks]:
    return {name: SpeciesTracks(planted.store, tracks="tracks/all") for name, planted in two.items()}


@pytest.mark.parametrize("loss", ["poisson", "pearson"])
def test_two_species_learn_their_tracks_together(two: dict[str, Planted], tmp_path: Path, loss: str) -> None:
    config = PlainTrackConfig(steps=300, lr=1e-2, width=16, loss=loss, valid_chroms=("chr3",))  # type: ignore[arg-type]
    result = train_plain_tracks(sources(two), tmp_path / "h.safetensors", config)
    assert result.scores["h.sapiens"].pearson_over_bins.shape == (2,)
    assert result.scores["mouse"].pearson_over_bins.shape == (16,)
    for scores in result.scores.values():
        assert np.nanmedian(scores.pearson_over_bins) > 0.8
    assert result.scores["mouse"].pearson_over_tracks > 0.5
    head, about = load_tracks(tmp_path / "h.safetensors")
    assert list(head.tracks) == ["h.sapiens", "mouse"]
    assert set(about) == {"h.sapiens", "mouse"}
    dna = torch.randn(1, 3, head.dim)
    assert head(dna, "mouse").shape == (1, 3, 16)


def test_loci_decide_what_trains_and_what_touches_both_is_in_neither(tmp_path: Path) -> None:
    planted = make_planted(tmp_path)
    import_peak_tracks(planted.store, name="all", factor="WEA")
    (tmp_path / "l.bed").write_text("chr1\t0\t5000\ttrain\nchr2\t0\t2000\tvalid\nchr2\t2000\t2600\ttrain\n")
    import_loci(planted.store, tmp_path / "l.bed", "folds")
    one = {"x": SpeciesTracks(planted.store, tracks="tracks/all")}
    result = train_plain_tracks(one, tmp_path / "h.safetensors", PlainTrackConfig(steps=2, loci="folds"))
    assert result.n_in_neither == 1  # the window of chr2 that holds base 2,000
    assert result.scores["x"].n_values == 3 * 16 * 2
    with pytest.raises(SelectionError, match="no training loci"):
        train_plain_tracks(one, tmp_path / "i.safetensors", PlainTrackConfig(steps=2, loci="other"))


def test_a_stopped_training_goes_on_to_the_same_bytes(
    two: dict[str, Planted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PlainTrackConfig(steps=25, width=16, save_every=10)
    whole = train_plain_tracks(sources(two), tmp_path / "whole.safetensors", config)
    assert not whole.was_resumed
    calls = 0

    def dies(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 17:
            raise KeyboardInterrupt
        return mean_loss(*args)

    out = tmp_path / "stopped.safetensors"
    monkeypatch.setattr("tfbind_store.training.plain_tracks.mean_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train_plain_tracks(sources(two), out, config)
    assert not out.exists()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="other choices"):
        train_plain_tracks(sources(two), out, PlainTrackConfig(steps=25, width=16, save_every=10, lr=1e-4))
    resumed = train_plain_tracks(sources(two), out, config)
    assert resumed.was_resumed
    assert resumed.losses == whole.losses
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.safetensors", "whole.safetensors"]


def test_loci_may_come_as_two_files(tmp_path: Path) -> None:
    planted = make_planted(tmp_path)
    import_peak_tracks(planted.store, name="all", factor="WEA")
    (tmp_path / "t.bed").write_text("chr1\t0\t5000\n")
    (tmp_path / "v.bed").write_text("chr2\t0\t2000\n")
    import_loci(planted.store, tmp_path / "t.bed", "two", split="train")
    import_loci(planted.store, tmp_path / "v.bed", "two", split="valid")
    one = {"x": SpeciesTracks(planted.store, tracks="tracks/all")}
    result = train_plain_tracks(one, tmp_path / "h.safetensors", PlainTrackConfig(steps=2, loci="two"))
    assert result.n_in_neither == 0
    assert result.scores["x"].n_values == 4 * 16 * 2
    assert load_tracks(tmp_path / "h.safetensors")[1]["x"]["n_train"] == 10  # type: ignore[index]


class TestLoss:
    def test_poisson_is_the_formula_over_what_was_measured(self) -> None:
        rates = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], requires_grad=True)
        labels = torch.tensor([[[2.0, float("nan")], [0.0, float("nan")]]])
        loss = mean_loss("poisson", rates, labels)
        loss.backward()
        assert loss.item() == pytest.approx((1 - 2 * np.log(1.0) + 3) / 2)
        assert rates.grad is not None
        assert (rates.grad[..., 1] == 0).all()

    def test_pearson_is_one_minus_the_correlation_along_the_window(self) -> None:
        rng = np.random.default_rng(0)
        rates, labels = rng.random((2, 20, 3)), rng.random((2, 20, 3))
        labels[0, :5] = np.nan
        labels[1, :, 2] = 7  # does not vary
        cells = [
            1 - np.corrcoef(rates[b, ~np.isnan(labels[b, :, t]), t], labels[b, ~np.isnan(labels[b, :, t]), t])[0, 1]
            for b, t in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
        ]
        found = mean_loss("pearson", torch.tensor(rates), torch.tensor(labels)).item()
        assert found == pytest.approx(np.mean(cells), abs=1e-5)

    @pytest.mark.parametrize("kind", ["poisson", "pearson"])
    def test_nothing_measured_is_no_loss(self, kind: str) -> None:
        rates = torch.ones(1, 4, 2, requires_grad=True)
        loss = mean_loss(kind, rates, torch.full((1, 4, 2), float("nan")))  # type: ignore[arg-type]
        loss.backward()
        assert loss.item() == 0
        assert rates.grad is not None
        assert (rates.grad == 0).all()


def test_mistakes_are_told(two: dict[str, Planted], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        PlainTrackConfig(steps=0)
    with pytest.raises(ConfigError, match="every species needs a track"):
        PlainTracks(4, {"x": []})
    (tmp_path / "x").write_bytes(b"no head")
    with pytest.raises(CheckpointError):
        load_tracks(tmp_path / "x")
