"""The probe to beat: for a given factor and context, a linear function of the bin's embedding.

The weights are themselves linear in the mean residue and the context, through `rank` numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tfbind_store.errors import ConfigError
from tfbind_store.heads.base import Geometry, Head, HeadConfig, Pairs, register


@dataclass(frozen=True, kw_only=True)
class LinearConfig(HeadConfig):
    """Size of the probe."""

    rank: int = 32
    """Numbers through which factor and context reach the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}, must be at least 1", where="head linear")


@register("linear")
class LinearProbe(Head):
    """See the module's docstring."""

    config_class = LinearConfig

    def __init__(self, config: LinearConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)
        described = geometry.protein_dim + geometry.context_dim
        self.pair_weights = nn.Linear(described, config.rank)
        self.pair_bias = nn.Linear(described, 1)
        self.dna_weights = nn.Linear(geometry.dna_dim, config.rank)
        self.shared = nn.Linear(geometry.dna_dim, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def encode_factors(
        self, protein: Float[Tensor, "f l e"], mask: Bool[Tensor, "f l"], subunit: Int[Tensor, "f l"]
    ) -> Float[Tensor, "f e"]:
        """Return the mean residue."""
        kept = self.protein_scale(protein) * mask.unsqueeze(-1)
        return cast(Tensor, kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))

    def encode_pairs(self, factors: Float[Tensor, "p e"], context: Float[Tensor, "p t"]) -> Pairs:
        """Return (bias, weights) of each pair."""
        described = torch.cat([factors, context.float()], dim=-1)
        return self.pair_bias(described).squeeze(-1), self.pair_weights(described)

    def encode_dna(self, dna: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d_plus"]:
        """Return the part that all pairs share, beside the part that pairs weigh."""
        scaled = self.dropout(self.dna_scale(dna))
        return torch.cat([self.shared(scaled), self.dna_weights(scaled)], dim=-1)

    def interact(self, dna: Float[Tensor, "g n w"], pairs: Pairs) -> Float[Tensor, "g n p"]:
        """Return the logits of bins with pairs."""
        bias, weights = pairs
        scale = weights.shape[-1] ** -0.5
        scores = dna[..., :1] + (dna[..., 1:] @ weights.transpose(1, 2)) * scale
        return cast(Tensor, self.logit_bias + scores.float() + bias.float().unsqueeze(1))
