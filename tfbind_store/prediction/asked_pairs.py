"""Pairs of a factor and a context as a user asks for them: stored ones, and those that were never imported.

What is stored is read. A protein from a FASTA, or a context's text, is embedded now, by the same model that made the
store's array; a model with weights must be given its place, and is refused if it is another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int16

from tfbind_store.batch import Batch
from tfbind_store.errors import ConfigError, ProteinError, WeightsError
from tfbind_store.factors import bad_sequence, clean_sequence, read_fasta, read_proteins
from tfbind_store.feeding.feed import to_torch
from tfbind_store.heads.base import Pairs
from tfbind_store.names import near_miss
from tfbind_store.precompute.remaking import remake, require_remade
from tfbind_store.scoring.bins import LoadedRun
from tfbind_store.store.folder import Store
from tfbind_store.store.residues import FactorProteins

AT_ONCE = 64
"""Pairs encoded together."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Factors in one context."""

    factors: tuple[str, ...]
    """Names; every one is scored in the same context."""
    biotype: str | None = None
    """A biotype of the store; may be left out where it has only one, or where `context` says it all."""
    proteins: Path | None = None
    """FASTA. With one factor, its records are the subunits in order; with several, a record per factor by gene."""
    context: str | None = None
    """Text that is embedded in place of the biotype's own."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Where the weights are, by ``proteins``, ``contexts``."""


class EncodedPairs(NamedTuple):
    """Pairs as a head knows them."""

    names: tuple[tuple[str, str], ...]
    """Factor and biotype of each."""
    pairs: Pairs
    new_factors: tuple[str, ...]
    """Whose protein was embedded now."""
    biotype_id: int | None
    """None of cells that only a text describes."""


class _Protein(NamedTuple):
    values: Float16[np.ndarray, "l e"]
    subunit: Int16[np.ndarray, " l"]


def encode_asked(store: Store, run: LoadedRun, asked: Asked) -> EncodedPairs:
    """Return the encoded pairs of what was asked for.

    Raises
    ------
    ConfigError
        If a factor or biotype is unknown and nothing says what it is.
    WeightsError
        If a model is needed whose weights were not named.
    """
    if not asked.factors:
        raise ConfigError("no factor is named", where="factors", fix="name one: --factor SOX2")
    biotype, biotype_id, context = _context(store, run, asked)
    stored = _stored_factors(store, run)
    new = _new_proteins(store, run, asked, stored)
    reader = FactorProteins(store, run.arrays.proteins)
    parts: list[Pairs] = []
    for at in range(0, len(asked.factors), AT_ONCE):
        proteins = []
        for name in asked.factors[at : at + AT_ONCE]:
            if name in new:
                proteins.append(new[name])
                continue
            found = reader.get(np.array([stored[name]], dtype=np.int64))
            proteins.append(_Protein(found.protein[0], found.subunit[0]))
        with torch.inference_mode():
            parts.append(run.head.encode(to_torch(_batch(proteins, context), run.source.device)))
    pairs = run.head.join(parts)
    return EncodedPairs(tuple((name, biotype) for name in asked.factors), pairs, tuple(sorted(new)), biotype_id)


def _batch(proteins: Sequence[_Protein], context: Float32[np.ndarray, " t"]) -> Batch[np.ndarray]:
    longest = max(len(protein.subunit) for protein in proteins)
    values = np.zeros((len(proteins), longest, proteins[0].values.shape[1]), dtype=np.float16)
    subunit = np.full((len(proteins), longest), -1, dtype=np.int16)
    for place, protein in enumerate(proteins):
        values[place, : len(protein.subunit)] = protein.values
        subunit[place, : len(protein.subunit)] = protein.subunit
    n, nothing = len(proteins), np.empty((0, 0), dtype=np.float32)
    return Batch(
        dna=nothing,
        protein=values,
        mask=subunit >= 0,
        subunit=subunit,
        factor_index=np.arange(n, dtype=np.int64),
        context=context[np.newaxis],
        context_index=np.zeros(n, dtype=np.int64),
        signal=None,
        labels=nothing,
        weights=np.ones(n, dtype=np.float32),
        rows=np.arange(n, dtype=np.int64),
    )


def _stored_factors(store: Store, run: LoadedRun) -> dict[str, int]:
    """Return the factors whose protein is embedded."""
    reader = FactorProteins(store, run.arrays.proteins)
    with store.reader() as catalog:
        rows = catalog.rows("SELECT factor, factor_id FROM data.factors ORDER BY factor")
    return {str(name): int(key) for name, key in rows if reader.has(int(key))}


def _new_proteins(store: Store, run: LoadedRun, asked: Asked, stored: Mapping[str, int]) -> dict[str, _Protein]:
    """Embed the proteins that the FASTA gives; without one, every factor must be stored."""
    if asked.proteins is None:
        for name in asked.factors:
            if name not in stored:
                close = near_miss(name, list(stored))
                fix = f"did you mean {close}? Else give its protein: --protein FASTA"
                raise ConfigError(
                    f"no embedded factor {name!r} in this store",
                    where="--factor",
                    fix=fix if close else "give its protein: --protein FASTA",
                )
        return {}
    sequences = _sequences(asked)
    missing = [name for name in asked.factors if name not in sequences and name not in stored]
    if missing:
        what = f"{len(missing)} factors are neither in the FASTA nor embedded: {', '.join(missing[:5])}"
        raise ConfigError(what, where=str(asked.proteins), fix="name the record by the factor, or GN=FACTOR")
    embedder = _model(store, run.arrays.proteins, "proteins", asked.models)
    embedded = {}
    for name, subunits in sequences.items():
        parts = [result.values.astype(np.float16) for result in embedder.embed(subunits)]
        numbers = [np.full(len(part), place, dtype=np.int16) for place, part in enumerate(parts)]
        embedded[name] = _Protein(np.concatenate(parts), np.concatenate(numbers))
    return embedded


def _sequences(asked: Asked) -> dict[str, list[str]]:
    """Return the subunits of each asked factor that the FASTA holds."""
    assert asked.proteins is not None
    if len(asked.factors) > 1:
        found = {protein.symbol.upper(): protein.sequence for protein in read_proteins(asked.proteins).chosen}
        return {name: [found[name.upper()]] for name in asked.factors if name.upper() in found}
    subunits = []
    for line, _, text in read_fasta(asked.proteins):
        sequence = clean_sequence(text)
        if reason := bad_sequence(sequence):
            raise ProteinError(reason, where=f"{asked.proteins}:{line}", fix="correct or remove it")
        subunits.append(sequence)
    return {asked.factors[0]: subunits}


def _context(store: Store, run: LoadedRun, asked: Asked) -> tuple[str, int | None, Float32[np.ndarray, " t"]]:
    """Return the name, the biotype's id and the embedding of the asked context."""
    with store.reader() as catalog:
        rows = catalog.rows("SELECT biotype, biotype_id FROM data.biotypes ORDER BY biotype")
    known = {str(name): int(key) for name, key in rows}
    if asked.context is not None:
        embedder = _model(store, run.arrays.contexts, "contexts", asked.models)
        values = np.asarray(embedder.embed([asked.context]).values[0], dtype=np.float32)
        return asked.biotype or "context", None, values
    biotype = asked.biotype if asked.biotype is not None or len(known) != 1 else next(iter(known))
    if biotype not in known:
        close = near_miss(biotype or "", list(known))
        what = f"no biotype {biotype!r} in this store" if biotype else f"the store has {len(known)} biotypes"
        fix = f"did you mean {close}?" if close else "name one with --biotype, or describe it with --context TEXT"
        raise ConfigError(what, where="--biotype", fix=fix)
    ids = np.array([known[biotype]], dtype=np.int64)
    return biotype, known[biotype], np.asarray(store.contexts(run.arrays.contexts, ids)[0], dtype=np.float32)


def _model(store: Store, array_name: str, kind: str, models: Mapping[str, str]) -> Any:
    """Return the embedder of a stored array."""
    spec = store.array(array_name).spec
    embedder = remake(spec, checkpoint=models.get(kind))
    if embedder is None:
        fix = f"say where they are: --checkpoint {kind}=PLACE"
        raise WeightsError(f"{array_name} was made by {spec.embedder}, whose weights are needed", where=kind, fix=fix)
    require_remade(embedder, spec, store, where=array_name)
    return embedder
