"""Proteins through ESM-1b or ESM-2: one vector per residue of one layer.

Weights come from a published name, a ``.pt`` of the published layout, a folder as transformers writes them (ESM-2), or
architecture and seed (random, for tests of the code: a random ESM knows nothing about proteins). The same weights give
the same fingerprint and the same numbers whichever way they came.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import esm
import torch
from jaxtyping import Float

from tfbind_store.errors import ConfigError, WeightsError
from tfbind_store.precompute.embedder import read_options
from tfbind_store.precompute.esm_forward import EsmForward, is_plain
from tfbind_store.precompute.residue_model import ResidueEmbedder, ResidueOptions, padded
from tfbind_store.precompute.weights import (
    HUB_ID,
    first_file,
    hub_folder,
    load_pickle,
    pick_device,
    read_tensors,
    require_sizes,
    take_back,
    tensors_of,
    weights_digest,
)

HUB_NAME = re.compile(r"esm(2|1b|1v|1)_[\w]+")
HUB_URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
LONGEST = 1022
"""Residues that fit between the two special tokens of 1,024 positions."""
SAME_LETTER = {"J": "X"}
"""ESM's alphabet has X, B, U, Z and O, but no J (leucine or isoleucine)."""
NOT_USED = ("lm_head.", "contact_head.")
PROTEIN_ARCHITECTURES = ("roberta_large", "protein_bert_base")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The large ones come in several files with an index."""
PART_FILES = ("model-*.safetensors", "pytorch_model-*.bin")
CPU_FLAG = "PROTEIN_EMBED_USE_CPU"
# transformers' names (left) of fair-esm's parts (right)
RENAMED = (
    (r"^esm\.", ""),
    (r"^embeddings\.word_embeddings\.", "embed_tokens."),
    (r"^encoder\.emb_layer_norm_after\.", "emb_layer_norm_after."),
    (r"^encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.", r"layers.\1.self_attn.\2_proj."),
    (r"\.self_attn\.query_proj\.", ".self_attn.q_proj."),
    (r"\.self_attn\.key_proj\.", ".self_attn.k_proj."),
    (r"\.self_attn\.value_proj\.", ".self_attn.v_proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.self_attn.out_proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.LayerNorm\.", r"layers.\1.self_attn_layer_norm."),
    (r"^encoder\.layer\.(\d+)\.LayerNorm\.", r"layers.\1.final_layer_norm."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"layers.\1.fc1."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"layers.\1.fc2."),
)
ELSEWHERE = re.compile(r"(^|\.)(lm_head|contact_head|pooler|position_ids|rotary_embeddings)(\.|$)")


@dataclass(frozen=True, kw_only=True)
class EsmOptions(ResidueOptions):
    """Where the weights come from: `checkpoint`, or `num_layers` and the rest of an architecture."""

    checkpoint: str | None = None
    """A published name, such as ``esm2_t33_650M_UR50D`` or ``esm1b_t33_650M_UR50S``, looked up in torch's hub folder; a
    ``.pt`` file of that layout; or an ESM-2 of transformers: a folder, or a hub id such as
    ``facebook/esm2_t6_8M_UR50D``."""
    allow_download: bool = False
    """Fetch a published name that is not on this machine."""
    num_layers: int | None = None
    """Layers of a random ESM-2."""
    embed_dim: int = 64
    attention_heads: int = 4
    seed: int = 0


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
        model, alphabet = load_esm(weights_place(str(choice.checkpoint), choice.allow_download))
    return EsmEmbedder(model, alphabet, choice)


class EsmEmbedder(ResidueEmbedder):
    """A frozen ESM.

    Parameters
    ----------
    model, alphabet
        As fair-esm gives them.
    options
        How it is used; where the weights came from is not looked at.
    """

    def __init__(self, model: Any, alphabet: Any, options: ResidueOptions | None = None) -> None:
        options = options or ResidueOptions()
        wrapped = EsmModel(model, alphabet, pick_device(options.device, cpu_flag=CPU_FLAG))
        identity = {
            "class": f"esm.{type(model).__name__}",
            "weights_sha256": weights_digest(model.state_dict(), skip=NOT_USED),
            "unknown_letters": "J as X",
        }
        super().__init__(wrapped, options, name="esm", identity=identity)
        self.module, self.alphabet, self.esm = model, alphabet, wrapped


class EsmModel:
    """An ESM as a `ResidueModel`; its weights stay where they are, what runs is a copy laid out for the device."""

    longest = LONGEST

    def __init__(self, model: Any, alphabet: Any, device: torch.device) -> None:
        self.device = device
        self.alphabet = alphabet
        self.dim = int(model.embed_tokens.embedding_dim)
        self.n_layers = int(model.num_layers)
        self._model = model.eval()
        self._before = [alphabet.cls_idx] if alphabet.prepend_bos else []
        self._after = [alphabet.eos_idx] if alphabet.append_eos else []
        self._laid_out: tuple[tuple[int, torch.dtype], EsmForward] | None = None

    def forward(self, stretches: Sequence[str], layer: int) -> list[Float[torch.Tensor, "length dim"]]:
        """Return one row per residue of each stretch; the precision is autocast's."""
        lines = self._lines(stretches)
        found = self._run(lines, layer) if is_plain(self._model) else self._run_fair_esm(lines, layer)
        return self._without_ends(found, stretches)

    def live(self, stretches: Sequence[str], layer: int) -> list[Float[torch.Tensor, "length dim"]]:
        """Return the same by the model's own modules: with its weights as they are now, and gradients to them."""
        return self._without_ends(self._run_fair_esm(self._lines(stretches), layer), stretches)

    def _lines(self, stretches: Sequence[str]) -> list[list[int]]:
        known = self.alphabet.tok_to_idx
        return [
            [*self._before, *(known[SAME_LETTER.get(letter, letter)] for letter in stretch), *self._after]
            for stretch in stretches
        ]

    def _without_ends(self, found: Sequence[torch.Tensor], stretches: Sequence[str]) -> list[torch.Tensor]:
        first = len(self._before)
        return [rows[first : first + len(stretch)] for rows, stretch in zip(found, stretches, strict=True)]

    def _run(self, lines: Sequence[Sequence[int]], layer: int) -> Sequence[torch.Tensor]:
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        if self._laid_out is None or self._laid_out[0] != (layer, dtype):
            self._laid_out = None  # before the next one takes its room
            laid_out = EsmForward(self._model, layer, device=self.device, dtype=dtype)
            self._laid_out = (layer, dtype), laid_out
        with torch.autocast(kind, enabled=False):
            return self._laid_out[1](lines)

    def _run_fair_esm(self, lines: Sequence[Sequence[int]], layer: int) -> Sequence[torch.Tensor]:
        """Run fair-esm's own modules: for the first ESM-1, and where weights change."""
        tokens = padded(lines, padding=self.alphabet.padding_idx, device=self.device)
        found = self._model.to(self.device)(tokens, repr_layers=[layer])["representations"][layer]
        return list(found)

    def release(self) -> None:
        """Give the device's memory back."""
        self._laid_out = None
        take_back(self._model, self.device)


def random_esm2(num_layers: int, embed_dim: int, attention_heads: int, *, seed: int) -> tuple[Any, Any]:
    """Return an untrained ESM-2 and its alphabet, drawn from `seed` alone."""
    alphabet = esm.Alphabet.from_architecture("ESM-1b")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = esm.ESM2(num_layers, embed_dim, attention_heads, alphabet=alphabet, token_dropout=True)
    return model, alphabet


def weights_place(checkpoint: str, allow_download: bool) -> Path:
    """Return the file or folder called `checkpoint`, or the published weights of that name in torch's hub folder.

    Raises
    ------
    WeightsError
        If it is not there, and was not to be fetched.
    """
    place = Path(checkpoint).expanduser()
    if checkpoint.endswith(".pt") or place.exists():
        return place
    if HUB_ID.fullmatch(checkpoint):
        return hub_folder(checkpoint, files=("config.json", *WEIGHT_FILES, *PART_FILES), allow_download=allow_download)
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
    """Read a published ESM-1 or ESM-2 file, or a transformers folder, and return model and alphabet.

    fair-esm's own loader cannot: since torch 2.6 it stumbles over the ``argparse.Namespace`` in the files, and it
    wants a contact-regression file beside them that we do not need.
    """
    if path.is_dir():
        return load_transformers_folder(path)
    data = load_pickle(path)
    is_esm2 = isinstance(data, dict) and "cfg" in data
    arch = getattr(data.get("args"), "arch", None) if isinstance(data, dict) else None
    if not is_esm2 and arch not in PROTEIN_ARCHITECTURES:
        raise WeightsError(
            f"no ESM-1 or ESM-2 weights: architecture {arch!r}",
            where=str(path),
            fix="use a published .pt file, such as esm2_t33_650M_UR50D.pt",
        )
    require_sizes(_sizes(data, is_esm2), tensors_of(data.get("model"), where=str(path)), where=str(path))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Regression weights not found")
            model, alphabet = esm.pretrained.load_model_and_alphabet_core("esm2" if is_esm2 else "esm1", data, None)
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"the weights do not fit fair-esm: {str(error)[:300]}", where=str(path)) from error
    return model, alphabet


def _sizes(data: Mapping[str, Any], is_esm2: bool) -> dict[str, object]:
    """Return the sizes that fair-esm will take from a published file's options; others in there mean nothing."""
    options = data["cfg"].get("model") if is_esm2 and isinstance(data["cfg"], dict) else data.get("args")
    arch = getattr(options, "arch", None)
    prefix = "decoder_" if arch == "protein_bert_base" and not is_esm2 else "encoder_"
    named = {name.split(prefix, 1)[-1]: value for name, value in getattr(options, "__dict__", {}).items()}
    used = ("layers", "embed_dim") if is_esm2 else ("layers", "embed_dim", "ffn_embed_dim")
    return {name: named[name] for name in used if name in named}


def load_transformers_folder(folder: Path) -> tuple[Any, Any]:
    """Read an ESM-2 that transformers wrote, into fair-esm's model.

    Raises
    ------
    WeightsError
        If it is another model, a file is absent, or a tensor is absent or unknown.
    """
    config = _read_config(first_file(folder, ["config.json"], what="ESM config"))
    path = first_file(folder, WEIGHT_FILES, what="ESM weights")
    alphabet = esm.Alphabet.from_architecture("ESM-1b")
    _require_vocabulary(folder, alphabet)
    tensors = {
        fair_name(name): tensor.float() for name, tensor in read_tensors(path).items() if not ELSEWHERE.search(name)
    }
    require_sizes(config, tensors, where=str(folder))
    try:
        model = esm.ESM2(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["num_attention_heads"],
            alphabet=alphabet,
            token_dropout=config["token_dropout"],
        )
        own = {name for name in model.state_dict() if not ELSEWHERE.search(name) and not name.endswith("inv_freq")}
        if own != set(tensors):
            absent, odd = sorted(own - set(tensors)), sorted(set(tensors) - own)
            what = f"{len(absent)} tensors are absent {absent[:2]}, {len(odd)} unknown {odd[:2]}"
            raise WeightsError(what, where=str(path), fix="copy it again")
        model.load_state_dict(tensors, strict=False)
    except (RuntimeError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise WeightsError(f"weights and config do not fit: {str(error)[:300]}", where=str(folder)) from error
    return model, alphabet


def fair_name(name: str) -> str:
    """Return fair-esm's name of a tensor that transformers names `name`.

    Examples
    --------
    >>> fair_name("esm.encoder.layer.3.attention.self.key.weight")
    'layers.3.self_attn.k_proj.weight'
    """
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"not valid JSON: {error}", where=str(path)) from error
    fixed = {"model_type": "esm", "position_embedding_type": "rotary", "emb_layer_norm_before": False}
    for name, wanted in fixed.items():
        found = config.get(name) if isinstance(config, dict) else None
        if found != wanted and not (wanted is False and found is None):
            raise WeightsError(
                f"no ESM-2: {name} is {found!r}, not {wanted!r}",
                where=str(path),
                fix="ESM-1b comes as a published .pt file: checkpoint=esm1b_t33_650M_UR50S",
            )
    return {"token_dropout": True, **config}


def _require_vocabulary(folder: Path, alphabet: Any) -> None:
    """Refuse a folder whose tokens have other numbers than fair-esm's; without vocab.txt they are taken to agree."""
    path = folder / "vocab.txt"
    if path.is_file() and path.read_text(encoding="utf-8").split() != alphabet.all_toks:
        raise WeightsError("its tokens are not ESM-2's", where=str(path), fix="copy that of the published model")
