"""An Enformer trunk as a folder: ``model.safetensors`` (with its card inside) and ``config.json``.

The card says what the trunk was trained on, because whoever evaluates a head on top of it must know. Enformer's
``state_dict`` names each trunk tensor twice (``stem.…`` and ``_trunk.1.…``); only the first name is stored. Folders
and ``pytorch_model.bin`` files made by others are read too; their card is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from enformer_pytorch import Enformer
from safetensors.torch import save

from tfbind_store.durable import publish
from tfbind_store.errors import WeightsError
from tfbind_store.precompute.weights import first_file, read_safetensors, read_tensors
from tfbind_store.spec import canonical_json

CARD_FORMAT = "tfbind-trunk-2"
FIRST_CARD_FORMAT = "tfbind-trunk-1"
LIBRARY = {"format": "pt"}
"""``Enformer.from_pretrained`` reads no file that does not say so."""
CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
DOUBLED = "_trunk."
HEADS = "_heads."
ARCHITECTURE = (
    "dim",
    "depth",
    "heads",
    "attn_dim_key",
    "num_downsamples",
    "dim_divisible_by",
    "use_tf_gamma",
    "dropout_rate",
    "attn_dropout",
    "pos_dropout",
    "output_heads",
)
TRAINED_ON = ("factors", "chromosomes", "biotypes")


@dataclass(frozen=True, kw_only=True)
class TrunkCard:
    """What is known about a trunk's training."""

    trained_on: Mapping[str, Sequence[str]] | None = None
    """``factors``, ``chromosomes`` and ``biotypes`` seen in training; None where nobody said, empty where untrained."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping: genome digest, window, selection, scores, seconds."""

    def __post_init__(self) -> None:
        if self.trained_on is not None and set(self.trained_on) != set(TRAINED_ON):
            raise WeightsError(f"a card names {sorted(self.trained_on)}, needs {list(TRAINED_ON)}", where="trunk card")

    @property
    def trained_on_json(self) -> dict[str, list[str]] | None:
        """`trained_on` as sorted lists, as it stands in a spec."""
        if self.trained_on is None:
            return None
        return {name: sorted(set(map(str, self.trained_on[name]))) for name in TRAINED_ON}


UNTRAINED = TrunkCard(trained_on={name: () for name in TRAINED_ON})


class Trunk(NamedTuple):
    """A loaded trunk in eval mode, and its card."""

    model: Enformer
    card: TrunkCard


def trunk_tensors(model: Enformer) -> dict[str, torch.Tensor]:
    """Return the model's tensors once each, under their plain names, heads included."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(DOUBLED)}


def architecture_of(model: Enformer) -> dict[str, Any]:
    """Return the hyper-parameters from which `model` can be built again."""
    return {name: getattr(model.config, name) for name in ARCHITECTURE}


def save_trunk(
    model: Enformer,
    folder: Path | str,
    trained_on: Mapping[str, Sequence[str]] | None,
    *,
    notes: Mapping[str, Any] | None = None,
    keep_heads: bool = False,
) -> Path:
    """Write a trunk so that `load_trunk` gives the same numbers, replacing an older one in one step.

    Parameters
    ----------
    model
        Any mode; it is loaded in eval mode.
    folder
        Made if absent.
    trained_on
        ``{"factors": …, "chromosomes": …, "biotypes": …}`` or None where unknown.
    notes
        JSON values kept on the card.
    keep_heads
        Store the output heads too; embedding does not need them.

    Returns
    -------
    The folder.
    """
    config = architecture_of(model)
    tensors = trunk_tensors(model)
    if not keep_heads:
        config["output_heads"] = {}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS)}
    card = TrunkCard(trained_on=trained_on, notes=dict(notes or {}))
    return write_folder(Path(folder), CARD_FORMAT, config, tensors, card, model_type="enformer")


def write_folder(
    folder: Path,
    card_format: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    card: TrunkCard,
    *,
    model_type: str,
) -> Path:
    """Write a trunk of any kind: its tensors with the card inside, by the name of its format, and ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    stated = {"config": dict(config), "trained_on": card.trained_on_json, "notes": dict(card.notes)}
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # not save_file: it hides a full disk behind an error of its own
    publish(folder / WEIGHT_FILES[0], _safetensors(own, {**LIBRARY, card_format: canonical_json(stated)}))
    text = json.dumps({"model_type": model_type, **config}, indent=2, sort_keys=True) + "\n"
    publish(folder / CONFIG_FILE, [text.encode()])
    return folder


def load_trunk(folder: Path | str, *, use_tf_gamma: bool | None = None) -> Trunk:
    """Read a trunk from a folder, in eval mode on the CPU.

    Parameters
    ----------
    folder
        With ``model.safetensors`` or ``pytorch_model.bin``, and ``config.json`` unless `save_trunk` wrote it.
    use_tf_gamma
        Overrides what the config says; the official weights need True, which their config does not tell.

    Raises
    ------
    WeightsError
        If a file is absent or damaged, or tensors and config do not fit.
    """
    folder = Path(folder)
    path = first_file(folder, WEIGHT_FILES, what="Enformer weights")
    tensors, metadata = read_safetensors(path) if path.suffix == ".safetensors" else (read_tensors(path), {})
    config, card = _read_card(metadata, where=str(path))
    if config is None:
        config = _read_config(folder / CONFIG_FILE)
    if use_tf_gamma is not None:
        config["use_tf_gamma"] = use_tf_gamma
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(DOUBLED)}
    if not any(name.startswith(HEADS) for name in tensors):
        config["output_heads"] = {}
    _require_fit(config, tensors, where=str(path))
    model = build_trunk(config, where=str(folder))
    fill(model, tensors, where=str(path))
    return Trunk(model.eval(), card)


def _require_fit(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Refuse a config of another model than the weights' before anything of its size is made."""
    for name in ("depth", "num_downsamples"):
        size = config.get(name)
        if size is not None and not (isinstance(size, int) and 0 <= size <= len(tensors)):
            what = f"the config has {name} {str(size)[:30]}, the weights are {len(tensors):,} tensors"
            raise WeightsError(what, where=where, fix="config and weights are of different models: copy both again")
    with torch.device("meta"):
        require_names_and_shapes(build_trunk(config, where=where), tensors, where=where)


def build_trunk(architecture: Mapping[str, Any], *, where: str) -> Enformer:
    """Return a default-initialised Enformer that never crops by itself.

    Enformer's own crop loses a bin where an odd number is to go, and its ``target_length`` argument sticks.
    """
    try:
        return Enformer.from_hparams(**{**architecture, "target_length": -1})
    except (AssertionError, ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise WeightsError(f"no Enformer can be built from {dict(architecture)}: {error}", where=where) from error


def fill(model: Enformer, tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Copy `tensors` into `model`; exactly the doubled names may be absent."""
    require_names_and_shapes(model, tensors, where=where)
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()) or (name.endswith("running_var") and bool((tensor < 0).any())):
            raise WeightsError(f"{name} holds numbers that no training leaves", where=where, fix="copy it again")
    model.load_state_dict(dict(tensors), strict=False)


def require_names_and_shapes(model: Enformer, tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Refuse tensors that are not the model's own, counters and doubled names aside."""
    own = trunk_tensors(model)
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    absent, odd = sorted(set(own) - set(tensors) - counters), sorted(set(tensors) - set(own))
    if absent or odd:
        raise WeightsError(
            f"weights do not fit their config: {len(absent)} absent {absent[:2]}, {len(odd)} unknown {odd[:2]}",
            where=where,
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            what = f"weights do not fit their config: {name} is {list(tensor.shape)}, not {list(own[name].shape)}"
            raise WeightsError(what, where=where)


def _safetensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> list[bytes]:
    """Return a file in parts; the library writes several metadata in an order that changes from process to process."""
    whole = save(dict(tensors), dict(metadata))
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.dumps(json.loads(whole[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # numbers begin at a multiple of their size
    return [len(header).to_bytes(8, "little"), header, whole[end:]]


def _read_card(metadata: Mapping[str, str], *, where: str) -> tuple[dict[str, Any] | None, TrunkCard]:
    """Return architecture and card out of the metadata that `save_trunk` wrote; an empty card out of any other."""
    try:
        if CARD_FORMAT in metadata:
            stated = json.loads(metadata[CARD_FORMAT])
        elif metadata.get("format") == FIRST_CARD_FORMAT:
            stated = {name: json.loads(metadata[name]) for name in ("config", "trained_on", "notes")}
        else:
            return None, TrunkCard()
        seen = stated["trained_on"]
        if seen is not None and not all(isinstance(names, list) for names in seen.values()):
            raise TypeError("what it was trained on is no list of names")
        return dict(stated["config"]), TrunkCard(trained_on=seen, notes=dict(stated["notes"]))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"its card is not one that we write: {error!r:.200}", where=where) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError("no config.json beside the weights", where=str(path), fix="copy it there") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"not valid JSON: {error}", where=str(path)) from error
    if not isinstance(values, dict) or "dim" not in values:
        raise WeightsError("no Enformer config: it has no dim", where=str(path))
    return {name: values[name] for name in ARCHITECTURE if name in values}
