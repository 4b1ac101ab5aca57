"""A trunk, and if asked for a protein encoder, that are run anew for each batch instead of read from the store.

They give what the embedders of the store give, to the same layer and strand, but with a gradient.
"""

# b windows · n kept bins · d trunk dim · f factors · l residues · e protein dim

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from enformer_pytorch import Enformer
from jaxtyping import Bool, Float, Int16, Int64, UInt8
from torch import Tensor, nn

from tfbind_store.arrays.on_reading import FIELD
from tfbind_store.errors import ConfigError
from tfbind_store.precompute.alphabet import residues
from tfbind_store.precompute.enformer import EnformerEmbedder, Trunk, one_hot
from tfbind_store.precompute.esm import EsmEmbedder
from tfbind_store.precompute.window_options import on_strand
from tfbind_store.pretraining.forward import live_features
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import Store

PROTEINS_AT_ONCE = 8


class LiveTrunk(nn.Module):
    """An Enformer as the array of a store was made with it.

    Parameters
    ----------
    trunk
        Model and card.
    spec
        Of the array; says layer, strand and precision.
    checkpointing
        Keep no activations within blocks.
    """

    def __init__(self, trunk: Trunk, spec: EmbeddingSpec, *, checkpointing: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.model: Enformer = trunk.model
        self.card = trunk.card
        self.layer: Any = spec.identity["layer"]
        self.strand: Any = spec.identity["strand"]
        self.precision: Any = spec.identity["matmul"]
        self.checkpointing, self.dtype = checkpointing, dtype

    def forward(self, codes: UInt8[np.ndarray, "b bp"], n_bins: int) -> Float[Tensor, "b n d"]:
        """Return the kept bins of windows, in genome order."""
        sequence = one_hot(np.ascontiguousarray(codes)).to(next(self.model.parameters()).device)
        return self.of_one_hot(sequence, n_bins)

    def of_one_hot(self, sequence: Float[Tensor, "b bp 4"], n_bins: int) -> Float[Tensor, "b n d"]:
        """Return what `forward` does, from bases as the trunk reads them: they may want a gradient."""
        return on_strand(lambda own: self._features(own, n_bins), sequence, self.strand)

    def spec(self, store: Store) -> EmbeddingSpec:
        """Return what an array made with these weights says about itself."""
        embedder = EnformerEmbedder(
            Trunk(self.model, self.card),
            tap=self.layer,
            strand=self.strand,
            precision=self.precision,
            device=str(next(self.model.parameters()).device),
        )
        return embedder.spec(store.meta.genome, store.grid)

    def _features(self, sequence: Float[Tensor, "b bp 4"], n_bins: int) -> Float[Tensor, "b n d"]:
        return live_features(
            self.model,
            sequence,
            n_bins=n_bins,
            final=self.layer == "trunk",
            dtype=self.dtype,
            checkpointing=self.checkpointing,
        )


def require_trunk_of(store: Store, array_name: str, trunk: Trunk) -> EmbeddingSpec:
    """Return the spec of the array, or refuse a trunk that it was not made with.

    Raises
    ------
    ConfigError
        If the array is no Enformer's own, or read or stored otherwise than a trunk gives it.
    SpecError
        If it was made with other weights; the field is named.
    """
    spec = store.array(array_name).spec
    if spec.embedder != "enformer" or "layer" not in spec.identity:
        what = f"{array_name} was made by {spec.embedder}: only an Enformer's own embeddings can be fine-tuned"
        raise ConfigError(what, where=array_name, fix="train a head on embeddings of an Enformer first")
    if odd := sorted({FIELD, "shift_bp"} & set(spec.identity)):
        what = f"{array_name} is not what a trunk gives as it is: {', '.join(odd)}"
        raise ConfigError(what, where=array_name, fix="embed without those options, and train a head on that")
    live = LiveTrunk(trunk, spec, checkpointing=False, dtype=torch.float32)
    spec.require_same(live.spec(store), where=array_name, fix="give the trunk that the array was made with")
    return spec


class LiveResidues(NamedTuple):
    """Some factors' residues, as ``residues.FactorBatch`` but with a gradient."""

    protein: Float[Tensor, "f l e"]
    mask: Bool[Tensor, "f l"]
    subunit: Int16[Tensor, "f l"]


class LiveProteins:
    """Factors through an ESM that is run anew.

    Parameters
    ----------
    store
        Knows the sequences.
    array_name
        The proteins array that `embedder` made.
    embedder
        An ESM; its options are those of the array.

    Raises
    ------
    SpecError
        If the array was made with other weights or options.
    """

    def __init__(self, store: Store, array_name: str, embedder: EsmEmbedder) -> None:
        made = store.array(array_name).spec
        fix = "give the model and the options that the array was made with"
        made.require_same(embedder.spec(), where=array_name, fix=fix)
        self.embedder = embedder
        self.model: nn.Module = embedder.module
        self._letters: dict[int, list[str]] = {}
        with store.reader() as catalog:
            found = catalog.rows(
                "SELECT s.factor_id, p.sequence FROM data.factor_subunits s JOIN data.proteins p USING (protein_id) "
                "ORDER BY s.factor_id, s.position"
            )
        for factor_id, sequence in found:
            self._letters.setdefault(int(factor_id), []).append(residues(str(sequence)))

    def get(self, factor_ids: Int64[np.ndarray, " f"]) -> LiveResidues:
        """Return the residues of factors; each distinct protein is read once."""
        subunits = [self._letters[int(factor_id)] for factor_id in factor_ids]
        distinct = sorted({letters for own in subunits for letters in own})
        rows = dict(zip(distinct, self._encoded(distinct), strict=True))
        joined = [torch.cat([rows[letters] for letters in own]) for own in subunits]
        protein = nn.utils.rnn.pad_sequence(joined, batch_first=True)
        subunit = torch.full(protein.shape[:2], -1, dtype=torch.int16, device=protein.device)
        for place, own in enumerate(subunits):
            sizes = torch.tensor([len(rows[letters]) for letters in own])
            numbers = torch.repeat_interleave(torch.arange(len(own), dtype=torch.int16), sizes)
            subunit[place, : len(numbers)] = numbers.to(protein.device)
        return LiveResidues(protein, subunit >= 0, subunit)

    def _encoded(self, proteins: list[str]) -> list[Float[Tensor, "length e"]]:
        stretches = [stretch for place, letters in enumerate(proteins) for stretch in self.embedder.cut(place, letters)]
        n_rows = [0] * len(proteins)
        for stretch in stretches:
            n_rows[stretch.protein] = max(n_rows[stretch.protein], stretch.start + len(stretch.letters))
        dim, device = self.embedder.model.dim, self.embedder.model.device
        sums = [torch.zeros(n, dim, device=device) for n in n_rows]
        counts = [torch.zeros(n, 1, device=device) for n in n_rows]
        for at in range(0, len(stretches), PROTEINS_AT_ONCE):
            part = stretches[at : at + PROTEINS_AT_ONCE]
            found = self.embedder.esm.live([stretch.letters for stretch in part], self.embedder.layer)
            for stretch, rows in zip(part, found, strict=True):
                place, after = stretch.protein, n_rows[stretch.protein] - stretch.start - len(rows)
                padding = (0, 0, stretch.start, after)
                sums[place] = sums[place] + nn.functional.pad(rows.float(), padding)
                counts[place] = counts[place] + nn.functional.pad(torch.ones_like(counts[place][: len(rows)]), padding)
        means = [total / count for total, count in zip(sums, counts, strict=True)]
        return [mean.mean(0, keepdim=True) for mean in means] if self.embedder.options.pooling == "mean" else means
