"""Results come to the host in order, as float32, whatever device gave them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tfbind_store.precompute.hand_over import to_host


def _blocks(device: str, seen: list[int], dtype: torch.dtype = torch.float32) -> Iterator[torch.Tensor]:
    for i in range(5):
        seen.append(i)
        yield torch.full((3, 2), float(i), device=device, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cpu_holds_nothing_back(dtype: torch.dtype) -> None:
    seen: list[int] = []
    for i, values in enumerate(to_host(_blocks("cpu", seen, dtype), torch.device("cpu"))):
        assert seen[-1] == i
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, i)
    assert i == 4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_is_one_block_ahead(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    seen: list[int] = []
    for i, values in enumerate(to_host(_blocks("cuda", seen, dtype), torch.device("cuda"))):
        assert seen[-1] == min(i + 1, 4)
        np.testing.assert_array_equal(values, i)
    assert i == 4
    assert not list(to_host(iter(()), torch.device("cuda")))
