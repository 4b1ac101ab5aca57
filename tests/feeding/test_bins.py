"""Bins on a device are the array's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.precompute.small import make_store
from tfbind_store.errors import MissingWindow
from tfbind_store.feeding.bins import BinReader
from tfbind_store.precompute.embedder import make_window_embedder
from tfbind_store.precompute.run import embed_windows

ENFORMER = {"dim": 48, "depth": 1, "heads": 4, "attn_dim_key": 8, "device": "cpu"}
HALVED = {**ENFORMER, "tap": "transformer", "final_on_reading": True}
KINDS = {"full": ENFORMER, "int8": {**ENFORMER, "int8": True}, "half": HALVED, "quarter": {**HALVED, "int8": True}}
BINS = np.array([0, 3, 19, 3, 32, 47, 44, *range(10, 23)])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.set_num_threads(1)
    store = make_store(tmp_path_factory.mktemp("bins"))
    for name, options in KINDS.items():
        embed_windows(store, make_window_embedder("enformer", options), name=name)
    return store


def check(store, label, device):
    array = store.array(f"embeddings/{label}")
    found = BinReader(array, device)(BINS)
    assert (found.dtype, found.device.type, found.requires_grad) == (torch.float16, device.type, False)
    expected = array.gather_bins(BINS)[:, 0]
    if label in ("full", "int8"):
        np.testing.assert_array_equal(found.cpu().numpy(), expected)
    else:  # two ways to add up a product: the last digit of float16 may fall the other way
        np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=2e-3, atol=1e-5)
        assert np.mean(found.cpu().numpy() == expected) > 0.9


@pytest.mark.parametrize("label", KINDS)
def test_on_a_cpu(store, label, monkeypatch):
    check(store, label, torch.device("cpu"))
    monkeypatch.setattr("tfbind_store.feeding.bins.ROWS_AT_ONCE", {"cpu": 3, "cuda": 3})
    check(store, label, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("label", KINDS)
def test_on_a_gpu(store, label):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    check(store, label, torch.device("cuda"))


@pytest.mark.parametrize("label", KINDS)
def test_autocast_and_no_bins_change_nothing(store, label):
    reader = BinReader(store.array(f"embeddings/{label}"), torch.device("cpu"))
    assert reader(np.empty(0, dtype=np.int64)).shape == (0, 96)
    with torch.autocast("cpu", torch.bfloat16):
        found = reader(BINS)
    torch.testing.assert_close(found, reader(BINS), rtol=0, atol=0)


@pytest.mark.parametrize("label", KINDS)
def test_a_window_that_is_not_there_is_refused(store, label):
    with pytest.raises(MissingWindow, match="only N"):
        BinReader(store.array(f"embeddings/{label}"), torch.device("cpu"))(np.array([24]))
