"""Attention with relative positions: both ways give the plain attention's numbers."""

from __future__ import annotations

import pytest
import torch

from tests.precompute.fast_models import random_enformer, relative_rms
from tfbind_store.precompute import relative_attention
from tfbind_store.precompute.relative_attention import TransformerBlock, batched, by_head


def _block(**architecture: int) -> tuple[torch.nn.Module, TransformerBlock]:
    model = random_enformer(depth=1, **architecture)
    return model.transformer[0], TransformerBlock(model.transformer[0], dtype=torch.float32, onednn=True)


@torch.inference_mode()
def _plain(block: torch.nn.Module, x: torch.Tensor, keep: slice) -> torch.Tensor:
    return block(x)[:, keep]


@pytest.mark.parametrize("few_tokens", [0, 10_000], ids=["by_head", "batched"])
@pytest.mark.parametrize(
    ("n", "keep"),
    [(1, slice(0, 1)), (2, slice(1, 2)), (33, slice(0, 33)), (300, slice(7, 290)), (700, slice(0, 700))],
)
@pytest.mark.parametrize("architecture", [{}, {"heads": 2, "attn_dim_key": 24}, {"dim": 96, "heads": 8}])
def test_both_ways_are_the_plain_block(
    architecture: dict[str, int], n: int, keep: slice, few_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relative_attention, "FEW_TOKENS", few_tokens)
    plain, fast = _block(**architecture)
    x = torch.randn(2, n, architecture.get("dim", 48), generator=torch.Generator().manual_seed(n))
    with torch.inference_mode():
        assert relative_rms(fast(x, keep), _plain(plain, x, keep)) < 1e-6


@pytest.mark.parametrize("first_query", [0, 5, 40])
def test_each_logit_has_the_key_of_its_own_distance(first_query: int) -> None:
    b, h, n, k, v, queries = 2, 3, 600, 8, 5, 530
    make = torch.Generator().manual_seed(0)
    content, position = (torch.randn(b, h, queries, k, generator=make, dtype=torch.float64) for _ in range(2))
    key, value = (torch.randn(b, h, n, width, generator=make, dtype=torch.float64) for width in (k, v))
    relative = torch.randn(h, 2 * n - 1, k, generator=make, dtype=torch.float64)
    distance = torch.arange(n)[None, :] - torch.arange(first_query, first_query + queries)[:, None] + n - 1
    logits = content @ key.transpose(2, 3) + torch.einsum("bhqk,hqnk->bhqn", position, relative[:, distance])
    expected = logits.softmax(-1) @ value
    found = batched(content, position, key, value, relative, first_query=first_query)
    torch.testing.assert_close(found, expected)
    found = by_head(content, position, key, value, relative, first_query=first_query, onednn=False)
    torch.testing.assert_close(found, expected)


def test_keys_of_distances_are_computed_once() -> None:
    _, fast = _block()
    assert fast.relative_keys(9) is fast.relative_keys(9)
    assert fast.relative_keys(9).shape == (4, 17, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_through_fused_attention(dtype: torch.dtype) -> None:
    plain, _ = _block()
    model = random_enformer(depth=1)
    fast = TransformerBlock(model.transformer[0], dtype=dtype, onednn=False)
    x = torch.randn(2, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = fast(x.to(dtype), slice(3, 60)).float()
        assert 1e-5 < relative_rms(found, _plain(plain, x, slice(3, 60))) < 2e-2
