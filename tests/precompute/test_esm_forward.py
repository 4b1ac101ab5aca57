"""The forward pass without waste, against fair-esm's own."""

from __future__ import annotations

import pytest
import torch

from tfbind_store.precompute.esm import random_esm2
from tfbind_store.precompute.esm_forward import FEW_TOKENS, EsmForward

CPU = torch.device("cpu")


def lines(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [[0, *torch.randint(4, 24, (n - 2,), generator=generator).tolist(), 2] for n in lengths]


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("sharpness", [1.0, 60.0])
def test_numbers_are_fair_esms_whatever_the_lengths_and_however_sharp_attention_is(onednn, sharpness):
    model, _ = random_esm2(2, 32, 2, seed=1)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.q_proj.weight *= sharpness
    tokens = lines(5, FEW_TOKENS + 20, 5, FEW_TOKENS - 1)
    found = EsmForward(model.eval(), 2, device=CPU, dtype=torch.float32, onednn=onednn)(tokens)
    for line, rows in zip(tokens, found, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([line]), repr_layers=[2])["representations"][2][0]
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=2e-5 * sharpness)
