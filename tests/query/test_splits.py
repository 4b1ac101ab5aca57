"""Parts, splits and hold-outs: the thing is held out, not its name."""

from __future__ import annotations

import numpy as np
import pytest

from tfbind_store.catalog.columns import Columns
from tfbind_store.errors import ConfigError, LeakError, SelectionError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.query import leaks, splits
from tfbind_store.query.kinship import FactorIdentity, Kinship, Paralogs
from tfbind_store.query.splits import SplitConfig

FACTORS = {
    "SOX2": FactorIdentity(frozenset({"SOX2"}), frozenset({"s"})),
    "POU5F1": FactorIdentity(frozenset({"POU5F1"}), frozenset({"p"})),
    "SOX2-POU5F1": FactorIdentity(frozenset({"SOX2", "POU5F1"}), frozenset({"s", "p"})),
    "SOXTWIN": FactorIdentity(frozenset({"SOXTWIN"}), frozenset({"s"})),
    "CTCF": FactorIdentity(frozenset({"CTCF"}), frozenset({"c"})),
}
TILING = Tiling.over(Grid(window_bp=60, n_bins=4, bin_bp=10), {"chrI": 100, "chrII": 45, "chrIII": 60})
SYNONYMS = {"OCT4": "POU5F1"}
ROWS = [
    # factor, biotype, base, peaks
    ("SOX2", "H1", "H1", 500),
    ("SOX2-POU5F1", "H1", "H1", 300),
    ("POU5F1", "H9", "H9", 200),
    ("SOXTWIN", "MCF-7", "MCF-7", 90),
    ("CTCF", "MCF-7_E2", "MCF-7", 1000),
    ("CTCF", "U2.OS", "U2.OS", 50),
]


def experiments():
    names = ("factor", "biotype", "base_biotype", "n_peaks")
    columns = Columns(zip(names, map(np.array, zip(*ROWS, strict=True)), strict=True))
    columns["has_protein"] = np.ones(len(ROWS), bool)
    return columns


def resolve(allow=(), seed=0, **config):
    return splits.resolve(
        SplitConfig(**config),
        tiling=TILING,
        aliases={"2": "chrII"},
        experiments=experiments(),
        kinship=Kinship(FACTORS, SYNONYMS),
        seed=seed,
        allow_leaks=allow,
    )


def chroms(parts):
    """The part of each chromosome; refused where a chromosome has several."""
    found = [np.unique(parts.places.part[TILING.global_bins(chrom)]).tolist() for chrom in range(3)]
    assert all(len(part) == 1 for part in found)
    return [part[0] for part in found]


def held(parts):
    return [ROWS[place][0] for place in np.flatnonzero(parts.factor)]


class TestChromosomes:
    def test_what_is_not_named_trains(self):
        parts = resolve(valid_chroms=("chrIII",), test_chroms=("2",))
        assert chroms(parts) == [0, 2, 1]

    def test_with_training_chromosomes_named_the_rest_is_unused(self):
        assert chroms(resolve(train_chroms=("chrI",), test_chroms=("chrII",))) == [0, 2, -1]

    def test_twice_is_refused(self):
        with pytest.raises(SelectionError, match="both valid and test"):
            resolve(valid_chroms=("2",), test_chroms=("chrII",))

    def test_unknown_is_refused_with_a_near_name(self):
        with pytest.raises(SelectionError, match="chrIV") as caught:
            resolve(test_chroms=("chrIV",))
        assert "chrI" in caught.value.fix


class TestFactors:
    def test_a_held_out_gene_takes_its_complexes_and_its_twin_along(self):
        assert held(resolve(hold_out={"factor": ["SOX2"]})) == ["SOX2", "SOX2-POU5F1", "SOXTWIN"]

    def test_a_held_out_complex_takes_its_members_along(self):
        found = held(resolve(hold_out={"factor": ["SOX2-POU5F1"]}))
        assert found == ["SOX2", "SOX2-POU5F1", "POU5F1", "SOXTWIN"]

    @pytest.mark.parametrize("name", ["OCT4", "oct4", "pou5f1"])
    def test_a_synonym_in_any_case_holds_out_its_gene(self, name):
        assert held(resolve(hold_out={"factor": [name]})) == ["SOX2-POU5F1", "POU5F1"]

    def test_kinship_allowed_by_name_is_not_followed(self):
        assert held(resolve(allow=("gene", "sequence"), hold_out={"factor": ["SOX2"]})) == ["SOX2"]

    def test_an_unknown_factor_is_refused_with_a_near_name(self):
        with pytest.raises(SelectionError) as caught:
            resolve(hold_out={"factor": ["CTFC"]})
        assert "CTCF" in caught.value.fix

    def test_an_unknown_kind_is_refused(self):
        with pytest.raises(ConfigError, match="cell"):
            SplitConfig(hold_out={"cell": ["H1"]})

    def test_a_share_goes_to_validation(self):
        parts = resolve(allow=("gene", "sequence"), hold_out={"factor": ["SOX2", "CTCF"]}, hold_out_valid_share=0.5)
        assert sorted(set(parts.factor.tolist())) == [0, 1, 2]
        names = parts.held_out["factor"]
        assert sorted(names.valid + names.test) == ["CTCF", "SOX2"]


class TestBiotypes:
    def test_a_cell_line_takes_its_treatments_along(self):
        parts = resolve(hold_out={"biotype": ["MCF-7"]})
        assert parts.biotype.tolist() == [0, 0, 0, 2, 2, 0]

    def test_and_the_other_way_round(self):
        assert resolve(hold_out={"biotype": ["MCF-7_E2"]}).biotype.tolist() == [0, 0, 0, 2, 2, 0]

    def test_dots_belong_to_the_name(self):
        assert resolve(hold_out={"biotype": ["U2.OS"]}).biotype.tolist() == [0, 0, 0, 0, 0, 2]
        with pytest.raises(SelectionError, match="no biotype 'OS'"):
            resolve(hold_out={"biotype": ["OS"]})


class TestRandom:
    def test_it_is_seeded_and_looks_at_peaks_only(self):
        first = resolve(hold_out_random=("factor:2:min_peaks=100",)).held_out["factor"].asked
        assert first == resolve(hold_out_random=("factor:2:min_peaks=100",)).held_out["factor"].asked
        assert len(first) == 2
        assert set(first) <= {"SOX2", "SOX2-POU5F1", "POU5F1", "CTCF"}
        others = {tuple(resolve(hold_out_random=("factor:2",), seed=s).held_out["factor"].asked) for s in range(20)}
        assert len(others) > 3

    def test_too_few_candidates_are_refused(self):
        with pytest.raises(SelectionError, match="2 factors to be held out, 1 have at least 600 peaks"):
            resolve(hold_out_random=("factor:2:min_peaks=600",))

    @pytest.mark.parametrize("rule", ["factor", "factor:x", "cell:2", "factor:2:peaks=5", "factor:2:min_peaks=x"])
    def test_nonsense_is_refused(self, rule):
        with pytest.raises(ConfigError, match="no rule"):
            resolve(hold_out_random=(rule,))


class TestCombine:
    def test_rows_between_validation_and_test_belong_to_neither(self):
        chrom, factor, biotype = map(np.array, zip((0, 0, 0), (0, 2, 0), (1, 0, 0), (1, 0, 2), (-1, 2, 0), strict=True))
        assert splits.combine(chrom, factor, biotype).tolist() == [0, 2, 1, -2, -1]

    def test_what_was_not_seen_is_named(self):
        codes = splits.unseen(np.array([0, 2, 0, 2]), np.array([0, 0, 2, 2]), np.array([0, 0, 0, 0]))
        names = [splits.HOLDOUTS[code] for code in codes]
        assert names == ["seen", "unseen_chromosome", "unseen_factor", "unseen_chromosome+unseen_factor"]


class TestLeaks:
    def find(self, train, held_out):
        bases = {"MCF-7": "MCF-7", "MCF-7_E2": "MCF-7", "H1": "H1"}
        return leaks.find_leaks(train, held_out, kinship=Kinship(FACTORS), base_biotypes=bases)

    def test_genes_sequences_and_treatments(self):
        train = leaks.Side({"SOX2-POU5F1": 1204, "SOXTWIN": 3}, {"MCF-7_E2": 7})
        found = self.find(train, leaks.Side({"SOX2": 9}, {"MCF-7": 1}))
        assert [(leak.kind, leak.shared, leak.n_training_rows) for leak in found] == [
            ("gene", "SOX2", 1204),
            ("sequence", "s", 1207),
            ("treatment", "MCF-7", 7),
        ]

    def test_a_clean_split_has_none(self):
        assert self.find(leaks.Side({"CTCF": 5}, {"H1": 5}), leaks.Side({"SOX2": 9}, {"MCF-7": 1})) == []

    def test_it_is_refused_unless_allowed_by_name(self):
        found = self.find(leaks.Side({"SOX2-POU5F1": 1204}, {}), leaks.Side({"POU5F1": 9}, {}))
        with pytest.raises(LeakError, match="1,204 training rows of SOX2-POU5F1 share the gene POU5F1") as caught:
            leaks.refuse(found, ("sequence",), where="selection x")
        assert "--allow-leak gene" in caught.value.fix
        leaks.refuse(found, ("gene", "sequence"), where="selection x")

    def test_an_unknown_kind_is_refused(self):
        with pytest.raises(ConfigError, match="genes"):
            leaks.refuse([], ("genes",), where="x")

    def test_what_the_trunk_has_seen(self):
        card = {"factors": ["CTCF", "sox2"], "chromosomes": ["chrI"]}
        found = leaks.trunk_leaks({"factors": ["SOX2"], "chromosomes": ["chrII"]}, card)
        assert [(leak.kind, leak.shared, leak.held_out) for leak in found] == [("trunk", "factors", ["SOX2"])]
        assert leaks.trunk_leaks({}, None)[0].kind == "trunk"

    def test_a_trunk_that_saw_a_synonym_or_a_complex_has_seen_the_gene(self):
        kinship = Kinship(FACTORS, SYNONYMS)
        card = {"factors": ["OCT4"], "biotypes": ["MCF7"], "chromosomes": []}
        held_out = {"factors": ["SOX2-POU5F1", "SOX2"], "biotypes": ["MCF-7_E2", "H1"]}
        found = leaks.trunk_leaks(held_out, card, kinship=kinship, name="t", fold=1)
        assert [(leak.shared, leak.held_out, leak.fold) for leak in found] == [
            ("factors of t", ["SOX2-POU5F1"], 1),
            ("biotypes of t", ["MCF-7_E2"], 1),
        ]

    def test_paralogs_are_named_with_their_identity(self):
        kinship = Kinship(FACTORS, find_paralogs=lambda held, _: [Paralogs("c", "s", 0.62)] if "s" in held else [])
        found = leaks.find_leaks(
            leaks.Side({"CTCF": 40}, {}), leaks.Side({"SOX2": 2}, {}), kinship=kinship, base_biotypes={}
        )
        assert [(leak.kind, leak.training, leak.held_out, leak.n_training_rows) for leak in found] == [
            ("paralog", ["CTCF"], ["SOX2"], 40)
        ]
        with pytest.raises(
            LeakError, match=r"40 training rows of CTCF share the family of SOX2 \(CTCF 62% identical"
        ) as e:
            leaks.refuse(found, (), where="x")
        assert "--hold-out family=SOX2" in e.value.fix

    def test_a_family_is_what_chains_of_paralogs_lead_to(self):
        pairs = [Paralogs("p", "s", 0.5), Paralogs("c", "p", 0.5)]

        def between(some, others):
            return [p for p in pairs if {*p[:2]} & set(some) and {*p[:2]} & set(others)]

        kinship = Kinship(FACTORS, find_paralogs=between)
        assert kinship.kin("family", "CTCF") == set(FACTORS)
        assert kinship.kin("factor", "CTCF") == {"CTCF"}

    def test_a_family_follows_complexes_to_their_other_genes_and_from_there_to_their_paralogs(self):
        def between(some, others):
            pair = Paralogs("c", "s", 0.5)
            return [pair] if {"c", "s"} & set(some) and {"c", "s"} & set(others) else []

        kinship = Kinship(FACTORS, find_paralogs=between, find_families=lambda: {"c": 0, "s": 0, "p": 1})
        assert kinship.kin("family", "POU5F1") == set(FACTORS)  # by SOX2-POU5F1 to SOX2, whose paralog is CTCF
        assert kinship.groups(FACTORS, by_family=True) == dict.fromkeys(FACTORS, 0)
        assert kinship.kin("family", "POU5F1", allow_leaks=("gene", "sequence")) == {"POU5F1"}

    def test_a_domain_takes_all_factors_that_have_it(self):
        kinship = Kinship(FACTORS, SYNONYMS, domains={"oct4": "Homeodomain", "SOX2": "HMG"})
        # the complex brings its other gene along, which brings what has the same sequence
        assert kinship.kin("domain", "homeodomain") == {"POU5F1", "SOX2-POU5F1", "SOX2", "SOXTWIN"}
        with pytest.raises(SelectionError, match="no factor has the domain 'HGM'") as caught:
            kinship.kin("domain", "HGM")
        assert "HMG" in caught.value.fix

    def test_windows_and_input_that_both_sides_read(self):
        tiling = Tiling.over(Grid(window_bp=60, n_bins=4, bin_bp=10), {"a": 400})
        found = leaks.place_leaks(
            tiling,
            (np.array([0, 1, 1]), np.array([0, 1, 2])),
            (np.array([2, 7]), np.array([3, 7])),
        )
        assert [(leak.kind, leak.n_training_rows) for leak in found] == [("window", 1), ("receptive_field", 2)]
        with pytest.raises(LeakError, match=r"1 training rows .* share the window") as caught:
            leaks.refuse(found, (), where="x")
        assert "--overlap drop" in caught.value.fix

    def test_windows_that_share_input(self):
        tiling = Tiling.over(Grid(window_bp=60, n_bins=4, bin_bp=10), {"a": 200, "b": 80})
        # windows 0..4 of a, 5..6 of b; each reads 10 bp into its neighbours
        shared = leaks.windows_read_by_both(tiling, np.array([0, 4]), np.array([1, 2, 3, 5]))
        assert shared.tolist() == [1, 3]
