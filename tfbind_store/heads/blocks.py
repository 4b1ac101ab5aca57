"""The parts that heads are made of.

Masks are True on real residues. Softmax and pooling run in fp32 whatever the autocast. Every block gives the same
answer for a factor whether or not longer factors pad it.
"""

# g groups · n bins · p pairs · f factors · l residues · k tokens per factor · w width · h heads

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

MIN_TEMPERATURE = 0.02


class FeedForward(nn.Module):
    """Pre-norm two-layer network with a residual connection."""

    def __init__(self, dim: int, *, dropout: float, mult: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, mult * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mult * dim, dim)
        )

    def forward(self, x: Float[Tensor, "*shape w"]) -> Float[Tensor, "*shape w"]:
        """Return ``x + net(x)``."""
        return cast(Tensor, x + self.net(x))


class QueryPool(nn.Module):
    """Learned queries look over a factor's residues: any length in, `n_queries` tokens out.

    The residues are their own keys and values, so that no matrix product is spent on each of them.
    """

    def __init__(self, protein_dim: int, dim: int, *, n_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(n_queries, protein_dim) * protein_dim**-0.5)
        self.to_token = nn.Linear(protein_dim, dim)
        self.offset = nn.Parameter(torch.randn(n_queries, dim) * 0.02)

    def forward(self, residues: Float[Tensor, "f l e"], mask: Bool[Tensor, "f l"]) -> Float[Tensor, "f k w"]:
        """Return the tokens of each factor."""
        similarity = torch.einsum("fle,ke->fkl", residues, self.queries).float()
        similarity = similarity.masked_fill(~mask.unsqueeze(1), torch.finfo(similarity.dtype).min)
        pooled = similarity.softmax(-1).to(residues.dtype) @ residues
        return cast(Tensor, self.to_token(pooled)) + self.offset


class FiLM(nn.Module):
    """Scale and shift by context: ``x * (1 + gamma) + beta``; the identity at the start."""

    def __init__(self, dim: int, *, context_dim: int) -> None:
        super().__init__()
        self.to_gamma_beta = nn.Linear(context_dim, 2 * dim)
        nn.init.zeros_(self.to_gamma_beta.weight)
        nn.init.zeros_(self.to_gamma_beta.bias)

    def forward(self, x: Float[Tensor, "p k w"], context: Float[Tensor, "p t"]) -> Float[Tensor, "p k w"]:
        """Return `x` conditioned on each pair's context."""
        gamma, beta = self.to_gamma_beta(context).unsqueeze(1).chunk(2, dim=-1)
        return cast(Tensor, x * (1 + gamma) + beta)


class TokenAttention(nn.Module):
    """Bins attend to the tokens of a factor: the sequence side of a joint cross-attention block.

    Notes
    -----
    The reference's block also lets residues attend to bins. That couples the bins of a row: a bin's score would
    depend on which others were asked for with it. Here it may not, so that dense and row-wise scores agree.
    """

    def __init__(self, dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        assert dim % heads == 0, "width must be a multiple of the attention heads"
        self.heads = heads
        self.norm_dna, self.norm_token = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_queries = nn.Linear(dim, dim, bias=False)
        self.to_keys_values = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, dna: Float[Tensor, "g n q w"], tokens: Float[Tensor, "g p k w"]) -> Float[Tensor, "g n p w"]:
        """Return each bin as each pair sees it; `q` is 1 before the first block, afterwards the number of pairs."""
        queries = rearrange(self.to_queries(self.norm_dna(dna)), "g n q (h w) -> g n q h w", h=self.heads)
        keys, values = rearrange(
            self.to_keys_values(self.norm_token(tokens)), "g p k (two h w) -> two g p k h w", two=2, h=self.heads
        )
        queries = queries.expand(-1, -1, tokens.shape[1], -1, -1)
        similarity = torch.einsum("gnphw,gpkhw->gnphk", queries, keys).float() * keys.shape[-1] ** -0.5
        attention = self.dropout(similarity.softmax(-1)).to(values.dtype)
        attended = torch.einsum("gnphk,gpkhw->gnphw", attention, values)
        return cast(Tensor, dna + self.out(rearrange(attended, "g n p h w -> g n p (h w)")))


def log_average_exp(
    similarity: Float[Tensor, "*shape k"], *, temperature: float, mask: Bool[Tensor, "*shape k"] | None = None
) -> Float[Tensor, "*shape"]:
    """Return the soft maximum of the last axis: between the mean (warm) and the maximum (cold).

    Examples
    --------
    >>> log_average_exp(torch.tensor([0.3, 0.3]), temperature=0.05)
    tensor(0.3000)
    """
    scaled = similarity.float() / temperature
    if mask is None:
        mask = torch.ones_like(scaled, dtype=torch.bool)
    scaled = scaled.masked_fill(~mask, torch.finfo(scaled.dtype).min)
    return temperature * (scaled.logsumexp(-1) - mask.sum(-1).clamp(min=1).log())


class Filip(nn.Module):
    """Late interaction: in each head, the soft maximum over a factor's tokens of their cosine with the bin.

    A learned null token, normalised like the others, stands in where no token fits.

    Notes
    -----
    After Yao et al. 2021 (FILIP), pooled by log-average-exp as in the reference, whose null token was not normalised
    and hid the protein in a third of the cells.
    """

    def __init__(self, dim: int, *, heads: int, head_dim: int, temperature: float) -> None:
        super().__init__()
        assert temperature >= MIN_TEMPERATURE, "exp(1 / temperature) must stay far below the largest fp32 number"
        self.heads, self.temperature = heads, temperature
        self.from_dna = nn.Linear(dim, heads * head_dim)
        self.from_token = nn.Linear(dim, heads * head_dim)
        self.null = nn.Parameter(torch.randn(heads, head_dim))

    def project_tokens(self, tokens: Float[Tensor, "p k w"]) -> Float[Tensor, "p h k v"]:
        """Return each token as a unit vector per head; done once per pair."""
        return F.normalize(rearrange(self.from_token(tokens), "p k (h v) -> p h k v", h=self.heads).float(), dim=-1)

    def forward(self, dna: Float[Tensor, "g n q w"], tokens: Float[Tensor, "g p h k v"]) -> Float[Tensor, "g h n p"]:
        """Return one similarity per head; `q` is 1 where the bins do not know the pair, else the number of pairs."""
        bins = F.normalize(rearrange(self.from_dna(dna), "g n q (h v) -> g h n q v", h=self.heads).float(), dim=-1)
        # the temperature makes small errors large: autocast may not touch the similarities
        with torch.autocast(bins.device.type, enabled=False):
            return self._pooled(bins, tokens)

    def _pooled(self, bins: Float[Tensor, "g h n q v"], tokens: Float[Tensor, "g p h k v"]) -> Float[Tensor, "g h n p"]:
        bins = bins / self.temperature  # here, not on the much larger similarities
        nothing = torch.einsum("ghnqv,hv->ghnq", bins, F.normalize(self.null.float(), dim=-1))
        n_tokens = tokens.shape[3]
        if bins.shape[3] == 1:  # one product for all pairs and tokens
            flat = rearrange(tokens, "g p h k v -> g h v (k p)")
            similarity = rearrange(bins.squeeze(3) @ flat, "g h n (k p) -> g h n k p", k=n_tokens)
        else:
            similarity = torch.einsum("ghnpv,gphkv->ghnkp", bins, tokens)
        # cosines are bounded, so the exponentials cannot overflow and need no shift by their maximum: half the passes
        total = similarity.exp().sum(-2) + nothing.exp()
        return self.temperature * (total.log() - math.log(n_tokens + 1))


class Hypergrid(nn.Module):
    """A square mixing of the FILIP heads whose every cell is gated by context."""

    def __init__(self, heads: int, *, context_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.randn(heads, heads) * heads**-0.5)
        self.to_gate = nn.Linear(context_dim, heads * heads)

    def grid(self, context: Float[Tensor, "p t"]) -> Float[Tensor, "p h h"]:
        """Return the gated matrix of each pair."""
        gate = self.to_gate(context).sigmoid()
        return cast(Tensor, self.weight * rearrange(gate, "p (i o) -> p i o", i=self.heads))
