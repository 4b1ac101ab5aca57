import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.planted import planted  # noqa: F401
from tfbind_store import config as configs
from tfbind_store import train as training
from tfbind_store.durable import sole_owner
from tfbind_store.errors import CheckpointError, ConfigError, SelectionError, StoreBusy, TfbindError, TrainingError
from tfbind_store.heads import load_checkpoint, read_header
from tfbind_store.pretrain import pretrain_trunk
from tfbind_store.query.selection import SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.store import Store
from tfbind_store.train import TrainConfig, train_head

SMALL = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3}
QUICK = {"options": SMALL, "bins_per_step": 64, "pairs_per_step": 6, "batch_rows": 32, "device": "cpu", "lr": 3e-3}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def log_of(path):
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("pairing", ["dense", "rows"])
def test_planted_signal_is_learned(planted, pairing):  # noqa: F811
    config = TrainConfig(steps=160, validate_every=80, pairing=pairing, **QUICK)
    result = train_head(planted.store, planted.selection, config, f"learns-{pairing}")
    assert result.metrics["valid_auroc"] > 0.95
    assert result.metrics["valid_auprc"] > 0.8


def test_permuted_labels_cannot_be_learned(planted):  # noqa: F811
    config = TrainConfig(steps=80, validate_every=80, permute_labels=True, **QUICK)
    result = train_head(planted.store, planted.selection, config, "control")
    assert result.metrics["valid_auroc"] < 0.62


def test_header_says_where_the_head_comes_from(planted):  # noqa: F811
    path = train_head(planted.store, planted.selection, TrainConfig(steps=2, **QUICK), "header").path
    header = read_header(path / "head.safetensors")
    assert header.head == "adapter"
    assert header.genome == planted.store.meta.genome
    assert header.arrays["windows"] == {
        "name": "embeddings/windows",
        "fingerprint": planted.store.array("embeddings/windows").spec.fingerprint,
    }
    assert header.trained_on["chromosomes"] == ["chr1", "chr2"]
    assert "OLA" not in header.trained_on["factors"]
    assert header.trunk_trained_on == {"factors": ["WEA"], "chromosomes": ["chr1"], "biotypes": []}
    assert header.selection["name"] == "all"
    assert header.train["steps"] == 2
    assert configs.load_toml(TrainConfig, path / "config.toml") == TrainConfig(steps=2, **QUICK)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("pairing", ["dense", "rows"])
@pytest.mark.parametrize("kill_at", [1, 7, 13])
def test_stopped_run_ends_with_the_same_bytes(planted, monkeypatch, pairing, kill_at):  # noqa: F811
    config = TrainConfig(steps=14, validate_every=6, save_every=4, pairing=pairing, **QUICK)
    whole = train_head(planted.store, planted.selection, config, f"whole-{pairing}-{kill_at}")
    name, step = f"stopped-{pairing}-{kill_at}", training._Trainer._one_step

    def dying(self, batch, share):
        if self.state.step == kill_at:
            raise _Killed
        step(self, batch, share)

    monkeypatch.setattr(training._Trainer, "_one_step", dying)
    with pytest.raises(_Killed):
        train_head(planted.store, planted.selection, config, name)
    monkeypatch.setattr(training._Trainer, "_one_step", step)
    torch.rand(3)  # another process would stand elsewhere in torch's random numbers
    again = train_head(planted.store, planted.selection, config, name)
    assert again.was_resumed == (kill_at >= 4)
    assert log_of(again.path) == log_of(whole.path)
    assert (again.path / "head.safetensors").read_bytes() == (whole.path / "head.safetensors").read_bytes()
    assert not (again.path / "state.safetensors").exists()


@pytest.mark.slow
def test_killed_process_goes_on_to_the_same_bytes(planted):  # noqa: F811
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from tfbind_store.store import Store\n"
        "from tfbind_store.train import TrainConfig, train_head\n"
        f"config = TrainConfig(steps=60, validate_every=20, save_every=5, **{QUICK!r})\n"
        "train_head(Store.open(sys.argv[1]), 'all', config, sys.argv[2])\n"
    )
    store = str(planted.store.path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script, store, "alone"], check=True, env=environment)
    process = subprocess.Popen([sys.executable, "-c", script, store, "killed"], env=environment)
    state = planted.store.run_dir("killed") / "state.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", script, store, "killed"], check=True, env=environment)
    files = [planted.store.run_dir(name) / "head.safetensors" for name in ("alone", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_same_config_gives_the_same_weights(planted):  # noqa: F811
    config = TrainConfig(steps=5, **QUICK)
    one = train_head(planted.store, planted.selection, config, "same1").path / "head.safetensors"
    two = train_head(planted.store, planted.selection, config, "same2").path / "head.safetensors"
    assert one.read_bytes() == two.read_bytes()


def test_finished_run_is_not_trained_again(planted):  # noqa: F811
    config = TrainConfig(steps=2, **QUICK)
    train_head(planted.store, planted.selection, config, "finished")
    with pytest.raises(TrainingError, match="is finished"):
        train_head(planted.store, planted.selection, config, "finished")
    with pytest.raises(ConfigError, match="another config"):
        train_head(planted.store, planted.selection, TrainConfig(steps=3, **QUICK), "finished")
    assert train_head(planted.store, planted.selection, config, "finished", overwrite=True).steps == 2


def test_damaged_state_is_refused(planted, monkeypatch):  # noqa: F811
    config = TrainConfig(steps=6, save_every=2, **QUICK)
    monkeypatch.setattr(training._Trainer, "_look", lambda self: (_ for _ in ()).throw(_Killed()))
    with pytest.raises(_Killed):
        train_head(planted.store, planted.selection, config, "damaged")
    state = planted.store.run_dir("damaged") / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train_head(planted.store, planted.selection, config, "damaged")


def test_loss_that_is_not_finite_stops_the_run(planted, monkeypatch):  # noqa: F811
    monkeypatch.setattr(training._Trainer, "_loss", lambda self, batch: torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match="loss is nan at step 0"):
        train_head(planted.store, planted.selection, TrainConfig(steps=2, **QUICK), "nan")


def test_patience_ends_a_run_that_does_not_improve(planted, monkeypatch):  # noqa: F811
    looks = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(
        training, "validate", lambda *_: {"valid_loss": 1.0, "valid_auroc": 0.5, "valid_auprc": next(looks)}
    )
    config = TrainConfig(steps=100, validate_every=2, patience=2, **QUICK)
    result = train_head(planted.store, planted.selection, config, "patient")
    assert result.steps == 6
    assert result.metrics["step"] == 2
    assert read_header(result.path / "head.safetensors").metrics["valid_auprc"] == 0.5


def test_weights_with_one_axis_have_no_decay(planted):  # noqa: F811
    seen = {}
    original = training._Trainer._groups

    def spy(self):
        seen["groups"] = original(self)
        return seen["groups"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Trainer, "_groups", spy)
        train_head(planted.store, planted.selection, TrainConfig(steps=1, **QUICK), "groups")
    decayed, rest = seen["groups"]
    assert decayed["weight_decay"] == 0.05
    assert rest["weight_decay"] == 0.0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim <= 1 for parameter in rest["params"])


def test_rate_rises_then_falls_like_a_cosine():
    trainer = training._Trainer.__new__(training._Trainer)
    trainer.config = TrainConfig(steps=100, warmup=0.1)
    rates = [trainer._rate(step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert np.argmax(rates) in (9, 10)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)


def test_kept_weights_are_those_that_were_validated(planted):  # noqa: F811
    result = train_head(planted.store, planted.selection, TrainConfig(steps=4, **QUICK), "kept")
    assert load_checkpoint(result.path / "head.safetensors").header.metrics["step"] == result.metrics["step"] == 4
    assert (result.path / "log.csv").read_text().splitlines()[0] == (
        "step,train_loss,valid_loss,valid_auroc,valid_auprc,seconds"
    )


@pytest.mark.parametrize("odd", [{"steps": 0}, {"bound_share": 2.0}, {"permute_labels": True, "pairing": "rows"}])
def test_odd_configs_are_refused(odd):
    with pytest.raises(ConfigError):
        TrainConfig(**odd)


@pytest.mark.parametrize("odd", [{"windows": "windws"}, {"head": "adaptr"}, {"options": {"widht": 3}}])
def test_a_run_that_cannot_begin_leaves_no_folder(planted, odd):  # noqa: F811
    config = TrainConfig(**{**QUICK, "steps": 2, **odd})
    with pytest.raises(TfbindError):
        train_head(planted.store, planted.selection, config, "never")
    assert not planted.store.run_dir("never").exists()


def test_windows_that_are_not_embedded_are_counted(planted, caplog, tmp_path):  # noqa: F811
    shutil.copytree(planted.store.path, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    shutil.rmtree(store.path / "runs")
    array = store.array("embeddings/windows")
    array.layout.shard_path(0).unlink()
    train_head(store, planted.selection, TrainConfig(**{**QUICK, "steps": 2}), "partly")
    n_lost = array.layout.windows_in(0)
    assert (
        f"embeddings/windows: {n_lost} windows of the training chromosomes are not embedded (first: 0)" in caplog.text
    )


def test_two_processes_do_not_train_one_run(planted):  # noqa: F811
    path = planted.store.run_dir("shared")
    path.mkdir()
    config = TrainConfig(steps=2, **QUICK)
    with sole_owner(path, doing="training it"), pytest.raises(StoreBusy, match="training run 'shared'"):
        train_head(planted.store, planted.selection, config, "shared", overwrite=True)
    assert list(path.iterdir()) == []
    train_head(planted.store, planted.selection, config, "shared")
    (path / "report_figures").mkdir()
    train_head(planted.store, planted.selection, config, "shared", overwrite=True)
    assert not (path / "report_figures").exists()


def test_a_selection_without_training_rows_is_refused(planted):  # noqa: F811
    split = SplitConfig(test_chroms=tuple(planted.store.tiling.chroms))
    make_selection(planted.store, "all_test", SelectionConfig(split=split))
    with pytest.raises(SelectionError, match="no training rows"):
        train_head(planted.store, "all_test", TrainConfig(steps=2, **QUICK), "never")
    with pytest.raises(SelectionError, match="no training rows"):
        pretrain_trunk(planted.store, "all_test", out_dir=planted.store.path / "no-trunk")
    assert not (planted.store.path / "no-trunk").exists()
