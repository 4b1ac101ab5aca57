"""What both trainers do with files and models: name stores by what is in the files, embed what is not there yet."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from enformer_pytorch import Enformer
from jaxtyping import Int64

from tfbind_store.adapter_model import AdapterModel
from tfbind_store.errors import ConfigError
from tfbind_store.feeding.feed import choose_arrays
from tfbind_store.precompute.embedder import (
    SequenceEmbedder,
    TextEmbedder,
    make_sequence_embedder,
    make_text_embedder,
)
from tfbind_store.precompute.enformer import EnformerEmbedder, save_trunk
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.precompute.run import embed_windows
from tfbind_store.precompute.trunk_files import trunk_tensors
from tfbind_store.precompute.weights import weights_digest
from tfbind_store.query.loader import Arrays
from tfbind_store.store.folder import Store

SPECIES_PRIORITY = ("human", "mouse", "unknown")
Choice = str | Mapping[str, Any]
"""An embedder's name, or a mapping of its name and options."""
_log = logging.getLogger(__name__)


class ModelParts(NamedTuple):
    """What an `AdapterModel` brings beside its head."""

    trunk: Enformer
    proteins: Choice | SequenceEmbedder
    contexts: Choice | TextEmbedder


def parts_of(
    model: AdapterModel,
    proteins: Choice | SequenceEmbedder,
    contexts: Choice | TextEmbedder,
    *,
    binary: bool,
    where: str,
) -> ModelParts:
    """Return the trunk and the embedders of a model; those given stand in for what it does not have.

    Raises
    ------
    ConfigError
        If the model cannot be trained on stored bins.
    """
    if not isinstance(model.enformer, Enformer):
        raise ConfigError("the model has no Enformer", where=where, fix="AdapterModel(enformer=…)")
    if model.binary_target is not binary:
        raise ConfigError(f"binary_target is {model.binary_target}", where=where, fix=f"binary_target={binary}")
    if len(model.adapter.among_bins):
        what = "genome_self_attn_depth: stored bins are scored each by itself"
        raise ConfigError(what, where=where, fix="genome_self_attn_depth=0, or call the model itself")
    return ModelParts(
        model.enformer,
        proteins if model.proteins is None else model.proteins.embedder,
        contexts if model.texts is None else model.texts.embedder,
    )


def trunk_folder(trunk: Enformer | Path | str, cache: Path) -> Path:
    """Return the trunk's folder; a model in memory gets one in the cache, named by its weights."""
    if not isinstance(trunk, Enformer):
        return Path(trunk)
    folder = cache / "trunks" / weights_digest(trunk_tensors(trunk))[:16]
    if not (folder / "model.safetensors").exists():
        save_trunk(trunk, folder, None)
    return folder


def biotype_template(
    path: Path | str | None, columns: Sequence[str], delimiter: str, *, wanted: bool | None, where: str
) -> tuple[Path | None, str]:
    """Return the table of cell types that is read, if one is, and what a context's text is made of.

    Raises
    ------
    ConfigError
        If the table is wanted and not given.
    """
    if wanted and path is None:
        what = "include_biotypes_metadata_in_context needs a table"
        raise ConfigError(what, where=where, fix="give biotypes_metadata_path")
    template = delimiter.join(["{biotype}", *(f"{{{column}}}" for column in columns)])
    return (None if path is None or wanted is False else Path(path)), template


def hashed_inputs(said: str, inputs: Sequence[Path | None]) -> str:
    """Return a name for a store made of these files in the way that `said` says."""
    return hashed(" ".join([said, *(_digest(path) if path else "-" for path in inputs)]))


def hashed(text: str) -> str:
    """Return a short name for a text."""
    return xxhash.xxh3_64_hexdigest(text.encode())


def _digest(path: Path) -> str:
    """Return the hash of a file, or of a folder's names and files."""
    hasher = xxhash.xxh3_128()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            hasher.update(str(file.relative_to(path)).encode())
            with file.open("rb") as opened:
                while block := opened.read(1 << 20):
                    hasher.update(block)
    return hasher.hexdigest()


def known_chroms(store: Store, ids: Iterable[int | str]) -> tuple[str, ...]:
    """Return the genome's names of chromosomes given by number or name."""
    known: list[str] = []
    absent: list[str] = []
    for given in ids:
        name = next((n for n in (str(given), f"chr{given}") if n in store.tiling.chrom_index), None)
        name = name or store.meta.aliases.get(str(given))
        (known if name else absent).append(name or str(given))
    if not known:
        fix = f"the genome has {', '.join(store.tiling.chroms[:12])}"
        raise ConfigError(f"none of the chromosomes {', '.join(absent)} is in the genome", where="Trainer", fix=fix)
    if absent:
        _log.warning("%d chromosomes are not in the genome and left out: %s", len(absent), ", ".join(absent))
    return tuple(dict.fromkeys(known))


def embed_all(
    store: Store,
    embedder: EnformerEmbedder,
    proteins: Choice | SequenceEmbedder,
    contexts: Choice | TextEmbedder,
    windows: Int64[np.ndarray, " n"],
) -> Arrays:
    """Embed windows, factors and contexts that are not there yet; return the names of their arrays."""
    sequences = make_sequence_embedder(*_named(proteins)) if isinstance(proteins, str | Mapping) else proteins
    texts = make_text_embedder(*_named(contexts)) if isinstance(contexts, str | Mapping) else contexts
    specs = embedder.spec(store.meta.genome, store.grid), sequences.spec(), texts.spec()
    names = Arrays(*(spec.short_id for spec in specs))
    embed_strand(store, embedder, windows)
    embed_factors(store, sequences, name=names.proteins).require_complete()
    embed_contexts(store, texts, name=names.contexts).require_complete()
    return choose_arrays(store, windows=names.windows, proteins=names.proteins, contexts=names.contexts)


def embed_strand(store: Store, embedder: EnformerEmbedder, windows: Int64[np.ndarray, " n"]) -> str:
    """Embed windows by one embedder; return the name of their array."""
    name = embedder.spec(store.meta.genome, store.grid).short_id
    embed_windows(store, embedder, name=name, windows=windows).require_complete()
    return name


def _named(choice: Choice) -> tuple[str, dict[str, Any]]:
    if isinstance(choice, str):
        return choice, {}
    options = dict(choice)
    return str(options.pop("name")), options
