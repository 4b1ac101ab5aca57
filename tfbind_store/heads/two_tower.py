"""A vector per bin and a vector per pair, compared latent by latent: a genome is scored as one matrix product.

Each vector is cut into `latents` of unit length; a pair weighs the cosine of each. The weights go into the pair's
vector, so that scoring is one product of two matrices whatever the number of latents. A biotype's signal, where the
head reads one, goes into the bin's vector: then a genome is one product for each biotype.
"""

# g groups · n bins · p pairs · f factors · l residues · e protein dim · t context dim · k tokens · w width · v vector

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tfbind_store.batch import Batch
from tfbind_store.errors import ConfigError
from tfbind_store.heads.base import Geometry, Head, HeadConfig, Intermediates, Pairs, register
from tfbind_store.heads.blocks import FeedForward, QueryPool
from tfbind_store.heads.products import Linear
from tfbind_store.heads.signal import SignalEncoder


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig(HeadConfig):
    """Sizes of the towers."""

    width: int = 192
    """Numbers per bin and per token on the way."""
    n_queries: int = 8
    """Tokens per factor."""
    latents: int = 16
    """Parts of a vector that are compared each for itself."""
    latent_dim: int = 16
    """Numbers in each of them."""
    signal_scales: int = 0
    """Numbers per bin of a biotype's signal, read beside the DNA; 0 reads none."""
    signal_drop: float = 0.15
    """Share of the signals that training takes away."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.width, self.n_queries, self.latents, self.latent_dim) < 1:
            raise ConfigError("a size of the two_tower head is below 1", where="head two_tower", fix="choose 1 or more")


@register("two_tower")
class TwoTower(Head):
    """See the module's docstring."""

    config_class = TwoTowerConfig

    def __init__(self, config: TwoTowerConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)
        width, vector = config.width, config.latents * config.latent_dim
        self.tower_dna = nn.Sequential(
            Linear(geometry.dna_dim, width),
            FeedForward(width, dropout=config.dropout),
            nn.LayerNorm(width),
            Linear(width, vector),
        )
        if config.signal_scales:
            self.signal = SignalEncoder(config.signal_scales, width, drop=config.signal_drop)
        self.pool = QueryPool(geometry.protein_dim, width, n_queries=config.n_queries)
        self.feed_token = nn.Sequential(FeedForward(width, dropout=config.dropout), nn.LayerNorm(width))
        self.summary = nn.Sequential(
            nn.Linear(config.n_queries * width + geometry.context_dim, 2 * width),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.tower_pair = nn.Linear(2 * width, vector)
        self.pair_bias = nn.Linear(2 * width, 1)
        # cosines are small: latents start with a weight at which their sum spans a few logits
        self.latent_weights = nn.Parameter(torch.randn(config.latents) * 8 * config.latents**-0.5)
        self.latent_gamma = nn.Linear(2 * width, config.latents)
        nn.init.zeros_(self.latent_gamma.weight)
        nn.init.zeros_(self.latent_gamma.bias)

    def encode_factors(
        self, protein: Float[Tensor, "f l e"], mask: Bool[Tensor, "f l"], subunit: Int[Tensor, "f l"]
    ) -> Float[Tensor, "f k w"]:
        """Return the tokens of each factor."""
        return cast(Tensor, self.feed_token(self.pool(self.protein_scale(protein), mask)))

    def encode_pairs(self, factors: Float[Tensor, "p k w"], context: Float[Tensor, "p t"]) -> Pairs:
        """Return (bias, vector) of each pair."""
        described = torch.cat([rearrange(factors, "p k w -> p (k w)"), F.normalize(context.float(), dim=-1)], dim=-1)
        summary = self.summary(described)
        weights = self.latent_weights * (1 + self.latent_gamma(summary))
        vector = rearrange(self._unit(self.tower_pair(summary)) * weights.float().unsqueeze(-1), "p h v -> p (h v)")
        return self.pair_bias(summary).squeeze(-1), vector

    def encode_dna(self, dna: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape v"]:
        """Return the vector of each bin."""
        return self.finish(self.stem(dna), None)

    def stem(self, dna: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape w"]:
        """Return the bins at the head's width."""
        return cast(Tensor, self.tower_dna[0](self.dna_scale(dna)))

    def finish(self, stem: Float[Tensor, "*shape w"], signal: Float[Tensor, "*shape s"] | None) -> Tensor:
        """Return the vector of each bin, of DNA and signal together."""
        hidden = stem if self.signal is None else stem + self.signal(signal)
        return self._unit(self.tower_dna[1:](hidden)).flatten(-2)

    def interact(self, dna: Float[Tensor, "g n v"], pairs: Pairs) -> Float[Tensor, "g n p"]:
        """Return the logits of bins with pairs."""
        bias, vector = pairs
        return self.logit_bias + bias.float().unsqueeze(1) + (dna @ vector.transpose(1, 2)).float()

    def intermediates(self, batch: Batch[Tensor]) -> Intermediates:
        """Return the logits, the weighted cosine of each latent, and what each token takes of each residue."""
        bins = self._latents(self._dna_of(batch))
        pairs = self._latents(self.encode(batch)[1])
        shares = self.pool.weights(self.protein_scale(batch.protein), batch.mask)[batch.factor_index]
        met = torch.einsum("bnhv,bhv->bnh", bins, pairs)
        return Intermediates(self(batch), interactions=met, token_residues=shares)

    def _latents(self, flat: Float[Tensor, "*shape v"]) -> Float[Tensor, "*shape h u"]:
        latents: Tensor = flat.unflatten(-1, (cast(TwoTowerConfig, self.config).latents, -1))
        return latents

    def _unit(self, flat: Float[Tensor, "*shape v"]) -> Float[Tensor, "*shape h u"]:
        return F.normalize(self._latents(flat).float(), dim=-1)
