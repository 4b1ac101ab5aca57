"""A bilinear form between a bin's embedding and what a factor looks like in a context; nothing but products on DNA.

`linear` adds what factor and context say; here the context gates what is read from the residues, so that a factor can
bind otherwise in another cell type. Through `rank` numbers, a genome is scored as one matrix product.
"""

# g groups · n bins · p pairs · f factors · l residues · e protein dim · t context dim · k tokens · w width · r rank

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tfbind_store.batch import Batch
from tfbind_store.errors import ConfigError
from tfbind_store.heads.base import Geometry, Head, HeadConfig, Intermediates, Pairs, register
from tfbind_store.heads.blocks import QueryPool
from tfbind_store.heads.products import Linear


@dataclass(frozen=True, kw_only=True)
class BilinearConfig(HeadConfig):
    """Sizes of the form."""

    rank: int = 128
    """Numbers through which a bin and a pair meet."""
    n_queries: int = 8
    """Tokens that are read from a factor's residues."""
    token_dim: int = 64
    """Numbers per token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.rank, self.n_queries, self.token_dim) < 1:
            raise ConfigError("a size of the bilinear head is below 1", where="head bilinear", fix="choose 1 or more")


@register("bilinear")
class Bilinear(Head):
    """See the module's docstring."""

    config_class = BilinearConfig

    def __init__(self, config: BilinearConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)
        described = config.n_queries * config.token_dim
        self.from_dna = Linear(geometry.dna_dim, config.rank)
        self.shared = nn.Linear(geometry.dna_dim, 1, bias=False)
        self.pool = QueryPool(geometry.protein_dim, config.token_dim, n_queries=config.n_queries)
        self.gate = nn.Linear(geometry.context_dim, described)
        self.from_pair = nn.Linear(described, config.rank)
        self.pair_bias = nn.Linear(described, 1)
        self.dropout = nn.Dropout(config.dropout)

    def encode_factors(
        self, protein: Float[Tensor, "f l e"], mask: Bool[Tensor, "f l"], subunit: Int[Tensor, "f l"]
    ) -> Float[Tensor, "f kw"]:
        """Return what the queries read from each factor."""
        return cast(Tensor, self.pool(self.protein_scale(protein), mask)).flatten(1)

    def encode_pairs(self, factors: Float[Tensor, "p kw"], context: Float[Tensor, "p t"]) -> Pairs:
        """Return (bias, weights) of each pair."""
        described = factors * (1 + self.gate(F.normalize(context.float(), dim=-1)))
        return self.pair_bias(described).squeeze(-1), self.from_pair(described)

    def encode_dna(self, dna: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape r_plus"]:
        """Return the part that all pairs share, beside the part that pairs weigh."""
        scaled = self.dropout(self.dna_scale(dna))
        return torch.cat([self.shared(scaled), self.from_dna(scaled)], dim=-1)

    def interact(self, dna: Float[Tensor, "g n r_plus"], pairs: Pairs) -> Float[Tensor, "g n p"]:
        """Return the logits of bins with pairs."""
        bias, weights = pairs
        scores = dna[..., :1] + (dna[..., 1:] @ weights.transpose(1, 2)) * weights.shape[-1] ** -0.5
        return cast(Tensor, self.logit_bias + scores.float() + bias.float().unsqueeze(1))

    def intermediates(self, batch: Batch[Tensor]) -> Intermediates:
        """Return the logits and what each token takes of each residue."""
        shares = self.pool.weights(self.protein_scale(batch.protein), batch.mask)[batch.factor_index]
        return Intermediates(self(batch), token_residues=shares)
