"""Scores of many pairs over many windows, on disk while they are made: published part by part, so that a run goes on.

A part holds the logits of all pairs over consecutive windows of the plan, pair by pair, float32, NaN where a window is
not embedded. Reading back is by chromosome and pair: never more than one chromosome of one pair is in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from tfbind_store.durable import make_directory, publish, read_regular, sealed_json, typed_errors, unsealed_json
from tfbind_store.loci import Tiling

PART_BINS = 32_768
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Parts:
    """A folder of parts."""

    path: Path
    tiling: Tiling
    windows: Int64[np.ndarray, " w"]
    """Ascending: those that are asked for."""
    n_pairs: int

    @property
    def windows_per_part(self) -> int:
        """Windows that are scored together."""
        return max(1, PART_BINS // self.tiling.grid.n_bins)

    @property
    def n_parts(self) -> int:
        """Parts of the whole."""
        return -(-len(self.windows) // self.windows_per_part)

    def begin(self, plan: Mapping[str, Any]) -> int:
        """Go on with a folder of the same plan, or begin anew; return how many parts are there already."""
        plan_path = self.path / PLAN_FILE
        wanted = sealed_json(plan)
        try:
            unsealed_json(read_regular(plan_path))
            is_same = read_regular(plan_path) == wanted
        except (OSError, ValueError, KeyError):
            is_same = False
        if not is_same:
            shutil.rmtree(self.path, ignore_errors=True)
        make_directory(self.path)
        if not is_same:
            publish(plan_path, [wanted])
        return sum(self.is_done(part) for part in range(self.n_parts))

    def is_done(self, part: int) -> bool:
        """Return whether a part is there, whole."""
        path = self._file(part)
        return path.is_file() and path.stat().st_size == 4 * self.n_pairs * len(self.of(part)) * self.tiling.grid.n_bins

    def of(self, part: int) -> Int64[np.ndarray, " k"]:
        """Return the windows of a part."""
        return self.windows[part * self.windows_per_part : (part + 1) * self.windows_per_part]

    def write(self, part: int, scores: Float32[np.ndarray, "p bins"]) -> None:
        """Publish a part."""
        assert scores.shape == (self.n_pairs, len(self.of(part)) * self.tiling.grid.n_bins)
        publish(self._file(part), [np.ascontiguousarray(scores, dtype="<f4").data.cast("B")])

    def chromosome(self, pair: int, chrom: str) -> Float32[np.ndarray, " bins"]:
        """Return the logits of one pair over the real bins of a chromosome; NaN where nothing was scored."""
        number, n_bins = self.tiling.chrom_index[chrom], self.tiling.grid.n_bins
        first, last = self.tiling.first_window[number : number + 2].tolist()
        out = np.full((last - first, n_bins), np.nan, dtype=np.float32)
        begin, end = np.searchsorted(self.windows, [first, last]).tolist()
        for part in range(begin // self.windows_per_part, -(-end // self.windows_per_part)):
            windows = self.of(part)
            row = np.memmap(
                self._file(part), "<f4", "r", offset=4 * pair * len(windows) * n_bins, shape=(len(windows), n_bins)
            )
            inside = (windows >= first) & (windows < last)
            out[windows[inside] - first] = row[inside]
        return out.reshape(-1)[: self.tiling.n_real_bins(number)]

    def remove(self) -> None:
        """Remove the folder: what was wanted is written."""
        with typed_errors(self.path):
            shutil.rmtree(self.path)

    def score(self, scorer: Callable[[Int64[np.ndarray, " k"]], Float32[np.ndarray, "p bins"]]) -> None:
        """Make the parts that are not there."""
        for part in range(self.n_parts):
            if not self.is_done(part):
                self.write(part, scorer(self.of(part)))

    def _file(self, part: int) -> Path:
        return self.path / f"{part:06d}.f32"
