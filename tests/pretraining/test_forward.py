import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tfbind_store.precompute.enformer import random_trunk
from tfbind_store.pretraining.forward import fast_dtype, train_features

ARCHITECTURE = {
    "dim": 24, "depth": 2, "heads": 2, "attn_dim_key": 6, "num_downsamples": 7, "dim_divisible_by": 4,
    "dropout_rate": 0.0, "attn_dropout": 0.0, "pos_dropout": 0.0,
}  # fmt: skip


@pytest.fixture
def trunk():
    return random_trunk(ARCHITECTURE, seed=0).model.double()


@pytest.fixture
def sequence():
    codes = torch.randint(0, 4, (3, 1024), generator=torch.Generator().manual_seed(0))
    return F.one_hot(codes, 4).double()


def test_equals_the_plain_forward(trunk, sequence):
    with torch.no_grad():
        plain = trunk(sequence, return_only_embeddings=True)
        torch.testing.assert_close(train_features(trunk, sequence, dtype=torch.float64), plain, rtol=0, atol=1e-10)


def test_training_gives_the_same_gradients_and_statistics(trunk, sequence):
    other = copy.deepcopy(trunk)
    trunk.train(), other.train()
    plain = trunk(sequence, return_only_embeddings=True)
    fast = train_features(other, sequence, dtype=torch.float64)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn(plain.shape, dtype=plain.dtype, generator=torch.Generator().manual_seed(1))
    (plain * weight).sum().backward()
    (fast * weight).sum().backward()
    for (name, one), two in zip(trunk.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-6, atol=1e-7, msg=name)
    for (name, one), two in zip(trunk.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-10, msg=name)


def test_bfloat16_stays_near(trunk, sequence):
    trunk.float()
    with torch.no_grad():
        exact = train_features(trunk, sequence.float())
        near = train_features(trunk, sequence.float(), dtype=torch.bfloat16)
    assert near.dtype == torch.float32
    assert ((near - exact).square().mean() / exact.square().mean()).sqrt() < 0.05


def test_dtype_is_one_of_two():
    assert fast_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
