"""The invented genome: what is planted is there, decoys are decoys, and the files read as a user's would."""

import gzip
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tfbind_store.demo.genome import (
    CELL_TYPES,
    FAMILIES,
    DemoGenomeConfig,
    factor_families,
    make_demo_genome,
    mutate_sites,
    swap_proteins,
    write_demo_files,
)

SMALL = DemoGenomeConfig(n_chroms=4, chrom_bp=30_000)
COMPLEMENT = str.maketrans("ACGT", "TGCA")


@pytest.fixture(scope="module")
def genome():
    return make_demo_genome(SMALL, seed=3)


@pytest.fixture(scope="module")
def files(genome, tmp_path_factory):
    return write_demo_files(genome, tmp_path_factory.mktemp("demo") / "inputs")


def text_of(codes):
    return "".join("ACGTN"[code] for code in codes)


def site_texts(genome, *, is_decoy, family):
    names = list(genome.sequences)
    sites = genome.sites
    rows = np.flatnonzero((sites.family == family) & (sites.is_decoy == is_decoy))
    return [
        text_of(genome.sequences[names[sites.chrom[i]]][sites.start[i] : sites.start[i] + sites.length_bp[i]])
        for i in rows
    ]


class TestFamilies:
    def test_motifs_read_the_same_on_both_strands(self):
        for family in FAMILIES:
            assert family.motif == family.motif[::-1].translate(COMPLEMENT)
            assert family.decoy == family.decoy[::-1].translate(COMPLEMENT)

    def test_a_decoy_has_its_motifs_letters_in_another_order(self):
        for family in FAMILIES:
            assert sorted(family.decoy) == sorted(family.motif)
            assert sum(a == b for a, b in zip(family.decoy, family.motif, strict=True)) <= 4

    def test_there_are_four_families_of_five(self):
        assert Counter(factor_families().values()) == {0: 5, 1: 5, 2: 5, 3: 5}


class TestGenome:
    def test_the_same_seed_gives_the_same_genome_and_another_another(self, genome):
        same, other = make_demo_genome(SMALL, seed=3), make_demo_genome(SMALL, seed=4)
        assert text_of(genome.sequences["chr4"]) == text_of(same.sequences["chr4"])
        assert (genome.peaks, genome.proteins) == (same.peaks, same.proteins)
        assert text_of(genome.sequences["chr4"]) != text_of(other.sequences["chr4"])

    def test_planted_sites_are_close_to_the_motif_twice(self, genome):
        for family, described in enumerate(FAMILIES):
            for is_decoy, motif in ((False, described.motif), (True, described.decoy)):
                sites = [site for site in site_texts(genome, is_decoy=is_decoy, family=family) if "N" not in site]
                halves = [(site[:12], site[-12:]) for site in sites]
                agreement = np.mean([[a == b for a, b in zip(h, motif, strict=True)] for pair in halves for h in pair])
                assert len(sites) > 20
                assert agreement > 0.93

    def test_sites_do_not_overlap(self, genome):
        sites = genome.sites
        for chrom in range(SMALL.n_chroms):
            own = sites.chrom == chrom
            assert (sites.start[own][1:] >= (sites.start + sites.length_bp)[own][:-1]).all()

    def test_gc_of_a_bin_does_not_tell_bound_bins_from_others(self, genome):
        bound, others = [], []
        for chrom, codes in genome.sequences.items():
            is_gc = np.isin(codes[: len(codes) // 64 * 64].reshape(-1, 64), (1, 2)).mean(axis=1)
            bins = {peak.summit // 64 for peak in genome.peaks if peak.chrom == chrom}
            for number, share in enumerate(is_gc):
                (bound if number in bins else others).append(share)
        wins = (np.array(bound)[:, None] > np.array(others)[None]).mean()
        ties = (np.array(bound)[:, None] == np.array(others)[None]).mean()
        assert abs(wins + ties / 2 - 0.5) < 0.06

    def test_there_are_n_and_a_blacklist_inside_the_chromosomes(self, genome):
        assert (genome.sequences["chr1"][:1_500] == 4).all()
        assert genome.blacklist
        for chrom, start, end in genome.blacklist:
            assert 0 <= start < end <= len(genome.sequences[chrom])


class TestPeaks:
    def test_every_peak_holds_its_summit_inside_the_chromosome(self, genome):
        for peak in genome.peaks:
            assert 0 <= peak.start <= peak.summit < peak.end <= len(genome.sequences[peak.chrom])
            assert genome.sequences[peak.chrom][peak.summit] != 4

    def test_nearly_all_summits_lie_on_a_site_of_the_factors_family(self, genome):
        names, families = list(genome.sequences), factor_families()
        sites = genome.sites
        near = []
        for peak in genome.peaks:
            own = (sites.chrom == names.index(peak.chrom)) & (sites.family == families[peak.experiment.split(".")[1]])
            middle = (sites.start + sites.length_bp // 2)[own & ~sites.is_decoy]
            near.append(np.abs(middle - peak.summit).min() <= 20)
        assert 0.95 < np.mean(near) < 1

    def test_one_factor_binds_in_one_cell_type_only(self, genome):
        found = Counter(peak.experiment.split(".", 1)[1] for peak in genome.peaks)
        silent = f"ETX5.{CELL_TYPES[1].biotype}"
        assert found[silent] == 0
        assert len(found) == 39
        assert min(found.values()) > 20

    def test_members_of_a_family_share_most_of_their_sites(self, genome):
        places = {
            name: {(p.chrom, p.summit // 64) for p in genome.peaks if f".{name}.HEPA-7" in p.experiment}
            for name in ("HDX1", "HDX2", "ETX1")
        }
        assert len(places["HDX1"] & places["HDX2"]) > 0.5 * len(places["HDX1"])
        assert len(places["HDX1"] & places["ETX1"]) < 0.1 * len(places["HDX1"])


class TestProteins:
    def test_members_of_a_family_share_a_domain_but_no_protein(self, genome):
        words = {name: {p[i : i + 4] for i in range(len(p) - 3)} for name, p in genome.proteins.items()}
        assert len(words["HDX1"] & words["HDX2"]) >= 20
        assert len(words["HDX1"] & words["ETX2"]) <= 3
        assert len(set(genome.proteins.values())) == 20


class TestChanges:
    def test_mutating_scrambles_bound_sites_of_the_named_chromosomes_only(self, genome):
        changed = mutate_sites(genome, ["chr3", "chr4"], seed=1)
        for chrom in genome.sequences:
            same = (genome.sequences[chrom] == changed.sequences[chrom]).all()
            assert same == (chrom in ("chr1", "chr2"))
        names, sites = list(genome.sequences), genome.sites
        for chrom, start, length, _, is_decoy in zip(*sites, strict=True):
            before = genome.sequences[names[chrom]][start : start + length]
            after = changed.sequences[names[chrom]][start : start + length]
            assert sorted(before) == sorted(after)
            if is_decoy:
                assert (before == after).all()
            elif names[chrom] in ("chr3", "chr4"):
                assert (before == after).mean() < 0.5
        assert changed.peaks == genome.peaks

    def test_swapping_proteins_changes_nothing_else(self, genome):
        swapped = swap_proteins(genome, "HDX1", "ETX1")
        assert swapped.proteins["HDX1"] == genome.proteins["ETX1"]
        assert swapped.proteins["ETX1"] == genome.proteins["HDX1"]
        assert replace(swapped, proteins=genome.proteins) == genome


class TestFiles:
    def test_fasta_holds_the_sequences(self, genome, files):
        records = gzip.decompress(files.genome.read_bytes()).decode().split(">")[1:]
        read = {record.split("\n", 1)[0]: record.split("\n", 1)[1].replace("\n", "") for record in records}
        assert read == {name: text_of(codes) for name, codes in genome.sequences.items()}

    def test_peaks_are_nine_column_bed_sorted_by_place(self, genome, files):
        lines = gzip.decompress(files.peaks.read_bytes()).decode().splitlines()
        rows = [line.split("\t") for line in lines]
        assert len(rows) == len(genome.peaks)
        assert {len(row) for row in rows} == {9}
        assert all(int(row[1]) <= int(row[6]) < int(row[2]) for row in rows)
        chr2 = [int(row[1]) for row in rows if row[0] == "chr2"]
        assert chr2 == sorted(chr2)

    def test_the_silent_experiment_is_declared_with_its_source(self, files):
        lines = files.experiments.read_text().splitlines()
        assert lines[0].split("\t") == ["experiment", "accession", "factor", "biotype", "source"]
        assert len(lines) == 41
        assert "DEMO040.ETX5.NEUR-3\tDEMO040\tETX5\tNEUR-3\tpeaks.remap.bed.gz" in lines

    def test_the_same_genome_gives_the_same_bytes(self, genome, files, tmp_path):
        again = write_demo_files(genome, tmp_path)
        assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]
