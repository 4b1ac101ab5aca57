"""Preparing a store by a plan: nothing twice, nothing stale, and the same store whichever way it came about."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from tfbind_store import ingest
from tfbind_store.cli import main
from tfbind_store.errors import ConfigError, InputFileError, PeakFileError, SelectionError, SpecError, StoreError
from tfbind_store.ingest.rebuilding import rebuild_catalog
from tfbind_store.loci import Grid
from tfbind_store.prepare import prepare, run
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.store.folder import Store

PLAN = """
store = "s.store"
[init]
fasta = "g.fa"
window_bp = 64
bins = 4
bin_bp = 8
[proteins]
path = "p.fa"
synonyms = ["names.tsv"]
[[peaks]]
path = "one.bed"
[[peaks]]
path = "two.bed"
[experiments]
path = "e.tsv"
[biotypes]
path = "cells.tsv"
[blacklist]
path = "black.bed"
[loci.promoters]
path = "loci.bed"
[select.all]
negatives = ["random:1"]
margin_bp = 0
"""
FILES = {
    "g.fa": f">chr1\n{'ACGT' * 60}\n>chr2\n{'GGCA' * 40}\n",
    "p.fa": ">sp|P1|SOX2_HUMAN x OX=9606 GN=SOX2\nMKV\n>sp|P2|CTCF_HUMAN x OX=9606 GN=CTCF\nMKW\n",
    "names.tsv": "CTCF\tMRD21\n",
    "one.bed": "".join(
        f"{place}\tGSE1.SOX2.H1\t7\t.\n" for place in ("chr1\t10\t20", "chr1\t100\t110", "chr2\t40\t50")
    ),
    "two.bed": "chr1\t60\t70\tGSE2.MRD21.K-562\t9\t.\nchr2\t16\t20\tGSE2.MRD21.K-562\t9\t.\n",
    "e.tsv": "experiment\tlab\tpeaks_nr\nGSE1.SOX2.H1\tours\t300\n",
    "cells.tsv": "biotype\torigin\nH1\tstem cell\n",
    "black.bed": "chr1\t200\t210\n",
    "loci.bed": "chr1\t0\t50\tfirst\n",
}
INIT, PROTEINS, ONE, TWO = "init", "proteins p.fa", "peaks one.bed", "peaks two.bed"
EXPERIMENTS, BIOTYPES, BLACKLIST = "experiments e.tsv", "biotypes cells.tsv", "blacklist black.bed"
LOCI, SELECT = "loci promoters", "select all"
VIEWS = {
    "experiments": "* EXCLUDE (experiment_id)",
    "peaks": "* EXCLUDE (experiment_id)",
    "factors": "*",
    "proteins": "*",
    "biotypes": "*",
    "blacklist": "*",
    "loci": "*",
    "data.synonyms": "*",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files, the plan and the store that it makes."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "plan.toml").write_text(PLAN)
    assert {report.state for report in prepare(folder / "plan.toml")} == {"done"}
    return folder


@pytest.fixture
def folder(tmp_path: Path, prepared: Path) -> Path:
    """The same, for one's own use; times are kept, so that a copy counts as touched (ctime, inode) but not changed."""
    return shutil.copytree(prepared, tmp_path / "copy")


def done(folder: Path, **options) -> dict[str, str]:
    """Prepare; return why each stage was done."""
    return {r.stage: r.why for r in prepare(folder / "plan.toml", **options) if r.state in ("done", "taken back")}


def content(folder: Path) -> dict[str, list]:
    """Return everything that the catalog says, without ids."""
    with Store.open(folder / "s.store").reader() as catalog:
        return {
            view: sorted(map(repr, catalog.rows(f"SELECT {columns} FROM {view}"))) for view, columns in VIEWS.items()
        }


def afresh(folder: Path) -> dict[str, list]:
    """Return what the catalog of the same plan says in a new store."""
    other = folder.parent / "afresh"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("s.store"))
    prepare(other / "plan.toml")
    return content(other)


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


class TestFresh:
    def test_nothing_is_done_twice(self, folder):
        reports = prepare(folder / "plan.toml")
        assert [report.stage for report in reports] == [
            INIT,
            PROTEINS,
            ONE,
            TWO,
            EXPERIMENTS,
            BIOTYPES,
            BLACKLIST,
            LOCI,
            SELECT,
        ]
        assert {report.state for report in reports} == {"fresh"}
        assert reports[2].outcome["rows_kept"] == 3

    def test_a_file_that_was_touched_and_says_the_same_is_fresh(self, folder):
        (folder / "one.bed").write_text((folder / "one.bed").read_text())
        os.utime(folder / "g.fa", (1, 1))
        assert done(folder) == {}

    def test_a_file_is_read_again_only_if_it_was_touched(self, folder, monkeypatch):
        read = []
        monkeypatch.setattr("tfbind_store.prepare.record.sha256_of", lambda path: read.append(path.name) or "0" * 64)
        prepare(folder / "plan.toml", dry_run=True)  # a copy has other inodes
        assert sorted(read) == sorted(FILES)
        monkeypatch.undo()
        done(folder)
        monkeypatch.setattr("tfbind_store.prepare.record.sha256_of", lambda path: pytest.fail(f"{path} was read"))
        assert done(folder) == {}


class TestChanged:
    """A changed input: only what depends on it is done again, and the store is as if it had never been otherwise."""

    def check(self, folder: Path, expected: set[str]) -> None:
        dry = {r.stage for r in prepare(folder / "plan.toml", dry_run=True) if r.state == "to do"}
        assert dry == expected
        assert set(done(folder)) == expected
        assert content(folder) == afresh(folder)
        assert done(folder) == {}

    def test_peaks(self, folder):
        edit(folder, "two.bed", "chr1\t60\t70\tGSE2.MRD21.K-562", "chr1\t150\t170\tGSE3.MRD21.A549")
        self.check(folder, {TWO, EXPERIMENTS, SELECT})

    def test_an_experiment_that_is_gone_takes_its_factor_and_biotype_along(self, folder):
        (folder / "two.bed").write_text("chr1\t60\t70\tGSE9.SOX2.H1\t9\t.\n")
        self.check(folder, {TWO, EXPERIMENTS, SELECT})
        assert "CTCF" not in str(content(folder)["factors"])
        assert "K-562" not in str(content(folder)["biotypes"])

    def test_an_experiment_that_stays_keeps_its_id(self, folder):
        def ids() -> dict[str, int]:
            with Store.open(folder / "s.store").reader() as catalog:
                return dict(catalog.rows("SELECT experiment, experiment_id FROM experiments"))

        before = ids()
        edit(folder, "one.bed", "chr1\t10\t20\tGSE1.SOX2.H1", "chr1\t10\t20\tGSE0.SOX2.H1")
        done(folder)
        assert ids().items() > before.items()

    def test_proteins(self, folder):
        edit(folder, "p.fa", "GN=SOX2\nMKV", "GN=SOX3\nMKVA")
        self.check(folder, {PROTEINS, EXPERIMENTS, SELECT})
        assert "SOX3" in str(content(folder)["proteins"])

    @pytest.mark.slow
    def test_a_table_of_names_is_an_input_too(self, folder):
        edit(folder, "names.tsv", "MRD21", "MRD22")
        self.check(folder, {PROTEINS, EXPERIMENTS, SELECT})

    @pytest.mark.slow
    def test_biotypes(self, folder):
        (folder / "cells.tsv").write_text("biotype\torgan\nK-562\tblood\nHeLa\tcervix\n")
        self.check(folder, {BIOTYPES})
        (folder / "cells.tsv").write_text("biotype\torgan\nK-562\tblood\n")
        self.check(folder, {BIOTYPES})

    def test_experiments(self, folder):
        (folder / "e.tsv").write_text("experiment\tantibody\nGSE2.MRD21.K-562\tx\n")
        self.check(folder, {EXPERIMENTS, SELECT})

    def test_blacklist_and_loci(self, folder):
        edit(folder, "black.bed", "200", "100")
        self.check(folder, {BLACKLIST, SELECT})
        edit(folder, "loci.bed", "first", "second")
        self.check(folder, {LOCI, SELECT})

    def test_an_option(self, folder):
        edit(folder, "plan.toml", 'negatives = ["random:1"]', 'negatives = ["random:2"]')
        assert done(folder) == {SELECT: "changed in the plan: negatives"}
        edit(folder, "plan.toml", 'path = "black.bed"', 'path = "black.bed"\nname = "dark"')
        assert set(done(folder)) == {BLACKLIST, SELECT}
        assert content(folder) == afresh(folder)

    @pytest.mark.slow
    def test_a_file_that_corrects_another_is_read_after_it(self, folder):
        (folder / "more.fa").write_text(">sp|P3|SOX2_HUMAN x OX=9606 GN=SOX2\nMKVV\n")
        edit(folder, "plan.toml", '[[peaks]]\npath = "one.bed"', '[[peaks]]\npath = "one.bed"')
        text = (folder / "plan.toml").read_text().replace("[proteins]", "[[proteins]]")
        (folder / "plan.toml").write_text(text + '[[proteins]]\npath = "more.fa"\n')
        assert set(done(folder)) == {"proteins more.fa", EXPERIMENTS, SELECT}
        assert content(folder) == afresh(folder)
        edit(folder, "more.fa", "MKVV", "MKVVV")
        edit(folder, "more.fa", "GN=SOX2", "GN=SOX5")
        self.check(folder, {PROTEINS, "proteins more.fa", EXPERIMENTS, SELECT})

    @pytest.mark.slow
    def test_peaks_that_share_rows_are_read_again(self, folder):
        (folder / "two.bed").write_text((folder / "two.bed").read_text() + (folder / "one.bed").read_text())
        self.check(folder, {TWO, EXPERIMENTS, SELECT})
        edit(folder, "one.bed", "chr1\t10\t20", "chr1\t12\t22")
        self.check(folder, {ONE, TWO, EXPERIMENTS, SELECT})

    @pytest.mark.slow
    def test_metadata_that_came_with_peaks(self, folder):
        (folder / "beds").mkdir()
        (folder / "beds" / "x.bed").write_text("chr1\t10\t20\n")
        (folder / "beds.tsv").write_text("file\taccession\tfactor\tbiotype\tdonor\nx.bed\tG5\tSOX2\tH1\tone\n")
        edit(folder, "plan.toml", 'path = "two.bed"', 'path = "beds"\nexperiments = "beds.tsv"')
        self.check(folder, {TWO, "peaks beds", EXPERIMENTS, SELECT})
        edit(folder, "beds.tsv", "one", "two")
        self.check(folder, {"peaks beds", EXPERIMENTS, SELECT})
        (folder / "beds" / "x.bed").write_text("chr1\t10\t20\nchr1\t30\t40\n")
        self.check(folder, {"peaks beds", EXPERIMENTS, SELECT})

    @pytest.mark.slow
    def test_the_same_file_under_two_names(self, folder):
        shutil.copy(folder / "one.bed", folder / "same.bed")
        edit(folder, "plan.toml", 'path = "two.bed"', 'path = "same.bed"')
        done(folder)
        edit(folder, "one.bed", "10\t20", "12\t22")
        self.check(folder, {ONE, "peaks same.bed", EXPERIMENTS, SELECT})

    def test_what_the_plan_no_longer_names_is_taken_back(self, folder):
        edit(folder, "plan.toml", '[blacklist]\npath = "black.bed"\n', "")
        edit(folder, "plan.toml", '[[peaks]]\npath = "two.bed"\n', "")
        self.check(folder, {BLACKLIST, TWO, EXPERIMENTS, SELECT})

    def test_a_genome_of_the_same_bases_changes_nothing_else(self, folder):
        (folder / "g.fa").write_text(FILES["g.fa"].replace("ACGT" * 60, "acgt" * 60))
        assert set(done(folder)) == {INIT}

    def test_another_genome_is_refused(self, folder):
        before = content(folder)
        edit(folder, "g.fa", "ACGTACGT", "ACGTACGA")
        with pytest.raises(SpecError, match="init: the store is of another genome"):
            done(folder)
        assert content(folder) == before


class TestMended:
    def test_a_bad_file_leaves_the_store_as_it_was_and_the_same_command_goes_on(self, folder):
        before = content(folder)
        edit(folder, "two.bed", "60\t70", "70\t60")
        edit(folder, "black.bed", "200", "100")
        with pytest.raises(PeakFileError, match=r"peaks two.bed: end 60 <= start 70|peaks two.bed: "):
            done(folder)
        assert content(folder) == before
        edit(folder, "two.bed", "70\t60", "61\t71")
        assert set(done(folder)) == {TWO, EXPERIMENTS, BLACKLIST, SELECT}
        assert content(folder) == afresh(folder)

    def test_a_file_that_is_gone(self, folder):
        (folder / "loci.bed").unlink()
        with pytest.raises(InputFileError, match="no such file"):
            done(folder)

    @pytest.mark.slow
    def test_rows_that_somebody_took_away_come_back(self, folder):
        store = Store.open(folder / "s.store")
        rebuild_catalog(store, origin="genome")
        assert set(done(folder)) == {PROTEINS, ONE, TWO, EXPERIMENTS, BIOTYPES, BLACKLIST, LOCI, SELECT}
        assert content(folder) == afresh(folder)

    def test_a_selection_that_was_removed_or_made_by_hand_is_made_again(self, folder):
        store = Store.open(folder / "s.store")
        shutil.rmtree(store.selection_dir("all"))
        assert set(done(folder)) == {SELECT}
        make_selection(store, "all", SelectionConfig(negatives=("random:2",), margin_bp=0), overwrite=True)
        assert set(done(folder)) == {SELECT}
        assert Selection.open(store, "all").config.negatives == ("random:1",)

    def test_the_catalog_can_be_rebuilt_from_what_is_on_record(self, folder):
        edit(folder, "two.bed", "60\t70", "150\t170")
        (folder / "cells.tsv").write_text("biotype\torgan\nK-562\tblood\n")
        done(folder)
        before = content(folder)
        assert rebuild_catalog(Store.open(folder / "s.store")).origin == "inputs"
        assert content(folder) == before
        assert done(folder) == {}

    def test_a_damaged_record_is_refused_and_without_it_nothing_comes_in_twice(self, folder):
        before, path = content(folder), folder / "s.store" / "prepared.json"
        path.write_bytes(path.read_bytes().replace(b"two.bed", b"tw0.bed", 1))
        with pytest.raises(StoreError, match="record of the preparation cannot be read"):
            done(folder)
        path.unlink()
        assert len(done(folder)) == 9
        assert content(folder) == before
        edit(folder, "one.bed", "10\t20", "12\t22")
        assert set(done(folder)) == {ONE, EXPERIMENTS, SELECT}
        assert content(folder) == afresh(folder)


class TestOthers:
    @pytest.mark.slow
    def test_a_store_that_was_made_by_hand_is_taken_over(self, folder):
        shutil.rmtree(folder / "s.store")
        grid = Grid(window_bp=64, n_bins=4, bin_bp=8)
        store = Store.create(folder / "s.store", fasta=folder / "g.fa", grid=grid)
        ingest.import_peaks(store, folder / "one.bed")
        assert len(done(folder)) == 9
        assert content(folder) == afresh(folder)
        edit(folder, "one.bed", "10\t20", "12\t22")
        done(folder)
        assert content(folder) == afresh(folder)

    def test_a_selection_of_somebody_else_is_left_alone(self, folder):
        store = Store.open(folder / "s.store")
        make_selection(store, "mine", SelectionConfig(negatives=("random:2",), margin_bp=0))
        rows = store.selection_dir("mine") / "rows.parquet"
        before = rows.read_bytes()
        edit(folder, "plan.toml", "[select.all]", "[select.mine]")
        with pytest.raises(SelectionError, match="'mine' is there that this plan did not make"):
            done(folder)
        assert rows.read_bytes() == before

    def test_another_plan_of_the_same_store_is_refused(self, folder):
        (folder / "other.toml").write_text(PLAN)
        with pytest.raises(ConfigError, match=r"prepared by plan\.toml"):
            prepare(folder / "other.toml")

    def test_what_came_in_by_hand_stays(self, folder):
        store = Store.open(folder / "s.store")
        (folder / "hand.bed").write_text("chr2\t90\t95\tGSE7.SOX2.H1\t1\t.\n")
        ingest.import_peaks(store, folder / "hand.bed")
        edit(folder, "one.bed", "10\t20", "12\t22")
        edit(folder, "plan.toml", '[[peaks]]\npath = "two.bed"\n', "")
        done(folder)
        with store.reader() as catalog:
            rows = catalog.rows("SELECT experiment, count(*) FROM peaks GROUP BY ALL ORDER BY ALL")
        assert rows == [("GSE1.SOX2.H1", 3), ("GSE7.SOX2.H1", 1)]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of one folder."""
    place = tmp_path / "served"
    place.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args) -> None:
            super().__init__(*args, directory=str(place))

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", place
    server.shutdown()
    thread.join()
    server.server_close()


class TestFetched:
    def plan(self, folder: Path, url: str) -> None:
        (folder / "sources.toml").write_text(f'[black]\nurl = "{url}/black.bed"\nfile = "black.bed"\n')
        text = PLAN.replace('path = "black.bed"', 'path = "fetch:list"')
        text = 'sources = "sources.toml"\ncache = "cache"\n' + text + '[fetch.list]\nsource = "black"\n'
        (folder / "plan.toml").write_text(text)

    def test_a_download_is_a_stage_and_its_bytes_an_input(self, folder, served):
        url, place = served
        (place / "black.bed").write_text(FILES["black.bed"])
        self.plan(folder, url)
        dry = {r.stage: r.why for r in prepare(folder / "plan.toml", dry_run=True)}
        assert dry["fetch list"] == "new"
        assert dry["blacklist list"] == "an input is still to be fetched"
        assert set(done(folder)) == {"fetch list", "blacklist list", BLACKLIST, SELECT}
        assert done(folder, offline=True) == {}
        (folder / "cache" / "black.bed").unlink()
        assert set(done(folder)) == {"fetch list"}
        assert content(folder)["blacklist"]

    def test_offline_and_absent_is_said(self, folder, served):
        self.plan(folder, served[0])
        with pytest.raises(OSError, match="fetch list: black is not in the cache"):
            done(folder, offline=True)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code catches it."""


@pytest.mark.parametrize("place", [pytest.param(n, marks=() if n in (2, 8) else pytest.mark.slow) for n in range(1, 9)])
def test_killed_before_any_record_was_written_it_goes_on(folder, monkeypatch, place):
    # every input changes; the run dies just before the n-th stage is on record, after what it did is in the store
    edit(folder, "p.fa", "MKV", "MKVV")
    edit(folder, "one.bed", "10\t20", "12\t22")
    edit(folder, "two.bed", "60\t70", "62\t72")
    edit(folder, "e.tsv", "ours", "theirs")
    edit(folder, "cells.tsv", "stem", "trunk")
    edit(folder, "black.bed", "200", "201")
    edit(folder, "loci.bed", "first", "second")
    n_writes = 0
    write = run.Record.write

    def dying(self, path):
        nonlocal n_writes
        n_writes += 1
        if n_writes == place:
            raise Killed
        write(self, path)

    monkeypatch.setattr(run.Record, "write", dying)
    with pytest.raises(Killed):
        prepare(folder / "plan.toml")
    monkeypatch.undo()
    assert done(folder)
    assert content(folder) == afresh(folder)
    assert done(folder) == {}
    assert Selection.open(Store.open(folder / "s.store"), "all").columns().n


@pytest.mark.slow
def test_killed_for_good_at_any_time_it_goes_on(tmp_path, prepared):
    place = tmp_path / "killed"
    shutil.copytree(prepared, place, ignore=shutil.ignore_patterns("s.store"))
    command = [sys.executable, "-m", "tfbind_store", "prepare", str(place / "plan.toml"), "--json"]
    for tenths in (12, 16, 20, 25, 30):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(tenths / 10)
            process.send_signal(signal.SIGKILL)
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {stage["state"] for stage in json.loads(ended.stdout)["stages"]} <= {"done", "fresh"}
    assert content(place) == content(prepared)
    assert done(place) == {}


class TestCommand:
    def test_json_and_dry_run(self, folder):
        edit(folder, "black.bed", "200", "100")
        result = CliRunner().invoke(main, ["prepare", str(folder / "plan.toml"), "--dry-run", "--json"])
        told = {stage["stage"]: stage for stage in json.loads(result.stdout)["stages"]}
        assert told[BLACKLIST]["why"] == "changed input: black.bed"
        assert (told[SELECT]["state"], told[SELECT]["why"]) == ("to do", f"after {BLACKLIST}")
        assert told[ONE]["state"] == "fresh"
        again = CliRunner().invoke(main, ["prepare", str(folder / "plan.toml")])
        assert again.exit_code == 0, again.output
        assert "blacklist black.bed: 1 of 1 rows kept" in again.stdout
        assert "all stages are fresh" in again.stdout

    def test_a_mistake_is_three_lines(self, folder):
        edit(folder, "plan.toml", "[blacklist]", "[blaclist]")
        result = CliRunner().invoke(main, ["prepare", str(folder / "plan.toml")])
        assert result.exit_code == 1
        assert result.stderr.splitlines() == [
            "Error: unknown key 'blaclist'",
            f"  where: {folder / 'plan.toml'}",
            "  fix:   did you mean blacklist?",
        ]


@pytest.mark.slow
@pytest.mark.real_data
def test_the_yeast_example(tmp_path, data_dir):
    text = (Path(__file__).parents[2] / "examples" / "yeast.toml").read_text()
    for path in (data_dir / "yeast_sacCer3").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "plan.toml").write_text(text.replace('["factor:20:min_peaks=100"]', '["factor:5:min_peaks=500"]'))
    reports = {report.stage: report for report in prepare(tmp_path / "plan.toml")}
    assert reports["peaks peaks.remap.bed.gz"].outcome["rows_kept"] == 139_465
    assert reports["proteins sacCer3.proteins.fa.gz"].outcome["rows_kept"] == 5_983
    assert reports["blacklist ChExMix_Peak_Filter_List_190612.bed"].outcome["dropped"] == {"unknown_chromosome": 2}
    assert reports["select held_out"].outcome["rows"] > 300_000
    assert {report.state for report in prepare(tmp_path / "plan.toml")} == {"fresh"}
