"""Windows cut from a shared stretch are what each would be alone, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.precompute.fast_models import random_enformer, relative_rms
from tfbind_store.errors import LocusError
from tfbind_store.precompute.enformer import one_hot
from tfbind_store.precompute.fast_forward import FastTrunk
from tfbind_store.precompute.stretch import Run, embed_run

BP = 128
MODEL = random_enformer(dim=48, depth=1)
TRUNK = FastTrunk(MODEL)


def _reader(length: int, *, seed: int = 0) -> Callable[[int, int], np.ndarray]:
    chromosome = np.random.default_rng(seed).integers(0, 4, length).astype(np.uint8)
    chromosome[length // 2 : length // 2 + 700] = 4

    def read(start: int, end: int) -> np.ndarray:
        out = np.full(end - start, 5, np.uint8)
        low, high = max(start, 0), min(end, length)
        if low < high:
            out[low - start : high - start] = chromosome[low:high]
        return out

    return read


def _alone(run: Run, read: Callable[[int, int], np.ndarray]) -> torch.Tensor:
    codes = torch.from_numpy(np.stack([read(start, start + run.window_bp) for start in run.starts_bp]))
    with torch.inference_mode():
        return MODEL(one_hot(codes.numpy()), return_only_embeddings=True)[:, run.keep]


@pytest.mark.parametrize("batch_windows", [1, 3])
@pytest.mark.parametrize("chunk_tokens", [8, 20, 256])
@pytest.mark.parametrize(
    ("window", "stride", "n"),
    [(32, 16, 5), (32, 32, 3), (40, 4, 4), (24, 40, 3), (16, 16, 1), (10, 2, 4), (400, 300, 2), (600, 600, 1)],
)
def test_equals_every_window_alone(window: int, stride: int, n: int, chunk_tokens: int, batch_windows: int) -> None:
    if window > 100 and chunk_tokens < 256:
        pytest.skip("long windows with short chunks are only slow")
    keep = slice(window // 4, window - window // 4)
    run = Run.evenly(start_bp=-BP * 5, n_windows=n, window_bp=window * BP, stride_bp=stride * BP, keep=keep)
    read = _reader((stride * n + window) * BP - 777)
    found = list(embed_run(TRUNK, run, read, chunk_tokens=chunk_tokens, batch_windows=batch_windows))
    assert len(found) == n
    for mine, theirs in zip(found, _alone(run, read), strict=True):
        assert relative_rms(mine, theirs) < 2e-6


def test_the_last_windows_last_kept_bin_is_the_plain_ones() -> None:
    run = Run.evenly(start_bp=0, n_windows=3, window_bp=32 * BP, stride_bp=16 * BP, keep=slice(0, 32))
    read = _reader(4000)  # the last window lies past the chromosome's end for its greater part
    *_, last = embed_run(TRUNK, run, read, chunk_tokens=8)
    expected = _alone(run, read)[-1]
    assert float((last[-1] - expected[-1]).abs().max()) < 1e-5


def test_without_the_final_layer_the_transformers_output_comes() -> None:
    run = Run.evenly(start_bp=0, n_windows=2, window_bp=32 * BP, stride_bp=16 * BP, keep=slice(8, 24))
    read = _reader(9000)
    halves = list(embed_run(TRUNK, run, read, final=False))
    wholes = list(embed_run(TRUNK, run, read))
    assert halves[0].shape == (16, 48)
    for half, whole in zip(halves, wholes, strict=True):
        assert torch.equal(TRUNK.pointwise(half[None])[0], whole)


def test_windows_of_half_a_token_are_refused() -> None:
    run = Run.evenly(start_bp=0, n_windows=2, window_bp=32 * BP + 64, stride_bp=BP, keep=slice(8, 24))
    with pytest.raises(LocusError, match="no whole number of tokens"):
        list(embed_run(TRUNK, run, _reader(9000)))
