"""The default head: both sides projected to a small width, a factor's residues read once, matrix products at the end.

Per distinct factor, learned queries pick a few tokens from its residues (a complex is the union of its subunits'
residues). Per pair, the context conditions the tokens (FiLM, 1 + gamma), the weight of each FILIP head and, through
them, everything else. A bin meets a pair by FILIP late interaction with the tokens, by a plain product of two vectors
(`tower_dim`), or both, added up. With `joint_depth`, bins attend to the tokens before FILIP.
"""

# g groups · n bins · d trunk dim · p pairs · f factors · l residues · e protein dim · t context dim
# k tokens per factor · w width

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
from tfbind_store.heads.base import Geometry, Head, HeadConfig, Intermediates, Pairs, register, strongest
from tfbind_store.heads.blocks import MIN_TEMPERATURE, FeedForward, Filip, FiLM, Hypergrid, QueryPool, TokenAttention
from tfbind_store.heads.products import Linear, product
from tfbind_store.heads.signal import SignalEncoder


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(HeadConfig):
    """Sizes of the adapter head."""

    width: int = 192
    """Numbers per bin and per token."""
    n_queries: int = 8
    """Tokens per factor."""
    summary_dim: int = 48
    """Numbers of each token that the summary of a pair reads."""
    filip_heads: int = 16
    """Heads of the late interaction; 0 leaves FILIP (and the joint attention) out."""
    filip_dim: int = 16
    """Width of one FILIP head."""
    temperature: float = 0.1
    """Of the log-average-exp over tokens: small is close to the maximum, large to the mean."""
    tower_dim: int = 128
    """Length of the two vectors whose product scores a bin with a pair; 0 leaves it out."""
    joint_depth: int = 0
    """Blocks of cross-attention from bins to tokens before FILIP; each costs more than all the rest."""
    attention_heads: int = 4
    """Heads of the joint cross-attention."""
    film: bool = True
    """Condition the tokens on the context."""
    hypergrid: bool = False
    """Mix the FILIP heads by a matrix gated by the context."""
    signal_scales: int = 0
    """Numbers per bin of a biotype's signal, read beside the DNA; 0 reads none."""
    signal_drop: float = 0.15
    """Share of the signals that training takes away."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.width, self.attention_heads, self.filip_dim)
        fixes = {
            "choose width, attention_heads and filip_dim of at least 1": min(sizes) < 1,
            "choose joint_depth, signal_scales, filip_heads and tower_dim of at least 0": min(
                self.joint_depth, self.signal_scales, self.filip_heads, self.tower_dim
            )
            < 0,
            "choose width as a multiple of attention_heads": self.width % max(1, self.attention_heads) != 0,
            "choose filip_heads or tower_dim above 0": self.filip_heads <= 0 and self.tower_dim <= 0,
            f"choose a temperature of at least {MIN_TEMPERATURE}": self.temperature < MIN_TEMPERATURE,
            "choose n_queries and summary_dim of at least 1": min(self.n_queries, self.summary_dim) < 1,
        }
        for fix, is_wrong in fixes.items():
            if is_wrong:
                raise ConfigError("sizes of the adapter head do not fit together", where="head adapter", fix=fix)


@register("adapter")
class Adapter(Head):
    """See the module's docstring."""

    config_class = AdapterConfig

    def __init__(self, config: AdapterConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)
        width, flat = config.width, config.n_queries * config.summary_dim
        self.project_dna = Linear(geometry.dna_dim, width)
        self.feed_dna = nn.Sequential(FeedForward(width, dropout=config.dropout), nn.LayerNorm(width))
        if config.signal_scales:
            self.signal = SignalEncoder(config.signal_scales, width, drop=config.signal_drop)
        self.pool = QueryPool(geometry.protein_dim, width, n_queries=config.n_queries)
        self.feed_token = nn.Sequential(FeedForward(width, dropout=config.dropout), nn.LayerNorm(width))
        self.film = FiLM(width, context_dim=geometry.context_dim) if config.film else None
        self.token_summary = nn.Linear(width, config.summary_dim)
        self.summary = nn.Sequential(
            nn.Linear(flat + geometry.context_dim, width), nn.GELU(), nn.Dropout(config.dropout)
        )
        self.pair_bias = nn.Linear(width, 1)
        if config.tower_dim:
            self.tower_dna = Linear(width, config.tower_dim)
            self.tower_pair = nn.Linear(width, config.tower_dim)
        if config.filip_heads:
            self._build_filip(config, geometry)

    @property
    def blocks(self) -> list[TokenAttention]:
        """The joint attention, by its own type."""
        return cast(list[TokenAttention], list(self.joint))

    def _build_filip(self, config: AdapterConfig, geometry: Geometry) -> None:
        self.joint = nn.ModuleList(
            TokenAttention(
                config.width,
                token_dim=config.width,
                heads=config.attention_heads,
                head_dim=config.width // config.attention_heads,
                dropout=config.dropout,
            )
            for _ in range(config.joint_depth)
        )
        self.filip = Filip(
            config.width, heads=config.filip_heads, head_dim=config.filip_dim, temperature=config.temperature
        )
        self.grid = Hypergrid(config.filip_heads, context_dim=geometry.context_dim) if config.hypergrid else None
        # cosines are small: heads start with a weight at which their sum spans a few logits
        self.head_weights = nn.Parameter(torch.randn(config.filip_heads) * 4 * config.filip_heads**-0.5)
        self.head_gamma = nn.Linear(config.width, config.filip_heads)
        nn.init.zeros_(self.head_gamma.weight)
        nn.init.zeros_(self.head_gamma.bias)

    @property
    def options(self) -> AdapterConfig:
        """The config, by its own type."""
        return cast(AdapterConfig, self.config)

    def encode_factors(
        self, protein: Float[Tensor, "f l e"], mask: Bool[Tensor, "f l"], subunit: Int[Tensor, "f l"]
    ) -> Float[Tensor, "f k w"]:
        """Return the tokens of each factor."""
        return cast(Tensor, self.feed_token(self.pool(self.protein_scale(protein), mask)))

    def encode_pairs(self, factors: Float[Tensor, "p k w"], context: Float[Tensor, "p t"]) -> Pairs:
        """Return (bias, tower vector, FILIP tokens, weight of each FILIP head, tokens); parts left out are absent."""
        context = F.normalize(context.float(), dim=-1)
        tokens = factors if self.film is None else self.film(factors, context)
        summary = self.summary(torch.cat([self.token_summary(tokens).flatten(1), context], dim=-1))
        parts = [self.pair_bias(summary).squeeze(-1)]
        if self.options.tower_dim:
            parts.append(self.tower_pair(summary))
        if self.options.filip_heads:
            weights = self.head_weights * (1 + self.head_gamma(summary))
            # the sum over heads is linear: the grid folds into it, one vector per pair instead of a matrix
            if self.grid is not None:
                weights = torch.einsum("pio,po->pi", self.grid.grid(context), weights)
            parts += [self.filip.project_tokens(tokens), weights]
            if self.joint:
                parts.append(tokens)
        return tuple(parts)

    def encode_dna(self, dna: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape w"]:
        """Return the hidden numbers of each bin."""
        return self.finish(self.stem(dna), None)

    def stem(self, dna: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape w"]:
        """Return the bins at the head's width."""
        return cast(Tensor, self.project_dna(self.dna_scale(dna)))

    def finish(self, stem: Float[Tensor, "*shape w"], signal: Float[Tensor, "*shape s"] | None) -> Tensor:
        """Return the hidden numbers of each bin, of DNA and signal together."""
        return cast(Tensor, self.feed_dna(stem if self.signal is None else stem + self.signal(signal)))

    def interact(self, dna: Float[Tensor, "g n w"], pairs: Pairs) -> Float[Tensor, "g n p"]:
        """Return the logits of bins with pairs."""
        rest = list(pairs)
        logits = self.logit_bias + rest.pop(0).float().unsqueeze(1)
        tower, projected = self._read(dna)
        if tower is not None:
            vectors = rest.pop(0)
            scale = self.options.tower_dim**-0.5
            logits = logits + (tower @ vectors.transpose(1, 2)).float() * scale
        if self.options.filip_heads:
            units, weights = rest[:2]
            if projected is None:
                bins = dna.unsqueeze(2)
                for block in self.blocks:
                    bins = block(bins, block.project(rest[2]))
                projected = self.filip.from_dna(bins)
            met = self.filip.meet(projected, units) * rearrange(weights.float(), "g p h -> g h () p")
            logits = logits + met.sum(1)
        return logits.expand(-1, dna.shape[1], -1)

    def _read(self, dna: Float[Tensor, "g n w"]) -> tuple[Tensor | None, Tensor | None]:
        """Return what the tower and FILIP read of bins; None of a part that is left out, or reads something else."""
        options = self.options
        parts = [self.tower_dna] if options.tower_dim else []
        parts += [self.filip.from_dna] if options.filip_heads and not self.blocks else []
        if len(parts) < 2:
            return (self.tower_dna(dna) if options.tower_dim else None), None
        # one product for both: a step of a few windows spends as long on starting products as on making them
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        tower, projected = product(dna, weight, bias).split([part.out_features for part in parts], dim=-1)
        return tower, projected.unsqueeze(2)

    def intermediates(self, batch: Batch[Tensor]) -> Intermediates:
        """Return the logits and what led to them; without FILIP there are only the weights of the residues."""
        shares = self.pool.weights(self.protein_scale(batch.protein), batch.mask)[batch.factor_index]
        found = Intermediates(self(batch), token_residues=shares)
        if not self.options.filip_heads:
            return found
        parts = list(tensor.unsqueeze(1) for tensor in self.encode(batch))[1 + bool(self.options.tower_dim) :]
        bins, attention = self._dna_of(batch).unsqueeze(2), []
        for block in self.blocks:
            projected = block.project(parts[2])
            attention.append(block.attention(bins, projected).squeeze(1))
            bins = block(bins, projected)
        gate = None if self.grid is None else self.grid.gate(F.normalize(batch.context.float(), dim=-1))
        return found._replace(
            interactions=rearrange(self.filip(bins, parts[0]), "b h n () -> b n h"),
            strongest=strongest(self.filip.cosines(bins, parts[0])),
            attention=tuple(attention),
            gate=None if gate is None else gate[batch.context_index],
        )
