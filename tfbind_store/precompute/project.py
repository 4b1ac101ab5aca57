"""Derive a smaller array from one that is there: onto its main axes, into one byte a number, or both.

A projected array is an array like any other: its windows come from an embedder that reads the source instead of the
genome, so planning, publishing, resuming and verifying are those of every run. The axes are fitted once, on bins drawn
with a seed (``principal``), and lie beside the array; a run that goes on uses what is there. What was lost is measured
on windows that the fit has not seen, and is part of the spec.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from tfbind_store.arrays import int8 as coding
from tfbind_store.arrays.layouts import read_layout
from tfbind_store.arrays.on_reading import FIELD, Reading
from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.arrays.transforms import Pca, pack, read_transform, write_transform
from tfbind_store.errors import (
    ConfigError,
    DamagedShard,
    EmbeddingError,
    MissingWindow,
    SpecError,
    StoreMissing,
    TfbindError,
)
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.precompute.embedder import Codes, TrunkGeometry, WindowEmbedding
from tfbind_store.precompute.outcome import EmbedReport
from tfbind_store.precompute.principal import Fit, fit_axes, reconstruction_rms, split_windows
from tfbind_store.precompute.progress import Tell
from tfbind_store.precompute.run import all_n_windows, embed_windows, windows_of
from tfbind_store.spec import PROJECTED, EmbeddingSpec
from tfbind_store.store.folder import Store

SAMPLE_BINS = 200_000


@dataclass(frozen=True, kw_only=True)
class ProjectConfig:
    """What is derived, and from which sample; all of it is part of the array's spec."""

    dim: int | None = None
    """Axes to keep; None keeps every channel of the source."""
    int8: bool = False
    """Store one byte a number, with scales for each channel of each window."""
    seed: int = 0
    """Decides which bins the axes are fitted on."""
    sample_bins: int = SAMPLE_BINS
    """Bins that the axes are fitted on, at most."""
    chroms: tuple[str, ...] = ()
    """Chromosomes that they are drawn from; default all."""


class ProjectReport(NamedTuple):
    """What a run did, and what the array keeps of its source."""

    run: EmbedReport
    source: str
    n_left: int
    """Windows that the source does not have: they are not in the projection either."""
    variance_share: float | None
    """Of the sample's variance that the axes keep; None without axes."""
    reconstruction_rms: float
    """Root mean square of what is lost, as a share of the source's own, over `n_checked` windows."""
    n_checked: int


def project_array(
    store: Store,
    source: str,
    config: ProjectConfig,
    *,
    name: str | None = None,
    partial: bool = False,
    progress: bool = False,
    tell: Tell | None = None,
) -> ProjectReport:
    """Derive an array from another one of the store; the same call again goes on where the last one ended.

    Parameters
    ----------
    store
        Whose.
    source
        Array of windows, such as ``embeddings/windows``.
    config
        What is derived.
    name
        Label of the new array; default `usual_label`.
    partial
        Take what the source has; else every window of it must be there.
    progress, tell
        As for `embed_windows`.

    Raises
    ------
    ConfigError
        If nothing would change, or there are more axes than channels or sampled bins.
    MissingWindow
        If the source lacks windows and `partial` is not given.
    SpecError
        If the array is there and was made otherwise.
    """
    array = _source(store, source)
    _require_sense(config, array, source)
    ok, all_n = _source_windows(array), all_n_windows(store)
    n_left = int((~all_n).sum()) - len(ok)
    _require_enough(array, source, n_left, partial)
    label = name or usual_label(source, config)
    target = store.array_name_for("windows", label)
    if target == source:
        raise ConfigError("an array cannot be projected onto itself", where=target, fix="give another --name")
    embedder = _stored(store, target, array, config) or _fitted(store, array, config, ok)
    asked = np.union1d(ok, np.flatnonzero(all_n))
    run = embed_windows(store, embedder, name=label, windows=asked, progress=progress, tell=tell)
    said = embedder.identity["projection"]
    return ProjectReport(
        run, source, n_left, said.get("variance_share"), said["reconstruction_rms"], said["n_windows_checked"]
    )


def usual_label(source: str, config: ProjectConfig) -> str:
    """Return the label of an array that nobody named.

    Examples
    --------
    >>> usual_label("embeddings/windows", ProjectConfig(dim=256, int8=True))
    'windows-pca256-int8'
    """
    label = source.partition("/")[2]
    return label + (f"-pca{config.dim}" if config.dim else "") + ("-int8" if config.int8 else "")


class Projector:
    """An embedder of windows that reads another array instead of the genome."""

    def __init__(self, source: ShardedArray, identity: Mapping[str, Any], axes: Pca | None, *, dtype: str) -> None:
        self.source, self.identity, self.axes, self.dtype = source, dict(identity), axes, dtype
        self._grid = dict(source.spec.grid or {})

    @property
    def geometry(self) -> TrunkGeometry:
        """Bins of the source."""
        dim = self.source.shape[-1] if self.axes is None else len(self.axes.axes)
        return TrunkGeometry(bin_bp=self._grid["bin_bp"], dim=dim, window_bp=self._grid["window_bp"])

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        """Return what decides the numbers: the source's fingerprint, and the axes' sha256."""
        self.geometry.require_fits(grid, where=PROJECTED)
        return EmbeddingSpec(
            kind="windows",
            embedder=PROJECTED,
            dim=self.geometry.dim,
            dtype=self.dtype,
            identity=self.identity,
            grid=self._grid,
            genome=genome_digest,
        )

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        """Yield each window of the source on the axes."""
        for window in windows:
            values = self.source.row(int(window)).astype(np.float32)
            yield WindowEmbedding(int(window), values if self.axes is None else self.axes(values))


def projector_of(store: Store, spec: EmbeddingSpec) -> Projector:
    """Return what made a projected array, from its spec, its source and its axes in the store.

    Raises
    ------
    StoreMissing
        If source or axes are gone.
    SpecError
        If the spec is none of a projected array.
    """
    try:
        wanted = str(spec.identity["source"]["fingerprint"])
        said = spec.identity["projection"]
        sha256 = said.get("axes_sha256")
        share = said.get("variance_share")
        numbers = [said["reconstruction_rms"], said["n_windows_checked"], 0 if share is None else share]
        if not all(type(number) in (int, float) and number >= 0 for number in numbers):
            raise SpecError(f"a projected array says {numbers} of what it keeps", where=PROJECTED)
    except (KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"the spec of a projected array lacks {error}", where=PROJECTED) from error
    source = _source(store, _name_of(store, wanted))
    axes = None
    if sha256 is not None:
        tensors = read_transform(store.path, sha256)
        axes = Pca.from_tensors(tensors, source_dim=source.shape[-1], dim=spec.dim)
    return Projector(source, spec.identity, axes, dtype=spec.dtype)


def _name_of(store: Store, fingerprint: str) -> str:
    """Return the name of the array of windows with a fingerprint; arrays that cannot be read are passed over."""
    folder = store.array_name_for("windows", "x")[:-1]
    for name in store.array_names():
        with contextlib.suppress(TfbindError):
            layout = read_layout(store.array_path(name), store.path / "receipts", name=name)
            if name.startswith(folder) and layout.fingerprint == fingerprint:
                return name
    what = f"no array of this store is {fingerprint[:12]}, which was projected"
    raise StoreMissing(what, where=str(store.path), fix="put the source array back, or project another one")


def _source(store: Store, name: str) -> ShardedArray:
    if not name.startswith(store.array_name_for("windows", "x")[:-1]):
        raise ConfigError(f"{name} is no array of windows", where="--from", fix="tfbind info STORE lists the arrays")
    # what is derived outlives its source: no damaged byte may get into it
    return store.array(name, verify="first-touch", on_damage="exclude")


def _require_sense(config: ProjectConfig, source: ShardedArray, name: str) -> None:
    dim = source.shape[-1]
    if config.dim is None and not config.int8:
        what, fix = "neither fewer channels nor smaller numbers are asked for", "give --dim, or --int8, or both"
        raise ConfigError(what, where="project", fix=fix)
    if config.dim is not None and not 1 <= config.dim <= dim:
        raise ConfigError(f"dim is {config.dim}, {name} has {dim} channels", where="--dim", fix=f"1 to {dim}")
    if config.sample_bins < 2:
        raise ConfigError(f"sample_bins is {config.sample_bins}, must be at least 2", where="--sample-bins")


def _source_windows(source: ShardedArray) -> Int64[np.ndarray, " n"]:
    """Return the windows that an array has."""
    windows = np.arange(source.shape[0])
    return np.asarray(windows[source.is_ok(windows)])


def _require_enough(source: ShardedArray, name: str, n_left: int, partial: bool) -> None:
    """Refuse a source that lacks windows with bases, unless `partial`; one that has none in any case."""
    n_ok = source.completeness().n_ok
    if not n_ok or (n_left and not partial):
        fix = f"embed {name} to its end, or give --partial to take what is there"
        what = f"{n_left:,} of {source.shape[0]:,} windows of {name} are not there"
        raise MissingWindow(what, where=str(source.layout.path), fix=fix if n_ok else f"embed {name} first")


def _stored(store: Store, target: str, source: ShardedArray, config: ProjectConfig) -> Projector | None:
    """Return the projector of an array that is there, refusing one that was asked for otherwise."""
    if target not in store.array_names():
        return None
    spec = read_layout(store.array_path(target), store.path / "receipts", name=target).spec
    fix = f"keep it and give another --name (now {target.partition('/')[2]})"
    if spec.embedder != PROJECTED:
        raise SpecError(f"{target} is an array of {spec.embedder}, not a projected one", where=target, fix=fix)
    asked = {"source": _said_of(source), "config": _said(config)}
    for field, value in asked.items():
        stored = spec.identity.get(field)
        if stored != value:
            what = f"{target} was made with {field} {stored}, this run asks for {value}"
            raise SpecError(what, where=target, fix=fix)
    try:
        return projector_of(store, spec)
    except (StoreMissing, DamagedShard):
        again = _fitted(store, source, config, _source_windows(source))
        if again.identity == dict(spec.identity):  # the very axes that were lost
            return again
        raise


def _said(config: ProjectConfig) -> dict[str, Any]:
    return {
        "dim": config.dim,
        "int8": config.int8,
        "seed": config.seed,
        "sample_bins": config.sample_bins,
        "chroms": list(config.chroms),
    }


def _said_of(source: ShardedArray) -> dict[str, Any]:
    spec = source.spec
    return {"fingerprint": spec.fingerprint, "embedder": spec.embedder, "dim": source.shape[-1]}


def _fitted(store: Store, source: ShardedArray, config: ProjectConfig, ok: Int64[np.ndarray, " n"]) -> Projector:
    """Fit axes, put them into the store and measure what they lose."""
    fitting = ok
    if config.chroms:
        lengths = store.genome.lengths_bp
        loci = [Locus(chrom, 0, lengths.get(chrom, 0)) for chrom in config.chroms]
        fitting = np.intersect1d(ok, windows_of(store, loci))
    if not len(fitting):
        what = f"no window of {', '.join(config.chroms)} is embedded"
        raise MissingWindow(what, where=source.layout.name, fix="embed it first")
    fitted_on, checked = split_windows(fitting, seed=config.seed)
    fit: Fit | None = None
    said: dict[str, Any] = {"n_windows_checked": len(checked)}
    if config.dim is not None:
        fit = fit_axes(source, fitted_on, config.dim, n_bins=config.sample_bins, seed=config.seed)
        content, sha256 = pack("pca", fit.axes.tensors())
        write_transform(store.path, content)
        share = round(float(fit.axes.variance_share.sum()), 6)
        said |= {"axes_sha256": sha256, "n_bins_sampled": fit.n_bins, "variance_share": share}
    axes = None if fit is None else fit.axes
    keep = _keeping(axes, is_coded=config.int8)
    lost = [(values, keep(values)) for values in (source.row(w).astype(np.float32) for w in checked.tolist())]
    rms = reconstruction_rms(lost)
    if not np.isfinite(rms):
        raise EmbeddingError("projected numbers do not fit float16", where=source.layout.name, fix="keep it as it is")
    said["reconstruction_rms"] = float(f"{rms:.4g}")
    reading = Reading(scale_rows=coding.SCALE_ROWS if config.int8 else 0)
    identity = {
        "class": "projection",
        "source": _said_of(source),
        "config": _said(config),
        "projection": said,
        "trained_on": source.spec.identity.get("trained_on"),
        **({} if reading.is_plain else {FIELD: reading.to_json()}),
    }
    return Projector(source, identity, axes, dtype=reading.dtype)


def _keeping(axes: Pca | None, *, is_coded: bool) -> Any:
    """Return a function from a window's numbers to what can be had back of them once they are stored."""

    def keep(values: Float32[np.ndarray, "n c"]) -> Float32[np.ndarray, "n c"]:
        kept = values if axes is None else axes(values)
        if is_coded:
            rows = coding.encode(kept)
            kept = coding.decode(rows[: -coding.SCALE_ROWS], coding.scales_of(rows)).astype(np.float32)
        else:
            with np.errstate(over="ignore"):
                kept = kept.astype(np.float16).astype(np.float32)
        return kept if axes is None else axes.back(kept)

    return keep
