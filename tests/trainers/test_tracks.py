"""The reference's README example of its BigWigTrainer, on small files; and its losses from their formulas."""

import numpy as np
import pyBigWig
import pytest
import torch
from enformer_pytorch import Enformer

from tfbind_store import AdapterModel
from tfbind_store.errors import CheckpointError, ConfigError, SelectionError
from tfbind_store.heads.track_losses import n_counted, pearson, summed_loss
from tfbind_store.trainers.tracks import BigWigTrainer

LENGTHS = {"chr1": 4_096, "chr2": 3_000, "chr3": 2_048}
SMALL = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3, "dropout": 0.0}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two tracks of AAA and BBB that follow the genome's GC, and one of CCC that does not."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    blocks = {chrom: np.repeat(rng.random(length // 32 + 1) < 0.5, 32)[:length] for chrom, length in LENGTHS.items()}
    genome = {
        chrom: "".join(np.where(is_gc, rng.choice(list("CG"), len(is_gc)), rng.choice(list("AT"), len(is_gc))))
        for chrom, is_gc in blocks.items()
    }
    (folder / "genome.fa").write_text("".join(f">{c}\n{s}\n" for c, s in genome.items()))
    (folder / "bigwig").mkdir()
    for number, factor in enumerate(("AAA", "BBB", "CCC")):
        with_values = pyBigWig.open(str(folder / "bigwig" / f"SRX{number}.bw"), "w")
        with_values.addHeader(list(LENGTHS.items()))
        for chrom, is_gc in blocks.items():
            values = np.where(is_gc, 0.1, 0.01) if factor != "CCC" else rng.random(len(is_gc)) * 0.1
            with_values.addEntries(chrom, 0, values=values.tolist(), span=1, step=1)
        with_values.close()
    rows = [f"SRX{n}\thg38\tTFs and others\t{f}\tBlood\tK-562\textra" for n, f in enumerate(("AAA", "BBB", "CCC"))]
    (folder / "experimentList.tab").write_text("\n".join(rows) + "\n")
    (folder / "factors").mkdir()
    for factor in ("AAA", "BBB", "CCC"):
        sequence = "M" + "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 40))
        (folder / "factors" / f"{factor}.{factor}_HUMAN.fasta").write_text(f">sp|P1|{factor}_HUMAN\n{sequence}\n")
    return folder


@pytest.fixture(scope="module")
def model():
    from tfbind_store.precompute.enformer import random_trunk

    return random_trunk(
        {"dim": 24, "depth": 1, "heads": 2, "attn_dim_key": 6, "num_downsamples": 5, "dim_divisible_by": 4}, seed=0
    ).model


@pytest.fixture
def trainer_of(files, model):
    assert isinstance(model, Enformer)

    def make(**changes):
        choices = {
            "bigwig_folder_path": files / "bigwig",
            "annot_file_path": files / "experimentList.tab",
            "factor_fasta_folder": files / "factors",
            "fasta_file": files / "genome.fa",
            "train_chromosome_ids": [1, 2],
            "valid_chromosome_ids": [3],
            "batch_size": 2,
            "context_length": 512,
            "target_length": 12,
            "lr": 1e-2,
            "validate_every": 3,
            "head_options": SMALL,
            "cache_path": files.parent / "track-cache",
            "device": "cpu",
        }
        return BigWigTrainer(changes.pop("trunk", model), **{**choices, **changes})

    return make


LOOKED = {f"valid_{key}" for key in ("loss", "corr_coef", "pearson", "spearman", "pearson_over_tracks")}


def test_the_readme_example_trains_step_by_step(trainer_of):
    trainer = trainer_of(held_out_targets=["CCC"])
    logs = [trainer() for _ in range(6)]
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5, 6]
    assert [set(log) - {"step", "loss"} for log in logs] == [set(), set(), LOOKED] * 2
    (stream,) = trainer.streams
    assert (len(stream.train_tracks.rows), len(stream.valid_tracks.rows)) == (2, 1)


@pytest.mark.parametrize("loss", ["poisson", "pearson"])
def test_a_track_that_sequence_explains_is_learned(trainer_of, loss):
    trainer = trainer_of(loss=loss, validate_every=0)
    before = trainer.validate()["valid_corr_coef"]
    for _ in range(60):
        trainer()
    after = trainer.validate()
    # one track of three is noise
    assert after["valid_corr_coef"] > before + 0.2


def test_labels_are_the_sums_of_the_bases(trainer_of, files):
    trainer = trainer_of()
    labels = trainer.streams[0].labels(np.array([1]), np.arange(3))
    with pyBigWig.open(str(files / "bigwig" / "SRX0.bw")) as track:
        kept = trainer.store.tiling.kept(1)
        expected = np.array(track.values("chr1", kept.start, kept.end)).reshape(12, 32).sum(1)
    np.testing.assert_allclose(labels[0, :, 0].numpy(), expected, rtol=1e-5)


def test_saved_and_loaded_it_goes_on_to_the_same_numbers(trainer_of, tmp_path):
    whole = trainer_of()
    expected = [whole() for _ in range(7)]
    begun = trainer_of()
    for _ in range(4):
        begun()
    begun.save(tmp_path / "c.safetensors")
    resumed = trainer_of()
    resumed.load(tmp_path / "c.safetensors")
    assert [resumed() for _ in range(3)] == expected[4:]
    with pytest.raises(ConfigError, match="no such checkpoint"):
        resumed.load(tmp_path / "absent")


def test_accumulation_is_one_step_of_all_micro_batches(trainer_of):
    one, many = trainer_of(batch_size=4), trainer_of(batch_size=1, grad_accum_every=4)
    np.testing.assert_allclose([one()["loss"] for _ in range(4)], [many()["loss"] for _ in range(4)], rtol=1e-4)


def test_nothing_left_to_train_on_is_refused(trainer_of):
    with pytest.raises(SelectionError, match="3 of them held out"):
        trainer_of(held_out_cell_types=["K-562"])
    with pytest.raises(ConfigError, match="both trains and validates"):
        trainer_of(valid_chromosome_ids=[1])
    with pytest.raises(ConfigError, match="no tracks to train on"):
        trainer_of(only_ref="hg19")
    with pytest.raises(ConfigError, match="nothing says what validates"):
        trainer_of(valid_chromosome_ids=[])
    with pytest.raises(ConfigError, match="the trunk's bins are 32 bp"):
        trainer_of(downsample_factor=128)
    with pytest.raises(ConfigError, match="windows and tracks of a step"):
        trainer_of(batch_size=0)


@pytest.mark.parametrize("by_correlation", [False, True])
def test_an_adapter_model_is_trained_itself(trainer_of, model, by_correlation):
    torch.manual_seed(0)
    adapter = AdapterModel(
        enformer=model, use_aa_embeds=True, aa_embed_encoder="composition", use_free_text_context=True,
        free_text_context_encoder="hashed", latent_dim=4, latent_heads=4, use_corr_coef_loss=by_correlation,
    )  # fmt: skip
    before = adapter.head.filip.null.clone()
    trainer = trainer_of(trunk=adapter)
    logs = [trainer() for _ in range(3)]
    assert trainer.loss == ("pearson" if by_correlation else "poisson")
    assert all(np.isfinite(log["loss"]) for log in logs)
    assert trainer.head is adapter.head
    assert not torch.equal(adapter.head.filip.null, before)


class TestLoci:
    def test_the_fourth_column_says_what_trains(self, trainer_of, tmp_path):
        bed = tmp_path / "loci.bed"
        bed.write_text("chr1\t0\t2000\ttrain\nchr2\t0\t900\tvalid\nchr3\t0\t500\ttest\n")
        trainer = trainer_of(loci_path=bed, train_chromosome_ids=[], valid_chromosome_ids=[], validate_every=1)
        assert np.isfinite(trainer()["valid_loss"])
        (stream,) = trainer.streams
        stride, first = trainer.store.grid.stride_bp, trainer.store.tiling.first_window
        assert stream.split.train.tolist() == list(range(-(-2000 // stride)))
        assert stream.split.valid.tolist() == list(range(first[1], first[1] + -(-900 // stride)))

    def test_chromosomes_narrow_them(self, trainer_of, tmp_path):
        bed = tmp_path / "loci.bed"
        bed.write_text("chr1\t0\t900\ttrain\nchr2\t0\t900\ttrain\nchr2\t1400\t2000\tvalid\n")
        trainer = trainer_of(loci_path=bed, train_chromosome_ids=[1], valid_chromosome_ids=[2])
        (stream,) = trainer.streams
        assert set(trainer.store.tiling.window_chrom(stream.split.train)) == {0}
        assert set(trainer.store.tiling.window_chrom(stream.split.valid)) == {1}

    def test_without_the_column_loci_only_say_where(self, trainer_of, tmp_path):
        bed = tmp_path / "loci.bed"
        bed.write_text("chr1\t0\t900\ttrain\nchr3\t0\t900\ttrain\n")
        trainer = trainer_of(loci_path=bed, enformer_train_valid_split=False)
        (stream,) = trainer.streams
        stride, first = trainer.store.grid.stride_bp, trainer.store.tiling.first_window
        assert stream.split.train.tolist() == list(range(-(-900 // stride)))
        assert stream.split.valid.tolist() == list(range(first[2], first[2] + -(-900 // stride)))


@pytest.fixture(scope="module")
def mouse(files):
    """A second genome, with its own track of AAA, and tracks of both without a factor."""
    rng = np.random.default_rng(1)
    lengths = {"chr1": 3_000, "chr2": 2_500}
    is_gc = {chrom: np.repeat(rng.random(length // 32 + 1) < 0.5, 32)[:length] for chrom, length in lengths.items()}
    genome = {c: "".join(np.where(b, rng.choice(list("CG"), len(b)), rng.choice(list("AT"), len(b))))
              for c, b in is_gc.items()}  # fmt: skip
    (files / "mouse.fa").write_text("".join(f">{c}\n{s}\n" for c, s in genome.items()))
    (files / "both").mkdir()
    (files / "plain").mkdir()
    for number in range(3):
        (files / "both" / f"SRX{number}.bw").write_bytes((files / "bigwig" / f"SRX{number}.bw").read_bytes())
    (files / "plain" / "SRX8.bw").write_bytes((files / "bigwig" / "SRX0.bw").read_bytes())
    for path in (files / "both" / "SRX5.bw", files / "plain" / "SRX9.bw"):
        with pyBigWig.open(str(path), "w") as track:
            track.addHeader(list(lengths.items()))
            for chrom, rich in is_gc.items():
                track.addEntries(chrom, 0, values=np.where(rich, 0.1, 0.01).tolist(), span=1, step=1)
    rows = [
        *(f"SRX{n}\thg38\tTFs and others\t{f}\tBlood\tK-562" for n, f in enumerate(("AAA", "BBB", "CCC"))),
        "SRX5\tmm10\tTFs and others\tAaa\tBlood\tMEL",
        "SRX8\thg38\tATAC-Seq\tATAC-Seq\tBlood\tK-562",
        "SRX9\tmm10\tATAC-Seq\tATAC-Seq\tBlood\tMEL\textra",
    ]
    (files / "both.tab").write_text("\n".join(rows) + "\n")
    return files


class TestTwoSpecies:
    """The reference's arguments for human and mouse, with tracks of factors and tracks that DNA alone gives."""

    @pytest.fixture
    def both_of(self, mouse, model):
        def make(**changes):
            choices = {
                "bigwig_folder_path": mouse / "both",
                "bigwig_tracks_only_folder_path": mouse / "plain",
                "annot_file_path": mouse / "both.tab",
                "human_factor_fasta_folder": mouse / "factors",
                "human_fasta_file": mouse / "genome.fa",
                "mouse_fasta_file": mouse / "mouse.fa",
                "train_chromosome_ids": [1, 3],
                "valid_chromosome_ids": [2],
                "batch_size": 2,
                "context_length": 512,
                "target_length": 12,
                "lr": 1e-2,
                "validate_every": 0,
                "head_options": SMALL,
                "cache_path": mouse.parent / "track-cache",
                "device": "cpu",
            }
            return BigWigTrainer(changes.pop("trunk", model), **{**choices, **changes})

        return make

    def test_four_streams_train_one_head_and_one_head_of_plain_tracks(self, both_of):
        trainer = both_of(validate_every=2)
        logs = [trainer() for _ in range(2)]
        names = ["human", "mouse", "human_head", "mouse_head"]
        assert [stream.name for stream in trainer.streams] == names
        assert [stream.n_tracks for stream in trainer.streams] == [3, 1, 1, 1]
        assert set(logs[0]) == {"step", "loss", *(f"{name}_loss" for name in names)}
        assert logs[0]["loss"] == pytest.approx(np.mean([logs[0][f"{name}_loss"] for name in names]))
        assert {f"{name}_valid_corr_coef" for name in names} | LOOKED <= set(logs[1])
        assert trainer.streams[0].module is trainer.streams[1].module is trainer.head
        assert trainer.streams[0].store.path != trainer.streams[1].store.path

    def test_plain_tracks_of_both_species_are_learned(self, both_of):
        trainer = both_of(bigwig_folder_path=None, human_factor_fasta_folder=None)
        before = trainer.validate()
        for _ in range(60):
            trainer()
        after = trainer.validate()
        for name in ("human_head", "mouse_head"):
            assert after[f"{name}_valid_corr_coef"] > before[f"{name}_valid_corr_coef"] + 0.2
        assert trainer.head is None

    def test_saved_and_loaded_all_streams_go_on(self, both_of, tmp_path):
        whole = both_of()
        expected = [whole() for _ in range(5)]
        begun = both_of(checkpoint_filename=tmp_path / "c.safetensors")
        for _ in range(3):
            begun()
        begun.save()
        resumed = both_of()
        resumed.load(tmp_path / "c.safetensors")
        assert [resumed() for _ in range(2)] == expected[3:]
        with pytest.raises(CheckpointError, match="the state is of human"):
            both_of(bigwig_tracks_only_folder_path=None).load(tmp_path / "c.safetensors")

    def test_one_species_alone_saves_too(self, both_of, tmp_path):
        # the reference saved only where mouse tracks validated
        trainer = both_of(mouse_fasta_file=None, bigwig_tracks_only_folder_path=None)
        trainer()
        assert trainer.save(tmp_path / "c.safetensors").exists()

    def test_the_models_own_heads_are_trained(self, both_of, model):
        options = {
            "enformer": model, "use_aa_embeds": True, "aa_embed_encoder": "composition",
            "use_free_text_context": True, "free_text_context_encoder": "hashed", "latent_dim": 4, "latent_heads": 4,
        }  # fmt: skip
        adapter = AdapterModel(**options, finetune_output_heads={"human": 1, "mouse": 1})
        before = {name: tensor.clone() for name, tensor in adapter.head_tensors().items()}
        trainer = both_of(trunk=adapter)
        trainer()
        moved = {name for name, tensor in adapter.head_tensors().items() if not torch.equal(tensor, before[name])}
        assert {"track_heads.human.0.weight", "track_heads.mouse.0.bias"} <= moved
        assert "adapter.head.filip.null" in moved
        with pytest.raises(ConfigError, match="the model has 2 tracks of 'human', the files 1"):
            both_of(trunk=AdapterModel(**options, finetune_output_heads={"human": 2, "mouse": 1}))

    def test_held_out_names_are_of_their_species(self, both_of):
        trainer = both_of(held_out_targets_human=["AAA"])
        human, mouse = trainer.streams[:2]
        assert (human.n_tracks, len(human.valid_tracks.rows)) == (2, 1)
        assert (mouse.n_tracks, len(mouse.valid_tracks.rows)) == (1, 1)

    def test_files_of_no_species_are_refused(self, both_of, mouse):
        with pytest.raises(ConfigError, match="which species"):
            both_of(human_fasta_file=None, mouse_fasta_file=None, human_factor_fasta_folder=None)
        with pytest.raises(ConfigError, match="which species"):
            both_of(fasta_file=mouse / "genome.fa")
        with pytest.raises(ConfigError, match="mouse: no genome"):
            both_of(mouse_fasta_file=None, held_out_targets_mouse=["AAA"])
        with pytest.raises(ConfigError, match="need proteins"):
            both_of(human_factor_fasta_folder=None)


class TestLosses:
    def test_poisson_is_the_formula_and_leaves_out_what_is_missing(self):
        rates, labels = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[2.0], [0.0], [torch.nan]]])
        expected = (1.0 - 2.0 * np.log(1.0)) + 2.0
        assert summed_loss("poisson", rates, labels).item() == pytest.approx(expected)
        assert n_counted("poisson", labels) == 2

    def test_pearson_is_numpys_and_a_constant_track_has_none(self):
        rng = np.random.default_rng(0)
        rates, labels = rng.random((2, 30, 3)), rng.random((2, 30, 3))
        labels[0, :4, 1] = np.nan
        labels[1, :, 2] = 0.5
        found = pearson(torch.tensor(rates), torch.tensor(labels)).numpy()
        for window in range(2):
            for track in range(3):
                known = ~np.isnan(labels[window, :, track])
                if (window, track) == (1, 2):
                    assert np.isnan(found[window, track])
                else:
                    expected = np.corrcoef(rates[window, known, track], labels[window, known, track])[0, 1]
                    assert found[window, track] == pytest.approx(expected)

    def test_a_constant_answer_has_a_finite_gradient(self):
        rates = torch.ones(1, 5, 1, requires_grad=True)
        labels = torch.arange(5.0).view(1, 5, 1)
        loss = summed_loss("pearson", rates, labels)
        loss.backward()
        assert (loss.item(), n_counted("pearson", labels)) == (pytest.approx(1.0), 1)
        assert rates.grad.isfinite().all()
