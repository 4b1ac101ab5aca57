"""Pairs of a factor and a context as a user asks for them: stored ones, and those that were never imported.

What is stored is read, under any of its names. A protein of the store that no experiment is of, one from a FASTA, or a
context's text, is embedded now, by the same model that made the store's array; a model with weights must be given its
place, and is refused if it is another one.
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
    """That no experiment of the store is of: from the FASTA, or from the store's own proteins."""
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
    if twice := [name for place, name in enumerate(asked.factors) if name in asked.factors[:place]]:
        raise ConfigError(f"factor {twice[0]!r} is named twice", where="--factor", fix="name it once")
    if asked.context is not None and not asked.context.strip():
        raise ConfigError("the context is empty", where="--context", fix="describe the cells, or name a --biotype")
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
    """Return the proteins of factors that are in the FASTA, or that only the store's own proteins name."""
    sequences = {} if asked.proteins is None else _sequences(asked)
    own = [name for name in asked.factors if name not in sequences and name not in stored]
    imported = {name: store.proteins.subunits(name) for name in own if name in store.proteins}
    if missing := [name for name in own if name not in imported]:
        raise _unknown(missing, asked, sorted({*stored, *store.proteins}))
    found = _embedded_before(store, run, imported)
    sequences |= {name: list(subunits) for name, subunits in imported.items() if name not in found}
    embedder = _model(store, run.arrays.proteins, "proteins", asked.models) if sequences else None
    for name, subunits in sequences.items():
        assert embedder is not None
        found[name] = _joined([result.values.astype(np.float16) for result in embedder.embed(subunits)])
    return found


def _unknown(missing: Sequence[str], asked: Asked, known: Sequence[str]) -> ConfigError:
    if asked.proteins is not None:
        what = f"{len(missing)} factors are neither in the FASTA nor in the store: {', '.join(missing[:5])}"
        return ConfigError(what, where=str(asked.proteins), fix="name the record by the factor, or GN=FACTOR")
    close = near_miss(missing[0], list(known))
    fix = f"did you mean {close}? Else give its protein: --protein FASTA" if close else None
    what = f"no factor or protein {missing[0]!r} in this store"
    return ConfigError(what, where="--factor", fix=fix or "give its protein: --protein FASTA")


def _embedded_before(store: Store, run: LoadedRun, imported: Mapping[str, Sequence[str]]) -> dict[str, _Protein]:
    """Return the factors of which every subunit is embedded, though no experiment is of them."""
    wanted = sorted({sequence for subunits in imported.values() for sequence in subunits})
    sql = """
        SELECT DISTINCT p.sequence, r.first_row, r.n_rows FROM data.proteins p JOIN data.protein_rows r USING (sha256)
        WHERE r.array_name = $array AND p.sequence IN (SELECT unnest($wanted))
    """
    with store.reader() as catalog:
        rows = catalog.rows(sql, {"array": run.arrays.proteins, "wanted": wanted}) if wanted else []
    place = {str(sequence): (int(first), int(n)) for sequence, first, n in rows}
    array = store.array(run.arrays.proteins)
    return {
        name: _joined([array.rows(*place[sequence]) for sequence in subunits])
        for name, subunits in imported.items()
        if all(sequence in place for sequence in subunits)
    }


def _joined(parts: Sequence[Float16[np.ndarray, "l e"]]) -> _Protein:
    """Return subunits one after the other."""
    numbers = [np.full(len(part), place, dtype=np.int16) for place, part in enumerate(parts)]
    return _Protein(np.concatenate(parts), np.concatenate(numbers))


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
