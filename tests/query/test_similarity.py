"""Paralogs: found by alignment, whatever the order, kept in a file that may be lost or spoilt."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from tfbind_store.query import similarity
from tfbind_store.query.kinship import components
from tfbind_store.query.similarity import ParalogFinder, candidates, find_similar, identities_of, joined, plain

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def protein(seed: int, length: int = 200) -> str:
    return "".join(LETTERS[np.random.default_rng(seed).integers(0, 20, length)])


def changed(sequence: str, share: float, seed: int) -> str:
    """Change a share of the residues at random places, each to another one."""
    rng = np.random.default_rng(seed)
    letters = list(sequence)
    for place in rng.permutation(len(letters))[: round(share * len(letters))].tolist():
        letters[place] = next(letter for letter in rng.permutation(LETTERS).tolist() if letter != letters[place])
    return "".join(letters)


@pytest.fixture(scope="module")
def proteins() -> dict[str, str]:
    found = {f"p{number}": protein(number) for number in range(6)}
    return {
        **found,
        "near": changed(found["p0"], 0.3, 7),
        "far": changed(found["p1"], 0.9, 8),
        "part": found["p2"][:50],
    }


def test_pairs_over_the_threshold_are_found_and_no_others(proteins):
    found = {(pair.first, pair.second): pair.identity for pair in find_similar(proteins, least=0.5)}
    assert set(found) == {("near", "p0"), ("p2", "part")} or set(found) == {("near", "p0"), ("part", "p2")}
    assert found[("near", "p0")] == pytest.approx(0.7, abs=0.03)
    assert found.get(("p2", "part"), found.get(("part", "p2"))) == 1.0


def test_words_lose_no_pair_that_a_full_comparison_finds():
    base = [protein(seed, 150) for seed in range(4)]
    sequences = base + [changed(base[n % 4], 0.02 * n, 50 + n) for n in range(24)]
    every = np.array([(a, b) for a in range(len(sequences)) for b in range(a + 1, len(sequences))], dtype=np.int64)
    over = {
        tuple(pair)
        for pair, identity in zip(every.tolist(), identities_of(sequences, every), strict=True)
        if identity >= 0.5
    }
    assert len(over) > 20
    assert over <= {tuple(pair) for pair in candidates(sequences, least=0.5).tolist()}


def test_only_pairs_with_an_asked_name(proteins):
    finder = ParalogFinder(proteins, least=0.5)
    assert [{pair.first, pair.second} for pair in finder({"p2"})] == [{"p2", "part"}]
    assert finder({"p4"}) == []
    assert len(finder(None)) == 2
    assert [{pair.first, pair.second} for pair in finder({"p0"})] == [{"p0", "near"}]
    assert [{pair.first, pair.second} for pair in finder({"p0", "p2"}, {"near", "p3"})] == [{"p0", "near"}]
    assert finder({"p0", "p2"}, {"p1"}) == []


def test_families_are_kept_and_a_spoilt_file_is_made_again(proteins, tmp_path, monkeypatch):
    def finder(least=0.5):
        return ParalogFinder(proteins, least=least, cache=tmp_path / "cache")

    found, pairs = finder().families(), finder()(None)
    (kept,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(similarity, "joined", lambda *_, **__: pytest.fail("aligned again"))
    assert finder().families() == found
    monkeypatch.undo()
    kept.write_bytes(b"PAR1")
    assert finder().families() == found
    assert finder(0.9).families() != found
    assert finder()(None) == pairs


def with_gaps(sequence: str, seed: int) -> str:
    """Take out a few residues and put others in."""
    rng = np.random.default_rng(seed)
    for place in np.sort(rng.integers(5, len(sequence) - 5, 4)).tolist():
        sequence = sequence[:place] + protein(seed + place, int(rng.integers(0, 6))) + sequence[place + 3 :]
    return sequence


def families_of_every_pair(sequences: list[str], least: float) -> list[int]:
    """Join what is alike by its identity alone: every pair is aligned."""
    every = np.array([(a, b) for a in range(len(sequences)) for b in range(a + 1, len(sequences))], dtype=np.int64)
    alike = every[np.array(identities_of(sequences, every)) >= least].tolist()
    marks = {number: [tuple(pair) for pair in alike if number in pair] for number in range(len(sequences))}
    group = components(range(len(sequences)), marks)
    first = {group[number]: number for number in reversed(range(len(sequences)))}
    return [first[group[number]] for number in range(len(sequences))]


def test_families_are_those_of_a_full_comparison():
    base = [protein(seed, 60 + 60 * seed) for seed in range(5)]
    alike = [with_gaps(changed(base[n % 5], 0.04 * (n % 13), n), n) for n in range(30)]
    domains = [protein(100 + n, 120) + base[2][10:90] for n in range(4)]  # 80 of 200 residues in common
    low = ["S" * 40 + protein(200 + n, 40) + "PSSPA" * 6 for n in range(4)]
    sequences = [*base, *alike, *domains, *low]
    for least in (0.3, 0.4, 0.6, 0.8):
        expected = families_of_every_pair(sequences, least)
        assert 3 < len(set(expected)) < len(sequences)
        assert joined(sequences, candidates(sequences, least=least), least=least).tolist() == expected


@pytest.mark.real_data
@pytest.mark.slow
def test_families_of_human_factors_are_those_of_a_full_comparison(data_dir):
    path = data_dir / "human_hg19_chr22" / "lambert_human_TF_proteins.uniprot.fa.gz"
    parts = gzip.decompress(path.read_bytes()).decode().split(">")[1:]
    texts = [plain("".join(part.splitlines()[1:])) for part in parts]
    sample = [texts[place] for place in np.random.default_rng(0).choice(len(texts), 200, replace=False)]
    expected = families_of_every_pair(sample, 0.4)
    assert max(map(expected.count, expected)) > 20  # zinc fingers
    assert joined(sample, candidates(sample, least=0.4), least=0.4).tolist() == expected


def test_no_proteins_have_no_paralogs():
    assert find_similar({}, least=0.4) == []
    assert find_similar({"a": "", "b": "MK"}, least=0.4) == []


def test_letters_that_no_matrix_knows_are_unknown_residues():
    assert plain("mkU*O") == "MKXXX"
