"""The reference's full head, repaired, for stored bins: everything at the embeddings' own widths.

Bins attend to a factor's residues (`joint_depth` blocks, each with a feed-forward of four times the trunk's width) and
meet them by FILIP late interaction; context conditions both sides (FiLM with 1 + gamma, or squeeze-excite) and gates
the mixing of the FILIP heads (hypergrid). What differs from the reference, so that a bin has one score whatever was
asked for with it: residues do not attend to bins, and a bin is not averaged with its neighbours. So residues are read
once per distinct factor. `joint.Joint` adds both. This head is heavy: train `adapter` first.
"""

# g groups · n bins · d trunk dim · p pairs · f factors · l residues · e protein dim · t context dim · h FILIP heads

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tfbind_store.batch import Batch
from tfbind_store.errors import ConfigError
from tfbind_store.heads.base import (
    Geometry,
    Head,
    HeadConfig,
    Intermediates,
    Pairs,
    distinct_pairs,
    register,
    strongest,
)
from tfbind_store.heads.blocks import (
    MIN_TEMPERATURE,
    FeedForward,
    Filip,
    FiLM,
    Hypergrid,
    SqueezeExcite,
    TokenAttention,
)
from tfbind_store.heads.read_values import ReadValueLoss
from tfbind_store.heads.signal import Signal

MOST_NUMBERS = 2**26
"""Hidden numbers of a feed-forward, or similarities, that exist at once in a dense pass: 256 MiB."""


@dataclass(frozen=True, kw_only=True)
class FilipConfig(HeadConfig):
    """Sizes and parts of the full head; the defaults are the reference's."""

    latent_heads: int = 32
    """FILIP heads."""
    latent_dim: int = 64
    """Width of one FILIP head."""
    temperature: float = 0.05
    """Of the log-average-exp over residues."""
    joint_depth: int = 1
    """Blocks in which bins attend to residues."""
    attention_heads: int = 8
    """Heads of that attention."""
    attention_dim: int = 64
    """Width of one of them."""
    film: bool = False
    """Condition bins and residues on the context by scale and shift."""
    squeeze_excite: bool = False
    """Condition bins and residues on the context by gates."""
    hypergrid: bool = True
    """Mix the FILIP heads by a matrix gated by the context; else by a plain one."""
    norm_heads: bool = True
    """Normalise the mixed heads before the logit; the reference does for bound or not, and does not for tracks."""
    read_values: float = 0.0
    """Weight of an auxiliary loss: the score of the peak, given the number of its experiment's peaks. 0 has none."""
    fourier_dims: int = 256
    """Sines and cosines of that number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fixes = {
            f"choose a temperature of at least {MIN_TEMPERATURE}": self.temperature < MIN_TEMPERATURE,
            "choose film or squeeze_excite": self.film and self.squeeze_excite,
            "choose sizes of at least 1": min(
                self.latent_heads, self.latent_dim, self.attention_heads, self.attention_dim
            )
            < 1,
            "choose joint_depth of at least 0": self.joint_depth < 0,
            "choose read_values of at least 0, and an even number of fourier_dims": self.read_values < 0
            or self.fourier_dims < 2
            or bool(self.fourier_dims % 2),
        }
        for fix, is_wrong in fixes.items():
            if is_wrong:
                raise ConfigError("parts of the filip head do not fit together", where="head filip", fix=fix)


class _Ready(NamedTuple):
    """Pairs as bins meet them: [..., p, …] tensors that are computed once per factor or pair, not once per bin."""

    projected: tuple[Float[Tensor, "*g p a l two_v"], ...]
    """Keys and values of the residues, for each joint block."""
    units: Float[Tensor, "*g p h l v"]
    mask: Bool[Tensor, "*g p l"]
    context: Float[Tensor, "*g p t"]

    def take(self, rows: Int[Tensor, " b"]) -> _Ready:
        """Return one group of one pair for each row."""
        projected = tuple(tensor[rows].unsqueeze(1) for tensor in self.projected)
        return _Ready(projected, *(tensor[rows].unsqueeze(1) for tensor in self[1:]))


@register("filip")
class FilipHead(Head):
    """See the module's docstring."""

    config_class = FilipConfig

    def __init__(self, config: FilipConfig, geometry: Geometry) -> None:
        super().__init__(config, geometry)
        d, e, t = geometry
        self.norm = nn.LayerNorm(d)
        self.feed_protein = nn.ModuleList(
            FeedForward(e, dropout=config.dropout, mult=4) for _ in range(config.joint_depth)
        )
        condition = FiLM if config.film else SqueezeExcite if config.squeeze_excite else None
        self.condition_dna = None if condition is None else condition(d, context_dim=t)
        self.condition_protein = None if condition is None else condition(e, context_dim=t)
        self.joint = nn.ModuleList(
            TokenAttention(
                d, token_dim=e, heads=config.attention_heads, head_dim=config.attention_dim, dropout=config.dropout
            )
            for _ in range(config.joint_depth)
        )
        self.feed_dna = nn.ModuleList(FeedForward(d, dropout=config.dropout, mult=4) for _ in range(config.joint_depth))
        heads = config.latent_heads
        self.filip = Filip(
            d, token_dim=e, heads=heads, head_dim=config.latent_dim, temperature=config.temperature,
            dropout=config.dropout,
        )  # fmt: skip
        self.grid = Hypergrid(heads, context_dim=t) if config.hypergrid else None
        self.mix = None if config.hypergrid else nn.Linear(heads, heads)
        norm = nn.LayerNorm(heads) if config.norm_heads else nn.Identity()
        self.to_logit = nn.Sequential(norm, nn.Linear(heads, 1))
        self.read_values = ReadValueLoss(heads, fourier_dims=config.fourier_dims) if config.read_values else None

    @property
    def options(self) -> FilipConfig:
        """The config, by its own type."""
        return cast(FilipConfig, self.config)

    @property
    def blocks(self) -> list[TokenAttention]:
        """The joint attention, by its own type."""
        return cast(list[TokenAttention], list(self.joint))

    def encode_factors(
        self, protein: Float[Tensor, "f l e"], mask: Bool[Tensor, "f l"], subunit: Int[Tensor, "f l"]
    ) -> tuple[Float[Tensor, "f l e"], Bool[Tensor, "f l"]]:
        """Return the residues as they are: what bins meet is ten times as large, and made a few pairs at a time."""
        return protein, mask

    def encode_pairs(
        self, factors: tuple[Float[Tensor, "p l e"], Bool[Tensor, "p l"]], context: Float[Tensor, "p t"]
    ) -> Pairs:
        """Return (residues, which are real, context) of each pair."""
        return (*factors, F.normalize(context.float(), dim=-1))

    def conditioned_residues(
        self, residues: Float[Tensor, "p l e"], mask: Bool[Tensor, "p l"], context: Float[Tensor, "p t"]
    ) -> Float[Tensor, "p l e"]:
        """Return the residues as each pair's context changes them."""
        if isinstance(self.condition_protein, FiLM):
            return cast(Tensor, self.condition_protein(residues, context))
        if self.condition_protein is not None:
            return cast(Tensor, self.condition_protein(residues, context, mask))
        return residues

    def _met_as(self, residues: Float[Tensor, "*p l e"]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return keys and values for each block, which feeds the residues forward behind it, and unit vectors."""
        projected = []
        for block, feed in zip(self.blocks, self.feed_protein, strict=True):
            projected.append(block.project(residues))
            residues = feed(residues)
        return tuple(projected), self.filip.project_tokens(residues)

    def _ready(self, pairs: Pairs) -> _Ready:
        """Return pairs, in groups, as bins meet them."""
        residues, mask, context = pairs
        scaled = self.protein_scale(residues)
        if self.condition_protein is not None:
            flat = (tensor.flatten(0, 1) for tensor in (scaled, mask, context))
            scaled = self.conditioned_residues(*flat).unflatten(0, mask.shape[:2])
        return _Ready(*self._met_as(scaled), mask, context)

    def _by_row(self, batch: Batch[Tensor]) -> _Ready:
        """Return one group of one pair for each row; a factor is read once, or once for each of its contexts."""
        distinct, row_pair = distinct_pairs(batch)
        if self.condition_protein is not None:
            ready = self._ready(tuple(tensor.unsqueeze(1) for tensor in self.encode(distinct)))
            return _Ready(
                tuple(part.squeeze(1) for part in ready.projected), *(part.squeeze(1) for part in ready[1:])
            ).take(row_pair)
        projected, units = self._met_as(self.protein_scale(batch.protein))
        own, context = batch.factor_index, F.normalize(batch.context.float(), dim=-1)[batch.context_index]
        met = _Ready(projected, units, batch.mask, batch.mask)
        return met.take(own)._replace(context=context.unsqueeze(1))

    @staticmethod
    def join(parts: Sequence[Pairs]) -> Pairs:
        """Return pairs that were encoded in several batches as one, padded to the longest factor."""
        longest = max(mask.shape[1] for _, mask, _ in parts)
        padded = []
        for residues, mask, context in parts:
            more = longest - mask.shape[1]
            padded.append((F.pad(residues, (0, 0, 0, more)), F.pad(mask, (0, more)), context))
        return Head.join(padded)

    def encode_dna(self, dna: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        """Return the bins, normalised."""
        return cast(Tensor, self.norm(self.dna_scale(dna)))

    def interact(self, dna: Float[Tensor, "g n d"], pairs: Pairs) -> Float[Tensor, "g n p"]:
        """Return the logits of bins with pairs."""
        return self._meet(dna, self._ready(pairs))

    def forward(self, batch: Batch[Tensor]) -> Float[Tensor, "b n"]:
        """Return one logit per bin of each row; residues are read once per distinct factor."""
        return self.logit(self.mixed_rows(batch))

    def mixed_rows(self, batch: Batch[Tensor]) -> Float[Tensor, "b n h"]:
        """Return what the logit of each bin of each row is made of."""
        return self._mixed(self.encode_dna(batch.dna), self._by_row(batch)).squeeze(2)

    def score_pairs(
        self, dna: Float[Tensor, "k d"], pairs: Pairs, *, max_cells: int = 20_000, signal: Signal | None = None
    ) -> Float[Tensor, "k p"]:
        """Return the logit of every bin with every encoded pair, a few pairs of like length at a time."""
        hidden, n_pairs = self.encode_dna(dna).unsqueeze(0), pairs[0].shape[0]
        lengths = pairs[1].sum(1)
        order = lengths.argsort(stable=True)
        columns, at = [], 0
        while at < n_pairs:
            wide, cells = self._fitting(lengths[order[at:]], max_cells, min(len(dna), 64))
            own = order[at : at + wide]
            longest = int(lengths[own].max().clamp(min=1))
            trimmed = (pairs[0][own, :longest], pairs[1][own, :longest], pairs[2][own])
            ready = self._ready(tuple(tensor.unsqueeze(0) for tensor in trimmed))
            parts = torch.split(hidden, max(1, cells // wide), dim=1)
            columns.append(torch.cat([self._meet(part, ready)[0] for part in parts]))
            at += wide
        return torch.cat(columns, dim=1)[:, order.argsort()] if columns else hidden.new_zeros(len(dna), 0)

    def _fitting(self, lengths: Int[Tensor, " p"], max_cells: int, least_bins: int) -> tuple[int, int]:
        """Return how many of these pairs, and of their cells with bins, are worked on at once."""
        wide = len(lengths)
        while True:
            longest = int(lengths[:wide].max())
            numbers = max(4 * self.geometry.dna_dim, self.options.latent_heads * (longest + 1))
            cells = max_cells if torch.is_grad_enabled() else min(max_cells, max(1, MOST_NUMBERS // numbers))
            fitting = max(1, cells // max(1, least_bins))
            if wide <= fitting:
                return wide, cells
            wide = max(fitting, wide // 2) if wide > 1 else 1

    def intermediates(self, batch: Batch[Tensor]) -> Intermediates:
        """Return the logits, the attention of bins to residues, FILIP's similarities and the residue behind each."""
        ready, attention = self._ready(tuple(tensor.unsqueeze(1) for tensor in self.encode(batch))), []
        bins = self._conditioned(self.encode_dna(batch.dna), ready.context)
        for block, feed, projected in zip(self.blocks, self.feed_dna, ready.projected, strict=True):
            attention.append(block.attention(bins, projected, ready.mask).squeeze(1))
            bins = feed(block(bins, projected, ready.mask))
        return Intermediates(
            self(batch),
            interactions=rearrange(self.filip(bins, ready.units, ready.mask), "b h n () -> b n h"),
            strongest=strongest(self.filip.cosines(bins, ready.units), ready.mask.squeeze(1)),
            attention=tuple(attention),
            gate=None if self.grid is None else self.grid.gate(ready.context.squeeze(1)),
        )

    def _conditioned(self, dna: Float[Tensor, "g n d"], context: Float[Tensor, "g p t"]) -> Float[Tensor, "g n q d"]:
        """Return the bins as each pair sees them; as they are, once for all pairs, where nothing conditions them."""
        bins = dna.unsqueeze(2)
        if isinstance(self.condition_dna, FiLM):
            return cast(Tensor, self.condition_dna(bins, context))
        if self.condition_dna is None:
            return bins
        n_bins, n_pairs = dna.shape[1], context.shape[1]
        each = bins.expand(-1, -1, n_pairs, -1)
        # each bin is a sequence of its own: it is its own mean
        return each * self.condition_dna.gate(each, context.unsqueeze(1).expand(-1, n_bins, -1, -1))

    def _meet(self, dna: Float[Tensor, "g n d"], ready: _Ready) -> Float[Tensor, "g n p"]:
        return self.logit(self._mixed(dna, ready))

    def _mixed(self, dna: Float[Tensor, "g n d"], ready: _Ready) -> Float[Tensor, "g n p h"]:
        bins = self._conditioned(dna, ready.context)
        for block, feed, projected in zip(self.blocks, self.feed_dna, ready.projected, strict=True):
            bins = feed(block(bins, projected, ready.mask))
        met = rearrange(self.filip(bins, ready.units, ready.mask), "g h n p -> g n p h")
        return self.mixed(met, ready.context)

    def mixed(self, met: Float[Tensor, "g n p h"], context: Float[Tensor, "g p t"]) -> Float[Tensor, "g n p h"]:
        """Return the FILIP heads mixed, by a matrix that the context gates or by a plain one."""
        if self.grid is None:
            assert self.mix is not None
            return cast(Tensor, self.mix(met))
        grids = self.grid.grid(context.flatten(0, 1)).unflatten(0, context.shape[:2])
        return torch.einsum("gnpi,gpio->gnpo", met, grids)

    def logit(self, mixed: Float[Tensor, "*shape h"]) -> Float[Tensor, "*shape"]:
        """Return one logit of the mixed heads."""
        return self.logit_bias + cast(Tensor, self.to_logit(mixed)).squeeze(-1).float()
