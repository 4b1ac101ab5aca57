import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.planted import make_planted
from tfbind_store.errors import ConfigError, NoSpace, StoreExists, TrainingError
from tfbind_store.ingest import import_loci
from tfbind_store.precompute.convnet import ConvnetSizes, load_convnet
from tfbind_store.precompute.enformer import load_trunk
from tfbind_store.pretraining import pretrain
from tfbind_store.pretraining.forward import train_features
from tfbind_store.pretraining.pretrain import PretrainConfig, TrunkConfig, pretrain_trunk
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig

TINY = TrunkConfig(dim=24, depth=1, heads=2, attn_dim_key=6, dim_divisible_by=4)

CONVNET = PretrainConfig(
    kind="convnet",
    convnet=ConvnetSizes(motifs=12, motif_bp=11, dim=12, wide=24, depth=1),
    passes=2,
    device="cpu",
    average=0.9,
    output_dropout=0.1,
    mutation=0.1,
)
FRAMED = replace(CONVNET, convnet=replace(CONVNET.convnet, frame_codons=20), quarter_loss=0.5)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    torch.set_num_threads(1)
    return make_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def trained(planted):
    config = PretrainConfig(trunk=TINY, passes=2, device="cpu", lr=1e-3)
    return pretrain_trunk(planted.store, planted.selection, config, planted.store.path / "trunk")


def test_card_names_training_factors_and_chromosomes_only(trained):
    card = load_trunk(trained.path).card
    assert card.trained_on["chromosomes"] == ["chr1", "chr2"]
    assert "OLA" not in card.trained_on["factors"]
    assert "OLB" in card.trained_on["factors"]
    assert card.trained_on["biotypes"] == ["cellA", "cellB"]
    assert card.notes["labels"] == "measured"


def test_result_counts_tracks_and_steps(trained):
    assert trained.n_tracks == 14
    log = [json.loads(line) for line in (trained.path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == trained.n_steps
    assert [line["pass"] for line in log] == [1.0, 2.0]
    assert set(trained.validation) == {"valid_auroc", "valid_auprc"}


def test_saved_trunk_gives_the_trained_numbers(trained):
    model = load_trunk(trained.path).model
    sequence = torch.eye(4)[torch.arange(512) % 4].unsqueeze(0)
    with torch.inference_mode():
        one = train_features(model, sequence)
        plain = model(sequence, return_only_embeddings=True)
    torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-5)


def test_feed_sees_nothing_but_the_training_part(planted):
    selection = Selection.open(planted.store, planted.selection)
    feed = pretrain.training_feed(planted.store, selection, PretrainConfig())
    assert feed.chroms == (0, 1)
    names = feed.evidence.experiments["experiment"]
    held_out = {place for place, name in enumerate(names.tolist()) if ".OLA." in name}
    assert held_out
    assert not held_out & set(feed.experiment_ids.tolist())


def test_a_chromosome_that_a_split_divides_is_seen_in_its_training_part_only(planted, tmp_path):
    store = planted.store
    for split, (begin, end) in {"train": (0, 6000), "valid": (6400, 8000), "test": (8400, 12000)}.items():
        bed = tmp_path / f"{split}.bed"
        bed.write_text(f"chr1\t{begin}\t{end}\n")
        import_loci(store, bed, "parts", split=split)
    config = SelectionConfig(margin_bp=0, split=SplitConfig(loci="parts"), allow_leaks=("trunk", "window"))
    make_selection(store, "parts", config)
    selection = Selection.open(store, "parts")
    feed = pretrain.training_feed(store, selection, PretrainConfig())
    valid = pretrain._validation_feed(store, selection, feed)
    for own, (begin, end) in ((feed, (0, 6000)), (valid, (6400, 8000))):
        known = set()
        for stretch in own.one_pass(np.random.default_rng(0)):
            labels = own.batch([stretch]).labels[0]
            bins = np.flatnonzero(~np.isnan(labels).all(1)) if not stretch.is_reverse else None
            labelled = bins if bins is not None else own.n_bins - 1 - np.flatnonzero(~np.isnan(labels).all(1))
            known |= {(stretch.chrom, stretch.start + int(at) * own.bin_bp) for at in labelled}
        assert known
        assert {chrom for chrom, _ in known} == {0}
        assert min(at for _, at in known) >= begin
        assert max(at for _, at in known) + own.bin_bp <= end


def test_control_moves_the_peaks(planted):
    selection = Selection.open(planted.store, planted.selection)
    real, moved = (
        pretrain.training_feed(planted.store, selection, PretrainConfig(permute_labels=permute))
        for permute in (False, True)
    )
    np.testing.assert_array_equal(real.evidence.peaks.experiment_id, moved.evidence.peaks.experiment_id)
    assert (real.evidence.peaks.summit_bp != moved.evidence.peaks.summit_bp).mean() > 0.9


def test_same_seed_gives_the_same_trunk(planted, trained):
    config = PretrainConfig(trunk=TINY, passes=2, device="cpu", lr=1e-3)
    again = pretrain_trunk(planted.store, planted.selection, config, planted.store.path / "again")
    one, two = (load_trunk(path).model.state_dict() for path in (trained.path, again.path))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_every_parameter_moves(planted, trained):
    config = PretrainConfig(trunk=TINY, passes=0.01, device="cpu", lr=1e-12, weight_decay=0.0)
    start = pretrain_trunk(planted.store, planted.selection, config, planted.store.path / "zero")
    before = load_trunk(start.path).model
    after = load_trunk(trained.path).model
    still = [name for name, p in before.named_parameters() if torch.allclose(p, after.state_dict()[name], atol=1e-9)]
    assert still == []


def test_time_limit_ends_the_training(planted):
    config = PretrainConfig(trunk=TINY, passes=10_000, minutes=1 / 60, device="cpu", validate_every=0)
    result = pretrain_trunk(planted.store, planted.selection, config, planted.store.path / "short")
    assert 0 < result.n_steps < 10_000
    assert result.validation == {}


def test_loss_that_is_not_finite_stops(planted, monkeypatch):
    monkeypatch.setattr(pretrain._Trainer, "_logits", lambda self, bins: torch.full((len(bins), 16, 14), float("inf")))
    config = PretrainConfig(trunk=TINY, passes=1, device="cpu")
    with pytest.raises(TrainingError, match="at step 0"):
        pretrain_trunk(planted.store, planted.selection, config, planted.store.path / "inf")


@pytest.mark.parametrize(
    ("trunk", "bin_bp", "message"), [(TINY, 100, "bins are"), (TrunkConfig(dim=32, heads=4), 128, "multiple of 6")]
)
def test_sizes_that_do_not_fit_are_refused(trunk, bin_bp, message):
    with pytest.raises(ConfigError, match=message):
        trunk.hparams(bin_bp)


def test_a_convnet_has_the_stores_bins_and_a_card(planted):
    result = pretrain_trunk(planted.store, planted.selection, CONVNET, planted.store.path / "convnet")
    model, card = load_convnet(result.path)
    assert model.sizes.bin_bp == planted.store.grid.bin_bp
    assert card.trained_on["chromosomes"] == ["chr1", "chr2"]
    assert "OLA" not in card.trained_on["factors"]
    assert card.notes["pretrain"]["kind"] == "convnet"


@pytest.mark.parametrize(
    ("name", "config"), [("plain", replace(CONVNET, average=0.0)), ("averaged", CONVNET), ("framed", FRAMED)]
)
def test_a_stopped_convnet_goes_on_to_the_same_bytes(planted, monkeypatch, name, config):
    config = replace(config, save_every=5)
    whole = pretrain_trunk(planted.store, planted.selection, config, planted.store.path / f"whole_{name}")
    step = pretrain._Trainer._one_step

    def stopped(self, stretches, share):
        if self.step == 7:
            raise KeyboardInterrupt
        step(self, stretches, share)

    out = planted.store.path / f"parts_{name}"
    with monkeypatch.context() as patch:
        patch.setattr(pretrain._Trainer, "_one_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            pretrain_trunk(planted.store, planted.selection, config, out)
    again = pretrain_trunk(planted.store, planted.selection, config, out)
    assert again.was_resumed
    one, two = (load_convnet(path).model.state_dict() for path in (whole.path, again.path))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_what_is_saved_is_the_average(planted, monkeypatch):
    own = {}
    save = pretrain.save_model

    def saved(model, *rest, **named):
        own.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        save(model, *rest, **named)

    monkeypatch.setattr(pretrain, "save_model", saved)
    config = replace(CONVNET, validate_every=0)
    averaged = pretrain_trunk(planted.store, planted.selection, config, planted.store.path / "averaged")
    of_average = dict(own)
    plain = pretrain_trunk(
        planted.store, planted.selection, replace(config, average=0.0), planted.store.path / "not_averaged"
    )
    assert averaged.loss == plain.loss  # the same weights were trained
    assert not torch.equal(of_average["motifs.weight"], own["motifs.weight"])
    kept = load_convnet(averaged.path).model.state_dict()
    assert torch.equal(kept["motifs.weight"], of_average["motifs.weight"])


@pytest.mark.parametrize(
    "odd", [{"weight_decay": -1.0}, {"clip": -1.0}, {"validate_every": -1.0}, {"save_every": 0}, {"minutes": 0.0}]
)
def test_odd_configs_are_refused(odd):
    with pytest.raises(ConfigError):
        PretrainConfig(**odd)


def test_shares_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="output_dropout, average and mutation"):
        PretrainConfig(average=1.0)


@pytest.mark.slow
def test_planted_motifs_are_learned_from_sequence(planted):
    config = PretrainConfig(trunk=TINY, passes=150, device="cpu", lr=4e-3, validate_every=0, batch_size=8)
    result = pretrain_trunk(planted.store, planted.selection, config, planted.store.path / "long")
    assert result.loss < 1.5


class TestTheFolder:
    def test_a_trunk_that_is_there_is_kept(self, planted, trained):
        weights = trained.path / "model.safetensors"
        before = weights.read_bytes()
        config = PretrainConfig(trunk=TINY, passes=0.1, device="cpu", validate_every=0, seed=5)
        with pytest.raises(StoreExists, match="a trunk in this folder already"):
            pretrain_trunk(planted.store, planted.selection, config, trained.path)
        assert weights.read_bytes() == before

    def test_overwrite_replaces_it(self, planted, tmp_path):
        (tmp_path / "pytorch_model.bin").write_bytes(b"of somebody else")
        config = PretrainConfig(trunk=TINY, passes=0.1, device="cpu", validate_every=0)
        with pytest.raises(StoreExists):
            pretrain_trunk(planted.store, planted.selection, config, tmp_path)
        pretrain_trunk(planted.store, planted.selection, config, tmp_path, overwrite=True)
        assert load_trunk(tmp_path).card.trained_on is not None

    def test_a_disk_too_small_is_refused_before_the_training(self, planted, tmp_path, monkeypatch):
        monkeypatch.setattr(pretrain, "free_bytes", lambda path: 1000)
        with pytest.raises(NoSpace, match="the disk has 1,000"):
            pretrain_trunk(planted.store, planted.selection, PretrainConfig(trunk=TINY, device="cpu"), tmp_path / "t")


class _Killed(BaseException):
    pass


RESUMED = PretrainConfig(trunk=TINY, passes=2, batch_size=5, save_every=3, device="cpu", validate_every=1)


@pytest.fixture(scope="module")
def whole(planted):
    return pretrain_trunk(planted.store, planted.selection, RESUMED, planted.store.path / "whole")


class TestResume:
    """A stopped run ends with the same bytes as one that was not."""

    @pytest.mark.parametrize("kill_at", [2, 3, 8, 10])
    def test_a_stopped_run_ends_with_the_same_bytes(self, planted, whole, monkeypatch, kill_at):
        out, step = planted.store.path / f"stopped{kill_at}", pretrain._Trainer._one_step

        def dying(self, stretches, share):
            if self.step == kill_at:
                raise _Killed
            step(self, stretches, share)

        with monkeypatch.context() as patch:
            patch.setattr(pretrain._Trainer, "_one_step", dying)
            with pytest.raises(_Killed):
                pretrain_trunk(planted.store, planted.selection, RESUMED, out)
        torch.rand(3)  # another process would stand elsewhere in torch's random numbers
        again = pretrain_trunk(planted.store, planted.selection, RESUMED, out)
        assert again.was_resumed == (kill_at >= 3)
        assert not whole.was_resumed
        assert (out / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
        logs = [
            [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()] for path in (out, whole.path)
        ]
        assert [{**line, "seconds": 0} for line in logs[0]] == [{**line, "seconds": 0} for line in logs[1]]
        assert not (out / "state.safetensors").exists()

    def test_another_config_does_not_go_on_with_it(self, planted, monkeypatch):
        out = planted.store.path / "other"
        with monkeypatch.context() as patch:
            patch.setattr(pretrain._Trainer, "_validate", lambda self, feed: (_ for _ in ()).throw(_Killed()))
            with pytest.raises(_Killed):
                pretrain_trunk(planted.store, planted.selection, RESUMED, out)
        other = PretrainConfig(trunk=TINY, passes=0.2, device="cpu", validate_every=0)
        with pytest.raises(ConfigError, match="another config"):
            pretrain_trunk(planted.store, planted.selection, other, out)
        assert not pretrain_trunk(planted.store, planted.selection, other, out, overwrite=True).was_resumed

    def test_steps_cover_each_pass_once(self, planted):
        selection = Selection.open(planted.store, planted.selection)
        feed = pretrain.training_feed(planted.store, selection, RESUMED)
        trainer = pretrain._Trainer(planted.store, selection, feed, RESUMED, planted.store.path)
        batches = trainer._batches()
        first = feed.one_pass(np.random.default_rng([0, 0]))
        read = [
            stretch
            for _, (_, stretches) in zip(range(len(first) // 5 + 1), batches, strict=False)
            for stretch in stretches
        ]
        assert read[: len(first)] == first


def test_a_loss_on_quarters_is_for_convnets():
    for kind, weight in (("enformer", 1.0), ("convnet", -1.0)):
        with pytest.raises(ConfigError, match="quarter_loss"):
            PretrainConfig(kind=kind, quarter_loss=weight)


def test_the_loss_on_quarters_trains_the_trunk_and_is_not_reported(planted):
    short = replace(CONVNET, passes=0.01, lr=1e-2, warmup=0.0, average=0.0, validate_every=0)
    quarters = replace(short, quarter_loss=1.0)
    one, two = (
        pretrain_trunk(planted.store, planted.selection, config, planted.store.path / f"quarters{at}")
        for at, config in enumerate((short, quarters))
    )
    assert one.n_steps == two.n_steps == 1
    assert one.loss == two.loss  # of bins, by the same weights
    weights = [load_convnet(result.path).model.widen.weight for result in (one, two)]
    assert not torch.equal(*weights)


def test_frames_are_read_before_bases_are_changed(planted, monkeypatch):
    seen = []
    features = pretrain.features

    def kept(model, sequence, *, dtype, framed):
        seen.append((sequence, framed))
        return features(model, sequence, dtype=dtype, framed=framed)

    monkeypatch.setattr(pretrain, "features", kept)
    config = replace(FRAMED, passes=0.01, validate_every=0)
    pretrain_trunk(planted.store, planted.selection, config, planted.store.path / "before")
    ((read, framed),) = seen
    share = (read != framed).any(-1).float().mean()
    assert 0 < share < 0.1
