"""A module whose cut is declared shares its convolutions, gives the same numbers, and is not believed blindly."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contracts import TinyGenome
from tests.precompute.small_module import Tower
from tfbind_store.errors import ConfigError, SpecError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.embedder import make_window_embedder

GRID = Grid(window_bp=512, n_bins=40, bin_bp=4)
TOWER = {
    "target": "tests.precompute.small_module:Tower", "bin_bp": 4, "dim": 6, "gives": "channels_first", "device": "cpu",
}  # fmt: skip
CUT = {"tokens": "tokens", "from_tokens": "bins", "kernels": [7, 5]}


def embed(windows=None, **options) -> dict[int, np.ndarray]:
    genome = TinyGenome({"a": 2300, "b": 700})
    genome.sequences["a"][900:1100] = 4
    tiling = Tiling.over(GRID, genome.lengths_bp)
    chosen = list(range(tiling.n_windows)) if windows is None else windows
    found = list(make_window_embedder("module", {**TOWER, **options}).embed(chosen, genome.codes, tiling))
    assert [window for window, _ in found] == chosen
    return dict(found)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 3},
        {"strand": "mean"},
        {"shift_bp": 3},
        {"call": "cropped", "from_tokens": "cropped_bins", "n_bins": 122},
    ],
)
def test_windows_that_share_are_what_each_is_alone(options):
    alone_options = {key: value for key, value in options.items() if key != "from_tokens"}
    alone, shared = embed(**alone_options), embed(**{**CUT, **options})
    assert len(alone) > 15
    for window, values in alone.items():
        np.testing.assert_allclose(shared[window], values, rtol=0, atol=2e-6)


def test_any_windows_in_any_order():
    shared, some = embed(**CUT), [17, 3, 4, 9, 16]
    for window, values in embed(some, **CUT).items():
        np.testing.assert_allclose(values, shared[window], rtol=0, atol=2e-6)


def test_the_convolutions_see_each_base_about_once(monkeypatch):
    seen, tokens = [], Tower.tokens

    def counted(self, x):
        seen.append(x.shape[0] * x.shape[2])
        return tokens(self, x)

    monkeypatch.setattr(Tower, "tokens", counted)
    n = len(embed())
    alone = sum(seen)
    seen.clear()
    embed(**CUT)
    assert alone == n * 512
    assert sum(seen) < alone / 2, "a window begins every 160 bp"


def test_the_numbers_identity_does_not_depend_on_it():
    plain, cut = (make_window_embedder("module", {**TOWER, **options}).spec("g", GRID) for options in ({}, CUT))
    assert plain.fingerprint == cut.fingerprint


@pytest.mark.parametrize("kernels", [[7, 1], [1, 1]])
def test_too_narrow_kernels_are_found_out(kernels):
    with pytest.raises(SpecError, match="off what it is alone"):
        embed(**{**CUT, "kernels": kernels})


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"tokens": "tokens"}, ConfigError, "needs tokens, from_tokens and kernels"),
        ({**CUT, "kernels": [7, 5, 5]}, ConfigError, "make bins of 8 bp, not 4"),
        ({**CUT, "kernels": [7, 0]}, ConfigError, "make bins"),
        ({**CUT, "tokens": "absent"}, ConfigError, "no method 'absent'"),
        ({**CUT, "tokens": "half_as_many"}, SpecError, "tokens for"),
    ],
)
def test_a_cut_that_does_not_fit_is_refused(options, error, what):
    with pytest.raises(error, match=what):
        embed(**options)
