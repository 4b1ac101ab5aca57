"""Proteins through ESM-1b or ESM-2 (fair-esm): one vector per residue of one layer.

A protein longer than the model reads (1,022 residues) is cut into overlapping stretches and the overlaps are averaged:
no residue is dropped. Weights come from a hub name, a local ``.pt`` of the published layout, or architecture and seed
(random, for tests of the code: a random ESM knows nothing about proteins).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import esm
import numpy as np
import torch
from jaxtyping import Float32

from tfbind_store.errors import ConfigError, ProteinError, WeightsError
from tfbind_store.precompute.embedder import SequenceEmbedding, read_options
from tfbind_store.precompute.weights import load_pickle, pick_device, weights_digest
from tfbind_store.spec import EmbeddingSpec

HUB_NAME = re.compile(r"esm(2|1b|1v|1)_[\w]+")
HUB_URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
LONGEST = 1022
"""Residues that fit between the two special tokens of 1,024 positions."""
SAME_LETTER = {"J": "X"}
"""ESM's alphabet has X, B, U, Z and O, but no J (leucine or isoleucine)."""
NOT_USED = ("lm_head.", "contact_head.")
PROTEIN_ARCHITECTURES = ("roberta_large", "protein_bert_base")


@dataclass(frozen=True, kw_only=True)
class EsmOptions:
    """Where the weights come from: `checkpoint`, or `num_layers` and the rest of an architecture."""

    checkpoint: str | None = None
    """A ``.pt`` file of the published layout, or a published name, such as ``esm2_t33_650M_UR50D`` or
    ``esm1b_t33_650M_UR50S``, looked up in torch's hub folder."""
    allow_download: bool = False
    """Fetch a published name that is not on this machine."""
    layer: int | None = None
    """Layer whose vectors are kept; None is the last."""
    window: int = LONGEST
    """Most residues read at once."""
    overlap: int = 256
    """Fewest residues that neighbouring stretches of a long protein share."""
    num_layers: int | None = None
    """Layers of a random ESM-2."""
    embed_dim: int = 64
    attention_heads: int = 4
    seed: int = 0
    device: str = "auto"


def from_options(options: Mapping[str, Any]) -> EsmEmbedder:
    """Return the ESM embedder for the registry.

    Raises
    ------
    ConfigError
        If neither or both of `checkpoint` and `num_layers` are given, or another option is out of range.
    WeightsError
        If the weights are not on this machine.
    """
    choice = read_options(EsmOptions, options, name="esm")
    if (choice.checkpoint is None) == (choice.num_layers is None):
        raise ConfigError(
            "esm needs either a checkpoint or an architecture",
            where="options of embedder esm",
            fix="checkpoint=esm2_t33_650M_UR50D, checkpoint=FILE.pt, or num_layers=2 embed_dim=64 (knows nothing)",
        )
    if choice.num_layers is not None:
        model, alphabet = random_esm2(choice.num_layers, choice.embed_dim, choice.attention_heads, seed=choice.seed)
    else:
        model, alphabet = load_esm(weights_file(str(choice.checkpoint), choice.allow_download))
    return EsmEmbedder(
        model, alphabet, layer=choice.layer, window=choice.window, overlap=choice.overlap, device=choice.device
    )


class EsmEmbedder:
    """A frozen ESM.

    Parameters
    ----------
    model, alphabet
        As fair-esm gives them.
    layer, window, overlap, device
        As in `EsmOptions`.
    """

    def __init__(
        self,
        model: Any,
        alphabet: Any,
        *,
        layer: int | None = None,
        window: int = LONGEST,
        overlap: int = 256,
        device: str = "auto",
    ) -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.alphabet = alphabet
        self.layer = model.num_layers if layer is None else layer
        if not 0 <= self.layer <= model.num_layers:
            raise ConfigError(f"layer {layer} of a model of {model.num_layers} layers", where="options of embedder esm")
        if not 0 <= overlap < window <= LONGEST:
            raise ConfigError(
                f"window {window} with overlap {overlap}",
                where="options of embedder esm",
                fix=f"choose 0 <= overlap < window <= {LONGEST}",
            )
        self.window, self.overlap = window, overlap
        self._digest = weights_digest(self.model.state_dict(), skip=NOT_USED)

    def spec(self) -> EmbeddingSpec:
        """Return the spec; the weights are named by their digest."""
        identity = {
            "class": f"esm.{type(self.model).__name__}",
            "weights_sha256": self._digest,
            "layer": self.layer,
            "length_policy": f"stretches of {self.window}, overlapping by {self.overlap} or more, averaged",
            "unknown_letters": "J as X",
            "matmul": "float32",
        }
        dim = int(self.model.embed_tokens.embedding_dim)
        return EmbeddingSpec(kind="proteins", embedder="esm", dim=dim, identity=identity)

    def embed(self, sequences: Sequence[str]) -> Iterator[SequenceEmbedding]:
        """Yield one result per sequence; nothing is ever truncated."""
        for sequence in sequences:
            yield SequenceEmbedding(self._one(sequence), False)

    def _one(self, sequence: str) -> Float32[np.ndarray, "length dim"]:
        tokens = self._tokens(sequence)
        total = torch.zeros(len(sequence), self.model.embed_tokens.embedding_dim, device=self.device)
        count = torch.zeros(len(sequence), 1, device=self.device)
        for start in stretch_starts(len(sequence), self.window, self.overlap):
            part = slice(start, start + self.window)
            total[part] += self._forward(tokens[part])
            count[part] += 1
        values: Float32[np.ndarray, "length dim"] = (total / count).cpu().numpy()
        return values

    @torch.inference_mode()
    def _forward(self, residues: list[int]) -> torch.Tensor:
        before = [self.alphabet.cls_idx] if self.alphabet.prepend_bos else []
        after = [self.alphabet.eos_idx] if self.alphabet.append_eos else []
        tokens = torch.tensor([[*before, *residues, *after]], device=self.device)
        layers = self.model(tokens, repr_layers=[self.layer])["representations"]
        found: torch.Tensor = layers[self.layer][0, len(before) : len(before) + len(residues)]
        return found

    def _tokens(self, sequence: str) -> list[int]:
        known = self.alphabet.tok_to_idx
        letters = [SAME_LETTER.get(letter, letter) for letter in sequence]
        odd = sorted({letter for letter in letters if letter not in known or not letter.isupper()})
        if odd or not letters:
            what = f"protein letters {odd} are not in ESM's alphabet" if letters else "a protein has no residues"
            raise ProteinError(
                what, where=f"{sequence[:30]}…", fix="give upper-case one-letter codes, without gaps or stops"
            )
        return [known[letter] for letter in letters]


def stretch_starts(length: int, window: int, overlap: int) -> list[int]:
    """Return where the stretches of a protein start: evenly spread, the last one ending at the protein's end.

    Examples
    --------
    >>> stretch_starts(10, 12, 2), stretch_starts(20, 12, 4), stretch_starts(30, 12, 4)
    ([0], [0, 8], [0, 6, 12, 18])
    """
    if length <= window:
        return [0]
    n_stretches = 1 + -(-(length - window) // (window - overlap))
    return [round(i * (length - window) / (n_stretches - 1)) for i in range(n_stretches)]


def random_esm2(num_layers: int, embed_dim: int, attention_heads: int, *, seed: int) -> tuple[Any, Any]:
    """Return an untrained ESM-2 and its alphabet, drawn from `seed` alone."""
    alphabet = esm.Alphabet.from_architecture("ESM-1b")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = esm.ESM2(num_layers, embed_dim, attention_heads, alphabet=alphabet, token_dropout=True)
    return model, alphabet


def weights_file(checkpoint: str, allow_download: bool) -> Path:
    """Return the file called `checkpoint`, or the published weights of that name in torch's hub folder.

    Raises
    ------
    WeightsError
        If it is not there, and was not to be fetched.
    """
    if checkpoint.endswith(".pt") or Path(checkpoint).expanduser().exists():
        return Path(checkpoint).expanduser()
    if not HUB_NAME.fullmatch(checkpoint):
        raise WeightsError(
            f"{checkpoint!r} is neither a file nor a published ESM-1 or ESM-2 name",
            where="options of embedder esm",
            fix="checkpoint=esm2_t33_650M_UR50D or checkpoint=FILE.pt",
        )
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{checkpoint}.pt"
    url = HUB_URL.format(name=checkpoint)
    if not path.is_file() and allow_download:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise WeightsError(f"cannot fetch {url}: {error}", where=str(path), fix="copy the file there") from error
    if not path.is_file():
        raise WeightsError(
            f"the weights of {checkpoint} are not on this machine",
            where=str(path),
            fix=f"download {url} to that place, or run again with --allow-download",
        )
    return path


def load_esm(path: Path) -> tuple[Any, Any]:
    """Read a published ESM-1 or ESM-2 file and return model and alphabet.

    fair-esm's own loader cannot: since torch 2.6 it stumbles over the ``argparse.Namespace`` in the files, and it
    wants a contact-regression file beside them that we do not need.
    """
    data = load_pickle(path)
    is_esm2 = isinstance(data, dict) and "cfg" in data
    arch = getattr(data.get("args"), "arch", None) if isinstance(data, dict) else None
    if not is_esm2 and arch not in PROTEIN_ARCHITECTURES:
        raise WeightsError(
            f"no ESM-1 or ESM-2 weights: architecture {arch!r}",
            where=str(path),
            fix="use a published .pt file, such as esm2_t33_650M_UR50D.pt",
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Regression weights not found")
            model, alphabet = esm.pretrained.load_model_and_alphabet_core("esm2" if is_esm2 else "esm1", data, None)
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"the weights do not fit fair-esm: {str(error)[:300]}", where=str(path)) from error
    return model, alphabet
