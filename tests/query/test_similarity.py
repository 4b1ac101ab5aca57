"""Paralogs: found by alignment, whatever the order, kept in a file that may be lost or spoilt."""

from __future__ import annotations

import numpy as np
import pytest

from tfbind_store.query.similarity import ParalogFinder, candidates, find_similar, identities_of, plain

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


def test_all_pairs_are_kept_and_a_spoilt_file_is_made_again(proteins, tmp_path, monkeypatch):
    found = ParalogFinder(proteins, least=0.5, cache=tmp_path / "cache")(None)
    (kept,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(ParalogFinder, "_among", lambda *_: pytest.fail("aligned again"))
    assert ParalogFinder(proteins, least=0.5, cache=tmp_path / "cache")(None) == found
    monkeypatch.undo()
    kept.write_bytes(b"PAR1")
    assert ParalogFinder(proteins, least=0.5, cache=tmp_path / "cache")(None) == found
    assert ParalogFinder(proteins, least=0.9, cache=tmp_path / "cache")(None) != found


def test_no_proteins_have_no_paralogs():
    assert find_similar({}, least=0.4) == []
    assert find_similar({"a": "", "b": "MK"}, least=0.4) == []


def test_letters_that_no_matrix_knows_are_unknown_residues():
    assert plain("mkU*O") == "MKXXX"
