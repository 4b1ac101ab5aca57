"""A trained head on disk: one safetensors file whose header says everything about where it came from.

The header is JSON in the file's own metadata, so that a reader needs nothing beside the file. Files are written to a
temporary name, synced and renamed. The trunk and the encoders are never inside; the fingerprints of their arrays are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tfbind_store.config import from_mapping
from tfbind_store.durable import publish
from tfbind_store.errors import CheckpointError, ConfigError
from tfbind_store.heads.base import Geometry, Head, make_head
from tfbind_store.spec import canonical_json

FORMAT = "tfbind_store.head"
METADATA_KEY = "tfbind_head"  # one key: safetensors writes several in no fixed order
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointHeader:
    """What a checkpoint says about itself; `docs/format.md` lists the same fields."""

    head: str
    """Name in `HEADS`."""
    options: Mapping[str, Any]
    """The head's config."""
    geometry: Mapping[str, int]
    """Widths of the embeddings it reads."""
    arrays: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """For windows, proteins and contexts: the array's name and fingerprint."""
    signals: Mapping[str, str] = field(default_factory=dict)
    """Name and fingerprint of the array of signals that the head reads; empty where it reads none."""
    genome: str = ""
    """Digest of the genome."""
    selection: Mapping[str, Any] = field(default_factory=dict)
    """The selection's description: name, SQL, parameters, split, counts."""
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    """Factors, chromosomes and biotypes of the training rows: what the leak check reads."""
    trunk_trained_on: Mapping[str, Any] | None = None
    """The same of the trunk, where known; None where not."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """The training config."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Step and validation scores at which these weights were taken."""

    @property
    def loss(self) -> str:
        """The kind of loss that gave its scores their scale (``bce``, ``focal``, ``mse``); ``tracks`` if rates did."""
        if "tracks" in self.train:
            return "tracks"
        loss = self.train.get("loss", {})
        return str(loss.get("kind", "bce"))


class Checkpoint(NamedTuple):
    """A head with its header."""

    head: Head
    header: CheckpointHeader


def header_for(head: Head, **fields: Any) -> CheckpointHeader:
    """Return the header of `head`, its name, options and geometry filled in."""
    return CheckpointHeader(**head.settings(), **fields)


def save_checkpoint(path: Path | str, head: Head, header: CheckpointHeader) -> None:
    """Write `head` to `path`, whole or not at all."""
    assert header.head == head.name, "the header is of another head"
    said = {"format": FORMAT, "version": VERSION, "header": dataclasses.asdict(header)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(head.state_dict().items())}
    publish(Path(path), [safetensors.torch.save(tensors, {METADATA_KEY: canonical_json(said)})])


def is_checkpoint(path: Path | str) -> bool:
    """Tell whether a file says that it is a head of this kind; it may be damaged all the same."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except Exception:  # the library has one error class of its own and passes on others
        return False


def read_header(path: Path | str) -> CheckpointHeader:
    """Read what a checkpoint says about itself, without its weights.

    Raises
    ------
    CheckpointError
        If the file is absent, damaged, of another format or version.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointError("no such checkpoint", where=str(path), fix="train one: tfbind train") from error
    except Exception as error:  # the library has one error class of its own and passes on others
        raise CheckpointError(f"no safetensors file: {error}", where=str(path)) from error
    try:
        said = json.loads(metadata.get(METADATA_KEY, "{}"))
        if said.get("format") != FORMAT or said.get("version") != VERSION:
            found = f"{said.get('format')!r} version {said.get('version')!r}"
            raise CheckpointError(f"format is {found}, this code reads {FORMAT!r} version {VERSION}", where=str(path))
        header = from_mapping(CheckpointHeader, said["header"], where="header")
        _require_readable(header)
        return header
    except (AttributeError, KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise CheckpointError(f"header cannot be read: {error}", where=str(path)) from error
    except ConfigError as error:
        raise CheckpointError(f"header cannot be read: {error.what} ({error.where})", where=str(path)) from error


def _require_readable(header: CheckpointHeader) -> None:
    """Refuse a header whose fields hold something else inside than they should; the file may come from anywhere."""
    arrays: Mapping[str, Any] = header.arrays
    fits = {
        "arrays": all(
            isinstance(array, Mapping) and all(isinstance(array.get(key), str) for key in ("name", "fingerprint"))
            for array in arrays.values()
        ),
        "signals": all(isinstance(text, str) for text in header.signals.values()),
        "trained_on": _are_names(header.trained_on),
        "trunk_trained_on": header.trunk_trained_on is None or _are_names(header.trunk_trained_on),
        "train.loss": isinstance(header.train.get("loss", {}), Mapping),
        "selection.leaks": isinstance(header.selection.get("leaks", []), list),
    }
    for field_name, is_right in fits.items():
        if not is_right:
            raise ConfigError("something else than it should hold", where=f"header: {field_name}")


def _are_names(by_kind: Mapping[str, Any]) -> bool:
    return all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in by_kind.values())


def load_checkpoint(path: Path | str, *, expected_arrays: Mapping[str, str] | None = None) -> Checkpoint:
    """Read a head and its header.

    Parameters
    ----------
    path
        A file that `save_checkpoint` wrote.
    expected_arrays
        Fingerprint of the store's array of each kind; a head trained on another is refused.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or the store's embeddings are not those that the head was trained on.
    """
    header = read_header(path)
    for kind, fingerprint in (expected_arrays or {}).items():
        trained = header.arrays.get(kind, {}).get("fingerprint")
        if trained != fingerprint:
            raise CheckpointError(
                f"head was trained on {kind} {str(trained)[:12]}, this store has {fingerprint[:12]}",
                where=f"{path}: arrays.{kind}.fingerprint",
                fix="use the store that the head was trained on, or train a head on this one",
            )
    try:
        geometry, tensors = Geometry(**header.geometry), safetensors.torch.load_file(path)
        with torch.device("meta"):  # a file cannot ask for more memory than it holds numbers
            _require_fit(make_head(header.head, geometry, header.options), tensors, where=str(path))
        head = make_head(header.head, geometry, header.options)
        head.load_state_dict(tensors)
    except (ConfigError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"weights do not fit head {header.head!r}: {error}", where=str(path)) from error
    return Checkpoint(head.eval(), header)


def _require_fit(head: Head, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Refuse tensors of other names, shapes or types, or with NaN or infinity; the first of them is named."""
    own = head.state_dict()
    absent, odd = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if absent or odd:
        what = f"{len(absent)} absent {absent[:2]}, {len(odd)} unknown {odd[:2]}"
        raise CheckpointError(f"weights do not fit head {head.name!r}: {what}", where=where)
    for name, tensor in own.items():
        given, what = tensors[name], ""
        if given.shape != tensor.shape:
            what = f"{name} is {list(given.shape)}, must be {list(tensor.shape)}"
        elif given.dtype != tensor.dtype:
            what = f"{name} is of {given.dtype}, must be of {tensor.dtype}"
        elif given.is_floating_point() and not bool(given.isfinite().all()):
            what = f"{name} holds numbers that are none"
        if what:
            raise CheckpointError(f"weights do not fit head {head.name!r}: {what}", where=where)
