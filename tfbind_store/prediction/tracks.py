"""Write what a plain track head says of a genome: one bigWig for each track, in constant memory.

As in `predict`, rates are made part by part and published beside the output, so that a stopped prediction goes on.
"""

# b windows · n bins · d trunk dim · t tracks · k bins of the part

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from tqdm import tqdm

from tfbind_store.errors import CheckpointError, ConfigError, MissingWindow
from tfbind_store.feeding.bins import BinReader
from tfbind_store.heads.plain_tracks import PlainTracks, load_tracks
from tfbind_store.names import near_miss, path_safe_name
from tfbind_store.prediction.files import write_bigwig
from tfbind_store.prediction.parts import Parts
from tfbind_store.store.folder import Store


@dataclass(frozen=True, kw_only=True)
class TrackPredictConfig:
    """What is predicted."""

    species: str = ""
    """Of the head; may be left out where it has one."""
    windows: str = "windows"
    """Name of the array of windows in the store."""
    tracks: tuple[str, ...] = ()
    """Only these tracks."""
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


def predict_tracks(head_path: Path, store: Store, out: Path, config: TrackPredictConfig) -> TrackPrediction:
    """Write ``out/<track>.bw`` for each track of a species.

    Raises
    ------
    CheckpointError
        If the file is no plain track head, or was trained on other embeddings than the store's.
    ConfigError
        If a species, track or chromosome is unknown, or two tracks would have one file.
    MissingWindow
        If none of the windows is embedded.
    """
    head, about = load_tracks(head_path)
    species = _species(head, config.species, head_path)
    array = store.array(store.array_name_for("windows", config.windows))
    trained = about.get(species)
    known = trained.get("fingerprint") if isinstance(trained, dict) else None
    if known != array.spec.fingerprint:
        what = f"the head was trained on other embeddings than {array.layout.name} of this store"
        fix = "name the array with --windows, or embed with the same trunk"
        raise CheckpointError(what, where=str(head_path), fix=fix)
    chosen = _tracks(head.tracks[species], config.tracks)
    files = _files(out, [head.tracks[species][place] for place in chosen])
    windows, n_missing = _windows(store, array, config.chroms)
    parts = Parts(out / f".{path_safe_name(species)}.parts", store.tiling, windows, len(chosen))
    plan: dict[str, Any] = {
        "head": hashlib.sha256(head_path.read_bytes()).hexdigest(),
        "species": species,
        "array": array.spec.fingerprint,
        "tracks": [head.tracks[species][place] for place in chosen],
        "windows": hashlib.sha256(windows.tobytes()).hexdigest(),
    }
    n_before = parts.begin(plan)
    _score(store, head.eval().to(config.device), species, BinReader(array, torch.device(config.device)), parts, chosen)
    n_bins = [write_bigwig(path, store.tiling, partial(parts.chromosome, n)) for n, path in enumerate(files)]
    parts.remove()
    return TrackPrediction(species, tuple(files), n_bins[0], n_missing, n_before > 0)


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
        fix = f"embed them: tfbind embed {store.path} windows"
        raise MissingWindow(f"none of the {len(asked):,} windows is embedded", where=array.layout.name, fix=fix)
    return asked[is_ok], int((~is_ok).sum())


def _score(store: Store, head: PlainTracks, species: str, read: BinReader, parts: Parts, chosen: Sequence[int]) -> None:
    """Make the parts that are not there."""
    n_bins = store.grid.n_bins
    offsets = np.arange(n_bins, dtype=np.int64)

    with tqdm(total=len(parts.windows), desc="predict", unit="window", disable=None) as bar:

        def scorer(windows: Int64[np.ndarray, " b"]) -> Float32[np.ndarray, "t k"]:
            dna = read((windows[:, None] * n_bins + offsets).reshape(-1)).reshape(len(windows), n_bins, -1)
            with torch.inference_mode():
                rates = head(dna, species)[..., list(chosen)].flatten(0, 1).T.cpu().numpy()
            read.array.let_go()
            bar.update(len(windows))
            return np.ascontiguousarray(rates)

        parts.score(scorer)
