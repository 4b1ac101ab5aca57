"""Windows cut from a shared stretch are what each would be alone, wherever they lie."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tests.precompute.fast_models import random_enformer, relative_rms
from tfbind_store.errors import LocusError
from tfbind_store.precompute import packed
from tfbind_store.precompute.enformer import one_hot
from tfbind_store.precompute.fast_forward import FastTrunk
from tfbind_store.precompute.packed import PackedLinear
from tfbind_store.precompute.stretch import ConvGeometry, Run, embed_run, stretches, threads_of
from tfbind_store.precompute.versions import RememberingTrunk

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


def _rows_are_alike() -> bool:
    """Whether this machine's library gives a row the same bits in products of few and of many rows."""
    for width_in, width_out in ((64, 64), (96, 192), (192, 96), (60, 64)):
        product, x = PackedLinear(torch.randn(width_out, width_in)), torch.randn(400, width_in)
        if not all(torch.equal(product(x)[:n], product(x[:n].clone())) for n in (2, 7, 64, 131)):
            return False
    return True


@pytest.mark.parametrize(
    ("window", "stride", "longest_sum"), [(40, 16, 256), (40, 16, 32), (40, 15, 256), (64, 64, 32)]
)
def test_a_window_has_the_same_numbers_whatever_else_is_asked_for(
    window: int, stride: int, longest_sum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LONGEST_SUM", longest_sum)
    starts = tuple((i * stride - 5) * BP for i in range(5))
    read = _reader((5 * stride + window) * BP - 999)
    trunk = FastTrunk(random_enformer(dim=96, depth=1, dim_divisible_by=32))  # rows of whole vectors, as Enformer's are

    def embed(chosen: list[int], chunk_tokens: int, batch_windows: int) -> dict[int, torch.Tensor]:
        run = Run(
            starts_bp=tuple(starts[i] for i in chosen),
            window_bp=window * BP,
            keep=slice(2, window - 3),
            shares=stride < window,
        )
        found = embed_run(trunk, run, read, chunk_tokens=chunk_tokens, batch_windows=batch_windows)
        return dict(zip(chosen, found, strict=True))

    at_once, exact = embed([0, 1, 2, 3, 4], 256, 1), _rows_are_alike()
    for chosen, chunk_tokens, batch_windows in (
        ([0, 1, 2, 3, 4], 38, 1), ([0, 1, 2, 3, 4], 8, 4), ([1], 256, 1), ([3, 4], 64, 2), ([0, 2, 4], 100, 1),
    ):  # fmt: skip
        for i, values in embed(chosen, chunk_tokens, batch_windows).items():
            assert relative_rms(values, at_once[i]) < 2e-6
            assert torch.equal(values, at_once[i]) or not exact, (i, chosen, chunk_tokens)


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch_windows", [1, 2, 6])
@pytest.mark.parametrize(("window", "stride"), [(40, 16), (40, 41), (40, 15), (300, 200)])
def test_threads_change_no_bit(
    window: int, stride: int, batch_windows: int, torch_threads: Callable[[int], None]
) -> None:
    torch_threads(1)
    run = Run.evenly(
        start_bp=-3 * BP, n_windows=6, window_bp=window * BP, stride_bp=stride * BP, keep=slice(1, window - 2)
    )
    read = _reader((5 * stride + window) * BP)
    caller, readers = threading.current_thread(), set()

    def watched(start: int, end: int) -> np.ndarray:
        readers.add(threading.current_thread())
        return read(start, end)

    alone = list(embed_run(TRUNK, run, read, chunk_tokens=20, batch_windows=batch_windows, n_threads=1))
    beside = list(embed_run(TRUNK, run, watched, chunk_tokens=20, batch_windows=batch_windows, n_threads=3))
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))
    assert readers == {caller}, "readers of genomes are not asked by several threads"


def test_a_trunk_that_does_not_say_it_may_is_called_by_one_thread(torch_threads: Callable[[int], None]) -> None:
    torch_threads(3)
    assert threads_of(TRUNK) == 3
    assert threads_of(Counting()) == 1
    assert threads_of(RememberingTrunk(TRUNK)) == 1


@pytest.mark.parametrize("shares", [True, False])
def test_windows_around_loci_lie_anywhere(shares: bool) -> None:
    starts = (-300, 17, 18, 18 + 4 * BP, 9000, 9000 + 31 * BP, 20_001)
    run = Run(starts_bp=starts, window_bp=32 * BP, keep=slice(0, 32), shares=shares)
    read = _reader(22_000)
    for mine, theirs in zip(embed_run(TRUNK, run, read, batch_windows=3), _alone(run, read), strict=True):
        assert relative_rms(mine, theirs) < 2e-6


def test_stretches_end_at_gaps_and_between_tokens() -> None:
    assert stretches([], window_bp=512, bp_per_token=128) == []
    assert stretches([-256, 0, 512, 1023, 1150], window_bp=512, bp_per_token=128) == [
        (-256, 0), (512,), (1023,), (1150,),
    ]  # fmt: skip
    assert stretches([-256, 0, 384, 1023, 1151], window_bp=512, bp_per_token=128) == [(-256, 0, 384), (1023, 1151)]


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("stretch_code", "at_most"), [(4, 7), (0, 20)])
def test_long_stretches_of_n_are_computed_once(
    stretch_code: int, at_most: int, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = np.random.default_rng(3).integers(0, 4, 400 * BP).astype(np.uint8)
    if stretch_code == 4:
        codes[50 * BP : 350 * BP] = 4
    run = Run.evenly(start_bp=0, n_windows=3, window_bp=200 * BP, stride_bp=100 * BP, keep=slice(0, 200))
    chunks: list[int] = []
    conv = TRUNK.conv

    def counted(pieces: torch.Tensor) -> torch.Tensor:
        chunks.extend([pieces.shape[1]] if len(pieces) == 1 else [])
        return conv(pieces)

    monkeypatch.setattr(TRUNK, "conv", counted)

    def read(start: int, end: int) -> np.ndarray:
        inside = codes[max(start, 0) : max(end, 0)]
        return np.pad(inside, (max(-start, 0), max(end - len(codes), 0)), constant_values=5)

    found = list(embed_run(TRUNK, run, read, chunk_tokens=20, n_threads=n_threads))
    assert len(chunks) <= at_most, "20 chunks of 20 tokens cover it"
    assert len(chunks) >= 5
    monkeypatch.undo()
    for mine, theirs in zip(found, _alone(run, read), strict=True):
        assert relative_rms(mine, theirs) < 2e-6


class Counting:
    """A trunk that is no Enformer: two levels of a sum of three and a sum of pairs, then a sum over the window."""

    device = torch.device("cpu")
    geometry = ConvGeometry.of_levels([3, 3], dim=1)

    def conv(self, codes: torch.Tensor) -> torch.Tensor:
        x = codes.double()[:, None]
        for _ in range(2):
            x = torch.nn.functional.conv1d(x, torch.ones(1, 1, 3, dtype=torch.float64), padding=1)
            x = x[..., ::2] + x[..., 1::2]
        return x.transpose(1, 2)

    def transform(self, tokens: torch.Tensor, keep: slice) -> torch.Tensor:
        return (tokens + tokens.sum(dim=1, keepdim=True))[:, keep]

    def pointwise(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * tokens


def test_any_trunk_that_can_be_cut_in_three_runs_this_way() -> None:
    trunk, read = Counting(), _reader(5000)
    assert trunk.geometry == ConvGeometry(bp_per_token=4, reach_tokens=1, halo_tokens=1, align_tokens=1, dim=1)
    run = Run.evenly(start_bp=-8, n_windows=7, window_bp=40, stride_bp=12, keep=slice(2, 8))
    found = list(embed_run(trunk, run, read, chunk_tokens=5, batch_windows=2))
    for start, values in zip(run.starts_bp, found, strict=True):
        codes = torch.from_numpy(read(start, start + 40))[None]
        assert torch.equal(values, trunk.pointwise(trunk.transform(trunk.conv(codes), run.keep))[0])


@pytest.mark.parametrize(
    ("kernels", "tile", "expected"),
    [([15], 1, (2, 4, 4, 1)), ([15, 5, 5], 4, (8, 3, 6, 2)), ([5, 3], 1, (4, 1, 1, 1)), ([41] * 3, 1, (8, 18, 18, 1))],
)
def test_the_reach_follows_the_kernels(kernels: list[int], tile: int, expected: tuple[int, ...]) -> None:
    geometry = ConvGeometry.of_levels(kernels, dim=7, tile=tile)
    found = geometry.bp_per_token, geometry.reach_tokens, geometry.halo_tokens, geometry.align_tokens
    assert found == expected
