"""The reference's README examples of its trainers, on small files."""

import numpy as np
import pytest
import torch
from enformer_pytorch import Enformer

from tfbind_store import AdapterModel
from tfbind_store.errors import CheckpointError, ConfigError
from tfbind_store.heads import load_checkpoint
from tfbind_store.query.loader import Loader
from tfbind_store.trainers import peaks as trainers
from tfbind_store.trainers.peaks import Trainer

LENGTHS = {"chr1": 6_000, "chr2": 5_000, "chr3": 4_000}
FACTORS = {"AAA": "TGACGTCAAG", "BBB": "CCGATTAGCC", "CCC": "GGAATTTCCG"}
SMALL = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3, "dropout": 0.0}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Genome, ReMap peaks, a folder of FASTA files and a table of cell types."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    genome = {chrom: rng.choice(list("ACGT"), length) for chrom, length in LENGTHS.items()}
    peaks = []
    for number, (factor, motif) in enumerate(FACTORS.items()):
        for chrom, bases in genome.items():
            for start in range(100 + 70 * number, LENGTHS[chrom] - 100, 300):
                bases[start : start + 10] = list(motif)
                for cell in ("K562", "MCF-7"):
                    peaks.append(
                        (chrom, start, start + 10, f"GSE{number}.{factor}.{cell}", 100, ".", start, start + 1, "0")
                    )
    (folder / "genome.fa").write_text("".join(f">{c}\n{''.join(b)}\n" for c, b in genome.items()))
    (folder / "remap.bed").write_text("".join("\t".join(map(str, peak)) + "\n" for peak in peaks))
    (folder / "factors").mkdir()
    for factor in FACTORS:
        sequence = "M" + "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 60))
        (folder / "factors" / f"{factor}.{factor}_HUMAN.fasta").write_text(f">sp|P1|{factor}_HUMAN\n{sequence}\n")
    (folder / "cells.tsv").write_text(
        "biotype\tgerm_layer\tcellline_cat\nK562\tmesoderm\tcancer\nMCF-7\tectoderm\tcancer\n"
    )
    return folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Enformer.from_hparams(
        dim=24, depth=1, heads=2, attn_dim_key=6, num_downsamples=5, dim_divisible_by=4, target_length=-1
    )


@pytest.fixture
def trainer_of(files, model, tmp_path_factory):
    cache = files.parent / "trainer-cache"

    def make(**changes):
        choices = {
            "remap_bed_file": files / "remap.bed",
            "factor_fasta_folder": files / "factors",
            "fasta_file": files / "genome.fa",
            "train_chromosome_ids": [1, 2],
            "valid_chromosome_ids": [3],
            "held_out_targets": ["CCC"],
            "batch_size": 16,
            "context_length": 512,
            "lr": 3e-3,
            "validate_every": 3,
            "head_options": SMALL,
            "cache_path": cache,
            "device": "cpu",
            "checkpoint_filename": files / "checkpoint.safetensors",
        }
        return Trainer(changes.pop("trunk", model), **{**choices, **changes})

    return make


def test_the_readme_example_trains_step_by_step(trainer_of):
    trainer = trainer_of()
    logs = [trainer() for _ in range(6)]
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(log["loss"]) for log in logs)
    looked = [set(log) - {"step", "loss"} for log in logs]
    assert looked == [set(), set(), {"valid_loss", "valid_auroc", "valid_auprc"}] * 2
    assert trainer.head_file.exists()
    trained = trainer.selection.trained_on
    assert trained["factors"] == ["AAA", "BBB"]
    assert trained["chromosomes"] == ["chr1", "chr2"]


def test_losses_fall(trainer_of):
    trainer = trainer_of(validate_every=0, lr=1e-2)
    losses = [trainer()["loss"] for _ in range(40)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_the_store_is_made_once(trainer_of, monkeypatch):
    first = trainer_of()
    monkeypatch.setattr(trainers.EnformerEmbedder, "embed", lambda *_: pytest.fail("embedded again"))
    second = trainer_of(head="linear", head_options={})
    assert second.store.path == first.store.path
    second()


def test_other_files_are_another_store(trainer_of, files, tmp_path):
    fewer = (files / "remap.bed").read_text().splitlines(keepends=True)[:-40]
    (tmp_path / "remap.bed").write_text("".join(fewer))
    assert trainer_of(remap_bed_file=tmp_path / "remap.bed").store.path != trainer_of().store.path


def test_saved_and_loaded_it_goes_on_to_the_same_numbers(trainer_of, tmp_path):
    whole = trainer_of()
    expected = [whole() for _ in range(8)]
    begun = trainer_of()
    for _ in range(5):
        begun()
    begun.save(tmp_path / "c.safetensors")
    torch.rand(3)
    resumed = trainer_of()
    resumed.load(tmp_path / "c.safetensors")
    assert resumed.steps == 5
    assert [resumed() for _ in range(3)] == expected[5:]
    with pytest.raises(ConfigError, match="no such checkpoint"):
        resumed.load(tmp_path / "absent")
    other = trainer_of(head="linear", head_options={})
    with pytest.raises(CheckpointError):
        other.load(tmp_path / "c.safetensors")
    assert other.steps == 0


def test_accumulation_is_one_step_of_all_micro_batches(trainer_of):
    one, many = (
        trainer_of(batch_size=32, validate_every=0),
        trainer_of(batch_size=8, grad_accum_every=4, validate_every=0),
    )
    losses = [[trainer()["loss"] for _ in range(4)] for trainer in (one, many)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)


def test_excluded_names_are_in_no_row(trainer_of):
    trainer = trainer_of(exclude_targets=["BBB"], exclude_cell_types=["MCF-7"], held_out_targets=[])
    assert trainer.selection.trained_on["experiments"] == ["GSE0.AAA.K562", "GSE2.CCC.K562"]


def test_columns_of_the_cell_types_are_in_the_context(trainer_of, files):
    trainer = trainer_of(biotypes_metadata_path=files / "cells.tsv")
    with trainer.store.reader() as catalog:
        texts = [text for (text,) in catalog.rows("SELECT text FROM data.contexts ORDER BY text")]
    assert texts == ["K562 | mesoderm | cancer", "MCF-7 | ectoderm | cancer"]


def test_scoped_negatives_are_drawn_where_they_are_asked_for(trainer_of):
    trainer = trainer_of(include_scoped_negs=True)
    assert trainer.selection.info["config"]["negatives"] == ["random:1", "scoped:1"]
    assert trainer_of().selection.info["config"]["negatives"] == ["random:1"]


class TestNegativesOfOthers:
    """The reference's negative_bed_file and scoped negatives."""

    @pytest.fixture
    def beds(self, tmp_path, files):
        """Peaks that leave the start of chr1 free, loci there, and rows half of which are one experiment's."""
        peaks = [line.split("\t") for line in (files / "remap.bed").read_text().splitlines()]
        kept = ["\t".join(peak) + "\n" for peak in peaks if peak[0] != "chr1" or int(peak[1]) > 4_000]
        (tmp_path / "peaks.bed").write_text("".join(kept))
        starts = range(20, 3_300, 40)
        (tmp_path / "negatives.bed").write_text("".join(f"chr1\t{start}\t{start + 10}\n" for start in starts))
        (tmp_path / "common.bed").write_text("".join(f"chr2\t{30 + 300 * n}\t{40 + 300 * n}\n" for n in range(16)))
        (tmp_path / "scoped").mkdir()
        np.save(tmp_path / "scoped" / "GSE0.AAA.K562.bed.bool.npy", np.arange(16) < 8)
        return tmp_path

    def negatives(self, trainer):
        rows = trainer.selection.columns("train", names=("window", "bin", "experiment", "label"))
        unbound = rows["label"][:, 0] == 0
        return rows["window"][unbound].astype(np.int64) * trainer.store.grid.n_bins + rows["bin"][unbound]

    def bins_of(self, trainer, bed):
        tiling = trainer.store.tiling
        found = set()
        for line in bed.read_text().splitlines():
            chrom, start, end = line.split("\t")
            first = tiling.first_window[tiling.chrom_index[chrom]] * tiling.grid.n_bins
            found |= {int(first) + b for b in range(int(start) // 32, (int(end) - 1) // 32 + 1)}
        return found

    def test_a_bed_of_negatives_takes_the_place_of_random_ones(self, trainer_of, beds):
        trainer = trainer_of(remap_bed_file=beds / "peaks.bed", negative_bed_file=beds / "negatives.bed")
        assert trainer.selection.info["config"]["negatives"] == ["listed:1"]
        bins = self.negatives(trainer)
        assert len(bins) > 50
        assert set(bins.tolist()) <= self.bins_of(trainer, beds / "negatives.bed")
        assert np.isfinite(trainer()["loss"])

    def test_scoped_arrays_are_of_their_own_experiment(self, trainer_of, beds):
        trainer = trainer_of(
            include_scoped_negs=True, scoped_negs_remap_bed_path=beds / "common.bed", scoped_negs_path=beds / "scoped"
        )
        assert trainer.selection.info["config"]["negatives"] == ["random:1", "listed:1"]
        with trainer.store.reader() as catalog:
            listed = catalog.rows(
                "SELECT DISTINCT experiment, start_bp FROM data.listed_negatives JOIN data.experiments USING "
                "(experiment_id)"
            )
        assert {name for name, _ in listed} == {"GSE0.AAA.K562"}
        assert sorted(start for _, start in listed) == [30 + 300 * n for n in range(8)]

    def test_too_few_negatives_are_told(self, trainer_of, beds, caplog):
        trainer_of(negative_bed_file=beds / "common.bed")
        assert "negatives are missing: listed" in caplog.text

    def test_both_are_one_pool_of_twice_as_many(self, trainer_of, beds):
        places = {"scoped_negs_remap_bed_path": beds / "common.bed", "scoped_negs_path": beds / "scoped"}
        trainer = trainer_of(negative_bed_file=beds / "negatives.bed", include_scoped_negs=True, **places)
        assert trainer.selection.info["config"]["negatives"] == ["listed:2"]

    def test_half_of_them_is_refused(self, trainer_of, beds):
        with pytest.raises(ConfigError, match="half given"):
            trainer_of(include_scoped_negs=True, scoped_negs_path=beds / "scoped")
        with pytest.raises(ConfigError, match="half given"):
            trainer_of(scoped_negs_path=beds / "scoped", scoped_negs_remap_bed_path=beds / "common.bed")


def test_a_share_of_the_training_peaks_is_taken(trainer_of):
    whole, part = trainer_of(), trainer_of(train_sample_frac=0.5)
    assert 0.3 < len(part.selection.columns("train")["label"]) / len(whole.selection.columns("train")["label"]) < 0.7


def test_a_table_of_cell_types_may_be_left_out_and_must_be_there(trainer_of, files):
    trainer = trainer_of(biotypes_metadata_path=files / "cells.tsv", include_biotypes_metadata_in_context=False)
    assert trainer.store.path == trainer_of().store.path
    with pytest.raises(ConfigError, match="needs a table"):
        trainer_of(include_biotypes_metadata_in_context=True)


def test_chromosomes_that_are_not_there_are_counted(trainer_of, caplog):
    trainer_of(train_chromosome_ids=[1, 2, 23, "X"])
    assert "2 chromosomes are not in the genome and left out: 23, X" in caplog.text
    with pytest.raises(ConfigError, match="none of the chromosomes 9 is"):
        trainer_of(valid_chromosome_ids=[9])


def test_an_unknown_argument_is_a_type_error(trainer_of):
    with pytest.raises(TypeError, match="shift_aug_rnge"):
        trainer_of(shift_aug_rnge=(-2, 2))
    with pytest.raises(ConfigError, match="no multiple of 32"):
        trainer_of(context_length=500)


def test_factors_come_equally_often(trainer_of):
    trainer = trainer_of(balance_sampling_by_target=True)
    loader = trainer._run.source.loader
    assert isinstance(loader, Loader)
    drawn = np.bincount(loader.table["factor"][loader.order(0)])
    assert np.ptp(drawn[drawn > 0]) <= 1


def test_rows_come_from_either_strand_where_that_is_asked_for(trainer_of):
    trainer = trainer_of(rc_aug=True)
    loader = trainer._run.source.loader
    forward, reverse = (trainer.store.array(name) for name in (loader.arrays.windows, loader.reverse))
    assert reverse.spec.identity["strand"] == "reverse"
    _, batch = next(iter(loader.epoch(0)))
    table = trainer.selection.columns("train", names=("row", "window", "bin", "label"))
    place = np.argsort(table["row"])[np.searchsorted(np.sort(table["row"]), batch.rows)]
    bins = table["window"][place].astype(np.int64) * trainer.store.grid.n_bins + table["bin"][place]
    are = [
        (batch.dna == array.gather_bins(bins)).all(axis=(1, 2))  # the row's bin, of this strand
        for array in (forward, reverse)
    ]
    assert (are[0] ^ are[1]).all()
    assert 0 < are[1].sum() < len(are[1])
    # labels are those of the bins, whichever strand is read
    np.testing.assert_array_equal(batch.labels, table["label"][place])
    assert np.isfinite(trainer()["loss"])
    assert not trainer_of()._run.source.loader.reverse


class TestAdapterModel:
    """The reference's README example as it stands: the model goes into the trainer."""

    @pytest.fixture
    def adapter(self, model):
        torch.manual_seed(0)
        return AdapterModel(
            enformer=model, use_aa_embeds=True, aa_embed_encoder="composition", use_free_text_context=True,
            free_text_context_encoder="hashed", binary_target=True, target_mse_loss=True,
            condition_squeeze_excite=True, aux_read_value_loss=True, latent_dim=4, latent_heads=4,
        )  # fmt: skip

    def test_the_readme_example_trains_the_model_itself(self, trainer_of, adapter):
        before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
        trainer = trainer_of(trunk=adapter, batch_size=2, grad_accum_every=8, grad_clip_norm=2.0, validate_every=2)
        logs = [trainer() for _ in range(2)]
        assert [log["step"] for log in logs] == [1, 2]
        assert np.isfinite(logs[1]["valid_auroc"])
        changed = {name for name, tensor in adapter.state_dict().items() if not torch.equal(tensor, before[name])}
        own = {"filip.null", "condition_dna.to_gate.weight", "read_values.net.0.weight"}
        assert {f"adapter.head.{name}" for name in own} <= changed
        assert all(name.startswith("adapter.head.") for name in changed)
        saved = load_checkpoint(trainer.head_file).head
        assert {f"adapter.head.{name}" for name in saved.state_dict()} >= changed

    def test_losses_fall(self, trainer_of, adapter):
        trainer = trainer_of(trunk=adapter, validate_every=0, lr=1e-2)
        losses = [trainer()["loss"] for _ in range(15)]
        assert np.mean(losses[-4:]) < np.mean(losses[:4])

    def test_models_that_stored_bins_cannot_train_are_refused(self, trainer_of, model):
        widths = {"aa_embed_dim": 4, "contextual_embed_dim": 4, "latent_dim": 4, "latent_heads": 4}
        with pytest.raises(ConfigError, match="binary_target is False"):
            trainer_of(trunk=AdapterModel(enformer=model, **widths))
        with pytest.raises(ConfigError, match="has no Enformer"):
            trainer_of(trunk=AdapterModel(dna_embed_dim=4, binary_target=True, **widths))
        with pytest.raises(ConfigError, match="genome_self_attn_depth"):
            trainer_of(trunk=AdapterModel(enformer=model, binary_target=True, genome_self_attn_depth=1, **widths))
        with pytest.raises(ConfigError, match="the head reads"):
            trainer_of(trunk=AdapterModel(enformer=model, binary_target=True, **widths))
