"""Reading frames against a referee that walks base by base."""

import math

import numpy as np
import pytest

from tfbind_store.precompute.reading_frames import (
    MOST_SHARED,
    N_CODONS,
    NEAR_BP,
    PER_STRAND,
    USAGE_NEAR_BP,
    USAGE_SCALE,
    frame_numbers,
    longest_frames,
    open_frames,
)

LETTERS = "ACGTNP"
LEAST = 6


def coded(letters: str) -> np.ndarray:
    return np.array([LETTERS.index(letter) for letter in letters], dtype=np.uint8)


def random_codes(seed: int, length: int, *, n_share: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codes = rng.integers(4, size=length, dtype=np.uint8)
    codes[rng.random(length) < n_share] = 4
    return codes


def complement(codes: np.ndarray) -> np.ndarray:
    return np.array([3, 2, 1, 0, 4, 5], dtype=np.uint8)[codes[::-1]]


def slow_frames(codes: np.ndarray, least: int) -> dict[tuple[int, int], list[str]]:
    """Return {(start, end): codons}, codon by codon."""
    letters, found = "".join(LETTERS[code] for code in codes), {}
    for phase in range(3):
        codons = [letters[at : at + 3] for at in range(phase, len(letters) - 2, 3)]
        begin, is_first = (0 if codons else None), True
        for at, codon in enumerate([*codons, "TAA"]):
            if codon in ("TAA", "TAG", "TGA") or set(codon) & set("NP"):
                if begin is not None and at - begin >= least:
                    found[phase + 3 * begin, phase + 3 * at] = codons[begin:at]
                begin, is_first = None, False
            elif codon == "ATG" and begin is None and not is_first:
                begin = at
    return found


def slow_numbers(codes: np.ndarray, step_bp: int, least: int) -> np.ndarray:
    """Return one strand's numbers of its kept frames, position by position."""
    frames = sorted((frame.start, frame.end) for frame in longest_frames(codes, least)[0])
    codons = slow_frames(codes, least)

    def usage(frame: tuple[int, int]) -> list[float]:
        own = [sum(LETTERS.index(c) * 4 ** (2 - at) for at, c in enumerate(codon)) for codon in codons[frame]]
        return [(own.count(codon) / len(own) - 1 / N_CODONS) * USAGE_SCALE for codon in range(N_CODONS)]

    rows = []
    for begin in range(0, len(codes), step_bp):
        middle, end = begin + step_bp / 2, begin + step_bp
        inside = [frame for frame in frames if frame[0] < end and frame[1] > begin]
        here = max(inside, key=lambda frame: (frame[1] - frame[0], frame[0]), default=None)
        bases = sum(any(start <= at < stop for start, stop in frames) for at in range(begin, end))
        ahead = [frame for frame in frames if frame[0] >= middle - step_bp]
        behind = [stop for _, stop in frames if stop <= middle + step_bp]
        to_start = max(ahead[0][0] - middle, 0) if ahead else math.inf
        from_end = max(middle - max(behind), 0) if behind else math.inf
        rows.append([
            bases / step_bp,
            math.log((here[1] - here[0]) / 300) if here else 0,
            *(math.exp(-to_start / scale) for scale in NEAR_BP),
            *(math.exp(-from_end / scale) for scale in NEAR_BP),
            *(usage(here) if here else [0] * N_CODONS),
            *(
                [number * math.exp(-to_start / USAGE_NEAR_BP) for number in usage(ahead[0])]
                if ahead
                else [0] * N_CODONS
            ),
        ])  # fmt: skip
    return np.array(rows)


def test_a_frame_begins_at_its_first_atg_and_ends_before_its_stop():
    codes = coded("TAA" + "CCC" + "ATG" + "GCC" * 3 + "ATG" + "TGA" + "CC")
    (found,) = [frame for frame in open_frames(codes, 5) if frame.start % 3 == 0]
    assert (found.start, found.end) == (6, 21)
    share = found.usage / USAGE_SCALE + 1 / N_CODONS
    assert share[int("0" + "32", 4)] == pytest.approx(2 / 5)  # ATG
    assert share[int("211", 4)] == pytest.approx(3 / 5)  # GCC


def test_a_frame_runs_over_both_edges_and_no_base_ends_it():
    assert [(frame.start, frame.end) for frame in open_frames(coded("CCC" * 8), 8)] == [(0, 24)]
    assert open_frames(coded("CCC" * 4 + "CNC" + "CCC" * 4), 5) == []
    assert open_frames(coded("P" * 60), 1) == []


@pytest.mark.parametrize("n_share", [0.0, 0.01])
@pytest.mark.parametrize("seed", range(4))
def test_frames_are_those_of_a_walk(seed, n_share):
    codes = random_codes(seed, 3001 + seed, n_share=n_share)
    slow = slow_frames(codes, LEAST)
    assert {(frame.start, frame.end) for frame in open_frames(codes, LEAST)} == set(slow)
    assert len(slow) > 10


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_a_walk(seed):
    codes = random_codes(seed, 32 * 40, n_share=0.005)
    found = frame_numbers(codes, step_bp=32, least_codons=12)
    np.testing.assert_allclose(found[:, :PER_STRAND], slow_numbers(codes, 32, 12), rtol=1e-5, atol=1e-5)
    other = slow_numbers(complement(codes), 32, 12)[::-1]
    np.testing.assert_allclose(found[:, PER_STRAND:], other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_the_complement_has_the_same_numbers_in_reverse(seed):
    codes = random_codes(seed, 32 * 64)
    own = frame_numbers(codes, step_bp=32, least_codons=LEAST)  # so short that many are equally long
    other = frame_numbers(complement(codes), step_bp=32, least_codons=LEAST)[::-1]
    np.testing.assert_array_equal(own[:, :PER_STRAND], other[:, PER_STRAND:])
    np.testing.assert_array_equal(own[:, PER_STRAND:], other[:, :PER_STRAND])


def test_of_overlapping_frames_the_longest_is_kept():
    codes = random_codes(1, 6000)
    own, other = longest_frames(codes, LEAST)
    places = [(frame.start, frame.end) for frame in own]
    places += [(len(codes) - frame.end, len(codes) - frame.start) for frame in other]
    longest = max((frame for frame in (*own, *other)), key=lambda frame: frame.end - frame.start)
    everything = [*open_frames(codes, LEAST), *open_frames(complement(codes), LEAST)]
    assert longest.end - longest.start == max(frame.end - frame.start for frame in everything)
    for begin, end in places:
        longer = np.zeros(len(codes), dtype=bool)
        for start, stop in places:
            if stop - start > end - begin:
                longer[start:stop] = True
        assert longer[begin:end].mean() < MOST_SHARED
    assert len(places) < len(everything)


def test_a_sequence_without_frames_has_numbers_too():
    found = frame_numbers(coded("P" * 64), step_bp=32, least_codons=80)
    assert found.shape == (2, 2 * PER_STRAND)
    assert (found == 0).all()
