"""DNA through Borzoi (borzoi-pytorch, ``pip install 'tfbind-store[borzoi]'``): bins of 32 bp.

Weights come from a hub id such as ``johahi/borzoi-replicate-0`` or a folder, or from an architecture and a seed. Two
layers can be kept: ``trunk``, after the last convolution that all heads share (1,920 wide), and ``unet``, before it.
The model's own crop is taken out; the grid's centre bins are kept. Flashzoi's attention runs on a GPU only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float

from tfbind_store.errors import ConfigError, DependencyError, WeightsError
from tfbind_store.precompute.embedder import TrunkGeometry, read_options
from tfbind_store.precompute.module import ModuleEmbedder
from tfbind_store.precompute.weights import first_file, hub_folder, read_tensors

BIN_BP = 32
COARSEST_BP = 128
"""A window must be a whole number of the U-net's widest steps."""
TRUNK_DIM = 1920
HEADS = ("human_head.", "mouse_head.")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
Tap = Literal["trunk", "unet"]


@dataclass(frozen=True, kw_only=True)
class BorzoiOptions:
    """Where the weights come from: `checkpoint`, or `dim` and the rest of an architecture."""

    checkpoint: str | None = None
    """Hub id or folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    allow_download: bool = False
    """Ask the hub for what is not on this machine."""
    tap: Tap = "trunk"
    """``trunk`` (1,920 numbers) or ``unet`` (the model's dim)."""
    dim: int | None = None
    """Width of a random Borzoi, a multiple of 8 x `heads`."""
    depth: int = 1
    heads: int = 4
    seed: int = 0
    batch_size: int = 1
    """Windows per forward pass. Changes speed only."""
    device: str = "auto"


def from_options(options: Mapping[str, Any]) -> ModuleEmbedder:
    """Return Borzoi for the registry.

    Raises
    ------
    DependencyError
        If borzoi-pytorch is not installed.
    WeightsError
        If the weights are not here or do not fit.
    """
    choice = read_options(BorzoiOptions, options, name="borzoi")
    if (choice.checkpoint is None) == (choice.dim is None):
        raise ConfigError(
            "borzoi needs either a checkpoint or an architecture",
            where="options of embedder borzoi",
            fix="checkpoint=johahi/borzoi-replicate-0, checkpoint=FOLDER, or dim=64 depth=1 heads=4 (a random one)",
        )
    if choice.checkpoint is not None:
        folder = hub_folder(
            choice.checkpoint,
            files=("config.json", *WEIGHT_FILES),
            allow_download=choice.allow_download,
            revision=choice.revision,
        )
        model = load_borzoi(folder)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(choice.seed)
            model = build_borzoi({"dim": choice.dim, "depth": choice.depth, "heads": choice.heads}, where="options")
    dim = TRUNK_DIM if choice.tap == "trunk" else int(model.config.dim)
    architecture = ("dim", "depth", "heads", "attn_dim_key", "attn_dim_value")
    return ModuleEmbedder(
        model,
        TrunkGeometry(bin_bp=BIN_BP, dim=dim, taps=("trunk", "unet")),
        forward=_trunk if choice.tap == "trunk" else _unet,
        name="borzoi",
        identity={
            "class": "borzoi_pytorch.Borzoi",
            "architecture": {name: getattr(model.config, name, None) for name in architecture},
            "layer": choice.tap,
        },
        batch_size=choice.batch_size,
        device=choice.device,
    )


def build_borzoi(config: Mapping[str, Any], *, where: str) -> Any:
    """Return a Borzoi without heads and without its own crop."""
    try:
        from borzoi_pytorch.config_borzoi import BorzoiConfig
        from borzoi_pytorch.pytorch_borzoi_model import Borzoi
    except ImportError as error:
        fix = "pip install 'tfbind-store[borzoi]'"
        raise DependencyError(f"Borzoi cannot be imported: {error}", where="borzoi_pytorch", fix=fix) from error
    try:
        model = Borzoi(BorzoiConfig(**{**config, "enable_human_head": False, "enable_mouse_head": False}))
    except ImportError as error:
        raise DependencyError(f"Flashzoi cannot be made: {error}", where=where, fix="pip install flash-attn") from error
    except (AssertionError, ValueError, TypeError, RuntimeError, ZeroDivisionError, NameError) as error:
        raise WeightsError(f"no Borzoi can be built from {dict(config)}: {error}", where=where) from error
    model.crop = torch.nn.Identity()
    return model


def load_borzoi(folder: Path) -> Any:
    """Read a Borzoi from a folder; the weights of its heads are left out."""
    path = first_file(folder, ["config.json"], what="Borzoi config")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"not valid JSON: {error}", where=str(path)) from error
    if not isinstance(config, dict) or config.get("model_type") != "borzoi":
        raise WeightsError("no Borzoi config: model_type is not borzoi", where=str(path))
    names = ("dim", "depth", "heads", "attn_dim_key", "attn_dim_value", "flashed")
    model = build_borzoi({name: config[name] for name in names if name in config}, where=str(folder))
    weights = first_file(folder, WEIGHT_FILES, what="Borzoi weights")
    tensors = {name: tensor for name, tensor in read_tensors(weights).items() if not name.startswith(HEADS)}
    own = model.state_dict()
    absent = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    odd = sorted(set(tensors) - set(own))
    if absent or odd:
        what = f"weights do not fit their config: {len(absent)} absent {absent[:2]}, {len(odd)} unknown {odd[:2]}"
        raise WeightsError(what, where=str(weights))
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"weights do not fit their config: {str(error)[:300]}", where=str(weights)) from error
    return model


def _unet(model: Any, sequence: Float[torch.Tensor, "b bp 4"]) -> Float[torch.Tensor, "b n d"]:
    found: torch.Tensor = model.get_embs_after_crop(sequence.transpose(1, 2).contiguous())
    return found.transpose(1, 2)


def _trunk(model: Any, sequence: Float[torch.Tensor, "b bp 4"]) -> Float[torch.Tensor, "b n d"]:
    found: torch.Tensor = model.final_joined_convs(_unet(model, sequence).transpose(1, 2))
    return found.transpose(1, 2)
