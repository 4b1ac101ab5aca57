"""The parts that heads are made of.

Masks are True on real residues. Softmax and pooling run in fp32 whatever the autocast. Every block gives the same
answer for a factor whether or not longer factors pad it.
"""

# g groups · n bins · p pairs · f factors · l residues · k tokens per factor · w width · h heads

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tfbind_store.heads.products import Linear

MIN_TEMPERATURE = 0.02


class FeedForward(nn.Module):
    """Pre-norm two-layer network with a residual connection."""

    def __init__(self, dim: int, *, dropout: float, mult: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim), Linear(dim, mult * dim), nn.GELU(), nn.Dropout(dropout), Linear(mult * dim, dim)
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
        pooled = self.weights(residues, mask).to(residues.dtype) @ residues
        return cast(Tensor, self.to_token(pooled)) + self.offset

    def weights(self, residues: Float[Tensor, "f l e"], mask: Bool[Tensor, "f l"]) -> Float[Tensor, "f k l"]:
        """Return how much of each residue a token takes; they add up to 1 over the real ones."""
        similarity = F.linear(residues, self.queries).float().transpose(1, 2)
        return masked_softmax(similarity, mask.unsqueeze(1))


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


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate that context and the mean over real positions decide.

    Notes
    -----
    The reference's masked mean kept the padding and dropped the residues, so that a protein never reached its gate.
    """

    def __init__(self, dim: int, *, context_dim: int) -> None:
        super().__init__()
        self.to_gate = nn.Linear(context_dim + dim, dim)

    def forward(
        self, x: Float[Tensor, "p k w"], context: Float[Tensor, "p t"], mask: Bool[Tensor, "p k"] | None = None
    ) -> Float[Tensor, "p k w"]:
        """Return `x` times each pair's gate."""
        gated: Tensor = x * self.gate(masked_mean(x, mask), context).unsqueeze(1)
        return gated

    def gate(self, mean: Float[Tensor, "*shape w"], context: Float[Tensor, "*shape t"]) -> Float[Tensor, "*shape w"]:
        """Return the gate of each channel, between 0 and 1."""
        return cast(Tensor, self.to_gate(torch.cat([context.to(mean.dtype), mean], dim=-1))).sigmoid()


def masked_softmax(x: Float[Tensor, "*shape k"], mask: Bool[Tensor, "*shape k"]) -> Float[Tensor, "*shape k"]:
    """Return shares of the last axis that add up to 1 over what is real; zero where nothing is, as of all else.

    Examples
    --------
    >>> masked_softmax(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
    tensor([[1., 0.],
            [0., 0.]])
    """
    return x.masked_fill(~mask, torch.finfo(x.dtype).min).softmax(-1).masked_fill(~mask, 0.0)


def masked_mean(x: Float[Tensor, "p k w"], mask: Bool[Tensor, "p k"] | None) -> Float[Tensor, "p w"]:
    """Return the mean over real positions, zero where there are none; padding may hold anything.

    Examples
    --------
    >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    if mask is None:
        return x.mean(1)
    kept = x.masked_fill(~mask.unsqueeze(-1), 0.0)
    return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class TokenAttention(nn.Module):
    """Bins attend to the tokens of a factor: the sequence side of a joint cross-attention block.

    Notes
    -----
    The reference's block also lets residues attend to bins (`joint.BackAttention`). That couples the bins of a row: a
    bin's score would depend on which others were asked for with it. In a head of stored bins it may not, so that dense
    and row-wise scores agree.
    """

    def __init__(self, dim: int, *, token_dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_dna, self.norm_token = nn.LayerNorm(dim), nn.LayerNorm(token_dim)
        self.to_queries = Linear(dim, heads * head_dim, bias=False)
        self.to_keys_values = Linear(token_dim, 2 * heads * head_dim, bias=False)
        self.out = Linear(heads * head_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def project(self, tokens: Float[Tensor, "*pairs k t"]) -> Float[Tensor, "*pairs h k two_v"]:
        """Return keys and values of each token, side by side; done once per pair."""
        split = rearrange(self.to_keys_values(self.norm_token(tokens)), "... k (two h v) -> ... h k (two v)",
                          two=2, h=self.heads)  # fmt: skip
        return cast(Tensor, split)

    def similarity(
        self,
        dna: Float[Tensor, "g n q w"],
        projected: Float[Tensor, "g p h k two_v"],
        mask: Bool[Tensor, "g p k"] | None = None,
    ) -> Float[Tensor, "g p h n k"]:
        """Return how alike each bin and each token are, lowest where there is no token."""
        keys = projected.chunk(2, dim=-1)[0]
        queries: Tensor = rearrange(self.to_queries(self.norm_dna(dna)), "g n q (h v) -> g q h n v", h=self.heads)
        queries = queries.expand(-1, keys.shape[1], -1, -1, -1)
        alike: Tensor = (queries @ keys.transpose(-1, -2)).float() * float(keys.shape[-1]) ** -0.5
        if mask is None:
            return alike
        return alike.masked_fill(~self._over_heads(mask), torch.finfo(alike.dtype).min)

    def attention(
        self,
        dna: Float[Tensor, "g n q w"],
        projected: Float[Tensor, "g p h k two_v"],
        mask: Bool[Tensor, "g p k"] | None = None,
    ) -> Float[Tensor, "g p h n k"]:
        """Return how much each bin takes of each token; they add up to 1 over the real ones."""
        return self.shares(self.similarity(dna, projected, mask), mask)

    def shares(
        self, alike: Float[Tensor, "g p h n k"], mask: Bool[Tensor, "g p k"] | None
    ) -> Float[Tensor, "g p h n k"]:
        """Return what `similarity` comes to: shares of the real tokens, nothing where there are none."""
        return alike.softmax(-1) if mask is None else masked_softmax(alike, self._over_heads(mask))

    @staticmethod
    def _over_heads(mask: Bool[Tensor, "g p k"]) -> Bool[Tensor, "g p 1 1 k"]:
        return rearrange(mask, "g p k -> g p () () k")

    def attend(
        self,
        dna: Float[Tensor, "g n q w"],
        projected: Float[Tensor, "g p h k two_v"],
        weights: Float[Tensor, "g p h n k"],
    ) -> Float[Tensor, "g n p w"]:
        """Return each bin with what it takes of the tokens."""
        values = projected.chunk(2, dim=-1)[1]
        attended = self.dropout(weights).to(values.dtype) @ values
        return cast(Tensor, dna + self.out(rearrange(attended, "g p h n v -> g n p (h v)")))

    def forward(
        self,
        dna: Float[Tensor, "g n q w"],
        projected: Float[Tensor, "g p h k two_v"],
        mask: Bool[Tensor, "g p k"] | None = None,
    ) -> Float[Tensor, "g n p w"]:
        """Return each bin as each pair sees it; `q` is 1 before the first block, afterwards the number of pairs."""
        return self.attend(dna, projected, self.attention(dna, projected, mask))


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

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        head_dim: int,
        temperature: float,
        token_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        assert temperature >= MIN_TEMPERATURE, "exp(1 / temperature) must stay far below the largest fp32 number"
        self.heads, self.temperature, self.dropout = heads, temperature, dropout
        self.from_dna = Linear(dim, heads * head_dim)
        self.from_token = Linear(token_dim or dim, heads * head_dim)
        self.null = nn.Parameter(torch.randn(heads, head_dim))

    def project_tokens(self, tokens: Float[Tensor, "*pairs k t"]) -> Float[Tensor, "*pairs h k v"]:
        """Return each token as a unit vector per head; done once per pair."""
        split: Tensor = rearrange(self.from_token(tokens), "... k (h v) -> ... h k v", h=self.heads)
        return F.normalize(split.float(), dim=-1)

    def forward(
        self,
        dna: Float[Tensor, "g n q w"],
        tokens: Float[Tensor, "g p h k v"],
        mask: Bool[Tensor, "g p k"] | None = None,
    ) -> Float[Tensor, "g h n p"]:
        """Return one similarity per head; `q` is 1 where the bins do not know the pair, else the number of pairs.

        In training each token is left out with probability `dropout`; the null token never is.
        """
        return self.meet(self.from_dna(dna), tokens, mask)

    def meet(
        self,
        projected: Float[Tensor, "g n q hv"],
        tokens: Float[Tensor, "g p h k v"],
        mask: Bool[Tensor, "g p k"] | None = None,
    ) -> Float[Tensor, "g h n p"]:
        """Return the same of bins that `from_dna` has already read."""
        bins = self._unit(projected)
        if self.training and self.dropout:
            kept = torch.rand(*tokens.shape[:2], tokens.shape[3], device=tokens.device) >= self.dropout
            mask = kept if mask is None else mask & kept
        # the temperature makes small errors large: autocast may not touch the similarities
        with torch.autocast("cpu" if bins.is_meta else bins.device.type, enabled=False):
            return self._pooled(bins, tokens, mask)

    def cosines(
        self, dna: Float[Tensor, "g n q w"], tokens: Float[Tensor, "g p h k v"]
    ) -> Float[Tensor, "g p h n k_plus"]:
        """Return what is pooled: the cosine of each bin with the null token, which comes first, and with each token."""
        units = self._unit(self.from_dna(dna))
        bins = rearrange(units, "g h n q v -> g q h n v").expand(-1, tokens.shape[1], -1, -1, -1)
        nothing = torch.einsum("gphnv,hv->gphn", bins, F.normalize(self.null.float(), dim=-1))
        return torch.cat([nothing.unsqueeze(-1), bins @ tokens.transpose(-1, -2)], dim=-1)

    def _unit(self, projected: Float[Tensor, "g n q hv"]) -> Float[Tensor, "g h n q v"]:
        split = rearrange(projected, "g n q (h v) -> g h n q v", h=self.heads)
        return F.normalize(split.float(), dim=-1)

    def _pooled(
        self, bins: Float[Tensor, "g h n q v"], tokens: Float[Tensor, "g p h k v"], mask: Bool[Tensor, "g p k"] | None
    ) -> Float[Tensor, "g h n p"]:
        tokens = tokens / self.temperature  # here, not on bins or similarities, of which there are more
        nothing = torch.einsum("ghnqv,hv->ghnq", bins, F.normalize(self.null.float(), dim=-1) / self.temperature)
        n_tokens, axis = tokens.shape[3], -1
        if bins.shape[3] == 1:  # one product for all pairs and tokens, pairs last: sums over tokens add whole rows
            flat = rearrange(tokens, "g p h k v -> g h v (k p)")
            similarity = rearrange(bins.squeeze(3) @ flat, "g h n (k p) -> g h n k p", k=n_tokens)
            axis = -2
        else:
            by_pair = rearrange(bins, "g h n p v -> g p h n v") @ tokens.transpose(-1, -2)
            similarity = rearrange(by_pair, "g p h n k -> g h n p k")
        if mask is not None:
            absent = rearrange(~mask, "g p k -> g () () k p" if axis == -2 else "g p k -> g () () p k")
            similarity = similarity.masked_fill(absent, -torch.inf)
        n_real = torch.full((1, 1), n_tokens, device=bins.device) if mask is None else mask.sum(-1)
        # cosines are bounded, so the exponentials cannot overflow and need no shift by their maximum: half the passes
        total = similarity.exp().sum(axis) + nothing.exp()
        return self.temperature * (total.log() - rearrange((n_real + 1).float().log(), "g p -> g () () p"))


class Hypergrid(nn.Module):
    """A square mixing of the FILIP heads whose every cell is gated by context."""

    def __init__(self, heads: int, *, context_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.randn(heads, heads) * heads**-0.5)
        self.to_gate = nn.Linear(context_dim, heads * heads)

    def grid(self, context: Float[Tensor, "p t"]) -> Float[Tensor, "p h h"]:
        """Return the gated matrix of each pair."""
        return self.weight * self.gate(context)

    def gate(self, context: Float[Tensor, "p t"]) -> Float[Tensor, "p h h"]:
        """Return what each cell of the matrix is multiplied by, between 0 and 1."""
        return cast(Tensor, rearrange(self.to_gate(context).sigmoid(), "p (i o) -> p i o", i=self.heads))
