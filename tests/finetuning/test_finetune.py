import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyBigWig
import pytest
import torch
from click.testing import CliRunner

from tests.planted import CHROMS, make_planted
from tfbind_store.cli import main
from tfbind_store.errors import ConfigError, SpecError, StoreExists, TrainingError
from tfbind_store.finetuning import finetune
from tfbind_store.finetuning.feed import FinetuneFeed, validation_windows
from tfbind_store.finetuning.finetune import FinetuneConfig, finetune_run
from tfbind_store.finetuning.live_model import LiveTrunk, require_trunk_of
from tfbind_store.heads import load_checkpoint, read_header, save_checkpoint
from tfbind_store.ingest import import_signals
from tfbind_store.precompute.embedder import make_sequence_embedder
from tfbind_store.precompute.enformer import EnformerEmbedder, load_trunk, random_trunk, save_trunk
from tfbind_store.precompute.esm import NOT_USED, random_esm2
from tfbind_store.precompute.esm_save import save_esm2
from tfbind_store.precompute.rows import embed_factors
from tfbind_store.precompute.run import embed_windows
from tfbind_store.precompute.trunk_files import trunk_tensors
from tfbind_store.pretraining.feed import Stretch
from tfbind_store.query.selection import Selection, make_selection
from tfbind_store.scoring.bins import load_run
from tfbind_store.training.material import gather_material, validate
from tfbind_store.training.train import TrainConfig, train_head

ARCHITECTURE = {
    "dim": 24, "depth": 2, "heads": 2, "attn_dim_key": 6, "num_downsamples": 5, "dim_divisible_by": 4,
    "dropout_rate": 0.3,
}  # fmt: skip
SMALL = {
    "width": 16,
    "filip_heads": 4,
    "filip_dim": 4,
    "tower_dim": 8,
    "n_queries": 3,
    "summary_dim": 16,
    "dropout": 0.0,
}
QUICK = {"steps": 6, "windows_per_step": 3, "pairs_per_step": 8, "device": "cpu", "validate_every": 3, "save_every": 2}
SEEN = {"factors": ["WEA"], "chromosomes": ["chr1"], "biotypes": []}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store whose windows are embedded by a random Enformer and its proteins by a random ESM, and a head."""
    folder = tmp_path_factory.mktemp("finetune")
    store = make_planted(folder).store
    trunk = save_trunk(random_trunk(ARCHITECTURE, seed=0).model, folder / "trunk", SEEN)
    model, alphabet = random_esm2(1, 16, 2, seed=0)
    esm = save_esm2(model, alphabet, folder / "esm")
    embed_windows(store, EnformerEmbedder(load_trunk(trunk), device="cpu"), name="tiny")
    embed_windows(store, EnformerEmbedder(load_trunk(trunk), strand="mean", device="cpu"), name="both")
    embed_factors(store, make_sequence_embedder("esm", {"checkpoint": str(esm), "device": "cpu"}), name="esm")
    base = {"options": SMALL, "steps": 30, "bins_per_step": 64, "pairs_per_step": 6, "device": "cpu", "lr": 3e-3}
    for run, windows, proteins in (
        ("base", "tiny", "composition"),
        ("mean", "both", "composition"),
        ("esm", "tiny", "esm"),
    ):
        train_head(store, "all", TrainConfig(windows=windows, proteins=proteins, **base), run)
    return store, trunk, esm


def tune(world, name, *, run="base", **changes):
    store, trunk, _ = world
    config = FinetuneConfig(**{**QUICK, **changes})
    return finetune_run(store, run, trunk, store.path / f"trunk-{name}", config, new_run=name)


def changed(world, out):
    before, after = (trunk_tensors(load_trunk(path).model) for path in (world[1], out))
    return sorted(name for name, tensor in after.items() if not torch.equal(tensor, before[name]))


@pytest.mark.parametrize("run", ["base", "mean"])
def test_live_windows_are_the_stored_ones(world, run):
    store, trunk, _ = world
    name = load_run(store, run).arrays.windows
    array = store.array(name)
    live = LiveTrunk(load_trunk(trunk), require_trunk_of(store, name, load_trunk(trunk)),
                     checkpointing=False, dtype=torch.float32)  # fmt: skip
    windows = [0, 3, store.tiling.n_windows - 1]
    loci = [store.tiling.read(window) for window in windows]
    codes = np.stack([store.genome.codes(locus.chrom, locus.start, locus.end) for locus in loci])
    with torch.no_grad():
        found = live(codes, store.grid.n_bins).numpy()
    np.testing.assert_allclose(found, [array.row(w).astype(np.float32) for w in windows], atol=5e-3)


def test_layernorms_only_move_layernorms_and_the_embedder_takes_the_trunk(world):
    store, trunk, _ = world
    result = tune(world, "ln", mode="layernorm", trunk_lr=1e-2)
    names = [f"transformer.{b}.{p}.fn.0.{kind}" for b in (0, 1) for p in (0, 1) for kind in ("bias", "weight")]
    assert changed(world, result.trunk) == names
    assert result.trained["trunk"] == len(names) == 8
    assert (result.windows, result.steps) == ("embeddings/ln", 6)
    old, new = (
        EnformerEmbedder(load_trunk(p), device="cpu").spec(store.meta.genome, store.grid) for p in (trunk, result.trunk)
    )
    assert old.fingerprint != new.fingerprint
    header = read_header(result.run / "head.safetensors")
    assert header.arrays["windows"] == {"name": "embeddings/ln", "fingerprint": new.fingerprint}
    card = load_trunk(result.trunk).card
    assert card.trained_on_json["chromosomes"] == ["chr1", "chr2"]
    assert "OLA" not in card.trained_on_json["factors"]
    assert header.trunk_trained_on == card.trained_on_json
    embed_windows(store, EnformerEmbedder(load_trunk(result.trunk), device="cpu"), name="ln")
    run = load_run(store, "ln")
    material = gather_material(
        store, Selection.open(store, "all"), run.arrays, device=torch.device("cpu"), max_valid_bins=10**6
    )
    stored = validate(run.head, material, FinetuneConfig().loss)
    assert stored["valid_loss"] == pytest.approx(result.metrics["valid_loss"], rel=0.02)


@pytest.mark.parametrize(("mode", "prefixes"), [("head", ()), ("last:1", ("transformer.1.",))])
def test_other_modes_move_what_they_say(world, mode, prefixes):
    result = tune(world, f"mode-{mode.replace(':', '')}", mode=mode, trunk_lr=1e-2)
    found = changed(world, result.trunk)
    assert all(name.startswith(prefixes) for name in found)
    assert bool(found) == bool(prefixes)
    assert result.trained["trunk"] == len(found)


def test_the_head_starts_from_the_run(world):
    result = tune(world, "still", mode="head", lr=1e-12, steps=1, weight_decay=0.0)
    one, two = (load_run_weights(world[0], name) for name in ("base", "still"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert result.before["valid_loss"] == pytest.approx(result.metrics["valid_loss"], rel=1e-4)


def load_run_weights(store, name):
    from tfbind_store.heads import load_checkpoint

    return load_checkpoint(store.run_dir(name) / "head.safetensors").head.state_dict()


def test_layernorms_of_the_protein_encoder_train_too(world):
    esm = world[2]
    options = {"checkpoint": str(esm)}
    result = tune(
        world, "protein", run="esm", mode="head", proteins="layernorm", protein_options=options, protein_lr=1e-2
    )
    before, after = (
        make_sequence_embedder("esm", {"checkpoint": str(p), "device": "cpu"}) for p in (esm, result.proteins)
    )
    one, two = before.module.state_dict(), after.module.state_dict()
    moved = sorted(n for n in one if not n.startswith(NOT_USED) and not torch.equal(one[n], two[n]))
    norms = [
        f"layers.0.{norm}.{kind}"
        for norm in ("final_layer_norm", "self_attn_layer_norm")
        for kind in ("bias", "weight")
    ]
    assert moved == sorted([*norms, "emb_layer_norm_after.bias", "emb_layer_norm_after.weight"])
    header = read_header(result.run / "head.safetensors")
    assert header.arrays["proteins"] == {"name": "proteins/protein", "fingerprint": after.spec().fingerprint}
    assert before.spec().fingerprint != after.spec().fingerprint


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("kill_at", [1, 2, 3, 5])
def test_a_stopped_run_ends_with_the_same_bytes(world, monkeypatch, kill_at):
    if not (world[0].path / "trunk-whole").exists():
        tune(world, "whole", trunk_dropout=0.1)
    step = finetune._Tuner._one_step

    def dying(self, batch):
        if self.state.step == kill_at:
            raise _Killed
        step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(finetune._Tuner, "_one_step", dying)
        with pytest.raises(_Killed):
            tune(world, f"cut{kill_at}", trunk_dropout=0.1)
    again = tune(world, f"cut{kill_at}", trunk_dropout=0.1)
    assert again.was_resumed == (kill_at >= 2)
    whole = world[0].path / "trunk-whole"
    assert (again.trunk / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    logs = [
        [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()] for path in (again.trunk, whole)
    ]
    assert [{**line, "seconds": 0} for line in logs[0]] == [{**line, "seconds": 0} for line in logs[1]]
    assert not (again.trunk / "state.safetensors").exists()


@pytest.mark.parametrize("last_done", ["save_trunk", "save_checkpoint"])
def test_a_run_stopped_while_it_publishes_goes_on(world, monkeypatch, last_done):
    """Its own trunk, or run, lies there already, and is no reason to refuse it."""
    name, real = f"published-{last_done}", getattr(finetune, last_done)

    def then_dying(*arguments, **choices):
        real(*arguments, **choices)
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(finetune, last_done, then_dying)
        with pytest.raises(_Killed):
            tune(world, name)
    assert (world[0].path / f"trunk-{name}" / "model.safetensors").exists()
    assert tune(world, name).was_resumed
    with pytest.raises(StoreExists, match="a trunk or a run"):
        tune(world, name)


def test_a_stopped_run_does_not_replace_another_of_its_name(world, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(finetune._Tuner, "publish", lambda *_: (_ for _ in ()).throw(_Killed()))
        with pytest.raises(_Killed):
            tune(world, "meanwhile")
    shutil.copytree(world[0].run_dir("base"), world[0].run_dir("meanwhile"))
    with pytest.raises(StoreExists, match="a trunk or a run"):
        tune(world, "meanwhile")


class TestRefusals:
    def test_another_trunk_is_refused_with_the_field(self, world, tmp_path):
        other = save_trunk(random_trunk(ARCHITECTURE, seed=1).model, tmp_path / "other", SEEN)
        with pytest.raises(SpecError, match=r"identity\.weights_sha256"):
            finetune_run(world[0], "base", other, tmp_path / "out", FinetuneConfig(**QUICK))
        assert not (tmp_path / "out").exists()

    def test_a_trunk_or_run_that_is_there_is_kept(self, world, tmp_path):
        shutil.copytree(world[1], tmp_path / "mine")
        with pytest.raises(StoreExists, match="a trunk or a run"):
            finetune_run(world[0], "base", world[1], tmp_path / "mine", FinetuneConfig(**QUICK))

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_nothing_replaces_what_it_is_made_from(self, world, tmp_path, overwrite):
        config = FinetuneConfig(**QUICK)
        with pytest.raises(ConfigError, match="made from"):
            finetune_run(world[0], "base", world[1], tmp_path / "new", config, new_run="base", overwrite=overwrite)
        with pytest.raises(ConfigError, match="made from"):
            finetune_run(world[0], "base", world[1], world[1], config, overwrite=overwrite)

    def test_a_shift_of_a_bin_is_refused(self, world, tmp_path):
        config = FinetuneConfig(**{**QUICK, "shift_bp": world[0].grid.bin_bp})
        with pytest.raises(ConfigError, match="shift_bp"):
            finetune_run(world[0], "base", world[1], tmp_path / "new", config)

    def test_a_loss_that_is_not_finite_stops(self, world, monkeypatch):
        monkeypatch.setattr(finetune, "cell_losses", lambda *_: torch.tensor([torch.nan], requires_grad=True))
        with pytest.raises(TrainingError, match="at step 0") as caught:
            tune(world, "nan")
        assert re.fullmatch(r"windows \d+(, \d+)*", caught.value.where)

    @pytest.mark.parametrize(
        "odd",
        [{"mode": "laynorm"}, {"steps": 0}, {"trunk_lr": 0.0}, {"proteins": "layernorm"},
         {"warmup": 1.0}, {"weight_decay": -1.0}, {"clip": -1.0}],
    )  # fmt: skip
    def test_odd_configs(self, odd):
        with pytest.raises(ConfigError):
            FinetuneConfig(**odd)


class TestFeed:
    def feed(self, world, **changes):
        store = world[0]
        return FinetuneFeed(store, Selection.open(store, "all"), FinetuneConfig(**{**QUICK, **changes}))

    def test_windows_are_the_stores_but_for_a_shift_of_two_bases(self, world):
        store = world[0]
        grid = {(s.chrom, s.start) for s in self.feed(world, shift_bp=0).one_pass(0)}
        assert all(start % store.grid.stride_bp == 0 for _, start in grid)
        shifts = {round((s.start + 2) / store.grid.stride_bp) * store.grid.stride_bp - s.start
                  for number in range(5) for s in self.feed(world).one_pass(number)}  # fmt: skip
        assert shifts == {-2, -1, 0, 1, 2}
        assert {s.chrom for s in self.feed(world).one_pass(0)} == {0, 1}

    def test_labels_go_with_shift_and_strand(self, world):
        feed = self.feed(world)
        ahead = next(s for s in feed.one_pass(0) if feed.batch([s], 0).labels.any())
        back = feed.batch([ahead._replace(is_reverse=not ahead.is_reverse)], 0)
        np.testing.assert_array_equal(back.labels, feed.batch([ahead], 0).labels[:, ::-1])
        moved = feed.batch([ahead._replace(start=ahead.start + 32, is_reverse=False)], 0).labels
        still = feed.batch([ahead._replace(is_reverse=False)], 0).labels
        np.testing.assert_array_equal(moved[:, :-1], still[:, 1:])

    def test_validation_reads_the_cells_that_heads_are_validated_on(self, world):
        store, selection = world[0], Selection.open(world[0], "all")
        arrays = load_run(store, "base").arrays
        found = validation_windows(store, selection, arrays, FinetuneConfig(**QUICK, max_valid_windows=10**6))
        material = gather_material(store, selection, arrays, device=torch.device("cpu"), max_valid_bins=10**6)
        np.testing.assert_array_equal(found.valid.labels, material.valid.labels)
        few = validation_windows(store, selection, arrays, FinetuneConfig(**QUICK, max_valid_windows=2))
        assert len(few.windows) == 2
        assert set(few.valid.bins // store.grid.n_bins) == set(few.windows)


@pytest.mark.slow
def test_fine_tuning_helps_a_random_trunk(world):
    result = tune(world, "longer", mode="all", steps=60, trunk_lr=1e-3, lr=1e-3, validate_every=20, windows_per_step=4)
    assert result.metrics["valid_loss"] < result.before["valid_loss"]


def test_plan_states_the_memory_of_each_mode(world):
    store, trunk, _ = world
    command = ["plan", str(store.path), "--finetune", "mean", "--checkpoint", str(trunk), "--set", "mode=last:2"]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert [line.split()[0] for line in shown.stdout.splitlines()[2:6]] == ["head", "layernorm", "last:1", "last:2"]
    said = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    by_mode = {row["mode"]: row for row in said["modes"]}
    assert by_mode["layernorm"]["tensors"] == 8
    assert by_mode["all"]["total_bytes"] > by_mode["head"]["total_bytes"]
    refused = CliRunner().invoke(main, command[:4])
    assert refused.exit_code == 1
    assert "fix:   --checkpoint TRUNK" in refused.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_fine_tunes_like_the_cpu(world):
    found = [
        tune(world, f"on-{device}", mode="all", device=device, trunk_lr=1e-4).metrics for device in ("cpu", "cuda")
    ]
    assert found[1]["valid_loss"] == pytest.approx(found[0]["valid_loss"], rel=1e-2)


class TestSignals:
    """A head that reads a biotype's signal reads it in fine-tuning too."""

    @pytest.fixture
    def signalled(self, world, tmp_path):
        """A run whose head takes a strong part from the signal of cellA."""
        store = world[0]
        rng = np.random.default_rng(0)
        with pyBigWig.open(str(tmp_path / "cellA.bw"), "w") as file:
            file.addHeader(list(CHROMS.items()))
            for chrom, length in CHROMS.items():
                values = np.repeat(rng.gamma(1.0, 5.0, length // 32 + 1), 32)[:length]
                file.addEntries(chrom, 0, values=values.tolist(), span=1, step=1)
        (tmp_path / "s.tsv").write_text("track\tbiotype\ncellA\tcellA\n")
        import_signals(store, tmp_path, annotation=tmp_path / "s.tsv")
        split = Selection.open(store, "all").config
        make_selection(
            store, "open", replace(split, signals="signals", allow_leaks=("paralog", "trunk")), overwrite=True
        )
        config = TrainConfig(windows="tiny", proteins="composition", options=SMALL, steps=2, device="cpu", lr=3e-3)
        train_head(store, "open", config, "open", overwrite=True)
        path = store.run_dir("open") / "head.safetensors"
        head, header = load_checkpoint(path)
        with torch.no_grad():
            head.signal.net[-1].weight.normal_(std=3.0, generator=torch.Generator().manual_seed(0))
        save_checkpoint(path, head, header)
        return store

    def test_what_validates_before_is_what_stored_windows_say_with_their_signal(self, world, signalled):
        run = load_run(signalled, "open")
        material = gather_material(
            signalled, Selection.open(signalled, "open"), run.arrays, device=torch.device("cpu"), max_valid_bins=10**6
        )
        material.source.signals = run.source.signals
        wanted = validate(run.head, material, FinetuneConfig().loss)["valid_loss"]
        material.source.signals = None
        without = validate(run.head, material, FinetuneConfig().loss)["valid_loss"]
        result = tune(world, "open-ln", run="open", steps=1, validate_every=1, mode="layernorm")
        assert result.before["valid_loss"] == pytest.approx(wanted, rel=2e-3)
        assert abs(without - wanted) > 0.05 * wanted
        assert read_header(result.run / "head.safetensors").signals["name"] == "signals/signals"

    def test_bins_are_those_of_the_stretch_either_way(self, world):
        store = world[0]
        feed = FinetuneFeed(store, Selection.open(store, "all"), FinetuneConfig(shift_bp=2))
        tiling, n_bins = store.tiling, store.grid.n_bins
        stride, last = store.grid.stride_bp, int(tiling.first_window[1]) - 1
        whole = np.arange(n_bins)
        for shift in (-2, 0, 2):
            for window, start in ((1, stride), (0, 0)):
                forward = feed._bins(Stretch(0, start + shift, False))
                assert forward.tolist() == (window * n_bins + whole).tolist()
                assert feed._bins(Stretch(0, start + shift, True)).tolist() == forward[::-1].tolist()
        ends = feed._bins(Stretch(0, last * stride, False))
        n_real = tiling.n_real_bins(0) - last * n_bins
        assert ends[:n_real].tolist() == (last * n_bins + whole[:n_real]).tolist()
