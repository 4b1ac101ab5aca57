"""Which bases of a locus a prediction rests on: in-silico mutagenesis, or gradient x input, through the live trunk.

What is explained is one number for a locus and a pair: the highest logit among the bins that the locus touches, as
``variants`` has it, or their mean. Bins of every window count that keeps some of them.

Each base of the locus gets four numbers, one per letter, whose mean is zero: how much more the score would be with this
letter there than with any. By mutagenesis these are real scores of changed sequences, by gradients what the slope says
of them (Majdandzic et al. 2023 say why a gradient's mean over letters means nothing). The *importance* of a base is the
number of its own letter. An N has none.
"""

# b changes · k bins · n bases of a locus

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from tqdm import tqdm

from tfbind_store.errors import ConfigError
from tfbind_store.ingest.loci import read_loci
from tfbind_store.interpretation.files import N_LETTERS, Contribution, require_writable, write_contributions
from tfbind_store.interpretation.gradients import Differentiable
from tfbind_store.interpretation.live_bins import live_bins
from tfbind_store.loci import Locus
from tfbind_store.precompute.as_read import embedder_as_read
from tfbind_store.precompute.embedder import WindowEmbedder
from tfbind_store.precompute.weights import pick_device
from tfbind_store.prediction.asked_pairs import Asked, EncodedPairs, encode_asked
from tfbind_store.prediction.cells import Cells
from tfbind_store.scoring.bins import LoadedRun, load_run
from tfbind_store.store.folder import Store

MAX_LOCUS_BP = 20_000
"""Of mutagenesis: three times as many sequences go through the trunk, and each keeps a logit for every bin."""
Method = Literal["ism", "gradient"]
Over = Literal["max", "mean"]


@dataclass(frozen=True, kw_only=True)
class InterpretConfig:
    """What is explained, and how."""

    asked: Asked
    """One factor in one context."""
    method: Method = "ism"
    """``ism`` scores every change, ``gradient`` takes one pass forward and one back."""
    over: Over = "max"
    """The best of the locus' bins, or their mean."""
    checkpoint: str | None = None
    """Where the trunk's weights are."""
    device: str = "cpu"
    """Where the head runs."""

    def __post_init__(self) -> None:
        if len(self.asked.factors) != 1:
            what = f"{len(self.asked.factors)} factors are named, one is explained at a time"
            raise ConfigError(what, where="factor", fix="name one: --factor SOX2")


class _Part(NamedTuple):
    """Bins of the locus that one window keeps."""

    window: int
    bins: range
    read: Locus


class Explainer:
    """Explains the scores of one pair at any loci.

    Parameters
    ----------
    store, run, encoded
        The genome, the head, and the pair.
    embedder
        Gives what the head was trained to read.
    config
        How.

    Raises
    ------
    ConfigError
        If gradients are asked for and the model has none.
    """

    def __init__(
        self, store: Store, run: LoadedRun, encoded: EncodedPairs, embedder: WindowEmbedder, config: InterpretConfig
    ) -> None:
        self.store, self.run, self.config, self.embedder = store, run, config, embedder
        # tensors made in inference mode can take no part in a gradient; their copies can
        self.pairs = tuple(tensor.clone() for tensor in encoded.pairs)
        self.pair = encoded.names[0]
        self.cells = Cells(store, run, encoded.biotype_id)
        run.head.eval()
        self.live = Differentiable(store, embedder) if config.method == "gradient" else None

    def explain(self, locus: Locus) -> Contribution:
        """Return what each base of a locus gives."""
        codes = self.store.genome.codes(locus.chrom, locus.start, locus.end)
        values, score = (self._mutated if self.live is None else self._gradient)(locus, codes)
        values = values - values.mean(axis=1, keepdims=True)
        values[codes >= N_LETTERS] = np.nan
        return Contribution(locus, codes, values.astype(np.float32), score)

    def parts(self, locus: Locus) -> list[_Part]:
        """Return the bins that a locus touches, by window."""
        grid, tiling = self.store.grid, self.store.tiling
        first_window = int(tiling.first_window[tiling.chrom_index[locus.chrom]])
        first, last = locus.start // grid.bin_bp, (locus.end - 1) // grid.bin_bp
        found = []
        for local in range(first // grid.n_bins, last // grid.n_bins + 1):
            base, window = local * grid.n_bins, first_window + local
            bins = range(max(first - base, 0), min(last - base + 1, grid.n_bins))
            found.append(_Part(window, bins, tiling.read(window)))
        return found

    def _mutated(self, locus: Locus, codes: UInt8[np.ndarray, " n"]) -> tuple[Float32[np.ndarray, "n 4"], float]:
        """Return the score with each letter at each base, and the score as it is."""
        known = np.flatnonzero(codes < N_LETTERS)
        letters = (codes[known, np.newaxis] + np.arange(1, N_LETTERS)) % N_LETTERS
        places, letters = np.repeat(known, N_LETTERS - 1), letters.reshape(-1).astype(np.uint8)
        before, after, positions = [], [], places + locus.start
        for part in self.parts(locus):
            live = live_bins(self.embedder, self.store.tiling, part.window, self._codes, part.bins)
            (reference,) = self._logits(live.reference()[np.newaxis], part)
            logits = np.tile(reference, (len(places), 1))
            # a window that does not read a base says the same whatever stands there
            reads = np.flatnonzero((positions >= live.read.start) & (positions < live.read.end))
            changed = [self._logits(bins, part) for bins in live.changed(positions[reads], letters[reads])]
            if changed:
                logits[reads] = np.concatenate(changed)
            before.append(reference)
            after.append(logits)
        over = np.max if self.config.over == "max" else np.mean
        score = float(over(np.concatenate(before)))
        values = np.full((len(codes), N_LETTERS), score, dtype=np.float64)
        values[places, letters] = over(np.concatenate(after, axis=1), axis=1)
        return values, score

    def _codes(self, locus: Locus) -> UInt8[np.ndarray, " bp"]:
        return self.store.genome.codes(*locus)

    def _logits(self, dna: Float32[np.ndarray, "b k d"], part: _Part) -> Float32[np.ndarray, "b k"]:
        rows = torch.from_numpy(dna.reshape(-1, dna.shape[-1])).to(self.run.source.device)
        with torch.inference_mode():
            scores = self.cells.logits(rows, self.pairs, np.tile(self._places(part), len(dna)))[:, 0]
        return scores.float().cpu().numpy().reshape(dna.shape[:2])

    def _places(self, part: _Part) -> Int64[np.ndarray, " k"]:
        """Return where the bins of a part are in the genome."""
        return part.window * self.store.grid.n_bins + np.asarray(part.bins, dtype=np.int64)

    def _gradient(self, locus: Locus, codes: UInt8[np.ndarray, " n"]) -> tuple[Float32[np.ndarray, "n 4"], float]:
        """Return the slope of the score along each letter of each base, and the score."""
        assert self.live is not None
        inputs, logits, parts = [], [], self.parts(locus)
        for part in parts:
            sequence = self.live.sequence(self.live.read(part.read))
            dna = self.live.bins(sequence, part.bins).to(self.run.source.device)
            inputs.append(sequence)
            logits.append(self.cells.logits(dna, self.pairs, self._places(part))[:, 0])
        every = torch.cat(logits)
        score = every.max() if self.config.over == "max" else every.mean()
        values = np.zeros((len(codes), N_LETTERS), dtype=np.float64)
        for part, slope in zip(parts, torch.autograd.grad(score, inputs), strict=True):
            read = self.live.read(part.read)
            low = max(locus.start, read.start)
            high = max(low, min(locus.end, read.end))
            met = slope[0, low - read.start : high - read.start].float().cpu().numpy()
            values[low - locus.start : high - locus.start] += met
        return values, float(score.detach())


def open_explainer(
    store: Store, run_name: str, config: InterpretConfig, *, embedder: WindowEmbedder | None = None
) -> Explainer:
    """Return what explains a run's scores.

    Parameters
    ----------
    embedder
        In place of the one that the run's array names.

    Raises
    ------
    WeightsError
        If nobody said where the trunk's weights are.
    """
    run = load_run(store, run_name, device=pick_device(config.device))
    embedder = embedder or embedder_as_read(store, run.arrays.windows, checkpoint=config.checkpoint)
    return Explainer(store, run, encode_asked(store, run, config.asked), embedder, config)


class Interpreted(NamedTuple):
    """What `interpret_loci` wrote."""

    pair: tuple[str, str]
    files: tuple[Path, ...]
    n_loci: int
    n_bases: int
    n_unknown: int
    """Bases that are N."""
    n_left_out: int
    """Loci that would leave their chromosome with the width asked for."""


def interpret_loci(
    store: Store,
    run_name: str,
    config: InterpretConfig,
    out: Sequence[Path],
    *,
    at: Sequence[str] = (),
    bed: Path | None = None,
    width_bp: int | None = None,
    embedder: WindowEmbedder | None = None,
) -> Interpreted:
    """Explain a run's scores at loci, and write files.

    Parameters
    ----------
    out
        Files; `interpretation.files` says which.
    at, bed
        Loci as text, and a BED file of more.
    width_bp
        Take so many bases about each locus' middle.
    embedder
        In place of the one that the run's array names.

    Raises
    ------
    ConfigError
        If a file's ending is unknown, no locus is left, or one is too long.
    """
    lengths = dict(store.genome.lengths_bp)
    loci = [store.tiling.locus_of(text, store.meta.aliases) for text in at]
    loci += read_loci(store, bed) if bed is not None else []
    loci, n_left_out = (loci, 0) if width_bp is None else resized(loci, width_bp, lengths)
    if not loci:
        raise ConfigError(f"no locus is left, {n_left_out:,} would leave their chromosome", where="loci")
    widths = [locus.end - locus.start for locus in loci]
    if config.method == "ism" and max(widths) > MAX_LOCUS_BP:
        what = f"a locus of {max(widths):,} bp is too long for mutagenesis, {MAX_LOCUS_BP:,} is the most"
        raise ConfigError(what, where="loci", fix="take a part of it: --width-bp 1000, or --method gradient")
    require_writable(out, widths)
    explainer = open_explainer(store, run_name, config, embedder=embedder)
    found = [explainer.explain(locus) for locus in tqdm(loci, desc="interpret", unit="locus", disable=None)]
    files = [path for one in out for path in write_contributions(one, found, explainer.pair, lengths)]
    codes = np.concatenate([one.codes for one in found])
    n_unknown = int((codes >= N_LETTERS).sum())
    return Interpreted(explainer.pair, tuple(files), len(loci), len(codes), n_unknown, n_left_out)


def resized(loci: Sequence[Locus], width_bp: int, lengths_bp: dict[str, int]) -> tuple[list[Locus], int]:
    """Return loci of one width about the same middles, and how many were left out: theirs would leave the chromosome.

    Examples
    --------
    >>> resized([Locus("c", 10, 20), Locus("c", 0, 4)], 6, {"c": 30})
    ([Locus(chrom='c', start=12, end=18)], 1)
    """
    if width_bp < 1:
        raise ConfigError(f"width_bp is {width_bp}, must be at least 1", where="width")
    middles = [(locus.start + locus.end) // 2 for locus in loci]
    every = [
        Locus(locus.chrom, middle - width_bp // 2, middle - width_bp // 2 + width_bp)
        for locus, middle in zip(loci, middles, strict=True)
    ]
    kept = [locus for locus in every if locus.start >= 0 and locus.end <= lengths_bp[locus.chrom]]
    return kept, len(every) - len(kept)
