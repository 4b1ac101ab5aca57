"""Texts through a BERT of the transformers library (PubMedBERT, BioBERT, …): one vector per text.

The vector is the first token's (``cls``) or the mean over the tokens, with the special ones or without, of one layer.
Texts are read in batches of like length; one longer than `max_tokens` is cut and counted. Weights come from a folder or
from the local hub cache; a pickled file is checked to hold tensors only before transformers reads it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from tfbind_store.errors import ConfigError, WeightsError
from tfbind_store.precompute.embedder import TextEmbedding, batches, read_options
from tfbind_store.precompute.weights import (
    exact_float32,
    first_file,
    hub_folder,
    pick_device,
    read_tensors,
    require_sizes,
    take_back,
    weights_digest,
)
from tfbind_store.spec import EmbeddingSpec

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "spiece.model", "vocab.json", "merges.txt")
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SAY_CASE = ("tokenizer_config.json", "tokenizer.json")
NOT_USED = ("pooler.", "cls.", "predictions.")
PUBLISHED = {
    "pubmedbert": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
    "biomedbert": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
    "biobert": "dmis-lab/biobert-base-cased-v1.2",
}
"""Hub ids of models that people call by a short name, in lower case. PubMedBERT was renamed BiomedBERT."""
Pooling = Literal["cls", "mean", "mean_of_words"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BertOptions:
    """Where the weights come from and how tokens become one vector."""

    checkpoint: str | None = None
    """``PubMedBERT``, ``BioBERT``, any hub id, or a folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    allow_download: bool = False
    """Ask the hub for what is not on this machine."""
    pooling: Pooling = "cls"
    """``cls``: the first token; ``mean``: of all tokens; ``mean_of_words``: without the special tokens."""
    layer: int | None = None
    """Layer whose vectors are pooled, 0 for the token embeddings; None is the last."""
    max_tokens: int = 256
    """Longer texts are cut, and said to be."""
    lower_case: bool | None = None
    """Overrides what the tokenizer's files say; where they say nothing, a vocabulary with capitals keeps case."""
    batch_size: int = 16
    """Texts per forward pass. Changes speed only."""
    device: str = "auto"


def from_options(options: Mapping[str, Any]) -> BertEmbedder:
    """Return the BERT embedder for the registry.

    Raises
    ------
    ConfigError
        If no checkpoint is given.
    WeightsError
        If it is not on this machine, or its tokenizer knows no words.
    """
    choice = read_options(BertOptions, options, name="bert")
    if choice.checkpoint is None:
        raise ConfigError(
            "bert needs a checkpoint",
            where="options of embedder bert",
            fix="checkpoint=PubMedBERT, a hub id, or a folder",
        )
    files = ("config.json", *WEIGHT_FILES, *TOKENIZER_FILES)
    name = choice.checkpoint
    if not Path(name).expanduser().exists():
        name = PUBLISHED.get(name.lower(), name)
    folder = hub_folder(name, files=files, allow_download=choice.allow_download, revision=choice.revision)
    return BertEmbedder(folder, choice)


class BertEmbedder:
    """A frozen BERT.

    Parameters
    ----------
    folder
        With ``config.json``, weights, and the tokenizer's vocabulary.
    options
        Pooling and the rest; its `checkpoint` is not looked at.
    """

    def __init__(self, folder: Path, options: BertOptions = BertOptions()) -> None:
        if options.max_tokens < 3 or options.batch_size < 1:
            raise ConfigError("max_tokens must be 3 or more, batch_size 1 or more", where="options of embedder bert")
        self.options = options
        self.device = pick_device(options.device, cpu_flag="CONTEXT_EMBED_USE_CPU")
        self.tokenizer = load_tokenizer(folder, lower_case=options.lower_case)
        self.model = load_bert(folder).to(self.device).eval()
        longest = getattr(self.model.config, "max_position_embeddings", options.max_tokens)
        self.max_tokens = min(options.max_tokens, int(longest))
        n_layers = int(self.model.config.num_hidden_layers)
        self.layer = n_layers if options.layer is None else options.layer
        if not 0 <= self.layer <= n_layers:
            raise ConfigError(f"layer {self.layer} of a model of {n_layers} layers", where="options of embedder bert")
        self._digest = weights_digest(self.model.state_dict(), skip=NOT_USED)
        self._vocabulary = tokenizer_digest(self.tokenizer)

    def spec(self) -> EmbeddingSpec:
        """Return the spec; weights and vocabulary are named by their digests."""
        identity = {
            "class": f"transformers.{type(self.model).__name__}",
            "weights_sha256": self._digest,
            "tokenizer_sha256": self._vocabulary,
            "layer": self.layer,
            "pooling": self.options.pooling,
            "length_policy": f"first {self.max_tokens} tokens",
            "matmul": "float32",
        }
        dim = int(self.model.config.hidden_size)
        return EmbeddingSpec(kind="contexts", embedder="bert", dim=dim, dtype="float32", identity=identity)

    def embed(self, texts: Sequence[str]) -> TextEmbedding:
        """Return one vector per text and whether its end was cut off."""
        values = np.zeros((len(texts), int(self.model.config.hidden_size)), dtype=np.float32)
        truncated = np.zeros(len(texts), dtype=bool)
        whole = self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []
        lengths = [len(ids) for ids in whole]
        longest_first = sorted(range(len(texts)), key=lambda row: -lengths[row])
        for rows in batches(longest_first, self.options.batch_size):
            values[rows] = self._forward([texts[row] for row in rows]).cpu().numpy()
        truncated[:] = [length > self.max_tokens for length in lengths]
        return TextEmbedding(values, truncated)

    def release(self) -> None:
        """Give the device's memory back until the next call of `embed`."""
        take_back(self.model, self.device)

    @torch.inference_mode()
    def _forward(self, texts: list[str]) -> Float[torch.Tensor, "n dim"]:
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        special = tokens.pop("special_tokens_mask").to(self.device)
        tokens = {name: tensor.to(self.device) for name, tensor in tokens.items()}
        with exact_float32(self.device):
            found = self.model.to(self.device)(**tokens, output_hidden_states=True).hidden_states[self.layer]
        return pooled(found, tokens["attention_mask"], special, self.options.pooling)


def pooled(
    rows: Float[torch.Tensor, "n t dim"],
    mask: Int[torch.Tensor, "n t"],
    special: Int[torch.Tensor, "n t"],
    how: Pooling,
) -> Float[torch.Tensor, "n dim"]:
    """Return one vector per text; a text without words has zeros as its `mean_of_words`."""
    if how == "cls":
        return rows[:, 0]
    keep = (mask if how == "mean" else mask * (1 - special))[..., None].to(rows.dtype)
    mean: torch.Tensor = (rows * keep).sum(1) / keep.sum(1).clamp(min=1)
    return mean


def load_bert(folder: Path) -> Any:
    """Return the encoder in `folder`, refusing unsafe pickles and weights that do not fill it.

    Raises
    ------
    UnsafeFile
        If the weights file holds more than tensors.
    WeightsError
        If a file is absent or damaged, or a layer has no weights (transformers would draw them at random).
    """
    from transformers import AutoModel

    config = first_file(folder, ["config.json"], what="BERT config")
    path = first_file(folder, WEIGHT_FILES, what="BERT weights")
    tensors = read_tensors(path)  # refuses what is damaged or unsafe, in our own words
    require_sizes(_read_config(config), tensors, where=str(folder))
    del tensors
    try:
        model, info = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=path.suffix == ".safetensors",
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise WeightsError(f"transformers cannot load it: {str(error)[:300]}", where=str(folder)) from error
    absent = [name for name in info["missing_keys"] if not name.startswith(NOT_USED)]
    if absent:
        raise WeightsError(f"{len(absent)} tensors are absent, first {absent[0]}", where=str(path), fix="copy it again")
    return model


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"not valid JSON: {error}", where=str(path)) from error
    if not isinstance(config, dict):
        raise WeightsError("not a JSON object", where=str(path))
    return config


def load_tokenizer(folder: Path, *, lower_case: bool | None = None) -> Any:
    """Return the tokenizer in `folder`.

    Raises
    ------
    WeightsError
        If there is no vocabulary file: transformers would silently read every word as unknown.
    """
    from transformers import AutoTokenizer

    first_file(folder, VOCABULARY_FILES, what="tokenizer vocabulary")
    if lower_case is None and not any((folder / name).is_file() for name in SAY_CASE):
        lower_case = not _has_capitals(folder / "vocab.txt")
        case = "lower-cases" if lower_case else "keeps case"
        _log.info("%s has no tokenizer_config.json: by its vocabulary, its tokenizer %s", folder, case)
    extra = {} if lower_case is None else {"do_lower_case": lower_case}
    try:
        load: Any = AutoTokenizer.from_pretrained
        tokenizer = load(folder, local_files_only=True, trust_remote_code=False, **extra)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise WeightsError(f"transformers cannot load the tokenizer: {str(error)[:300]}", where=str(folder)) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise WeightsError("the tokenizer knows no words", where=str(folder), fix="copy its vocabulary there")
    return tokenizer


def _has_capitals(vocabulary: Path) -> bool:
    """Return whether a vocabulary has words with capitals (BioBERT): lower-cased, none of them would ever be found."""
    if not vocabulary.is_file():
        return False
    words = vocabulary.read_text(encoding="utf-8", errors="replace").split()
    return any(word != word.lower() for word in words if not word.startswith("["))


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the sha256 over vocabulary, special tokens and lower-casing."""
    digest = hashlib.sha256()
    for word, number in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{number}|{word}\n".encode())
    digest.update(repr(sorted(map(str, tokenizer.all_special_tokens))).encode())
    digest.update(repr(tokenizer.tokenize("Aa")).encode())
    return digest.hexdigest()
