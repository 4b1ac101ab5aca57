"""Untrained Enformers whose output depends on every part of their input, drawn from a seed.

For tests of the code and for benchmarks: they know nothing of biology.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tfbind_store.precompute.trunk_files import DOUBLED, UNTRAINED, Trunk, build_trunk

CONV_GAIN = 1.15
"""Of a random trunk: 1.0 fades the input out (bins differ by 0.02), 1.4 blows it up (values of 80)."""


def random_trunk(architecture: Mapping[str, Any], *, seed: int) -> Trunk:
    """Return an untrained trunk whose output depends on every part of its input.

    A default-initialised Enformer hardly reads its input: attention's ``to_out`` is zero, the BatchNorm statistics are
    0 and 1, and the convolutions shrink the signal. All of these are drawn anew here, from `seed` alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_trunk({"output_heads": {}, **architecture}, where="architecture")
        for name, module in model.named_modules():
            if not name.startswith(DOUBLED):
                _draw(name, module)
    return Trunk(model.eval(), UNTRAINED)


@torch.no_grad()
def _draw(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Conv1d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        module.weight.mul_(CONV_GAIN)
    elif isinstance(module, nn.BatchNorm1d):
        assert module.running_mean is not None, "Enformer tracks its statistics"
        assert module.running_var is not None, "Enformer tracks its statistics"
        module.running_mean.normal_(0, 0.1)
        module.running_var.uniform_(0.5, 1.5)
        module.weight.uniform_(0.8, 1.2)
        module.bias.normal_(0, 0.1)
    elif isinstance(module, nn.LayerNorm):
        module.weight.uniform_(0.8, 1.2)
        module.bias.normal_(0, 0.1)
    elif isinstance(module, nn.Linear) and name.endswith("to_out"):
        nn.init.xavier_normal_(module.weight)
        module.bias.normal_(0, 0.1)
