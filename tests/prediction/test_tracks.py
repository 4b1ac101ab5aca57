"""bigWigs of plain track heads: recomputed by hand, resumed, and refused where they would be of something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyBigWig
import pytest
import torch

from tests.planted import BIN_BP, CHROMS, Planted, make_planted
from tfbind_store.errors import CheckpointError, ConfigError
from tfbind_store.heads.plain_tracks import load_tracks
from tfbind_store.ingest import import_peak_tracks
from tfbind_store.prediction.parts import Parts
from tfbind_store.prediction.tracks import TrackPredictConfig, predict_tracks
from tfbind_store.training.plain_tracks import PlainTrackConfig, SpeciesTracks, train_plain_tracks


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Planted]]:
    """A head of two species, and their stores."""
    made = {}
    for seed, name in enumerate(("human", "mouse")):
        made[name] = make_planted(tmp_path_factory.mktemp(name), seed=seed)
        import_peak_tracks(made[name].store, name="all", factor=None if seed else "WEA")
    sources = {name: SpeciesTracks(planted.store, tracks="tracks/all") for name, planted in made.items()}
    path = tmp_path_factory.mktemp("head") / "h.safetensors"
    train_plain_tracks(sources, path, PlainTrackConfig(steps=20, width=16, valid_chroms=("chr3",)))
    return path, made


def test_every_track_has_a_bigwig_of_the_rates(two: tuple[Path, dict[str, Planted]], tmp_path: Path) -> None:
    path, made = two
    store = made["mouse"].store
    result = predict_tracks(path, store, tmp_path / "out", TrackPredictConfig(species="mouse"))
    head, _ = load_tracks(path)
    head.eval()
    assert len(result.files) == len(head.tracks["mouse"]) == 16
    assert result.n_bins == sum(-(-length // BIN_BP) for length in CHROMS.values())
    array = store.array("embeddings/windows")
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 16, 3).tolist():
        with pyBigWig.open(str(result.files[place])) as file:
            assert file.chroms() == CHROMS
            for chrom, length in CHROMS.items():
                bins = rng.integers(0, length // BIN_BP, 20)
                number = store.tiling.chrom_index[chrom]
                dna = torch.from_numpy(array.gather_bins(store.tiling.global_bins(number)[bins])[:, 0])
                with torch.inference_mode():
                    wanted = head(dna[None], "mouse")[0, :, place].numpy()
                found = [file.values(chrom, int(b) * BIN_BP + 5, int(b) * BIN_BP + 6)[0] for b in bins]
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert not [p for p in (tmp_path / "out").iterdir() if p.suffix != ".bw"]


def test_a_stopped_prediction_goes_on(
    two: tuple[Path, dict[str, Planted]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = two
    monkeypatch.setattr("tfbind_store.prediction.parts.PART_BINS", 16 * 8)
    tracks = load_tracks(path)[0].tracks["human"]
    config = TrackPredictConfig(species="human", tracks=(tracks[1],))
    whole = predict_tracks(path, made["human"].store, tmp_path / "a", config)
    write = Parts.write

    def dies(self: Parts, part: int, scores: np.ndarray) -> None:
        if part == 4:
            raise KeyboardInterrupt
        write(self, part, scores)

    monkeypatch.setattr(Parts, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        predict_tracks(path, made["human"].store, tmp_path / "b", config)
    monkeypatch.setattr(Parts, "write", write)
    again = predict_tracks(path, made["human"].store, tmp_path / "b", config)
    assert (whole.was_resumed, again.was_resumed) == (False, True)
    assert len(again.files) == 1
    assert again.files[0].read_bytes() == whole.files[0].read_bytes()


def test_mistakes_are_told(two: tuple[Path, dict[str, Planted]], tmp_path: Path) -> None:
    path, made = two
    store = made["mouse"].store
    for config, said in (
        (TrackPredictConfig(), "which species"),
        (TrackPredictConfig(species="mous"), "no species 'mous'"),
        (TrackPredictConfig(species="mouse", tracks=("none",)), "no track 'none'"),
        (TrackPredictConfig(species="mouse", chroms=("chr9",)), "no chromosome 'chr9'"),
    ):
        with pytest.raises(ConfigError, match=said):
            predict_tracks(path, store, tmp_path / "x", config)
    with pytest.raises(CheckpointError, match="other embeddings"):
        predict_tracks(path, made["human"].store, tmp_path / "x", TrackPredictConfig(species="mouse"))
