"""The `filip` head with what couples the bins of a sequence: the reference's model between embeddings and prediction.

Beside what `filip` does, bins may attend to each other, and residues attend to bins by the same similarities by which
bins attend to residues: the softmax over residues says what a bin takes, the softmax over bins what a residue takes.
One sequence may meet many factors; it is then read once. Both additions start as the identity, so that a `filip` head
that was trained on stored bins goes on here as it is.
"""

# g groups · n bins · d trunk dim · p pairs · l residues · e protein dim · t context dim · a attention heads · h FILIP
# heads; one sequence with many pairs is one group, else each sequence is a group of one pair

from __future__ import annotations

from typing import NamedTuple, cast

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tfbind_store.heads.base import Intermediates, strongest
from tfbind_store.heads.blocks import FeedForward, FiLM, SqueezeExcite, TokenAttention, masked_mean
from tfbind_store.heads.filip import FilipHead
from tfbind_store.heads.products import Linear


class SelfAttention(nn.Module):
    """Bins attend to each other, then a feed-forward; without positions, the trunk has put them in."""

    def __init__(self, dim: int, *, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.to_parts = Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = Linear(heads * head_dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.feed = FeedForward(dim, dropout=dropout, mult=4)

    def forward(self, x: Float[Tensor, "g n d"]) -> Float[Tensor, "g n d"]:
        """Return each bin with what it takes of the others."""
        parts = rearrange(self.to_parts(self.norm(x)), "g n (three a v) -> three g a n v", three=3, a=self.heads)
        share = self.dropout if self.training else 0.0
        queries, keys, values = parts.unbind(0)
        attended = F.scaled_dot_product_attention(queries, keys, values, dropout_p=share)
        return cast(Tensor, self.feed(x + self.out(rearrange(attended, "g a n v -> g n (a v)"))))


class BackAttention(nn.Module):
    """Residues attend to bins, by the similarities of the block in which bins attend to residues."""

    def __init__(self, dim: int, *, token_dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_values = Linear(dim, heads * head_dim, bias=False)
        self.out = Linear(heads * head_dim, token_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def weights(alike: Float[Tensor, "g p a n l"], mask: Bool[Tensor, "g p l"]) -> Float[Tensor, "g p a n l"]:
        """Return how much each residue takes of each bin: over the bins they add up to 1, or are 0 for padding."""
        return alike.softmax(-2) * rearrange(mask, "g p l -> g p () () l")

    def forward(
        self,
        bins: Float[Tensor, "g n q d"],
        residues: Float[Tensor, "g p l e"],
        weights: Float[Tensor, "g p a n l"],
    ) -> Float[Tensor, "g p l e"]:
        """Return each residue with what it takes of the bins, given normalised."""
        values = rearrange(self.to_values(bins), "g n q (a v) -> g q a n v", a=self.heads)
        taken = self.dropout(weights).to(values.dtype).transpose(-1, -2) @ values
        return cast(Tensor, residues + self.out(rearrange(taken, "g p a l v -> g p l (a v)")))


class Met(NamedTuple):
    """What sequences and factors came to."""

    mixed: Float[Tensor, "b n h"]
    """FILIP heads, mixed."""
    details: Intermediates | None
    """With the logit of every bin; only where asked for."""


class Joint(nn.Module):
    """Residues, context and the bins of a sequence, all of which may see each other.

    Parameters
    ----------
    head
        Holds all that does not couple bins; it can be trained on stored bins by itself.
    self_attention_depth
        Blocks in which bins attend to each other.
    """

    def __init__(self, head: FilipHead, *, self_attention_depth: int = 0) -> None:
        super().__init__()
        options, (dim, token_dim, _) = head.options, head.geometry
        heads, head_dim, dropout = options.attention_heads, options.attention_dim, options.dropout
        self.head = head
        self.among_bins = nn.ModuleList(
            SelfAttention(dim, heads=heads, head_dim=head_dim, dropout=dropout) for _ in range(self_attention_depth)
        )
        self.back = nn.ModuleList(
            BackAttention(dim, token_dim=token_dim, heads=heads, head_dim=head_dim, dropout=dropout)
            for _ in range(options.joint_depth)
        )

    def forward(
        self,
        dna: Float[Tensor, "s n d"],
        residues: Float[Tensor, "b l e"],
        mask: Bool[Tensor, "b l"],
        context: Float[Tensor, "b t"],
        *,
        with_details: bool = False,
    ) -> Met:
        """Return the mixed FILIP heads of each bin and pair; `s` is `b`, or 1 for one sequence with many pairs."""
        head, n_pairs = self.head, context.shape[0]
        shape = (1, n_pairs) if dna.shape[0] == 1 else (n_pairs, 1)
        context = F.normalize(context.float(), dim=-1)
        bins: Tensor = head.encode_dna(dna)
        for among in self.among_bins:
            bins = among(bins)
        grouped_context, grouped_mask = context.unflatten(0, shape), mask.unflatten(0, shape)
        bins = self._conditioned(bins.unsqueeze(2), grouped_context)
        tokens = head.conditioned_residues(head.protein_scale(residues), mask, context).unflatten(0, shape)
        bins, tokens, weights = self._joined(bins, tokens, grouped_mask, keep=with_details)
        units = head.filip.project_tokens(tokens)
        met = rearrange(head.filip(bins, units, grouped_mask), "g h n p -> g n p h")
        mixed = rearrange(head.mixed(met, grouped_context), "g n p h -> (g p) n h")
        if not with_details:
            return Met(mixed, None)
        cosines = rearrange(head.filip.cosines(bins, units), "g p h n k -> (g p) () h n k")
        details = Intermediates(
            head.logit(mixed),
            interactions=rearrange(met, "g n p h -> (g p) n h"),
            strongest=strongest(cosines, mask),
            attention=tuple(own.flatten(0, 1) for own, _ in weights),
            back_attention=tuple(back.flatten(0, 1) for _, back in weights),
            gate=None if head.grid is None else head.grid.gate(context),
        )
        return Met(mixed, details)

    def _conditioned(self, bins: Float[Tensor, "g n q d"], context: Float[Tensor, "g p t"]) -> Float[Tensor, "g n q d"]:
        condition = self.head.condition_dna
        if isinstance(condition, FiLM):
            return cast(Tensor, condition(bins, context))
        if condition is None:
            return bins
        assert isinstance(condition, SqueezeExcite)
        mean = masked_mean(bins.squeeze(2), None).unsqueeze(1).expand(-1, context.shape[1], -1)
        return bins * condition.gate(mean, context).unsqueeze(1)

    def _joined(
        self,
        bins: Float[Tensor, "g n q d"],
        tokens: Float[Tensor, "g p l e"],
        mask: Bool[Tensor, "g p l"],
        *,
        keep: bool,
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Return bins and residues after the joint blocks, and the weights of each where they are to be kept."""
        kept = []
        parts = zip(self.head.blocks, self.back, self.head.feed_dna, self.head.feed_protein, strict=True)
        for block, back, feed_bins, feed_tokens in parts:
            assert isinstance(block, TokenAttention)
            projected = block.project(tokens)
            alike = block.similarity(bins, projected, mask)
            weights, back_weights = block.shares(alike, mask), back.weights(alike, mask)  # type: ignore[operator]
            tokens = feed_tokens(back(block.norm_dna(bins), tokens, back_weights))
            bins = feed_bins(block.attend(bins, projected, weights))
            if keep:
                kept.append((weights, back_weights))
        return bins, tokens, kept
