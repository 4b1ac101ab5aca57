import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.planted import planted  # noqa: F401
from tfbind_store.cli import main
from tfbind_store.errors import SelectionError
from tfbind_store.heads import read_header
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.training.folds import cross_validate, fold_names
from tfbind_store.training.train import TrainConfig, train_head

SMALL = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3}
SELECTION = SelectionConfig(n_bins=4, margin_bp=0)
CONFIG = TrainConfig(steps=20, options=SMALL, bins_per_step=64, pairs_per_step=6, device="cpu", lr=3e-3)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folds(planted):  # noqa: F811
    """The same rows with another chromosome as validation each time."""
    base = Selection.open(planted.store, "all").config
    base = replace(base, allow_leaks=("paralog", "trunk"))
    for place, chrom in enumerate(("chr1", "chr2", "chr3")):
        split = SplitConfig(valid_chroms=(chrom,), test_chroms=("chr4",), hold_out={"factor": ["OLA"]})
        make_selection(planted.store, f"fold{place}", replace(base, split=split))
    return ["fold0", "fold1", "fold2"]


@pytest.fixture(scope="module")
def found(planted, folds):  # noqa: F811
    return cross_validate(planted.store, folds, CONFIG, "cv", whole="all")


def test_each_fold_is_a_run_on_the_same_embeddings(planted, found):  # noqa: F811
    assert [fold.run for fold in found.folds] == ["cv-fold0", "cv-fold1", "cv-fold2"]
    headers = [read_header(planted.store.run_dir(fold.run) / "head.safetensors") for fold in found.folds]
    chromosomes = [header.trained_on["chromosomes"] for header in headers]
    assert chromosomes == [["chr2", "chr3"], ["chr1", "chr3"], ["chr1", "chr2"]]
    assert len({header.arrays["windows"]["fingerprint"] for header in headers}) == 1
    alone = train_head(planted.store, "fold1", CONFIG, "alone").metrics
    assert found.folds[1].metrics == alone


def test_mean_and_spread_are_over_folds(found):
    values = [fold.metrics["valid_auprc"] for fold in found.folds]
    assert found.mean["valid_auprc"] == pytest.approx(np.mean(values))
    assert found.spread["valid_auprc"] == pytest.approx(np.std(values, ddof=1))
    assert set(found.mean) == {"valid_loss", "valid_auroc", "valid_auprc"}


def test_the_final_head_is_trained_on_everything(planted, found):  # noqa: F811
    assert found.final == planted.store.run_dir("cv")
    assert read_header(found.final / "head.safetensors").selection["name"] == "all"


def test_finished_folds_are_not_trained_again(planted, folds, found):  # noqa: F811
    again = cross_validate(planted.store, folds, CONFIG, "cv", whole="all")
    assert all(fold.was_done for fold in again.folds)
    assert again.mean == pytest.approx(found.mean)
    other = cross_validate(planted.store, folds[:1], replace(CONFIG, steps=2), "other")
    assert not other.folds[0].was_done
    assert math.isnan(other.spread["valid_auprc"])
    assert other.final is None


def test_a_selection_without_folds_says_how_to_make_some(planted):  # noqa: F811
    with pytest.raises(SelectionError, match="no folds") as caught:
        fold_names(planted.store, "all")
    assert "--folds" in caught.value.fix
    refused = CliRunner().invoke(main, ["train", str(planted.store.path), "all", "--folds"])
    assert refused.exit_code == 1
    assert "the selection has no folds" in refused.stderr
    alone = CliRunner().invoke(main, ["train", str(planted.store.path), "all", "--final"])
    assert "--final is for --folds" in alone.stderr


def test_a_selection_with_folds_is_cross_validated_by_the_command(planted):  # noqa: F811
    split = SplitConfig(test_chroms=("chr4",), folds=3, fold_by=("chrom",))
    leaks = ("trunk",)  # the trunk of this store has seen chr1, which is validation in one of the folds
    make_selection(planted.store, "cv3", replace(SELECTION, split=split, allow_leaks=leaks))
    assert fold_names(planted.store, "cv3") == ["cv3@0", "cv3@1", "cv3@2"]
    settings = [f"options.{name}={value}" for name, value in SMALL.items()] + ["bins_per_step=64", "pairs_per_step=6"]
    command = ["train", str(planted.store.path), "cv3", "--folds", "--final", "--run", "cv3", "--steps", "4", "--json"]
    command += [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(main, [*command, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    headers = [read_header(planted.store.run_dir(f"cv3-fold{fold}") / "head.safetensors") for fold in range(3)]
    trained = [set(header.trained_on["chromosomes"]) for header in headers]
    assert all(len(chroms) == 2 for chroms in trained)
    assert set.union(*trained) == {"chr1", "chr2", "chr3"}
    assert set.intersection(*trained) == set()
    final = read_header(planted.store.run_dir("cv3") / "head.safetensors")
    assert set(final.trained_on["chromosomes"]) == {"chr1", "chr2", "chr3"}


@pytest.mark.slow
def test_two_processes_cross_validate_and_one_speaks(planted):  # noqa: F811
    """They join once for all folds: a launcher's store serves no second group."""
    split = SplitConfig(test_chroms=("chr4",), folds=3, fold_by=("chrom",))
    make_selection(planted.store, "cv2", replace(SELECTION, split=split, allow_leaks=("trunk",)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--"]
    options = ["--steps", "2", "--device", "cpu", "--set", "bins_per_step=32", "--set", "pairs_per_step=4", "--json"]
    command = [*launch, "tfbind_store", "train", str(planted.store.path), "cv2", "--folds", "--final", "--run", "cv2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options], check=True, env=environment, timeout=300, capture_output=True, text=True
    )
    assert len(json.loads(done.stdout)["folds"]) == 3
    for name in ("cv2-fold0", "cv2-fold1", "cv2-fold2", "cv2"):
        assert (planted.store.run_dir(name) / "head.safetensors").exists()
