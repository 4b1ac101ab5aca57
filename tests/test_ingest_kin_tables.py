"""Tables that the leak check goes by: domains of genes, and what trunks of others have seen."""

from __future__ import annotations

import gzip

import pytest
from click.testing import CliRunner

from tests.query.world import busy_world
from tfbind_store.cli import main
from tfbind_store.errors import InputFileError, LeakError, StrictError
from tfbind_store.ingest import import_families, import_loci, import_trunk
from tfbind_store.query.selection import SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig

TARGETS = """index\tgenome\tidentifier\tclip\tscale\tsum_stat\tdescription
0\t0\tE1\t32\t2\tmean\tDNASE:cell-B treated with 0.02% ethanol for 1 hour
1\t0\tE2\t32\t2\tmean\tCHIP:eGFP-DDD:HEK293 genetically modified using site-specific recombination
2\t0\tE3\t32\t2\tmean\tCHIP:H3K27ac:liver male adult (34 years)
3\t0\tE4\t32\t2\tmean\tCAGE
"""


@pytest.fixture
def store(tmp_path):
    world = busy_world(tmp_path)
    world.synonym("TRIPLE-D", "DDD")
    return world.write()


@pytest.fixture
def targets(tmp_path):
    path = tmp_path / "targets.txt.gz"
    path.write_bytes(gzip.compress(TARGETS.encode()))
    return path


def select(store, **config):
    return make_selection(store, "s", SelectionConfig(margin_bp=0, **config), overwrite=True)


class TestTrunk:
    def test_genes_come_out_of_tags_and_cells_out_of_treatments(self, store, targets):
        report = import_trunk(store, targets, "enformer")
        assert (report.rows_read, report.rows_kept, report.dropped) == (4, 3, {"names_nothing": 1})
        with store.reader() as catalog:
            seen = catalog.rows("SELECT kind, name FROM data.trunk_training WHERE trunk = 'enformer' ORDER BY ALL")
        assert [(kind, name) for kind, name in seen] == [
            ("biotypes", "HEK293"),
            ("biotypes", "cell-B"),
            ("biotypes", "liver male adult (34 years)"),
            ("factors", "DDD"),
            ("factors", "H3K27ac"),
        ]
        assert "nothing changed" in import_trunk(store, targets, "enformer").notes[0]

    def test_a_selection_that_holds_out_what_it_has_seen_is_refused_and_allowed_by_name(self, store, targets):
        import_trunk(store, targets, "enformer")
        with pytest.raises(LeakError, match="the trunk has seen held-out factors of enformer: DDD"):
            select(store, split=SplitConfig(hold_out={"factor": ["DDD"]}))
        with pytest.raises(LeakError, match="the trunk has seen held-out biotypes of enformer: cellB"):
            select(store, split=SplitConfig(hold_out={"biotype": ["cellB"]}))
        report = select(store, split=SplitConfig(hold_out={"factor": ["DDD"]}), allow_leaks=("trunk",))
        assert [leak["kind"] for leak in report.info["leaks"]] == ["trunk"]
        assert report.info["config"]["allow_leaks"] == ["trunk"]
        select(store, split=SplitConfig(hold_out={"factor": ["AAA"]}))

    def test_its_own_split_of_the_genome_is_used_and_guarded(self, store, targets, tmp_path):
        import_trunk(store, targets, "enformer")
        bed = tmp_path / "sequences.bed"
        bed.write_text("chr1\t0\t6005\tx\ttrain\nchr2\t0\t3333\tx\ttest\nchr3\t0\t1777\tx\tvalid\n")
        import_loci(store, bed, "enformer")
        with pytest.raises(LeakError, match="the trunk has seen held-out places of enformer"):
            select(store, split=SplitConfig(test_chroms=("chr1",)))
        report = select(store, split=SplitConfig(trunk="enformer"))
        assert {name: part["chromosomes"] for name, part in report.info["parts"].items()} == {
            "train": ["chr1"],
            "valid": ["chr3"],
            "test": ["chr2"],
        }

    def test_plain_columns_will_do_and_others_are_refused(self, store, tmp_path):
        path = tmp_path / "seen.tsv"
        path.write_text("factor\tbiotype\nAAA\tcellA\nNA\tcellB\n")
        assert import_trunk(store, path, "mine").rows_kept == 2
        path.write_text("a\tb\n1\t2\n")
        with pytest.raises(InputFileError, match="neither a column description nor factor or biotype"):
            import_trunk(store, path, "mine")

    def test_strict_drops_nothing(self, store, targets):
        with pytest.raises(StrictError, match="1 names nothing"):
            import_trunk(store, targets, "enformer", strict=True)

    def test_enformers_own_table(self, store, data_dir):
        report = import_trunk(store, data_dir / "extra_catalogs/enformer_basenji_targets_human.txt.gz", "enformer")
        assert (report.rows_read, report.dropped) == (5_313, {})
        with store.reader() as catalog:
            seen = dict(catalog.rows("SELECT name, kind FROM data.trunk_training"))
        assert {"CTCF", "ZNF132", "GATA2"} <= {name for name, kind in seen.items() if kind == "factors"}
        assert not [name for name in seen if name.startswith("eGFP") or "treated with" in name]


class TestFamilies:
    def test_a_domain_holds_out_all_its_factors(self, store, tmp_path):
        path = tmp_path / "domains.tsv"
        path.write_text("Gene\tDBD\nAAA\tHomeodomain\nBBB\tHomeodomain\nCCC\tNA\nCCC\tbHLH\n")
        report = import_families(store, path)
        assert (report.rows_kept, report.dropped) == (3, {"no_gene_or_domain": 1})
        made = select(store, split=SplitConfig(hold_out={"domain": ["homeodomain"]}))
        assert made.info["held_out"]["factor"]["test"] == ["AAA", "BBB"]

    def test_two_domains_of_one_gene_are_refused(self, store, tmp_path):
        path = tmp_path / "domains.tsv"
        path.write_text("gene\tdomain\nAAA\tHomeodomain\nAAA\tbHLH\n")
        with pytest.raises(InputFileError, match="AAA has two domains: Homeodomain and bHLH") as caught:
            import_families(store, path)
        assert caught.value.where.endswith("domains.tsv:3")

    def test_the_commands(self, store, targets, tmp_path):
        path = tmp_path / "domains.csv"
        path.write_text("gene,domain\nAAA,Homeodomain\n")
        for words in (["families", store.path, path], ["trunk", store.path, targets, "--name", "enformer"]):
            done = CliRunner().invoke(main, ["import", *map(str, words)])
            assert done.exit_code == 0, done.output
        assert "2 genes and 3 cells that enformer has seen" in done.output
