import csv
import json
import sys

import pytest

from tfbind_store.errors import ConfigError, DependencyError
from tfbind_store.learning.runlog import RunLog


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_both_files_hold_every_line(tmp_path):
    log = RunLog(tmp_path)
    log.write({"step": 1, "train_loss": 0.5})
    log.write({"step": 2, "train_loss": 0.25, "valid_auprc": 0.75})
    log.close()
    assert lines(tmp_path) == [{"step": 1, "train_loss": 0.5}, {"step": 2, "train_loss": 0.25, "valid_auprc": 0.75}]
    with (tmp_path / "log.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"step": "1", "train_loss": "0.5", "valid_auprc": ""},
            {"step": "2", "train_loss": "0.25", "valid_auprc": "0.75"},
        ]


def test_numbers_that_are_none_are_left_out(tmp_path):
    RunLog(tmp_path).write({"step": 1, "valid_auroc": float("nan")})
    assert lines(tmp_path) == [{"step": 1}]


def test_a_resumed_run_forgets_what_came_after_its_state(tmp_path):
    log = RunLog(tmp_path)
    for step in (2, 4, 6):
        log.write({"step": step})
    again = RunLog(tmp_path)
    again.rewind(4)
    again.write({"step": 5})
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 5]


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="tensorbord"):
        RunLog(tmp_path, trackers=["tensorbord"])


def test_a_tracker_that_is_not_installed_says_how_to(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError) as caught:
        RunLog(tmp_path, trackers=["wandb"])
    assert caught.value.fix == "pip install 'tfbind-store[wandb]'"


def test_no_tracker_is_loaded_unless_asked_for(tmp_path):
    for name in ("wandb", "tensorboard"):
        sys.modules.pop(name, None)
    RunLog(tmp_path).write({"step": 1})
    assert not {"wandb", "tensorboard"} & set(sys.modules)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, trackers=["tensorboard"], about={"lr": 1.0})
    log.write({"step": 3, "train_loss": 0.5})
    log.write({"step": 7, "train_loss": 0.25})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [(3, 0.5), (7, 0.25)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline_without_a_login(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    log = RunLog(tmp_path, trackers=["wandb"], about={"lr": 1.0})
    log.write({"step": 3, "train_loss": 0.5})
    log.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert next(run.glob("*.wandb")).stat().st_size > 0
