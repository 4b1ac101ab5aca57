"""Projected arrays: the right axes, what they lose, going on after a kill, and refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from tests.precompute.small import ALL_N, N_WINDOWS, Watched, make_store
from tests.query.world import random_sequence, write_fasta
from tfbind_store.arrays.layouts import ATTRIBUTE
from tfbind_store.arrays.sharded import WindowState
from tfbind_store.arrays.transforms import transform_path
from tfbind_store.cli import main
from tfbind_store.errors import ConfigError, DamagedShard, LocusError, MissingWindow, SpecError, StoreMissing
from tfbind_store.ingest.rebuilding import rebuild_catalog
from tfbind_store.keeping.verify import Kind, verify_store
from tfbind_store.loci import Grid, Locus
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute import shard_work
from tfbind_store.precompute.canaries import check_canaries
from tfbind_store.precompute.embedder import TrunkGeometry, WindowEmbedding
from tfbind_store.precompute.principal import evened, fit_axes, split_windows
from tfbind_store.precompute.project import ProjectConfig, project_array, projector_of, usual_label
from tfbind_store.precompute.run import embed_windows
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import Store

SOURCE = "embeddings/windows"
DIM, RANK, N_BINS = 12, 5, 4


class LowRank:
    """Twelve channels that are five in truth, beside a little noise; some windows come out broken."""

    geometry = TrunkGeometry(bin_bp=128, dim=DIM)
    trained_on = None

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        where = {"window_bp": grid.window_bp, "n_bins": grid.n_bins, "bin_bp": grid.bin_bp}
        identity = {"class": "low rank", "trained_on": {"factors": ["AAA"], "chromosomes": ["a"], "biotypes": []}}
        return EmbeddingSpec(
            kind="windows", embedder="lowrank", dim=DIM, identity=identity, grid=where, genome=genome_digest
        )

    def embed(self, windows, codes, tiling):
        mixing = np.random.default_rng(0).normal(size=(RANK, DIM)) * np.array([8, 4, 2, 1, 0.5])[:, None]
        for window in windows:
            rng = np.random.default_rng(window + 1)
            values = rng.normal(size=(N_BINS, RANK)) @ mixing + 0.01 * rng.normal(size=(N_BINS, DIM)) + 3
            yield WindowEmbedding(window, values.astype(np.float32))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
        embed_windows(make_store(folder), LowRank())
    return folder / "store"


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    """12 windows in shards of 4, of which 6 and 7 are all N."""
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
    return Store.open(shutil.copytree(made, tmp_path / "store"))


def bins_of(store, name=SOURCE):
    array = store.array(name)
    return np.concatenate([array.row(w) for w in range(N_WINDOWS) if w not in ALL_N]).astype(np.float64)


def bytes_of(store, name):
    return {path.name: path.read_bytes() for path in store.array_path(name).iterdir()}


class TestNumbers:
    def test_axes_span_the_largest_singular_vectors_of_the_sample_and_carry_the_same_variance(self, store):
        array = store.array(SOURCE)
        ok = np.array([w for w in range(N_WINDOWS) if w not in ALL_N])
        fit = fit_axes(array, ok, RANK, n_bins=10**6, seed=0)
        values = bins_of(store)
        assert fit.n_bins == len(values)
        _, singular, expected = np.linalg.svd(values - values.mean(0))
        np.testing.assert_allclose(fit.axes.mean, values.mean(0), rtol=1e-5)
        axes = fit.axes.axes.astype(np.float64)
        np.testing.assert_allclose(axes.T @ axes, expected[:RANK].T @ expected[:RANK], atol=1e-5)
        np.testing.assert_allclose(axes @ axes.T, np.eye(RANK), atol=1e-6)
        variance = ((values - values.mean(0)) @ axes.T).var(0)
        np.testing.assert_allclose(variance, variance.mean(), rtol=1e-4)
        assert singular[0] ** 2 > 100 * singular[RANK - 1] ** 2, "which is not so of the principal axes"
        share = singular**2 / np.square(singular).sum()
        np.testing.assert_allclose(fit.axes.variance_share, share[:RANK], rtol=1e-4)
        largest = np.abs(fit.axes.axes).argmax(1)
        assert (fit.axes.axes[np.arange(RANK), largest] > 0).all()

    def test_rows_are_the_sources_on_the_axes_and_come_back(self, store):
        report = project_array(store, SOURCE, ProjectConfig(dim=RANK))
        array = store.array(report.run.array)
        assert report.run.array == "embeddings/windows-pca5"
        assert array.shape == (N_WINDOWS, N_BINS, RANK)
        axes = projector_of(store, array.spec).axes
        for window in (0, 5, 8):
            back = array.row(window).astype(np.float64) @ axes.axes + axes.mean
            assert np.abs(back - store.array(SOURCE).row(window)).max() < 0.1
        assert report.variance_share > 0.999
        assert 1e-4 < report.reconstruction_rms < 0.01
        assert report.n_checked == 2

    def test_what_is_lost_is_measured_on_windows_the_fit_has_not_seen(self, store):
        report = project_array(store, SOURCE, ProjectConfig(dim=2))
        ok = np.array([w for w in range(N_WINDOWS) if w not in ALL_N])
        fitted, checked = split_windows(ok, seed=0)
        assert not set(fitted) & set(checked)
        assert sorted([*fitted, *checked]) == ok.tolist()
        axes = projector_of(store, store.array(report.run.array).spec).axes
        values = np.concatenate([store.array(SOURCE).row(w) for w in checked]).astype(np.float64)
        kept = (values - axes.mean) @ axes.axes.T @ axes.axes + axes.mean
        lost = np.sqrt(np.square(values - kept).sum() / np.square(values).sum())
        assert report.reconstruction_rms == pytest.approx(lost, rel=1e-2)

    def test_one_byte_loses_half_a_percent(self, store):
        report = project_array(store, SOURCE, ProjectConfig(int8=True))
        array = store.array("embeddings/windows-int8")
        off = bins_of(store, "embeddings/windows-int8") - bins_of(store)
        rms = np.sqrt(np.square(off).mean() / np.square(bins_of(store)).mean())
        assert rms < 0.005
        assert report.reconstruction_rms == pytest.approx(rms, rel=0.5)
        assert report.variance_share is None
        assert array.shape == store.array(SOURCE).shape

    def test_both_together(self, store):
        one = project_array(store, SOURCE, ProjectConfig(dim=RANK))
        both = project_array(store, SOURCE, ProjectConfig(dim=RANK, int8=True))
        assert both.run.array == "embeddings/windows-pca5-int8"
        assert one.reconstruction_rms < both.reconstruction_rms < 0.02
        off = bins_of(store, both.run.array) - bins_of(store, one.run.array)
        assert np.sqrt(np.square(off).mean() / np.square(bins_of(store, one.run.array)).mean()) < 0.006

    def test_a_projection_can_be_projected(self, store):
        project_array(store, SOURCE, ProjectConfig(dim=RANK))
        report = project_array(store, "embeddings/windows-pca5", ProjectConfig(dim=2, int8=True))
        assert report.run.array == "embeddings/windows-pca5-pca2-int8"
        assert store.array(report.run.array).shape == (N_WINDOWS, N_BINS, 2)
        direct = project_array(store, SOURCE, ProjectConfig(dim=2), name="direct")
        first, second = bins_of(store, direct.run.array), bins_of(store, report.run.array)
        turned = np.linalg.lstsq(np.c_[second, np.ones(len(second))], first, rcond=None)[0]
        assert np.abs(np.c_[second, np.ones(len(second))] @ turned - first).max() < 0.03 * np.abs(first).max()

    def test_the_seed_decides_the_sample_and_the_chromosomes_bound_it(self, store):
        one, again, other = (
            project_array(store, SOURCE, ProjectConfig(dim=2, sample_bins=9, seed=seed), name=name)
            for name, seed in (("one", 0), ("again", 0), ("other", 1))
        )
        specs = [store.array(report.run.array).spec for report in (one, again, other)]
        assert specs[0].fingerprint == specs[1].fingerprint != specs[2].fingerprint
        with pytest.raises(ConfigError, match="4 bins cannot give 5 axes"):
            project_array(store, SOURCE, ProjectConfig(dim=RANK, chroms=("b",)), name="b")
        with pytest.raises(LocusError, match="does not lie on the genome"):
            project_array(store, SOURCE, ProjectConfig(dim=2, chroms=("z",)), name="z")

    def test_the_spec_says_what_the_trunk_was_trained_on_and_what_was_lost(self, store):
        report = project_array(store, SOURCE, ProjectConfig(dim=3, sample_bins=20))
        source, spec = store.array(SOURCE).spec, store.array(report.run.array).spec
        assert spec.identity["trained_on"] == source.identity["trained_on"]
        assert spec.identity["source"] == {"fingerprint": source.fingerprint, "embedder": "lowrank", "dim": DIM}
        said = spec.identity["projection"]
        assert said["n_bins_sampled"] == 20
        assert said["variance_share"] == report.variance_share
        assert said["reconstruction_rms"] == report.reconstruction_rms


class Killed(BaseException):
    pass


class TestGoingOn:
    @pytest.mark.parametrize("config", [ProjectConfig(dim=3), ProjectConfig(int8=True)])
    def test_a_stopped_run_ends_with_the_same_bytes(self, store, monkeypatch, config):
        project_array(store, SOURCE, config, name="whole")
        compute, seen = shard_work._compute_shard, []

        def dying(*args):
            if seen:
                raise Killed
            seen.append(1)
            return compute(*args)

        monkeypatch.setattr(shard_work, "_compute_shard", dying)
        with pytest.raises(Killed):
            project_array(store, SOURCE, config, name="stopped")
        monkeypatch.setattr(shard_work, "_compute_shard", compute)
        assert store.array("embeddings/stopped").completeness().n_ok == 4
        report = project_array(store, SOURCE, config, name="stopped")
        assert (report.run.n_done_before, report.run.n_computed) == (4, 6)
        assert bytes_of(store, "embeddings/stopped") == bytes_of(store, "embeddings/whole")
        assert project_array(store, SOURCE, config, name="stopped").run.n_computed == 0

    def test_the_axes_of_an_array_that_is_there_are_never_fitted_again(self, store, monkeypatch):
        embed_windows(store, LowRank(), name="slow", loci=[Locus("a", 0, 2600)])
        config = ProjectConfig(dim=2)
        first = project_array(store, "embeddings/slow", config, partial=True)
        assert (first.run.n_computed, first.n_left) == (6, 4)
        before = {w: store.array(first.run.array).row(w).tobytes() for w in range(6)}
        embed_windows(store, LowRank(), name="slow")
        monkeypatch.setattr("tfbind_store.precompute.project.fit_axes", None)
        second = project_array(store, "embeddings/slow", config)
        assert (second.run.n_done_before, second.run.n_computed, second.n_left) == (8, 4, 0)
        assert {w: store.array(first.run.array).row(w).tobytes() for w in range(6)} == before
        assert store.array(first.run.array).completeness().is_done

    def test_windows_of_only_n_are_recorded(self, store):
        array = store.array(project_array(store, SOURCE, ProjectConfig(dim=2)).run.array)
        assert [w for w in range(N_WINDOWS) if array.state(w) is WindowState.all_n] == list(ALL_N)
        assert array.completeness().is_done

    @pytest.mark.slow
    def test_a_killed_process_goes_on_to_the_same_bytes(self, tmp_path):
        grid = Grid(window_bp=64, n_bins=2, bin_bp=32)
        chroms = {"a": random_sequence(64 * 1500, 0)}
        store = Store.create(tmp_path / "store", fasta=write_fasta(tmp_path / "g.fa", chroms), grid=grid)
        from tfbind_store.precompute.toy import ToyEmbedder

        embed_windows(store, ToyEmbedder(32))
        script = (
            "import sys\n"
            "from tfbind_store.store.folder import Store\n"
            "from tfbind_store.precompute.project import ProjectConfig, project_array\n"
            f"project_array(Store.open(sys.argv[1]), {SOURCE!r}, ProjectConfig(dim=3, int8=True), name=sys.argv[2])\n"
        )
        run = [sys.executable, "-c", script, str(store.path)]
        subprocess.run([*run, "alone"], check=True)
        kills = 0
        for _ in range(20):
            process = subprocess.Popen([*run, "killed"])
            folder = store.path / "receipts" / "embeddings" / "killed"
            there = len(list(folder.glob("*/0*.json")))
            while process.poll() is None and len(list(folder.glob("*/0*.json"))) < there + 3:
                time.sleep(0.002)
            if process.poll() is not None:
                assert process.returncode == 0
                break
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            kills += 1
        subprocess.run([*run, "killed"], check=True)
        assert kills >= 2
        alone, killed = (
            {n: c for n, c in bytes_of(store, f"embeddings/{name}").items() if not n.startswith(".")}
            for name in ("alone", "killed")
        )
        assert alone == killed
        assert verify_store(store, deep=True).is_clean
        assert os.listdir(store.path / "transforms")


class TestRefusals:
    def test_a_source_with_gaps_unless_partial(self, store):
        embed_windows(store, LowRank(), name="gaps", loci=[Locus("a", 0, 2600)])
        with pytest.raises(MissingWindow, match="4 of 12 windows of embeddings/gaps are not there") as caught:
            project_array(store, "embeddings/gaps", ProjectConfig(dim=2))
        assert "--partial" in caught.value.fix
        assert "embeddings/gaps-pca2" not in store.array_names()
        report = project_array(store, "embeddings/gaps", ProjectConfig(dim=2), partial=True)
        array = store.array(report.run.array)
        assert (report.n_left, array.completeness().n_ok) == (4, 6)
        with pytest.raises(MissingWindow, match="has not been embedded"):
            array.row(8)

    def test_failed_windows_of_the_source_are_gaps_too(self, store):
        embed_windows(store, Watched(broken={5: np.nan}), name="failed")
        with pytest.raises(MissingWindow, match="1 of 12 windows"):
            project_array(store, "embeddings/failed", ProjectConfig(dim=2))
        report = project_array(store, "embeddings/failed", ProjectConfig(dim=2), partial=True)
        assert store.array(report.run.array).state(5) is WindowState.not_asked

    def test_a_damaged_shard_of_the_source_is_a_gap_and_a_damaged_window_never_gets_in(self, store):
        layout = store.array(SOURCE).layout
        whole = layout.shard_path(2).read_bytes()
        layout.shard_path(2).write_bytes(whole[:-1])
        with pytest.raises(MissingWindow, match="4 of 12 windows"):
            project_array(store, SOURCE, ProjectConfig(int8=True))
        layout.shard_path(2).write_bytes(whole)
        project_array(store, SOURCE, ProjectConfig(int8=True), name="seen")
        content = bytearray(whole)
        content[2 * layout.window_bytes] ^= 1
        layout.shard_path(2).write_bytes(content)
        ok = [0, 1, 2, 3, 4, 5, 8, 9, 11]
        config = ProjectConfig(int8=True, seed=_seed_that_checks(ok, 10))
        with pytest.raises(DamagedShard, match="window 10 does not hash"):
            project_array(store, SOURCE, config)
        assert not store.array("embeddings/windows-int8").is_ok(np.array([10]))[0]
        assert CliRunner().invoke(main, ["repair", str(store.path)]).exit_code == 0
        embed_windows(store, LowRank())
        assert project_array(store, SOURCE, config).run.is_complete
        mended, seen = store.array("embeddings/windows-int8"), store.array("embeddings/seen")
        assert mended.row(10).tobytes() == seen.row(10).tobytes()

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            (ProjectConfig(), "neither fewer channels nor smaller numbers"),
            (ProjectConfig(dim=13), "dim is 13, embeddings/windows has 12 channels"),
            (ProjectConfig(dim=0), "dim is 0"),
            (ProjectConfig(dim=4, sample_bins=4), "4 bins cannot give 4 axes"),
            (ProjectConfig(dim=1, sample_bins=1), "must be at least 2"),
        ],
    )
    def test_what_makes_no_sense(self, store, config, reason):
        with pytest.raises(ConfigError, match=reason):
            project_array(store, SOURCE, config)
        assert store.array_names() == [SOURCE]

    def test_other_arrays_and_an_array_onto_itself(self, store):
        with pytest.raises(StoreMissing):
            project_array(store, "embeddings/none", ProjectConfig(dim=2))
        with pytest.raises(ConfigError, match="no array of windows"):
            project_array(store, "proteins/composition", ProjectConfig(dim=2))
        with pytest.raises(ConfigError, match="onto itself"):
            project_array(store, SOURCE, ProjectConfig(dim=2), name="windows")

    @pytest.mark.parametrize(
        "change", [{"dim": 3}, {"seed": 1}, {"sample_bins": 21}, {"int8": True}, {"chroms": ("a",)}]
    )
    def test_another_projection_under_the_same_name(self, store, change):
        config = ProjectConfig(dim=2, sample_bins=20)
        project_array(store, SOURCE, config, name="p")
        before = bytes_of(store, "embeddings/p")
        with pytest.raises(SpecError, match="was made with config") as caught:
            project_array(store, SOURCE, replace(config, **change), name="p")
        assert "--name" in caught.value.fix
        assert bytes_of(store, "embeddings/p") == before

    def test_another_source_under_the_same_name_and_an_array_that_is_no_projection(self, store):
        embed_windows(store, Watched(), name="toy")
        project_array(store, SOURCE, ProjectConfig(dim=2), name="p")
        with pytest.raises(SpecError, match="was made with source"):
            project_array(store, "embeddings/toy", ProjectConfig(dim=2), name="p")
        with pytest.raises(SpecError, match="is an array of toy"):
            project_array(store, SOURCE, ProjectConfig(dim=2), name="toy")


def _seed_that_checks(ok, window):
    """Return a seed with which the damaged window is not among those that are measured."""
    everything = np.array(sorted([*ok, window]))
    return next(seed for seed in range(99) if window not in split_windows(everything, seed=seed)[1])


class TestKeeping:
    """verify, repair, rebuild-catalog and info know what a projected array is."""

    @pytest.fixture
    def projected(self, store):
        project_array(store, SOURCE, ProjectConfig(dim=3), name="p")
        project_array(store, SOURCE, ProjectConfig(int8=True), name="q")
        return store

    def test_canaries_are_projected_again_without_any_model(self, projected):
        problems, n_compared, notes = check_canaries(projected, n_canaries=4)
        assert (problems, n_compared) == ([], 8)
        assert [note.split(":")[0] for note in notes] == [SOURCE], "the source's own model is not at hand"

    def test_lost_axes_are_found_and_the_same_command_fits_them_again(self, projected):
        sha256 = projected.array("embeddings/p").spec.identity["projection"]["axes_sha256"]
        path = transform_path(projected.path, sha256)
        content = path.read_bytes()
        path.unlink()
        (problem,) = verify_store(projected).problems
        assert (problem.kind, problem.array) == (Kind.transform, "embeddings/p")
        result = CliRunner().invoke(main, ["verify", str(projected.path)])
        assert "run the command that made the array again" in result.stderr
        assert check_canaries(projected, n_canaries=1)[2][0].startswith("embeddings/p: canaries cannot be computed")
        assert project_array(projected, SOURCE, ProjectConfig(dim=3), name="p").run.n_computed == 0
        assert path.read_bytes() == content
        assert verify_store(projected, deep=True).is_clean

    def test_axes_that_cannot_be_had_again_are_not_replaced_by_others(self, projected):
        embed_windows(projected, LowRank(), name="gaps", loci=[Locus("a", 0, 2600)])
        project_array(projected, "embeddings/gaps", ProjectConfig(dim=3), partial=True)
        spec = projected.array("embeddings/gaps-pca3").spec
        transform_path(projected.path, spec.identity["projection"]["axes_sha256"]).write_bytes(b"damaged")
        embed_windows(projected, LowRank(), name="gaps")
        with pytest.raises(DamagedShard, match="does not hash"):
            project_array(projected, "embeddings/gaps", ProjectConfig(dim=3))

    def test_another_array_that_cannot_be_read_stands_in_nobodys_way(self, projected):
        embed_windows(projected, Watched(), name="a-first")
        (projected.array_path("embeddings/a-first") / "zarr.json").write_text("{}")
        assert project_array(projected, SOURCE, ProjectConfig(dim=3), name="p").run.n_computed == 0

    def test_damage_is_repaired_from_the_source(self, projected):
        before = bytes_of(projected, "embeddings/p"), bytes_of(projected, "embeddings/q")
        for name in ("p", "q"):
            path = projected.array(f"embeddings/{name}").layout.shard_path(1)
            content = bytearray(path.read_bytes())
            content[9] ^= 4
            path.write_bytes(content)
        assert CliRunner().invoke(main, ["repair", str(projected.path)]).exit_code == 0
        assert project_array(projected, SOURCE, ProjectConfig(dim=3), name="p").run.n_computed == 1
        assert project_array(projected, SOURCE, ProjectConfig(int8=True), name="q").run.n_computed == 1
        assert (bytes_of(projected, "embeddings/p"), bytes_of(projected, "embeddings/q")) == before

    def test_lost_metadata_are_written_again_from_the_catalog(self, projected):
        for name in ("p", "q"):
            path = projected.array_path(f"embeddings/{name}") / "zarr.json"
            before = json.loads(path.read_bytes())
            path.unlink()
            assert CliRunner().invoke(main, ["repair", str(projected.path)]).exit_code == 0
            assert json.loads(path.read_bytes()) == before

    def test_the_catalog_is_made_again_from_receipts(self, projected):
        sql = "SELECT array_name, shard_id, n_ok, size_bytes, xxh3_128 FROM data.shards ORDER BY ALL"
        with projected.reader() as catalog:
            before = catalog.rows(sql)
        rebuild_catalog(projected)
        with projected.reader() as catalog:
            assert catalog.rows(sql) == before
        assert len(before) == 9

    def test_info_shows_what_is_read_and_from_what(self, projected):
        words = ["info", str(projected.path)]
        result = CliRunner().invoke(main, [*words, "--json"])
        arrays = {array["name"]: array for array in json.loads(result.stdout)["arrays"]}
        assert arrays["embeddings/p"]["shape"] == [N_WINDOWS, N_BINS, 3]
        assert arrays["embeddings/q"]["shape"] == [N_WINDOWS, N_BINS, DIM]
        dtypes = [arrays[f"embeddings/{name}"]["dtype"] for name in ("p", "q", "windows")]
        assert dtypes == ["float16", "int8", "float16"]
        assert arrays["embeddings/q"]["done"] == N_WINDOWS
        projected = {name.partition("/")[2]: array["projected"] for name, array in arrays.items()}
        assert projected["windows"] is None
        assert {projected[name]["source"] for name in ("p", "q")} == {SOURCE}
        assert "embeddings/q: made from embeddings/windows, 0." in CliRunner().invoke(main, words).stdout
        assert {arrays["embeddings/p"]["embedder"], arrays["embeddings/windows"]["embedder"]} == {"project", "lowrank"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda identity: identity.pop("source"),
        lambda identity: identity.pop("projection"),
        lambda identity: identity.update(source="x"),
        lambda identity: identity["projection"].update(axes_sha256="../../outside"),
        lambda identity: identity["projection"].update(axes_sha256=7),
        lambda identity: identity.update(source={"fingerprint": "0" * 64}),
        lambda identity: identity.update(projection=[1]),
        lambda identity: identity["projection"].update(reconstruction_rms="much"),
        lambda identity: identity["projection"].update(reconstruction_rms=-1),
        lambda identity: identity["projection"].update(variance_share=[]),
        lambda identity: identity["projection"].update(variance_share={"a": 1}),
        lambda identity: identity["projection"].pop("n_windows_checked"),
    ],
)
def test_hostile_specs_of_projections_are_refused_in_words(store, edit):
    """Whoever edits zarr.json can give it a fingerprint that fits; nothing is believed of the rest."""
    name = project_array(store, SOURCE, ProjectConfig(dim=2)).run.array
    path = store.array_path(name) / "zarr.json"
    metadata = json.loads(path.read_text())
    attributes = metadata["attributes"][ATTRIBUTE]
    edit(attributes["spec"]["identity"])
    spec = EmbeddingSpec.from_json(attributes["spec"])
    attributes["fingerprint"] = spec.fingerprint
    path.write_text(json.dumps(metadata))
    with pytest.raises((SpecError, StoreMissing, DamagedShard)):
        projector_of(store, spec)
    with pytest.raises((SpecError, StoreMissing, DamagedShard)):
        project_array(store, SOURCE, ProjectConfig(dim=2))
    verify_store(store)


def test_the_command_line(store):
    words = ["project", str(store.path), "--from", "windows", "--dim", "3"]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert (value["run"]["n_computed"], value["n_left"], value["n_checked"]) == (10, 0, 2)
    text = CliRunner().invoke(main, words).stdout
    assert "embeddings/windows-pca3 from embeddings/windows: 12 windows, 12 there before, 0 computed" in text
    assert "of the variance kept" in text
    refused = CliRunner().invoke(main, ["project", str(store.path)])
    assert refused.exit_code == 1
    assert [line.split(":")[0] for line in refused.stderr.splitlines()] == ["Error", "  where", "  fix"]


@pytest.mark.parametrize("variance", [[5.0], [4, 1], [9, 9, 9], [7, 0, 0, 0], [100, 10, 1, 0.1, 0.01], [3, 2, 2, 1]])
def test_evened_axes_span_the_same_space_with_the_same_variance_each(variance):
    variance = np.array(variance, dtype=np.float64)
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0][: len(variance)]
    turned = evened(axes, variance)
    covariance = turned @ axes.T @ np.diag(variance) @ axes @ turned.T
    np.testing.assert_allclose(covariance.diagonal(), variance.mean(), rtol=1e-10)
    np.testing.assert_allclose(turned.T @ turned, axes.T @ axes, atol=1e-12)
    np.testing.assert_array_equal(evened(axes, variance), turned)


def test_many_bins_and_windows_are_summed_in_parts(store, monkeypatch):
    array = store.array(SOURCE)
    ok = np.array([w for w in range(N_WINDOWS) if w not in ALL_N])
    whole = fit_axes(array, ok, 3, n_bins=100, seed=0)
    monkeypatch.setattr("tfbind_store.precompute.principal.BATCH_BINS", 7)
    parts = fit_axes(array, ok, 3, n_bins=100, seed=0)
    np.testing.assert_allclose(parts.axes.axes, whole.axes.axes, atol=1e-6)
    monkeypatch.setattr("tfbind_store.precompute.principal.MAX_WINDOWS", 4)
    assert fit_axes(array, ok, 3, n_bins=100, seed=0).n_bins == 4 * N_BINS


def test_usual_labels():
    assert usual_label("embeddings/w", ProjectConfig(dim=8)) == "w-pca8"
    assert usual_label("embeddings/w", ProjectConfig(int8=True)) == "w-int8"
