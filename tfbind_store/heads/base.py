"""What every head is: tensors in, one logit per bin out.

A head works on *pairs* of a factor and a context. The protein side is done once per distinct factor
(`encode_factors`), once more per pair (`encode_pairs`), and only the last step (`interact`) meets the DNA. Training
rows and whole genomes go through the same three steps, so that a bin has the same score in a batch, in another batch
and in a dense pass. Heads see tensors only: no store, no SQL.
"""

# b rows · g groups · n bins · d trunk dim · f factors · l residues · e protein dim · c contexts · t context dim
# p pairs of factor and context · w whatever width a head chooses

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tfbind_store.batch import Batch
from tfbind_store.config import from_mapping, to_mapping
from tfbind_store.errors import ConfigError
from tfbind_store.heads.signal import Signal, SignalEncoder

Pairs = tuple[Tensor, ...]
"""What a head knows of each pair before it sees DNA: tensors whose first axis is the pair."""
Factors = Tensor | tuple[Tensor, ...]
"""What a head knows of each factor before it meets a context: first axis the factor."""


class Geometry(NamedTuple):
    """The widths of the embeddings that a head reads."""

    dna_dim: int
    protein_dim: int
    context_dim: int


class Scaling(NamedTuple):
    """Mean and standard deviation of each channel of the embeddings, from training rows only."""

    dna_mean: Float[Tensor, " d"]
    dna_std: Float[Tensor, " d"]
    protein_mean: Float[Tensor, " e"]
    protein_std: Float[Tensor, " e"]


class Intermediates(NamedTuple):
    """What a head saw on its way to the logits of some rows; None or empty where it has no such part.

    Never made in training: some of these are far larger than the logits. For reading, not for gradients of training.
    """

    logits: Float[Tensor, "b n"]
    interactions: Float[Tensor, "b n h"] | None = None
    """FILIP: the pooled similarity of each head, before heads are weighed."""
    strongest: Int[Tensor, "b n h"] | None = None
    """FILIP: which token (`filip`: residue) is most alike to the bin in each head; -1 is the null token."""
    token_residues: Float[Tensor, "b k l"] | None = None
    """How much of each residue a token takes; None where tokens are the residues themselves."""
    attention: tuple[Float[Tensor, "b a n k"], ...] = ()
    """For each joint block: how much each bin takes of each token, by attention head."""
    back_attention: tuple[Float[Tensor, "b a n k"], ...] = ()
    """For each two-way block: how much each token takes of each bin; over the bins these add up to 1."""
    gate: Float[Tensor, "b h o"] | None = None
    """Hypergrid: what the context multiplies each cell of the mixing matrix by."""


def strongest(
    cosines: Float[Tensor, "b p h n k_plus"], mask: Bool[Tensor, "b k"] | None = None
) -> Int[Tensor, "b n h"]:
    """Return the token that each bin of a row is most alike to, of cosines whose first column is the null token's.

    Examples
    --------
    >>> strongest(torch.tensor([0.5, 0.1, 0.2]).view(1, 1, 1, 1, 3)).item()
    -1
    """
    found = cosines.squeeze(1)
    if mask is not None:
        found = found.masked_fill(~F.pad(mask, (1, 0), value=True)[:, None, None], -torch.inf)
    return found.argmax(-1).transpose(1, 2) - 1


class Standardise(nn.Module):
    """Subtract a channel's mean and divide by its standard deviation; does nothing until `fit`."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("inverse_std", torch.ones(dim))

    def fit(self, mean: Float[Tensor, " dim"], std: Float[Tensor, " dim"]) -> None:
        """Take over measured values; a channel that never varies is only centred."""
        self.mean.copy_(mean)
        self.inverse_std.copy_(torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), torch.ones_like(std)))

    def forward(self, x: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
        """Return the standardised values in fp32."""
        return torch.addcmul(-self.mean * self.inverse_std, x.float(), self.inverse_std)  # one pass over x


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What all heads share."""

    dropout: float = 0.1
    """Share of hidden numbers dropped in training."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}, must be in [0, 1)", where="head config")


class Head(nn.Module):
    """Base of all heads; a subclass gives `encode_factors`, `encode_pairs` and `interact`."""

    name: ClassVar[str]
    config_class: ClassVar[type[HeadConfig]]

    def __init__(self, config: HeadConfig, geometry: Geometry) -> None:
        super().__init__()
        self.config = config
        self.geometry = geometry
        self.dna_scale = Standardise(geometry.dna_dim)
        self.protein_scale = Standardise(geometry.protein_dim)
        self.logit_bias = nn.Parameter(torch.zeros(()))
        self.signal: SignalEncoder | None = None
        """Reads a biotype's signal beside the DNA, in heads that have one."""

    def fit_scaling(self, scaling: Scaling, *, prevalence: float) -> None:
        """Start from the training rows' channel statistics and prevalence."""
        self.dna_scale.fit(scaling.dna_mean, scaling.dna_std)
        self.protein_scale.fit(scaling.protein_mean, scaling.protein_std)
        share = min(max(prevalence, 1e-6), 1 - 1e-6)
        with torch.no_grad():
            self.logit_bias.copy_(torch.logit(torch.tensor(share, dtype=torch.float64)).float())

    def encode_factors(
        self, protein: Float[Tensor, "f l e"], mask: Bool[Tensor, "f l"], subunit: Int[Tensor, "f l"]
    ) -> Factors:
        """Read the residues of each distinct factor once."""
        raise NotImplementedError

    def encode_pairs(self, factors: Any, context: Float[Tensor, "p t"]) -> Pairs:
        """Meet each factor with its context; row i of both belong to pair i."""
        raise NotImplementedError

    def encode_dna(self, dna: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape w"]:
        """Read bins without knowing the factor."""
        raise NotImplementedError

    def stem(self, dna: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape v"]:
        """Read bins as far as no signal is needed; only in heads that read signals, as `finish`."""
        raise NotImplementedError

    def finish(self, stem: Float[Tensor, "*shape v"], signal: Float[Tensor, "*shape s"] | None) -> Tensor:
        """Go on from `stem` to what `encode_dna` returns, with the signal of one biotype per set of bins."""
        raise NotImplementedError

    def interact(self, dna: Float[Tensor, "g n w"], pairs: Pairs) -> Float[Tensor, "g n p"]:
        """Score the bins of each group against the group's pairs (tensors [g, p, …])."""
        raise NotImplementedError

    def encode(self, batch: Batch[Tensor]) -> Pairs:
        """Encode each distinct (factor, context) of a batch, given as aligned `factor_index` and `context_index`."""
        factors, own = self.encode_factors(batch.protein, batch.mask, batch.subunit), batch.factor_index
        taken = tuple(part[own] for part in factors) if isinstance(factors, tuple) else factors[own]
        return self.encode_pairs(taken, batch.context[batch.context_index])

    @staticmethod
    def join(parts: Sequence[Pairs]) -> Pairs:
        """Return pairs that were encoded in several batches as one."""
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def forward(self, batch: Batch[Tensor]) -> Float[Tensor, "b n"]:
        """Return one logit per bin of each row."""
        distinct, row_pair = distinct_pairs(batch)
        pairs = tuple(tensor[row_pair].unsqueeze(1) for tensor in self.encode(distinct))
        return self.interact(self._dna_of(batch), pairs).squeeze(-1)

    def _dna_of(self, batch: Batch[Tensor]) -> Float[Tensor, "b n w"]:
        """Return a batch's bins, with the signal of each row's biotype where the head reads one."""
        if self.signal is None:
            return self.encode_dna(batch.dna)
        return self.finish(self.stem(batch.dna), batch.signal)

    def intermediates(self, batch: Batch[Tensor]) -> Intermediates:
        """Return the logits and what led to them, as far as this head has parts that can be looked at."""
        return Intermediates(self(batch))

    def score_pairs(
        self, dna: Float[Tensor, "k d"], pairs: Pairs, *, max_cells: int = 20_000, signal: Signal | None = None
    ) -> Float[Tensor, "k p"]:
        """Return the logit of every bin with every encoded pair.

        Parameters
        ----------
        dna
            Embeddings of any bins; their order means nothing to the answer.
        pairs
            From `encode`.
        max_cells
            Bins times pairs worked on at once: bounds the memory, changes nothing else.
        signal
            Of the bins in each pair's biotype, for a head that reads signals; without it there is none.
        """
        if signal is None or self.signal is None:
            return self._score(self.encode_dna(dna), pairs, max_cells)
        stem, columns, order = self.stem(dna).unsqueeze(0), [], []
        for context in signal.context_index.unique().tolist():
            own = (signal.context_index == context).nonzero().flatten()
            hidden = self.finish(stem, signal.values[:, context].unsqueeze(0))[0]
            columns.append(self._score(hidden, tuple(tensor[own] for tensor in pairs), max_cells))
            order.append(own)
        return torch.cat(columns, dim=1)[:, torch.cat(order).argsort()]

    def _score(self, hidden: Float[Tensor, "k w"], pairs: Pairs, max_cells: int) -> Float[Tensor, "k p"]:
        grouped = tuple(tensor.unsqueeze(0) for tensor in pairs)
        n_pairs = pairs[0].shape[0]
        step = max(1, max_cells // max(1, n_pairs))
        parts = [self.interact(part, grouped)[0] for part in torch.split(hidden.unsqueeze(0), step, dim=1)]
        return torch.cat(parts) if parts else hidden.new_zeros(0, n_pairs)

    def settings(self) -> dict[str, Any]:
        """Return what `make_head` needs to build this head again, without its weights."""
        return {"head": self.name, "options": to_mapping(self.config), "geometry": self.geometry._asdict()}


def distinct_pairs(batch: Batch[Tensor]) -> tuple[Batch[Tensor], Int[Tensor, " b"]]:
    """Return a batch whose pairs are the distinct ones, and which of them each row is."""
    n_contexts = batch.context.shape[0]
    keys, row_pair = torch.unique(batch.factor_index * n_contexts + batch.context_index, return_inverse=True)
    return batch._replace(factor_index=keys // n_contexts, context_index=keys % n_contexts), row_pair


HEADS: dict[str, type[Head]] = {}
HeadT = TypeVar("HeadT", bound=type[Head])


def register(name: str) -> Callable[[HeadT], HeadT]:
    """Give a head class its name in `HEADS`."""

    def put(cls: HeadT) -> HeadT:
        assert name not in HEADS, f"two heads are called {name}"
        cls.name = name
        HEADS[name] = cls
        return cls

    return put


def head_class(name: str) -> type[Head]:
    """Return the head class called `name`, or raise ConfigError with the nearest name."""
    if name not in HEADS:
        close = difflib.get_close_matches(name, HEADS, n=1)
        fix = f"did you mean {close[0]}?" if close else f"known heads: {', '.join(sorted(HEADS))}"
        raise ConfigError(f"unknown head {name!r}", where="head", fix=fix)
    return HEADS[name]


def reads_signals(name: str) -> bool:
    """Tell whether heads of this name can read a biotype's signal."""
    return any(field.name == "signal_scales" for field in dataclasses.fields(head_class(name).config_class))


def check_keywords(cls: type[HeadConfig], options: Mapping[str, Any], *, where: str) -> None:
    """Raise TypeError, naming the nearest known keyword, for the first option that `cls` does not have."""
    known = [field.name for field in dataclasses.fields(cls)]
    for key in options:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
            raise TypeError(f"{where} has no option {key!r}; {hint}")


def make_head(name: str, geometry: Geometry, options: Mapping[str, Any] | None = None) -> Head:
    """Build a head with random weights from torch's global generator.

    Raises
    ------
    ConfigError
        If no head is called `name`, or a value is of the wrong type.
    TypeError
        If an option is unknown; the message names the nearest.
    """
    cls = head_class(name)
    values = dict(options or {})
    check_keywords(cls.config_class, values, where=f"head {name!r}")
    return cls(from_mapping(cast(Any, cls.config_class), values, where=f"head {name}"), geometry)
