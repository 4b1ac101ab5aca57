"""Proteins through ProtAlbert (Rostlab/prot_albert) of the transformers library: one vector per residue.

Each residue is one piece of the model's sentencepiece vocabulary; U, Z, O, B and J are read as X. ``[CLS]`` and
``[SEP]`` stand around every stretch and are no part of the result. At most 2,048 tokens are read at once. The
vocabulary is read by ``sentencepiece`` itself (``pip install 'tfbind-store[protalbert]'``): transformers' tokenizer
would lower-case, or read every residue as unknown where a file is absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from tfbind_store.errors import ConfigError, DependencyError, WeightsError
from tfbind_store.factors import AMINO_ACIDS
from tfbind_store.precompute.bert import NOT_USED, WEIGHT_FILES, load_bert
from tfbind_store.precompute.embedder import read_options
from tfbind_store.precompute.residue_model import ResidueEmbedder, ResidueOptions, padded
from tfbind_store.precompute.weights import first_file, hub_folder, pick_device, take_back, weights_digest

PUBLISHED = "Rostlab/prot_albert"
VOCABULARY = "spiece.model"
MAX_TOKENS = 2048
READ_AS_X = re.compile("[UZOBJ]")
CPU_FLAG = "PROTEIN_EMBED_USE_CPU"


@dataclass(frozen=True, kw_only=True)
class ProtAlbertOptions(ResidueOptions):
    """Where the weights are."""

    checkpoint: str = PUBLISHED
    """Hub id, or a folder with config.json, weights and spiece.model."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    allow_download: bool = False
    """Ask the hub for what is not on this machine."""


def from_options(options: Mapping[str, Any]) -> ResidueEmbedder:
    """Return ProtAlbert for the registry.

    Raises
    ------
    DependencyError
        If sentencepiece is not installed.
    WeightsError
        If a file is absent or damaged, or the vocabulary has no amino acids.
    """
    choice = read_options(ProtAlbertOptions, options, name="protalbert")
    folder = hub_folder(
        choice.checkpoint,
        files=("config.json", VOCABULARY, *WEIGHT_FILES),
        allow_download=choice.allow_download,
        revision=choice.revision,
    )
    vocabulary = read_vocabulary(first_file(folder, [VOCABULARY], what="ProtAlbert's vocabulary"))
    model = load_bert(folder)
    if model.config.model_type != "albert":
        raise WeightsError(f"a model of type {model.config.model_type!r}, not albert", where=str(folder))
    wrapped = ProtAlbertModel(model, vocabulary, pick_device(choice.device, cpu_flag=CPU_FLAG))
    if wrapped.longest < 1:
        raise ConfigError(f"it reads {wrapped.longest + 2} tokens", where=str(folder))
    identity = {
        "class": "transformers.AlbertModel",
        "weights_sha256": weights_digest(model.state_dict(), skip=NOT_USED),
        "tokens": {letter: vocabulary[letter] for letter in sorted(vocabulary)},
        "unknown_letters": "U Z O B J as X",
    }
    return ResidueEmbedder(wrapped, choice, name="protalbert", identity=identity)


class ProtAlbertModel:
    """ProtAlbert as a `ResidueModel`."""

    def __init__(self, model: Any, vocabulary: Mapping[str, int], device: torch.device) -> None:
        self.device = device
        self.dim = int(model.config.hidden_size)
        self.n_layers = int(model.config.num_hidden_layers)
        self.longest = min(MAX_TOKENS, int(model.config.max_position_embeddings)) - 2
        self._model = model.eval()
        self._vocabulary = dict(vocabulary)

    def forward(self, stretches: Sequence[str], layer: int) -> list[Float[torch.Tensor, "length dim"]]:
        """Return one row per residue of each stretch."""
        known = self._vocabulary
        lines = [
            [known["[CLS]"], *(known[letter] for letter in READ_AS_X.sub("X", stretch)), known["[SEP]"]]
            for stretch in stretches
        ]
        tokens = padded(lines, padding=known["<pad>"], device=self.device)
        mask = padded([[1] * len(line) for line in lines], padding=0, device=self.device)
        found = self._model.to(self.device)(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        rows = found.hidden_states[layer]
        return [row[1 : 1 + len(stretch)] for row, stretch in zip(rows, stretches, strict=True)]

    def release(self) -> None:
        """Give the device's memory back."""
        take_back(self._model, self.device)


def read_vocabulary(path: Path) -> dict[str, int]:
    """Return the number of each amino acid, X and special token of a sentencepiece vocabulary.

    Raises
    ------
    DependencyError
        If sentencepiece is not installed.
    WeightsError
        If the file is none, or lacks one of them.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        fix = "pip install 'tfbind-store[protalbert]', or another encoder: --embedder esm"
        raise DependencyError("ProtAlbert needs sentencepiece", where=str(path), fix=fix) from error
    try:
        pieces = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise WeightsError(f"not a sentencepiece vocabulary: {error}", where=str(path), fix="copy it again") from error
    names = {letter: f"\u2581{letter}" for letter in f"{AMINO_ACIDS}X"}
    names |= {special: special for special in ("[CLS]", "[SEP]", "<pad>")}
    found = {letter: int(pieces.piece_to_id(piece)) for letter, piece in names.items()}
    absent = sorted(letter for letter, number in found.items() if number == pieces.unk_id())
    if absent:
        raise WeightsError(f"the vocabulary lacks {', '.join(absent)}", where=str(path), fix=f"use that of {PUBLISHED}")
    return found
