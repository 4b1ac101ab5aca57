"""A small Enformer whose every part matters: a default one ignores its input (zero `to_out`, trivial BatchNorms)."""

from __future__ import annotations

import torch
from enformer_pytorch import Enformer
from enformer_pytorch.modeling_enformer import Attention, AttentionPool
from torch import nn


def random_enformer(*, dim: int = 48, depth: int = 2, heads: int = 4, seed: int = 0, **options: int) -> Enformer:
    """Build an Enformer with statistics, norms, pooling and output projections randomised, in eval mode."""
    model = Enformer.from_hparams(
        dim=dim, depth=depth, heads=heads, target_length=-1, dim_divisible_by=8, output_heads={"human": 1}, **options
    )
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(noise(parameter, parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1))
        for module in model.modules():
            if isinstance(module, nn.Conv1d):
                fan_in = module.weight.shape[1] * module.weight.shape[2]
                module.weight.copy_(noise(module.weight, fan_in**-0.5))
            elif isinstance(module, nn.BatchNorm1d):
                module.weight.copy_(1 + noise(module.weight, 0.1))
                module.running_mean.copy_(noise(module.running_mean, 0.1))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
            elif isinstance(module, nn.LayerNorm):
                module.weight.copy_(1 + noise(module.weight, 0.1))
            elif isinstance(module, AttentionPool):
                width = module.to_attn_logits.weight.shape[0]
                module.to_attn_logits.weight.copy_(noise(module.to_attn_logits.weight, width**-0.5))
                module.to_attn_logits.weight[:, :, 0, 0] += 2 * torch.eye(width)
            elif isinstance(module, Attention):
                module.rel_content_bias.copy_(noise(module.rel_content_bias, 1.0))
                module.rel_pos_bias.copy_(noise(module.rel_pos_bias, 1.0))
    return model.eval()


def one_hot(codes: torch.Tensor) -> torch.Tensor:
    """Return enformer-pytorch's input for our codes: N zeros, PAD a quarter in each channel."""
    table = torch.zeros(6, 4)
    table[:4] = torch.eye(4)
    table[5] = 0.25
    return table[codes.long()]


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the root mean square difference over that of `expected`."""
    difference = (found.double() - expected.double()).pow(2).mean().sqrt()
    return float(difference / expected.double().pow(2).mean().sqrt())
