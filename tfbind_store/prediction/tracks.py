"""Write what a head of tracks says of a genome: one bigWig for each track, in constant memory.

A plain head has the tracks that it was trained on; one of factors gives the track of any factor in any context.

As in `predict`, rates are made part by part and published beside the output, so that a stopped prediction goes on.
"""

# b windows · n bins · d trunk dim · t tracks · k bins of the part

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from tqdm import tqdm

from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.errors import CheckpointError, ConfigError
from tfbind_store.feeding.bins import BinReader
from tfbind_store.feeding.feed import PairSource
from tfbind_store.heads.checkpoint import is_checkpoint, load_checkpoint
from tfbind_store.heads.plain_tracks import PlainTracks, load_tracks
from tfbind_store.names import near_miss, path_safe_name
from tfbind_store.precompute.weights import pick_device
from tfbind_store.prediction.asked_pairs import Asked, encode_asked
from tfbind_store.prediction.files import write_bigwig
from tfbind_store.prediction.parts import Parts
from tfbind_store.query.loader import Arrays
from tfbind_store.scoring.bins import LoadedRun
from tfbind_store.store.folder import Store


@dataclass(frozen=True, kw_only=True)
class TrackPredictConfig:
    """What is predicted."""

    species: str = ""
    """Of the head; may be left out where it has one."""
    windows: str = "windows"
    """Name of the array of windows in the store."""
    tracks: tuple[str, ...] = ()
    """Only these tracks, of a plain head."""
    asked: Asked | None = None
    """Factors and a context, for a head of factors."""
    chroms: tuple[str, ...] = ()
    """Only these chromosomes; every chromosome is in the files' headers all the same."""
    device: str = "cpu"
    """Where the head runs."""


class TrackPrediction(NamedTuple):
    """What was predicted."""

    species: str
    files: tuple[Path, ...]
    n_bins: int
    """With a rate, of each track."""
    n_windows_missing: int
    """Not embedded, so without a rate; windows that are all N count too."""
    was_resumed: bool


class _Rater(NamedTuple):
    """What gives rates, and of what."""

    species: str
    tracks: list[str]
    array: ShardedArray
    """Of windows."""
    identity: dict[str, Any]
    """All that decides the numbers, beside the windows."""
    rate: Callable[[Float[Tensor, "b n d"]], Float[Tensor, "b n t"]]


def predict_tracks(head_path: Path, store: Store, out: Path, config: TrackPredictConfig) -> TrackPrediction:
    """Write ``out/<track>.bw`` for each track of a species, or ``out/<factor>.<biotype>.bw`` for each asked factor.

    Raises
    ------
    CheckpointError
        If the file is no head of tracks, or was trained on other embeddings than the store's.
    ConfigError
        If a species, track, factor, biotype or chromosome is unknown, or two tracks would have one file.
    MissingWindow
        If none of the windows is embedded.
    """
    rater = (_plain if config.asked is None else _of_factors)(head_path, store, config)
    files = _files(out, rater.tracks)
    windows, n_missing = _windows(store, rater.array, config.chroms)
    parts = Parts(out / f".{path_safe_name(rater.species or 'tracks')}.parts", store.tiling, windows, len(rater.tracks))
    plan = {
        "head": hashlib.sha256(head_path.read_bytes()).hexdigest(),
        "species": rater.species,
        "array": rater.array.spec.fingerprint,
        "tracks": rater.tracks,
        "windows": hashlib.sha256(windows.tobytes()).hexdigest(),
        **rater.identity,
    }
    n_before = parts.begin(plan)
    _score(store, rater, BinReader(rater.array, pick_device(config.device)), parts)
    n_bins = [write_bigwig(path, store.tiling, partial(parts.chromosome, n)) for n, path in enumerate(files)]
    parts.remove()
    return TrackPrediction(rater.species, tuple(files), n_bins[0], n_missing, n_before > 0)


def _plain(head_path: Path, store: Store, config: TrackPredictConfig) -> _Rater:
    """Open a plain head, for the tracks of one of its species."""
    if is_checkpoint(head_path):
        fix = "name a factor: --factor SOX2"
        raise ConfigError("this head gives tracks of factors", where=str(head_path), fix=fix)
    head, about = load_tracks(head_path)
    species = _species(head, config.species, head_path)
    array = store.array(store.array_name_for("windows", config.windows))
    trained = about.get(species)
    _require_trained_on(array, trained if isinstance(trained, dict) else {}, head_path)
    chosen = _tracks(head.tracks[species], config.tracks)
    head.eval().to(config.device)

    def rate(dna: Float[Tensor, "b n d"]) -> Float[Tensor, "b n t"]:
        rates: Tensor = head(dna, species)[..., chosen]
        return rates

    return _Rater(species, [head.tracks[species][place] for place in chosen], array, {}, rate)


def _of_factors(head_path: Path, store: Store, config: TrackPredictConfig) -> _Rater:
    """Open a head of factors, for what is asked."""
    assert config.asked is not None
    head, header = load_checkpoint(head_path)
    species = dict(header.train.get("tracks", {}).get("species", {}))
    if not species:
        fix = "tfbind predict RUN writes what a head of tfbind train says"
        raise CheckpointError("this head was not trained on tracks", where=str(head_path), fix=fix)
    if config.tracks:
        raise ConfigError("a head of factors has no tracks of its own", where="--track", fix="name a factor: --factor")
    name, arrays = _trained_arrays(store, species, head_path)
    source = PairSource(store, arrays, pick_device(config.device))
    run = LoadedRun(name, head.to(source.device).eval(), header, arrays, source)
    encoded = encode_asked(store, run, config.asked)
    digest = hashlib.sha256()
    for tensor in encoded.pairs:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())

    def rate(dna: Float[Tensor, "b n d"]) -> Float[Tensor, "b n t"]:
        logits = head.score_pairs(dna.flatten(0, 1), encoded.pairs)
        return F.softplus(logits.float()).view(dna.shape[0], dna.shape[1], -1)

    tracks = [".".join(pair) for pair in encoded.names]
    return _Rater(name, tracks, store.array(arrays.windows), {"pairs": digest.hexdigest()}, rate)


def _trained_arrays(store: Store, species: Mapping[str, Any], head_path: Path) -> tuple[str, Arrays]:
    """Return which of a head's species this store is, and its arrays that the head reads, whatever they are called."""
    own = {store.array(name).spec.fingerprint: name for name in store.array_names()}
    for name, said in species.items():
        if set(said["arrays"].values()) <= own.keys():
            return name, Arrays(**{kind: own[fingerprint] for kind, fingerprint in said["arrays"].items()})
    what = "the head was trained on other embeddings than this store has"
    raise CheckpointError(what, where=str(head_path), fix="embed windows, factors and contexts with the same models")


def _require_trained_on(array: ShardedArray, trained: Mapping[str, Any], head_path: Path) -> None:
    if trained.get("fingerprint") != array.spec.fingerprint:
        what = f"the head was trained on other embeddings than {array.layout.name} of this store"
        fix = "name the array with --windows, or embed with the same trunk"
        raise CheckpointError(what, where=str(head_path), fix=fix)


def _species(head: PlainTracks, asked: str, where: Path) -> str:
    known = list(head.tracks)
    species = asked or (known[0] if len(known) == 1 else "")
    if species not in known:
        close = near_miss(asked, known)
        fix = f"did you mean {close}?" if close else f"name one with --species: {', '.join(known)}"
        raise ConfigError(
            f"no species {asked!r} in this head" if asked else "which species?", where=str(where), fix=fix
        )
    return species


def _tracks(known: Sequence[str], asked: Sequence[str]) -> list[int]:
    for name in asked:
        if name not in known:
            close = near_miss(name, list(known))
            fix = f"did you mean {close}?" if close else f"the head has {', '.join(known[:8])}"
            raise ConfigError(f"no track {name!r} in this head", where="--track", fix=fix)
    return [known.index(name) for name in asked] if asked else list(range(len(known)))


def _files(out: Path, tracks: Sequence[str]) -> list[Path]:
    files: dict[Path, str] = {}
    for track in tracks:
        path = out / f"{_safe(track)}.bw"
        if path in files:
            what = f"tracks {files[path]!r} and {track!r} would both be {path.name}"
            raise ConfigError(what, where=str(out), fix="predict one of them at a time: --track, into two folders")
        files[path] = track
    out.mkdir(parents=True, exist_ok=True)
    return list(files)


def _safe(track: str) -> str:
    """Return a track's name without what a file system minds."""
    return "".join(letter if letter.isalnum() or letter in "._-+" else "_" for letter in track).lstrip(".") or "track"


def _windows(store: Store, array: Any, chroms: Sequence[str]) -> tuple[Int64[np.ndarray, " w"], int]:
    """Return the embedded windows of chromosomes, and how many are not embedded."""
    tiling = store.tiling
    names = [store.meta.aliases.get(chrom, chrom) for chrom in chroms] or list(tiling.chroms)
    for name in names:
        if name not in tiling.chroms:
            fix = f"known: {', '.join(tiling.chroms[:8])}"
            raise ConfigError(f"no chromosome {name!r} in this genome", where="--chroms", fix=fix)
    numbers = sorted({tiling.chrom_index[name] for name in names})
    asked = np.concatenate([np.arange(*tiling.first_window[n : n + 2]) for n in numbers]).astype(np.int64)
    is_ok = array.is_ok(asked)
    if not is_ok.any():
        raise array.without(asked, f"all {len(asked):,} windows")
    return asked[is_ok], int((~is_ok).sum())


def _score(store: Store, rater: _Rater, read: BinReader, parts: Parts) -> None:
    """Make the parts that are not there."""
    n_bins = store.grid.n_bins
    offsets = np.arange(n_bins, dtype=np.int64)

    with tqdm(total=len(parts.windows), desc="predict", unit="window", disable=None) as bar:

        def scorer(windows: Int64[np.ndarray, " b"]) -> Float32[np.ndarray, "t k"]:
            dna = read((windows[:, None] * n_bins + offsets).reshape(-1)).reshape(len(windows), n_bins, -1)
            with torch.inference_mode():
                rates = rater.rate(dna).flatten(0, 1).T.cpu().numpy()
            read.array.let_go()
            bar.update(len(windows))
            return np.ascontiguousarray(rates)

        parts.score(scorer)
