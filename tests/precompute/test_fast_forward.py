"""The fast forward gives the plain forward's numbers, for every shape that a trunk can have."""

from __future__ import annotations

import pytest
import torch
from enformer_pytorch import modeling_enformer

from tests.precompute.fast_models import random_enformer, relative_rms, worst_bin
from tfbind_store.precompute.enformer import one_hot
from tfbind_store.precompute.fast_forward import FastTrunk

EXACT = 2e-6


def _codes(length: int, *, seed: int = 0, pieces: int = 1) -> torch.Tensor:
    codes = torch.randint(0, 4, (pieces, length), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    codes[:, length // 3 : length // 3 + 40] = 4
    codes[:, :17] = 5
    return codes


@torch.inference_mode()
def _plain(model: torch.nn.Module, codes: torch.Tensor, keep: slice) -> torch.Tensor:
    return model(one_hot(codes.numpy()), return_only_embeddings=True)[:, keep]


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({}, 2048),
        ({"dim": 96, "depth": 1, "heads": 8}, 1280),
        ({"depth": 0}, 512),
        ({"num_downsamples": 4}, 1024),
        ({"num_downsamples": 9}, 4096),
        ({"attn_dim_key": 32, "heads": 2}, 3072),
    ],
)
def test_equals_the_plain_forward(options: dict[str, int], length: int, onednn: bool) -> None:
    model = random_enformer(**options)
    codes = _codes(length, pieces=2)
    trunk = FastTrunk(model, onednn=onednn)
    n = length // trunk.geometry.bp_per_token
    keep = slice(n // 4, n - n // 4)
    found, plain = trunk.pointwise(trunk.transform(trunk.conv(codes), keep)), _plain(model, codes, keep)
    assert relative_rms(found, plain) < EXACT
    assert worst_bin(found, plain) < (EXACT if onednn else 1.5 * EXACT)  # Cook-Toom of few channels, without it


@pytest.mark.parametrize("dim", [48, 144, 192, 288, 384])
def test_every_bin_of_any_width(dim: int) -> None:
    model = random_enformer(dim=dim, depth=1, heads=8)
    codes = _codes(128 * 24, seed=dim)
    trunk = FastTrunk(model)
    found = trunk.pointwise(trunk.transform(trunk.conv(codes), slice(None)))
    assert worst_bin(found, _plain(model, codes, slice(None))) < EXACT


def test_long_windows_go_through_in_blocks_of_queries_and_rows() -> None:
    model = random_enformer(dim=48, depth=1, num_downsamples=5)
    codes = _codes(32 * 300)  # 300 tokens: three blocks of queries, the last one short
    trunk = FastTrunk(model)
    found = trunk.pointwise(trunk.transform(trunk.conv(codes), slice(3, 290)))
    assert relative_rms(found, _plain(model, codes, slice(3, 290))) < EXACT


@pytest.fixture
def float32_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a float64 Enformer take the position features that its float32 self has: they are part of the trunk."""
    plain = modeling_enformer.get_positional_embed

    def rounded(*args: object, dtype: torch.dtype, **options: object) -> torch.Tensor:
        return plain(*args, dtype=torch.float32, **options).to(dtype)

    monkeypatch.setattr(modeling_enformer, "get_positional_embed", rounded)


def _embed(trunk: FastTrunk, codes: torch.Tensor) -> torch.Tensor:
    return trunk.pointwise(trunk.transform(trunk.conv(codes), slice(None)))


@pytest.mark.parametrize(
    ("options", "length"), [({"dim": 96}, 4096), ({"num_downsamples": 5, "heads": 2}, 32 * 140), ({"depth": 0}, 256)]
)
def test_in_float64_it_is_the_plain_forward_in_float64(
    options: dict[str, int], length: int, float32_positions: None
) -> None:
    model = random_enformer(**options)
    codes = _codes(length, pieces=2)
    found = _embed(FastTrunk(model), codes)
    plain = _plain(model, codes, slice(None))
    exact = _embed(FastTrunk(model.double(), dtype=torch.float64, onednn=False), codes)
    with torch.inference_mode():
        truth = model(one_hot(codes.numpy()).double(), return_only_embeddings=True)
    assert relative_rms(exact, truth) < 1e-13
    assert relative_rms(found, truth) < min(EXACT, 3 * relative_rms(plain, truth))


def test_trained_weights_and_statistics_of_real_rows(float32_positions: None) -> None:
    model = random_enformer(dim=96, depth=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    make = torch.Generator().manual_seed(0)
    for _ in range(20):
        codes = torch.randint(0, 4, (4, 1024), generator=make).to(torch.uint8)
        wanted = (codes == 2).float().unflatten(1, (8, 128)).mean(2)
        given = model(one_hot(codes.numpy()), return_only_embeddings=True).mean(2)
        loss = (given - wanted).square().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    model.eval()
    codes = _codes(4096)
    found, plain = _embed(FastTrunk(model), codes), _plain(model, codes, slice(None))
    with torch.inference_mode():
        truth = model.double()(one_hot(codes.numpy()).double(), return_only_embeddings=True)
    # statistics that follow the rows so closely make each level enlarge the rounding of those before it
    assert relative_rms(found, truth) < 4 * relative_rms(plain, truth) < 4e-5


def test_bfloat16_is_near() -> None:
    model = random_enformer(dim=96)
    codes = _codes(2048)
    trunk = FastTrunk(model, dtype=torch.bfloat16)
    found = trunk.pointwise(trunk.transform(trunk.conv(codes), slice(0, 16)))
    assert 1e-4 < relative_rms(found.float(), _plain(model, codes, slice(0, 16))) < 5e-2


def test_the_same_bits_twice() -> None:
    model, codes = random_enformer(), _codes(2048)
    first, second = (FastTrunk(model).conv(codes) for _ in range(2))
    assert torch.equal(first, second)


def test_train_mode_of_the_model_does_not_matter() -> None:
    model, codes = random_enformer(), _codes(2048)
    quiet = FastTrunk(model).conv(codes)
    assert torch.equal(FastTrunk(model.train()).conv(codes), quiet)


@pytest.mark.parametrize("downsamples", [3, 4, 7])
def test_geometry_follows_the_architecture(downsamples: int) -> None:
    geometry = FastTrunk(random_enformer(num_downsamples=downsamples)).geometry
    assert (geometry.bp_per_token, geometry.reach_tokens, geometry.dim) == (2**downsamples, 3, 48)


def test_reach_is_no_smaller_and_no_larger_than_the_truth() -> None:
    trunk = FastTrunk(random_enformer().double(), dtype=torch.float64, onednn=False)
    reach, bp = trunk.geometry.reach_tokens, trunk.geometry.bp_per_token
    codes = torch.randint(0, 4, (1, 40 * bp), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    whole = trunk.conv(codes)[0, 10:30]
    alone = trunk.conv(codes[:, 10 * bp : 30 * bp])[0]
    difference = (whole - alone).abs().amax(dim=1)
    assert difference[reach:-reach].max() < 1e-12
    assert difference[reach - 1] > 1e-12
    assert difference[-reach] > 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "within"),
    [("float32", EXACT), ("tf32", 5e-3), ("bfloat16", 5e-2), ("float16", 1e-2)],
)
@pytest.mark.parametrize("window_tokens", [16, 600])
def test_on_a_gpu_every_precision_is_near(precision: str, within: float, window_tokens: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = random_enformer(dim=96, depth=1, num_downsamples=5)
    codes = _codes(32 * window_tokens, pieces=2)
    plain = _plain(model, codes, slice(None))
    dtype = {"tf32": torch.float32}.get(precision) or getattr(torch, precision)
    fast = FastTrunk(model.cuda(), dtype=dtype, tf32=precision == "tf32")
    assert relative_rms(_embed(fast, codes.cuda()).float().cpu(), plain) < within
