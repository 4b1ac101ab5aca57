"""What `adapter_model` is called with, as tensors: DNA, proteins and texts as people write them.

DNA is numbers (A 0, C 1, G 2, T 3, N 4, outside the chromosome -1) or four channels; proteins are strings, tuples of
strings (complexes) or numbers (0 to 19, 20 is padding); contexts are strings. Each distinct protein and text is encoded
once and remembered. The encoders are not part of a model's state.
"""

# b rows · l bp or residues · e protein dim · t context dim

from __future__ import annotations

import difflib
import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tfbind_store.errors import ConfigError
from tfbind_store.precompute.alphabet import require_list, residues
from tfbind_store.precompute.embedder import (
    SequenceEmbedder,
    TextEmbedder,
    make_sequence_embedder,
    make_text_embedder,
)
from tfbind_store.precompute.enformer import one_hot

MOST_REMEMBERED = 1024
"""Proteins, and texts, whose embeddings are kept in memory."""
PROTEIN_ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "esm": {"name": "esm", "checkpoint": "esm1b_t33_650M_UR50S"},
    "protalbert": {"name": "protalbert"},
    "alphafold2": {"name": "imported", "checkpoint": "~/.cache.tf.bind.transformer/.af2_embeddings"},
}
"""What the reference's names mean."""
TEXT_ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "pubmed": {"name": "bert", "checkpoint": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"}
}
POOLING = {"cls": "cls", "mean_pool": "mean"}
Encoder = str | Mapping[str, Any]
Protein = str | tuple[str, ...] | list[str] | Tensor
_log = logging.getLogger(__name__)


class Residues(NamedTuple):
    """Proteins of a batch, padded."""

    values: Float[Tensor, "b l e"]
    mask: Bool[Tensor, "b l"]


class ProteinReader:
    """Turns proteins into residues' embeddings.

    Parameters
    ----------
    encoder
        ``esm``, ``protalbert``, ``alphafold2``, another registered name, a mapping with ``name`` and options, or an
        embedder.
    """

    def __init__(self, encoder: Encoder | SequenceEmbedder) -> None:
        self.embedder = _made(encoder, PROTEIN_ENCODERS, make_sequence_embedder)
        self.dim = self.embedder.spec().dim
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, proteins: Sequence[Protein] | Tensor, device: torch.device) -> Residues:
        """Return the residues of each protein; subunits of a complex lie one after the other."""
        require_list(proteins)
        written = [_subunits(protein) for protein in proteins]
        distinct = list(dict.fromkeys(letters for own in written for letters in own))
        _remember(self._known, distinct, self._encoded)
        rows = [torch.cat([self._known[letters] for letters in own]) for own in written]
        values = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        lengths = torch.tensor([len(own) for own in rows], device=device)
        _forget(self._known)
        return Residues(values, torch.arange(values.shape[1], device=device) < lengths.unsqueeze(1))

    def _encoded(self, letters: list[str]) -> Iterable[np.ndarray]:
        found = list(self.embedder.embed(letters))
        if cut := [own for own, one in zip(letters, found, strict=True) if one.truncated]:
            _log.warning("%d proteins were not read to their end, the first begins %s", len(cut), cut[0][:20])
        return [one.values for one in found]


class TextReader:
    """Turns contexts into vectors.

    Parameters
    ----------
    encoder
        ``pubmed``, another registered name, a mapping with ``name`` and options, or an embedder.
    method
        ``cls`` or ``mean_pool``; of a BERT that does not say ``pooling`` itself.
    """

    def __init__(self, encoder: Encoder | TextEmbedder, *, method: str) -> None:
        if method not in POOLING:
            fix = f"choose {' or '.join(POOLING)}"
            raise ConfigError(f"no free_text_embed_method {method!r}", where="AdapterModel", fix=fix)
        if isinstance(encoder, str | Mapping):
            said = dict(_said(encoder, TEXT_ENCODERS))
            encoder = {"pooling": POOLING[method], **said} if said["name"] == "bert" else said
        self.embedder = _made(encoder, TEXT_ENCODERS, make_text_embedder)
        self.dim = self.embedder.spec().dim
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, texts: Sequence[str], device: torch.device) -> Float[Tensor, "b t"]:
        """Return one vector per text."""
        if isinstance(texts, str):
            raise ConfigError("one string where a list of texts is meant", where="contextual_free_text", fix="[text]")
        _remember(self._known, list(dict.fromkeys(texts)), self._encoded)
        found = torch.stack([self._known[text] for text in texts]).to(device)
        _forget(self._known)
        return found

    def _encoded(self, texts: list[str]) -> Iterable[np.ndarray]:
        found = self.embedder.embed(texts)
        if found.truncated.any():
            _log.warning("%d texts were not read to their end", int(found.truncated.sum()))
        return list(found.values)


def read_dna(seq: Tensor) -> Float[Tensor, "b l 4"]:
    """Return sequences as the trunk reads them.

    Raises
    ------
    ConfigError
        If they are neither numbers from -1 to 4 nor four channels.

    Examples
    --------
    >>> read_dna(torch.tensor([[2, 4, -1]])).tolist()
    [[[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]]
    """
    fix = "give long [b, bp] with A 0, C 1, G 2, T 3, N 4, outside -1, or float [b, bp, 4]"
    if seq.is_floating_point():
        if seq.dim() != 3 or seq.shape[-1] != 4:
            raise ConfigError(f"sequences of shape {list(seq.shape)}", where="AdapterModel: seq", fix=fix)
        return seq
    if seq.dim() != 2 or seq.numel() == 0 or seq.min() < -1 or seq.max() > 4:
        what = f"sequences of shape {list(seq.shape)}, or with other numbers than -1 to 4"
        raise ConfigError(what, where="AdapterModel: seq", fix=fix)
    codes = torch.where(seq < 0, torch.full_like(seq, 5), seq).to(torch.uint8)
    return one_hot(codes.cpu().numpy()).to(seq.device)


def _subunits(protein: Protein) -> list[str]:
    if isinstance(protein, Tensor):
        return [residues(protein.cpu().numpy())]
    parts = [protein] if isinstance(protein, str) else list(protein)
    if not parts:
        raise ConfigError("a complex without a subunit", where="AdapterModel: aa", fix="give at least one sequence")
    return [residues(part) for part in parts]


def _said(encoder: Encoder, named: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if isinstance(encoder, str):
        return named.get(encoder, {"name": encoder})
    return encoder


def _made(encoder: Any, named: Mapping[str, Mapping[str, Any]], make: Callable[[str, Mapping[str, Any]], Any]) -> Any:
    if not isinstance(encoder, str | Mapping):
        return encoder
    options = dict(_said(encoder, named))
    return make(str(options.pop("name")), options)


def _remember(
    known: OrderedDict[str, Tensor], wanted: list[str], encoded: Callable[[list[str]], Iterable[np.ndarray]]
) -> None:
    new = [key for key in wanted if key not in known]
    for key, values in zip(new, encoded(new) if new else [], strict=True):
        known[key] = torch.from_numpy(np.ascontiguousarray(values))
    for key in wanted:
        known.move_to_end(key)


def _forget(known: OrderedDict[str, Tensor]) -> None:
    while len(known) > MOST_REMEMBERED:
        known.popitem(last=False)


def as_numbers(values: Any, device: torch.device) -> Float[Tensor, " b"]:
    """Return one float per row of whatever shape holds one; None is a row of NaN."""
    listed = values if isinstance(values, Tensor) else torch.tensor([np.nan if v is None else v for v in values])
    return listed.float().reshape(-1).to(device)


def known_width(name: str, given: int | None, reader: ProteinReader | TextReader | None) -> int:
    """Return a width that is given or the encoder's; refuse none, and two that differ."""
    if reader is not None and given is not None and given != reader.dim:
        what = f"{name} is {given}, the encoder gives {reader.dim}"
        raise ConfigError(what, where="AdapterModel", fix="leave it out")
    width = given if reader is None else reader.dim
    if width is None:
        raise ConfigError(f"{name} is not known", where="AdapterModel", fix=f"give {name}, or an encoder")
    return width


def require_sound(wrong: Mapping[str, bool]) -> None:
    """Refuse the first that is wrong, in its own words."""
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(what, where="AdapterModel")


def require_rows(n_sequences: int, n_proteins: int, n_contexts: int) -> None:
    """Refuse numbers of rows that do not belong together."""
    if n_proteins != n_contexts or n_sequences not in (1, n_proteins):
        what = f"{n_sequences} sequences, {n_proteins} proteins, {n_contexts} contexts"
        raise ConfigError(what, where="AdapterModel", fix="as many of each, or one sequence with many factors")


def refuse_unknown(unknown: Mapping[str, Any], function: Callable[..., Any], where: str) -> None:
    """Raise TypeError for a keyword that a function does not name, with the nearest that it does."""
    known = [name for name in inspect.signature(function).parameters if name not in ("self", "unknown")]
    for name in unknown:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
        raise TypeError(f"{where} has no keyword {name!r}; {hint}")
