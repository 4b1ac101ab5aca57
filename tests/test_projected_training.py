"""Every kind of array, from the store to the scores: embedded or projected, fed, trained on, evaluated."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.planted import BIN_BP, make_planted
from tfbind_store.cli import main
from tfbind_store.errors import ConfigError, StoreMissing
from tfbind_store.evaluation.evaluate import EvaluateConfig, evaluate_run
from tfbind_store.feeding.feed import choose_arrays
from tfbind_store.finetuning.live_model import require_trunk_of
from tfbind_store.heads import read_header
from tfbind_store.precompute.embedder import make_window_embedder
from tfbind_store.precompute.enformer import random_trunk
from tfbind_store.precompute.project import ProjectConfig, project_array
from tfbind_store.precompute.run import embed_windows
from tfbind_store.query.loader import Arrays, Loader
from tfbind_store.scoring.bins import load_run
from tfbind_store.training.train import TrainConfig, train_head

OPTIONS = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3}
QUICK = {"options": OPTIONS, "bins_per_step": 128, "pairs_per_step": 6, "device": "cpu", "lr": 3e-3, "batch_rows": 32}
TRUNK = {"dim": 48, "depth": 1, "heads": 4, "attn_dim_key": 8, "num_downsamples": 5, "device": "cpu"}
KINDS = {"pca": {"dim": 5}, "int8": {"int8": True}, "pca-int8": {"dim": 6, "int8": True}}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    torch.set_num_threads(1)
    made = make_planted(tmp_path_factory.mktemp("planted"))
    for label, config in KINDS.items():
        project_array(made.store, "embeddings/windows", ProjectConfig(**config), name=label)
    halved = {**TRUNK, "tap": "transformer", "final_on_reading": True}
    embed_windows(made.store, make_window_embedder("enformer", TRUNK), name="trunk")
    embed_windows(made.store, make_window_embedder("enformer", halved), name="half")
    embed_windows(made.store, make_window_embedder("enformer", {**TRUNK, "shift_bp": BIN_BP // 2}), name="shifted")
    return made


def trained(planted, array, run, *, steps=150, **more):
    config = TrainConfig(steps=steps, validate_every=steps, windows=array, **{**QUICK, **more})
    return train_head(planted.store, planted.selection, config, run)


@pytest.mark.parametrize("label", KINDS)
def test_what_can_be_learned_from_the_source_can_be_learned_from_it(planted, label):
    result = trained(planted, label, label)
    assert result.metrics["valid_auroc"] > 0.95
    scored = evaluate_run(planted.store, label, EvaluateConfig(with_oracle=False))
    rows = [dict(zip(scored.columns, row, strict=True)) for row in scored.columns.rows()]
    of_model = [row["auroc"] for row in rows if row["scorer"] == "model" and row["holdout"] == "unseen_chromosome"]
    assert len(of_model) > 5
    assert np.nanmedian(of_model) > 0.95
    header = read_header(result.path / "head.safetensors")
    spec = planted.store.array(f"embeddings/{label}").spec
    assert header.arrays["windows"] == {"name": f"embeddings/{label}", "fingerprint": spec.fingerprint}
    assert header.trunk_trained_on == {"factors": ["WEA"], "chromosomes": ["chr1"], "biotypes": []}
    assert load_run(planted.store, label).arrays.windows == f"embeddings/{label}"


@pytest.mark.parametrize("pairing", ["dense", "rows"])
def test_the_last_layer_on_reading_trains_as_the_whole_trunk_does(planted, pairing):
    losses = {}
    for label in ("trunk", "half"):
        result = trained(planted, label, f"{label}-{pairing}", steps=20, pairing=pairing)
        lines = [json.loads(line) for line in (result.path / "log.jsonl").read_text().splitlines()]
        losses[label] = [line["train_loss"] for line in lines if "train_loss" in line]
        assert evaluate_run(planted.store, f"{label}-{pairing}", EvaluateConfig(with_oracle=False)).n_rows > 10
    assert len(losses["trunk"]) == len(losses["half"]) > 0
    np.testing.assert_allclose(losses["half"], losses["trunk"], rtol=0.01)


def test_a_shifted_array_is_read_like_any_other(planted):
    assert np.isfinite(trained(planted, "shifted", "shifted", steps=3).metrics["valid_loss"])


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("half", "not what a trunk gives as it is: on_reading"),
        ("shifted", "not what a trunk gives as it is: shift_bp"),
        ("pca", "was made by project"),
    ],
)
def test_a_live_trunk_does_not_stand_in_for_an_array_that_is_read_otherwise(planted, label, reason):
    names = ("dim", "depth", "heads", "attn_dim_key", "num_downsamples")
    trunk = random_trunk({name: TRUNK[name] for name in names} | {"dim_divisible_by": 16}, seed=0)
    assert require_trunk_of(planted.store, "embeddings/trunk", trunk).embedder == "enformer"
    with pytest.raises(ConfigError, match=reason):
        require_trunk_of(planted.store, f"embeddings/{label}", trunk)


@pytest.mark.parametrize("label", [*KINDS, "half"])
def test_batches_of_the_loader_hold_what_the_array_holds(planted, label):
    arrays = Arrays(f"embeddings/{label}", "proteins/composition", "contexts/hashed")
    array = planted.store.array(arrays.windows)
    loader = Loader(planted.store, planted.selection, "valid", arrays=arrays, batch_size=16, shuffle=False)
    first = loader.table["first_bin"][:16]
    batch = next(iter(loader))
    assert batch.dna.dtype == np.float16
    expected = [array.row(b // 16)[b % 16] for b in first.tolist()]
    np.testing.assert_allclose(batch.dna[:, 0], expected, rtol=2e-3, atol=1e-4)


def test_a_projection_is_taken_only_when_it_is_named(tmp_path):
    made = make_planted(tmp_path)
    project_array(made.store, "embeddings/windows", ProjectConfig(dim=2))
    assert choose_arrays(made.store).windows == "embeddings/windows"
    assert choose_arrays(made.store, windows="windows-pca2").windows == "embeddings/windows-pca2"
    embed_windows(made.store, make_window_embedder("toy", {"bin_bp": BIN_BP}), name="toy")
    with pytest.raises(StoreMissing, match="3 arrays of windows"):
        choose_arrays(made.store)


def test_the_command_line_trains_on_a_projection(planted):
    words = ["train", str(planted.store.path), planted.selection, "--run", "cli", "--windows", "pca"]
    words += ["--set", "steps=2", "--set", "device='cpu'", "--set", "bins_per_step=32"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert read_header(planted.store.run_dir("cli") / "head.safetensors").geometry["dna_dim"] == 5
