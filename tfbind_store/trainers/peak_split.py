"""How `trainers.Trainer` divides a store's peaks: chromosomes, what is held out, what is left out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from tfbind_store import config as configs
from tfbind_store.query.selection import INFO_FILE, Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.store.folder import Store
from tfbind_store.trainers.cache import hashed, known_chroms

REFERENCE_LEAKS = ("paralog", "trunk")
"""What the reference's arguments cannot say; the selection records it and a warning names it."""
_log = logging.getLogger(__name__)


class ReadWindows(NamedTuple):
    """Windows that a trainer reads, ascending."""

    train: Int64[np.ndarray, " n"]
    all: Int64[np.ndarray, " k"]
    """Those of training rows and of whole validation chromosomes."""


@dataclass(frozen=True)
class PeakSplit:
    """Which of a store's peaks train, which validate, and which do neither."""

    store: Store
    train_chroms: tuple[str, ...]
    valid_chroms: tuple[str, ...]
    held_out: Mapping[str, Sequence[str]]
    """Kind (``factor``, ``biotype``) to names that are in no training row, and validate."""
    excluded: Mapping[str, Sequence[str]]
    """Kind to names that are in no row."""

    @staticmethod
    def of(
        store: Store,
        train_ids: Iterable[int | str],
        valid_ids: Iterable[int | str],
        *,
        held_out: Mapping[str, Sequence[str]],
        excluded: Mapping[str, Sequence[str]],
    ) -> PeakSplit:
        """Return the split by chromosomes given as numbers or names.

        Raises
        ------
        ConfigError
            If none of the training or validation chromosomes is in the genome.
        """
        return PeakSplit(store, known_chroms(store, train_ids), known_chroms(store, valid_ids), held_out, excluded)

    def selected(self, negatives: Sequence[str], sample: float, seed: int) -> Selection:
        """Return the selection of this split with such negatives, made if it is not there.

        Parameters
        ----------
        negatives
            Rules as ``kind:ratio``.
        sample
            Share of the peaks to take.
        """
        where, params = _excluding(self.excluded)
        config = SelectionConfig(
            where=where,
            params=params,
            negatives=tuple(negatives),
            split=SplitConfig(
                train_chroms=self.train_chroms,
                valid_chroms=self.valid_chroms,
                hold_out={kind: list(names) for kind, names in self.held_out.items() if names},
                hold_out_valid_share=1.0,
            ),
            allow_leaks=REFERENCE_LEAKS,
            sample=sample,
            seed=seed,
        )
        name = f"trainer-{hashed(configs.to_toml(config))}"
        if not (self.store.selection_dir(name) / INFO_FILE).exists():
            make_selection(self.store, name, config)
        selection = Selection.open(self.store, name)
        selection.require_training_rows()
        short = {kind: sum(of.values()) for kind, of in selection.info.get("shortfall", {}).items()}
        if any(short.values()):
            named = ", ".join(f"{kind} {number:,}" for kind, number in short.items() if number)
            _log.warning("negatives are missing: %s; too few bins are far enough from all peaks", named)
        return selection

    def windows(self, selection: Selection) -> ReadWindows:
        """Return the windows that training and validation read."""
        tiling = self.store.tiling
        train = np.unique(selection.columns("train", names=("window",))["window"].astype(np.int64))
        chroms = [tiling.chrom_index[chrom] for chrom in self.valid_chroms]
        valid = [np.arange(*tiling.first_window[chrom : chrom + 2]) for chrom in chroms]
        return ReadWindows(train, np.unique(np.concatenate([train, *valid])))


def _excluding(names: Mapping[str, Sequence[str]]) -> tuple[str, dict[str, str]]:
    """Return a condition on peaks without these names, and its parameters."""
    terms, params = [], {}
    for column, unwanted in names.items():
        for number, name in enumerate(unwanted):
            params[f"{column}{number}"] = name
            terms.append(f"{column} <> ${column}{number}")
    return " AND ".join(terms), params
