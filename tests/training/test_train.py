import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from tests.planted import make_planted, planted  # noqa: F401
from tfbind_store import config as configs
from tfbind_store.durable import sole_owner
from tfbind_store.errors import (
    CheckpointError,
    ConfigError,
    LeakError,
    SelectionError,
    StoreBusy,
    TfbindError,
    TrainingError,
)
from tfbind_store.feeding.feed import DenseFeed, choose_arrays
from tfbind_store.heads import load_checkpoint, read_header
from tfbind_store.pretraining.pretrain import pretrain_trunk
from tfbind_store.query.loader import Loader
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.scoring.bins import load_run
from tfbind_store.store.folder import Store
from tfbind_store.training import train as training
from tfbind_store.training.material import gather_material
from tfbind_store.training.train import TrainConfig, train_head

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


def test_a_short_run_is_looked_at_several_times(planted):  # noqa: F811
    result = train_head(planted.store, planted.selection, TrainConfig(steps=8, **QUICK), "short")
    assert [line["step"] for line in log_of(result.path) if "valid_auprc" in line] == [2, 4, 6, 8]


def test_permuted_labels_cannot_be_learned(planted):  # noqa: F811
    config = TrainConfig(steps=80, validate_every=80, permute_labels=True, **QUICK)
    result = train_head(planted.store, planted.selection, config, "control")
    assert result.metrics["valid_auroc"] < 0.62


def test_a_trunk_that_came_later_and_has_seen_what_is_held_out(planted):  # noqa: F811
    """Refused by name, and where it is allowed the head says so."""
    split = SplitConfig(test_chroms=("chr1",), valid_chroms=("chr3",))
    made = make_selection(planted.store, "late", SelectionConfig(split=split, allow_leaks=("trunk",)))
    path = made.path / "selection.json"
    info = json.loads(path.read_text())
    assert [leak["shared"] for leak in info["leaks"]] == ["chromosomes of embeddings/windows"]
    path.write_text(json.dumps({**info, "leaks": []}))  # as if made before there was an array
    config = TrainConfig(steps=2, **QUICK)
    result = train_head(planted.store, "late", config, "late")
    said = read_header(result.path / "head.safetensors").selection["leaks"]
    assert [(leak["kind"], leak["held_out"]) for leak in said] == [("trunk", ["chr1"])]
    path.write_text(json.dumps({**info, "leaks": [], "config": {**info["config"], "allow_leaks": []}}))
    with pytest.raises(LeakError, match="the trunk has seen held-out chromosomes of embeddings/windows: chr1"):
        train_head(planted.store, "late", config, "refused")
    assert not planted.store.run_dir("refused").exists()


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


EVERYTHING = {"accumulate": 2, "average": 0.9, "balance": "factor", "lr_scale": {"filip.*": 0.5}}


@pytest.fixture(scope="module")
def whole(planted):  # noqa: F811
    """A run of each kind that nobody stopped."""
    made = {}

    def run(pairing):
        if pairing not in made:
            made[pairing] = train_head(planted.store, planted.selection, stoppable(pairing), f"whole-{pairing}").path
        return made[pairing]

    return run


def stoppable(pairing):
    return TrainConfig(steps=9, validate_every=4, save_every=3, pairing=pairing, **QUICK, **EVERYTHING)


@pytest.mark.parametrize("pairing", ["dense", "rows"])
@pytest.mark.parametrize("kill_at", range(9))
def test_a_run_stopped_at_any_step_ends_with_the_same_bytes(planted, whole, monkeypatch, pairing, kill_at):  # noqa: F811
    name, step = f"stopped-{pairing}-{kill_at}", training.TrainingRun.one_step

    def dying(self, numbered, share):
        if self.state.step == kill_at:
            raise _Killed
        step(self, numbered, share)

    monkeypatch.setattr(training.TrainingRun, "one_step", dying)
    with pytest.raises(_Killed):
        train_head(planted.store, planted.selection, stoppable(pairing), name)
    monkeypatch.setattr(training.TrainingRun, "one_step", step)
    left = planted.store.run_dir(name) / f".last.safetensors.{'ab' * 8}.tmp"
    left.write_bytes(b"half of it")  # as a kill within a write leaves it
    torch.rand(3)  # another process would stand elsewhere in torch's random numbers
    again = train_head(planted.store, planted.selection, stoppable(pairing), name)
    assert again.was_resumed == (kill_at >= 3)
    assert not left.exists()
    assert log_of(again.path) == log_of(whole(pairing))
    for file in ("head.safetensors", "last.safetensors"):
        assert (again.path / file).read_bytes() == (whole(pairing) / file).read_bytes()
    assert not (again.path / "state.safetensors").exists()


def test_a_run_killed_after_its_first_look_is_not_finished(planted, monkeypatch):  # noqa: F811
    config, step = TrainConfig(steps=6, validate_every=2, save_every=100, **QUICK), training.TrainingRun.one_step

    def dying(self, numbered, share):
        if self.state.step == 3:
            raise _Killed
        step(self, numbered, share)

    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingRun, "one_step", dying)
        with pytest.raises(_Killed):
            train_head(planted.store, planted.selection, config, "looked")
    assert not training.is_finished(planted.store, planted.selection, config, "looked")
    assert train_head(planted.store, planted.selection, config, "looked").steps == 6
    assert training.is_finished(planted.store, planted.selection, config, "looked")


@pytest.mark.slow
def test_killed_process_goes_on_to_the_same_bytes(planted):  # noqa: F811
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from tfbind_store.store.folder import Store\n"
        "from tfbind_store.training.train import TrainConfig, train_head\n"
        f"config = TrainConfig(steps=60, validate_every=20, save_every=5, **{QUICK!r})\n"
        "train_head(Store.open(sys.argv[1]), 'all', config, sys.argv[2])\n"
    )
    store = str(planted.store.path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script, store, "alone"], check=True, env=environment)
    process = subprocess.Popen([sys.executable, "-c", script, store, "killed"], env=environment)
    log = planted.store.run_dir("killed") / "log.jsonl"
    while not log.exists() and process.poll() is None:
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
    monkeypatch.setattr(training.TrainingRun, "look", lambda self: (_ for _ in ()).throw(_Killed()))
    with pytest.raises(_Killed):
        train_head(planted.store, planted.selection, config, "damaged")
    state = planted.store.run_dir("damaged") / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train_head(planted.store, planted.selection, config, "damaged")


class TestNonFinite:
    def test_bins_and_experiments_of_a_dense_batch_are_named(self, planted, monkeypatch):  # noqa: F811
        original = DenseFeed.dna

        def spoilt(self, places):
            values = original(self, places).copy()
            if len(places) == 64:  # a batch, not the sample for the scaling
                values[5] = np.nan
            return values

        monkeypatch.setattr(DenseFeed, "dna", spoilt)
        with pytest.raises(TrainingError, match="loss is nan at step 0") as caught:
            train_head(planted.store, planted.selection, TrainConfig(steps=2, **QUICK), "nan")
        assert re.match(r"1 of 64 bins: \d+; experiments: E\w\.\w+\.cell\w, ", caught.value.where)

    def test_rows_are_named(self, planted, monkeypatch):  # noqa: F811
        original, bad = Loader.epoch, []

        def spoilt(self, *args, **options):
            for seen, batch in original(self, *args, **options):
                batch.dna[[2, 7]] = np.nan
                bad.extend(batch.rows[[2, 7]].tolist())
                yield seen, batch

        monkeypatch.setattr(Loader, "epoch", spoilt)
        with pytest.raises(TrainingError, match="loss is nan at step 0") as caught:
            train_head(planted.store, planted.selection, TrainConfig(steps=2, pairing="rows", **QUICK), "nan-rows")
        assert caught.value.where == f"2 of 32 rows: {bad[0]}, {bad[1]}"

    def test_a_gradient_that_is_none_changes_no_weight(self, planted, monkeypatch):  # noqa: F811
        monkeypatch.setattr(training, "clip", lambda parameters, largest: float("inf"))
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: pytest.fail("stepped"))
        with pytest.raises(TrainingError, match="gradient is inf at step 0"):
            train_head(planted.store, planted.selection, TrainConfig(steps=2, **QUICK), "inf")

    def test_a_head_that_came_apart_is_said_at_the_next_look(self, planted):  # noqa: F811
        config = TrainConfig(**{**QUICK, "lr": 1e30, "steps": 2})
        with pytest.raises(TrainingError, match="validation scores are no finite number") as caught:
            train_head(planted.store, planted.selection, config, "apart")
        assert "lower" in caught.value.fix


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


def test_kept_weights_are_those_that_were_validated(planted):  # noqa: F811
    result = train_head(planted.store, planted.selection, TrainConfig(steps=4, **QUICK), "kept")
    assert load_checkpoint(result.path / "head.safetensors").header.metrics["step"] == result.metrics["step"] == 4
    assert (result.path / "log.csv").read_text().splitlines()[0] == (
        "step,train_loss,valid_loss,valid_auroc,valid_auprc,seconds"
    )


@pytest.mark.parametrize(
    "odd",
    [{"steps": 0}, {"bound_share": 2.0}, {"permute_labels": True, "pairing": "rows"}, {"accumulate": 0},
     {"average": 1.0}, {"clip": -1.0}, {"minutes": 0.0}, {"minutes": -1.0}, {"patience": -1}, {"max_valid_bins": 0},
     {"validate_every": 0}],
)  # fmt: skip
def test_odd_configs_are_refused(odd):
    with pytest.raises(ConfigError):
        TrainConfig(**odd)


@pytest.mark.parametrize(
    "odd",
    [{"windows": "windws"}, {"head": "adaptr"}, {"options": {"widht": 3}}, {"lr_scale": {"filp.*": 0.1}},
     {"trackers": ("wandbb",)}],
)  # fmt: skip
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
    path.mkdir(parents=True)
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
    make_selection(planted.store, "all_test", SelectionConfig(split=split, allow_leaks=("trunk",)))
    with pytest.raises(SelectionError, match="no training rows"):
        train_head(planted.store, "all_test", TrainConfig(steps=2, **QUICK), "never")
    with pytest.raises(SelectionError, match="no training rows"):
        pretrain_trunk(planted.store, "all_test", out_dir=planted.store.path / "no-trunk")
    assert not (planted.store.path / "no-trunk").exists()


def losses_of(path):
    return [line["train_loss"] for line in log_of(path)]


def steady(**changes):
    """Without dropout and with a look at each step: its loss curve is that of every step."""
    options = {**SMALL, "dropout": 0.0}
    return TrainConfig(**{**QUICK, "options": options, "steps": 6, "validate_every": 1, **changes})


@pytest.mark.parametrize("pairing", ["dense", "rows"])
def test_accumulation_makes_the_same_steps(planted, pairing):  # noqa: F811
    one, many = (
        train_head(planted.store, planted.selection, steady(pairing=pairing, accumulate=n), f"pieces-{pairing}-{n}")
        for n in (1, 5)
    )
    np.testing.assert_allclose(losses_of(many.path), losses_of(one.path), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pairing", ["dense", "rows"])
def test_checkpointing_makes_the_same_steps(planted, pairing):  # noqa: F811
    paths = []
    for checkpointing in (False, True):
        config = steady(pairing=pairing, checkpointing=checkpointing, options={**SMALL, "dropout": 0.2})
        paths.append(train_head(planted.store, planted.selection, config, f"kept-{pairing}-{checkpointing}").path)
    np.testing.assert_allclose(losses_of(paths[0])[0], losses_of(paths[1])[0], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pairing", ["dense", "rows"])
def test_two_processes_make_the_steps_of_one(planted, pairing):  # noqa: F811
    script = planted.store.path / f"train-{pairing}.py"
    config = configs.to_mapping(steady(pairing=pairing, accumulate=2, batch_rows=33))
    script.write_text(
        "import sys, torch; torch.set_num_threads(1)\n"
        "from tfbind_store import config as configs\n"
        "from tfbind_store.store.folder import Store\n"
        "from tfbind_store.training.train import TrainConfig, train_head\n"
        f"config = configs.from_mapping(TrainConfig, {config!r}, where='test')\n"
        "train_head(Store.open(sys.argv[1]), 'all', config, sys.argv[2])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    for n in (1, 2):
        command = [*launch, str(n), str(script), str(planted.store.path), f"processes-{pairing}-{n}"]
        subprocess.run(command, check=True, env=environment, timeout=300)
    one, two = (planted.store.run_dir(f"processes-{pairing}-{n}") for n in (1, 2))
    assert len(losses_of(one)) == 6
    np.testing.assert_allclose(losses_of(two), losses_of(one), rtol=0, atol=1e-5)
    assert not (two / "state.safetensors").exists()


@pytest.mark.slow
def test_the_command_trains_in_two_processes_and_one_speaks(planted):  # noqa: F811
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--"]
    options = ["--steps", "2", "--device", "cpu", "--set", "bins_per_step=32", "--set", "pairs_per_step=4"]
    command = [*launch, "tfbind_store", "train", str(planted.store.path), "all", "--run", "launched", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*command, "--json"]
    done = subprocess.run(command, check=True, env=environment, timeout=300, capture_output=True, text=True)
    assert json.loads(done.stdout)["steps"] == 2
    assert (planted.store.run_dir("launched") / "head.safetensors").exists()


def test_the_average_is_what_is_validated_and_kept(planted):  # noqa: F811
    config = steady(average=0.5, validate_every=6)
    plain = train_head(planted.store, planted.selection, steady(validate_every=6), "plain").path
    averaged = train_head(planted.store, planted.selection, config, "averaged").path
    assert losses_of(averaged) == losses_of(plain)
    one, two = (load_checkpoint(path / "head.safetensors").head.state_dict() for path in (plain, averaged))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    assert log_of(plain)[0]["valid_loss"] != log_of(averaged)[0]["valid_loss"]


def test_last_weights_are_kept_beside_the_best(planted, monkeypatch):  # noqa: F811
    looks = iter([0.5, 0.9, 0.2])
    monkeypatch.setattr(
        training, "validate", lambda *_: {"valid_loss": 1.0, "valid_auroc": 0.5, "valid_auprc": next(looks)}
    )
    path = train_head(
        planted.store, planted.selection, TrainConfig(steps=6, **{**QUICK, "validate_every": 2}), "both"
    ).path
    metrics = [read_header(path / name).metrics for name in ("head.safetensors", "last.safetensors")]
    assert [(m["step"], m["valid_auprc"]) for m in metrics] == [(4, 0.9), (6, 0.2)]


def test_checkpoints_hold_the_head_alone_and_say_what_it_is_for(planted):  # noqa: F811
    path = train_head(planted.store, planted.selection, TrainConfig(steps=1, **QUICK), "by-itself").path
    head, header = load_checkpoint(path / "last.safetensors")
    with safe_open(path / "last.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(head.state_dict())
    assert "FROM peaks" in header.selection["sql"]
    assert header.selection["config"]["split"]["valid_chroms"] == ["chr3"]
    assert header.train["lr"] == QUICK["lr"]


def test_a_head_of_another_store_is_refused_with_the_field(planted, tmp_path):  # noqa: F811
    train_head(planted.store, planted.selection, TrainConfig(steps=1, **QUICK), "here")
    other = make_planted(tmp_path, seed=1)
    shutil.copytree(planted.store.run_dir("here"), other.store.run_dir("here"))
    with pytest.raises(CheckpointError) as caught:
        load_run(other.store, "here")
    assert caught.value.where.endswith("arrays.windows.fingerprint")


def test_deterministic_mode_is_on_during_the_run_alone(planted, monkeypatch):  # noqa: F811
    seen, step = [], training.TrainingRun.one_step

    def watching(self, numbered, share):
        seen.append(torch.are_deterministic_algorithms_enabled())
        step(self, numbered, share)

    monkeypatch.setattr(training.TrainingRun, "one_step", watching)
    for pairing in ("dense", "rows"):
        config = TrainConfig(steps=2, deterministic=True, pairing=pairing, **QUICK)
        train_head(planted.store, planted.selection, config, f"deterministic-{pairing}")
    assert seen == [True] * 4
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_head_makes_the_same_steps(planted):  # noqa: F811
    plain = train_head(planted.store, planted.selection, steady(steps=3), "eager").path
    compiled = train_head(planted.store, planted.selection, steady(steps=3, compile=True), "compiled").path
    np.testing.assert_allclose(losses_of(compiled), losses_of(plain), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_trackers_write_into_the_runs_folder(planted):  # noqa: F811
    pytest.importorskip("tensorboard")
    config = TrainConfig(steps=2, trackers=("tensorboard",), **QUICK)
    path = train_head(planted.store, planted.selection, config, "tracked").path
    assert list((path / "tensorboard").glob("events.*"))


class TestBalance:
    def test_dense_batches_hold_factors_equally_often(self, planted):  # noqa: F811
        selection = Selection.open(planted.store, planted.selection)
        material = gather_material(
            planted.store, selection, choose_arrays(planted.store), device=torch.device("cpu"), max_valid_bins=100
        )
        training_, ids = material.training, material.training.factor_id
        lonely = training_.take(np.flatnonzero((ids != ids[0]) | (np.arange(len(ids)) == 0)))  # one of factor ids[0]
        share = {}
        for balance in ("none", "factor"):
            feed = DenseFeed(
                material.source, material.truth, lonely, material.train_bins, 1, 1, 0.0, 0, balance
            )  # fmt: skip
            drawn = [int(feed.batch(number).experiments[0]) for number in range(400)]
            share[balance] = drawn.count(int(lonely.experiment_id[0])) / 400
        n_factors, n_experiments = len(set(lonely.factor_id.tolist())), len(lonely.factor_id)
        assert share["none"] == pytest.approx(1 / n_experiments, abs=0.05)
        assert share["factor"] == pytest.approx(1 / n_factors, abs=0.05)
        assert abs(1 / n_factors - 1 / n_experiments) > 0.05


def test_bfloat16_keeps_losses_pooling_and_softmax_in_float32(planted):  # noqa: F811
    """Of all that is exponentiated, logged or summed up to a softmax, nothing is in half precision."""
    delicate = {"aten._softmax", "aten.exp", "aten.log", "aten.logsumexp", "aten.binary_cross_entropy_with_logits"}
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = str(function).rpartition(".")[0]
            seen.append((name, args[0].dtype if args and isinstance(args[0], torch.Tensor) else None))
            return function(*args, **(kwargs or {}))

    config = TrainConfig(steps=1, precision="bfloat16", **QUICK)
    step = training.TrainingRun.one_step
    with pytest.MonkeyPatch.context() as patch:

        def watched(self, numbered, share):
            with Watch():
                step(self, numbered, share)

        patch.setattr(training.TrainingRun, "one_step", watched)
        train_head(planted.store, planted.selection, config, "half")
    assert ("aten.mm", torch.bfloat16) in seen or ("aten.addmm", torch.bfloat16) in seen
    found = {name: {dtype for other, dtype in seen if other == name} for name in delicate}
    assert found["aten._softmax"] == {torch.float32}
    assert set().union(*found.values()) == {torch.float32}, found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pairing", ["dense", "rows"])
def test_cuda_makes_the_steps_of_the_cpu(planted, pairing):  # noqa: F811
    paths = [
        train_head(planted.store, planted.selection, steady(pairing=pairing, device=device), f"{device}-{pairing}").path
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(losses_of(paths[1]), losses_of(paths[0]), rtol=0, atol=1e-4)
