"""Which residues of a factor's protein meet which bins of a locus, as a trained head has it; from stored embeddings.

Up to three views, as far as the head has the parts:

- ``filip``: the share of FILIP's heads in which the bin is most alike to this residue. What is missing to 1 went to the
  null token, which stands for nothing that fits.
- ``attention``: how much of this residue the bin takes in the joint attention, mean over blocks and heads; adds up
  to 1.
- ``reading``: how much of this residue the head's tokens are made of, whatever the bin; adds up to 1.

Heads that read a protein through a few learned tokens spread a token's part over the residues that it was read from.
These numbers say what a head looks at, not what its score depends on: whether a DNA-binding domain draws more than its
length would is counted (`Domain`) and reported as it comes out.
"""

# n bins · l residues · k tokens · h heads

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int16, Int64
from matplotlib.axes import Axes
from torch import Tensor

from tfbind_store.arrays.groups import write_group
from tfbind_store.catalog.database import Catalog
from tfbind_store.drawing.figures import COLOURS, Picture, draw_rows
from tfbind_store.durable import publish
from tfbind_store.errors import ConfigError
from tfbind_store.feeding.bins import BinReader
from tfbind_store.heads.base import Intermediates
from tfbind_store.loci import Locus
from tfbind_store.names import near_miss
from tfbind_store.prediction.files import bins_of_loci
from tfbind_store.scoring.bins import LoadedRun, load_run
from tfbind_store.store.folder import Store

SUFFIXES = (".parquet", ".zarr", ".svg")
VIEWS = ("filip", "attention", "reading")
MAX_CELLS = 20_000_000
"""Bins times residues; beyond, a table is of no use."""


class Domain(NamedTuple):
    """A stretch of a protein, and how much of each view falls on it."""

    start: int
    end: int
    """Residues, 0-based, half-open, counted through the subunits."""
    share_of_length: float
    share: Mapping[str, float]
    """By view: of what falls on any residue, mean over bins."""


@dataclass(frozen=True, kw_only=True)
class ResidueMap:
    """One factor's residues against one locus' bins."""

    locus: Locus
    factor: str
    biotype: str
    starts: Int64[np.ndarray, " n"]
    ends: Int64[np.ndarray, " n"]
    """Of bins, in bp."""
    logits: Float32[np.ndarray, " n"]
    letters: str
    """Residues, subunits one after the other; X where the sequence does not say."""
    subunit: Int16[np.ndarray, " l"]
    views: Mapping[str, Float32[np.ndarray, "n l"]]
    """``reading`` has the same row for every bin."""

    def domain(self, start: int, end: int) -> Domain:
        """Return how much of each view falls on residues ``[start, end)``.

        Raises
        ------
        ConfigError
            If they are not residues of this factor.
        """
        n_residues = len(self.subunit)
        if not 0 <= start < end <= n_residues:
            fix = f"choose 0 <= start < end <= {n_residues}"
            raise ConfigError(f"residues {start} to {end} are not in {self.factor}", where="domain", fix=fix)
        shares = {}
        for name, view in self.views.items():
            total = float(view.sum())
            shares[name] = float(view[:, start:end].sum()) / total if total > 0 else float("nan")
        return Domain(start, end, (end - start) / n_residues, shares)


def residue_map(store: Store, run_name: str, factor: str, biotype: str | None, locus: Locus) -> ResidueMap:
    """Return which residues of a stored factor meet which bins of a locus.

    Raises
    ------
    ConfigError
        If factor or biotype are unknown, the head has none of the views, or the proteins array holds no residues.
    MissingWindow
        If a bin of the locus is not embedded.
    """
    run = load_run(store, run_name)
    run.head.eval()
    factor_id = _known_id(store, "factors", factor)
    biotype, biotype_id = _biotype(store, biotype)
    bins, starts, ends = _bins(store, run, locus)
    batch = run.source.inputs(np.array([factor_id]), np.array([biotype_id]))
    mask = batch.mask[0].cpu().numpy()
    letters, subunit = _letters(store, run, factor_id, batch.subunit[0].cpu().numpy()[mask])
    if len(bins) * len(letters) > MAX_CELLS:
        what = f"{len(bins):,} bins x {len(letters):,} residues are more than {MAX_CELLS:,} cells"
        raise ConfigError(what, where=str(locus), fix="choose a shorter locus")
    with torch.inference_mode():
        dna = BinReader(store.array(run.arrays.windows), run.source.device)(bins)
        signal = None if run.head.signal is None else run.source.signal(np.array([biotype_id]), bins)
        numbers = None if signal is None else signal.values.transpose(0, 1)
        found = run.head.intermediates(batch._replace(dna=dna.unsqueeze(0), signal=numbers))
    views = {name: view[:, mask] for name, view in views_of(found, len(mask)).items()}
    if not views:
        what = f"a {run.head.name} head keeps nothing that tells residues apart"
        raise ConfigError(what, where=run_name, fix="train an adapter, filip, bilinear or two_tower head")
    return ResidueMap(
        locus=locus, factor=factor, biotype=biotype, starts=starts, ends=ends,
        logits=found.logits[0].float().cpu().numpy(), letters=letters, subunit=subunit, views=views,
    )  # fmt: skip


def views_of(found: Intermediates, n_residues: int) -> dict[str, Float32[np.ndarray, "n l"]]:
    """Return the views of one row's intermediates, padding included."""
    n_bins = found.logits.shape[1]
    shares = None if found.token_residues is None else found.token_residues[0].float()
    views: dict[str, Tensor] = {}
    if found.strongest is not None:
        n_tokens = n_residues if shares is None else len(shares)
        met = torch.nn.functional.one_hot(found.strongest[0] + 1, n_tokens + 1)[..., 1:].float().mean(1)
        views["filip"] = met if shares is None else met @ shares
    if found.attention:
        taken = torch.stack([block[0].float().mean(0) for block in found.attention]).mean(0)
        views["attention"] = taken if shares is None else taken @ shares
    if shares is not None:
        views["reading"] = shares.mean(0, keepdim=True).expand(n_bins, -1)
    return {name: views[name].cpu().numpy() for name in VIEWS if name in views}


def _known_id(store: Store, table: str, name: str) -> int:
    column = {"factors": "factor", "biotypes": "biotype"}[table]
    with store.reader() as catalog:
        known = {str(a): int(b) for a, b in catalog.rows(f"SELECT {column}, {column}_id FROM data.{table}")}
    if name not in known:
        close = near_miss(name, list(known))
        fix = f"did you mean {close}?" if close else f"known: {', '.join(sorted(known)[:8])}"
        raise ConfigError(f"no {column} {name!r} in this store", where=f"--{column}", fix=fix)
    return known[name]


def _biotype(store: Store, name: str | None) -> tuple[str, int]:
    if name is None:
        with store.reader() as catalog:
            names = [str(row[0]) for row in catalog.rows("SELECT biotype FROM data.biotypes ORDER BY biotype")]
        if len(names) != 1:
            fix = f"name one: --biotype {names[0] if names else 'NAME'}"
            raise ConfigError(f"the store has {len(names)} biotypes", where="--biotype", fix=fix)
        name = names[0]
    return name, _known_id(store, "biotypes", name)


def _bins(
    store: Store, run: LoadedRun, locus: Locus
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return the global bins of a locus, where each begins and where it ends."""
    tiling = store.tiling
    chrom = tiling.chrom_index[locus.chrom]
    first, last = (int(end[0]) for end in bins_of_loci(tiling, *(np.array([x]) for x in (chrom, *locus[1:]))))
    bins = np.arange(first, last, dtype=np.int64)
    array, windows = store.array(run.arrays.windows), bins // tiling.grid.n_bins
    there = array.is_ok(windows)
    if not there.all():
        raise array.without(windows, f"{int((~there).sum()):,} of {len(bins):,} bins of {locus}")
    starts = (bins - int(tiling.first_window[chrom]) * tiling.grid.n_bins) * tiling.grid.bin_bp
    return bins, starts, np.minimum(starts + tiling.grid.bin_bp, tiling.lengths_bp[chrom])


def _letters(
    store: Store, run: LoadedRun, factor_id: int, subunit: Int16[np.ndarray, " l"]
) -> tuple[str, Int16[np.ndarray, " l"]]:
    """Return the letters of a factor's stored residues and the subunit of each."""
    with store.reader() as catalog:
        sequences = [
            str(row[0])
            for row in catalog.rows(
                "SELECT sequence FROM data.factor_subunits JOIN data.proteins USING (protein_id) "
                "WHERE factor_id = $factor_id ORDER BY position",
                {"factor_id": factor_id},
            )
        ]
    counts = np.bincount(subunit, minlength=len(sequences)).tolist()
    if any(count == 1 < len(sequence) for count, sequence in zip(counts, sequences, strict=True)):
        what = f"{run.arrays.proteins} holds one row for a whole protein"
        raise ConfigError(what, where=run.arrays.proteins, fix="embed with pooling=none, and train on that")
    # a long protein may have been cut: its last letters have no residue
    return "".join(sequence[:count] for count, sequence in zip(counts, sequences, strict=True)), subunit


def write_map(out: Path, found: ResidueMap, domains: Sequence[Domain] = ()) -> Path:
    """Write a map as a table of every bin and residue, as a Zarr group, or as a figure.

    The group holds ``filip``, ``attention`` and ``reading`` as (bins, residues), as far as they are there, beside
    ``start``, ``end`` and ``logit`` of bins and ``letter`` (ASCII) and ``subunit`` of residues.

    Raises
    ------
    ConfigError
        If the name ends otherwise, or stands for a folder that holds something else.
    """
    require_map_name(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    {".svg": _write_figure, ".zarr": _write_group, ".parquet": _write_table}[out.suffix.lower()](out, found, domains)
    return out


def _write_figure(out: Path, found: ResidueMap, domains: Sequence[Domain]) -> None:
    publish(out, [draw_map(found, domains).svg.encode()])


def _write_group(out: Path, found: ResidueMap, domains: Sequence[Domain]) -> None:
    letters = np.frombuffer(found.letters.encode("ascii"), dtype=np.uint8)
    arrays: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {
        name: (view, ("bin", "residue")) for name, view in found.views.items()
    }
    of_bins = {"start": found.starts, "end": found.ends, "logit": found.logits}
    arrays |= {name: (values, ("bin",)) for name, values in of_bins.items()}
    arrays |= {name: (values, ("residue",)) for name, values in {"letter": letters, "subunit": found.subunit}.items()}
    said = {"locus": str(found.locus), "factor": found.factor, "biotype": found.biotype}
    write_group(out, arrays, {**said, "domains": [[domain.start, domain.end] for domain in domains]})


def _write_table(out: Path, found: ResidueMap, domains: Sequence[Domain]) -> None:
    n_bins, n_residues = len(found.starts), len(found.letters)
    numbers = np.arange(n_residues)
    within = numbers - np.searchsorted(found.subunit, found.subunit)
    columns = {
        "chrom": np.full(n_bins * n_residues, found.locus.chrom, dtype=object),
        "start": np.repeat(found.starts, n_residues),
        "end": np.repeat(found.ends, n_residues),
        "factor": np.full(n_bins * n_residues, found.factor, dtype=object),
        "biotype": np.full(n_bins * n_residues, found.biotype, dtype=object),
        "logit": np.repeat(found.logits, n_residues),
        "subunit": np.tile(found.subunit.astype(np.int64), n_bins),
        "residue": np.tile(within, n_bins),
        "letter": np.tile(np.array(list(found.letters), dtype=object), n_bins),
        **{name: np.ascontiguousarray(view).reshape(-1) for name, view in found.views.items()},
    }
    Catalog.write_parquet(out, columns)


def require_map_name(out: Path) -> None:
    """Refuse a file of a kind that maps are not written as."""
    if out.suffix.lower() not in SUFFIXES:
        fix = "end the name with .parquet, .zarr or .svg"
        raise ConfigError(f"{out.suffix or out.name!r} is no kind of file to write", where=str(out), fix=fix)


def draw_map(found: ResidueMap, domains: Sequence[Domain] = ()) -> Picture:
    """Return a map as a figure: logits along the locus, then bins against residues for each view."""
    edges = np.append(found.starts, found.ends[-1])

    def logits(axes: Axes) -> None:
        axes.stairs(found.logits, edges, baseline=None, color=COLOURS[0])
        axes.set(xlim=(edges[0], edges[-1]), ylabel="logit")

    def heat(name: str, axes: Axes) -> None:
        view = found.views[name]
        shade = axes.pcolormesh(edges, np.arange(view.shape[1] + 1), view.T, cmap="viridis", vmin=0, rasterized=True)
        axes.figure.colorbar(shade, ax=axes, pad=0.01)
        for domain in domains:
            axes.axhspan(domain.start, domain.end, fill=False, edgecolor=COLOURS[1], linewidth=1.2)
        axes.set(ylabel=f"{name}\nresidue")
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")
        axes.grid(visible=False)

    caption = f"Residues of {found.factor} against bins of {found.locus}, in {found.biotype}."
    paints: list[Callable[[Axes], None]] = [logits, *(partial(heat, name) for name in found.views)]
    return draw_rows("residues", caption, paints, width_in=9.6, row_in=[1.3] + [2.6] * len(found.views))
