"""What ``yeast.py`` and ``human.py`` share: stages done once, runs trained and scored once, one file of results."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from holdout_scores import Row, medians, over_seeds, score_run, show

from tfbind_store.errors import StoreExists
from tfbind_store.precompute.convnet import ConvnetSizes
from tfbind_store.precompute.embedder import make_window_embedder
from tfbind_store.precompute.run import embed_windows
from tfbind_store.pretraining.pretrain import PretrainConfig, pretrain_trunk
from tfbind_store.query.selection import INFO_FILE, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.store.folder import Store
from tfbind_store.training.train import TrainConfig, is_finished, train_head

SIZES = ConvnetSizes(motifs=192, dim=160, depth=6, dropout=0.2)
NEGATIVES = ("random:2", "scoped:2", "gc:2", "shifted:2", "random:1,scoped:1")
SELECTION = "held_out"
MAIN = "two_tower"
"""The head with which everything but heads is compared: a step costs two thirds of an `adapter`'s."""
TIMES = {"adapter": 2, "two_tower": 3, "bilinear": 4, "linear": 6}
"""Steps of a head for each that was asked for, so that a training of any head costs about as much, within a factor
of two."""
GATHERED = ("scores", "cpu_s", "trunks")
"""Results that come one by one."""


@dataclass(frozen=True)
class Effort:
    """How much is spent."""

    passes: float
    control_passes: float
    steps: int
    seeds: int


class Stages:
    """Stages over one folder; a subclass gives the data, the split, and a method for each stage."""

    name: str
    split: SplitConfig
    allow_leaks: tuple[str, ...] = ()
    sizes = SIZES
    """Of the trunk."""
    quarter_loss = 0.0
    """Weight of its loss on quarters of bins."""
    sets: tuple[str, ...]
    """Tables of scores, in the order in which they are shown."""

    def __init__(self, out: Path, data: Path, effort: Effort, heads: Sequence[str]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.data, self.effort, self.heads = out, data, effort, heads
        self.results_path = out / "results.json"
        self.made: set[str] = set()
        self.results: dict[str, Any] = {name: {} for name in GATHERED}
        if self.results_path.exists():
            self.results |= json.loads(self.results_path.read_text())

    @property
    def open(self) -> Store:
        """The store as it is now."""
        return Store.open(self.out / f"{self.name}.store")

    def keep(self) -> None:
        """Write the results; what another process has added meanwhile stays."""
        if self.results_path.exists():
            there = json.loads(self.results_path.read_text())
            for name in GATHERED:
                self.results[name] = {**there.get(name, {}), **self.results[name]}
            # what this process only read may be older than what is there now
            self.results |= {name: table for name, table in there.items() if name not in (*GATHERED, *self.made)}
        part = self.results_path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(self.results))
        part.replace(self.results_path)

    def select(self, name: str, negatives: str) -> None:
        """Make a selection of the one split unless it is there."""
        store = self.open
        if not (store.selection_dir(name) / INFO_FILE).exists():
            kinds = tuple(negatives.split(","))
            make_selection(
                store, name, SelectionConfig(split=self.split, negatives=kinds, allow_leaks=self.allow_leaks)
            )

    def pretrain(self, name: str, passes: float, *, permuted: bool = False) -> None:
        """Train a trunk unless it is there."""
        config = PretrainConfig(
            kind="convnet", convnet=self.sizes, passes=passes, output_dropout=0.5, weight_decay=0.15, average=0.998,
            mutation=0.06, validate_every=passes / 4, permute_labels=permuted, quarter_loss=self.quarter_loss,
        )  # fmt: skip
        try:
            found = pretrain_trunk(self.open, SELECTION, config, self.out / name)
        except StoreExists:
            return
        self.results["trunks"][name] = {"passes": passes, "wall_s": found.seconds, **found.validation}
        self.keep()

    def embed(self, trunk: str, name: str) -> None:
        """Embed the genome by a trunk, both strands' mean."""
        options = {"checkpoint": str(self.out / trunk), "strand": "mean", "batch_size": 4}
        embed_windows(self.open, make_window_embedder("convnet", options), name=name).require_complete()

    def run(self, name: str, selection: str = SELECTION, **config: Any) -> dict[str, Row]:
        """Train a head once and return its medians."""
        steps = self.effort.steps
        usual = TrainConfig(steps=steps, validate_every=max(1, steps // 3), max_valid_bins=20_000)
        full = replace(usual, **config)
        store = self.open
        done = is_finished(store, selection, full, name)
        if not done:
            began = time.process_time()
            train_head(store, selection, full, name, overwrite=name in self.results["scores"])
            self.results["cpu_s"][name] = time.process_time() - began
        if not done or name not in self.results["scores"]:
            self.results["scores"][name] = medians(score_run(store, name))
            self.keep()
        return dict(self.results["scores"][name])

    def seeds(self, name: str, n: int | None = None, selection: str = SELECTION, **config: Any) -> dict[str, Row]:
        """Return the means of runs that differ by their seed."""
        numbers = range(n or self.effort.seeds)
        return over_seeds([self.run(f"{name}-{seed}", selection, seed=seed, **config) for seed in numbers])

    def head(self, head: str, windows: str = "windows", n: int | None = None) -> dict[str, Row]:
        """Return the means over seeds of one head on one array, trained as long as any other."""
        name = head if windows == "windows" else f"{head}-{windows}"
        return self.seeds(name, n, head=head, windows=windows, **self.budget(head))

    def budget(self, head: str) -> dict[str, int]:
        """Return the steps of a head."""
        steps = self.effort.steps * TIMES.get(head, 1)
        return {"steps": steps, "validate_every": max(1, steps // 3)}

    def compare_heads(self) -> None:
        """Each head on the trained trunk's embeddings, with several seeds."""
        table = {}
        for head in self.heads:
            table[head] = self.head(head)
            self.table("heads", table)

    def compare_negatives(self) -> None:
        """One head on rows with one kind of negatives each, and on all bins of the training places."""
        table = {}
        for at, kinds in enumerate(NEGATIVES):
            self.select(f"negatives{at}", kinds)
            config = {"head": MAIN, "windows": "windows", "pairing": "rows", "batch_rows": 512, **self.budget(MAIN)}
            table[kinds] = self.seeds(f"rows{at}", 1, f"negatives{at}", **config)
        self.table("negatives", {**table, "every bin": self.head(MAIN, n=1)})

    def table(self, name: str, table: Any) -> None:
        """Keep a table of this process's own."""
        self.results[name] = table
        self.made.add(name)
        self.keep()

    def print(self) -> None:
        """Show what has been measured so far."""
        for name in self.sets:
            if name in self.results:
                show(name, self.results[name])


def arguments(doc: str, stages: Sequence[str], heads: Sequence[str], full: Effort, quick: Effort) -> argparse.Namespace:
    """Read the command line; `effort` is what was asked for."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the files; default in $TFBIND_TEST_DATA")
    parser.add_argument("--stage", default=",".join(stages), help="of: " + ", ".join(stages))
    parser.add_argument("--heads", default=",".join(heads), help="filip too, if there is time")
    parser.add_argument("--quick", action="store_true", help=f"{quick} instead of {full}")
    for name in ("passes", "control_passes", "steps", "seeds"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float if "passes" in name else int)
    args = parser.parse_args()
    if unknown := [name for name in args.stage.split(",") if name not in stages]:
        parser.error(f"no stage {unknown[0]!r}; there are {', '.join(stages)}")
    given = {name: getattr(args, name) for name in vars(full) if getattr(args, name) is not None}
    args.effort = replace(quick if args.quick else full, **given)
    return args


def go(bench: Stages, stages: Mapping[str, Callable[[], None]], asked: str) -> None:
    """Do the stages that were asked for, show all results, end with one line of JSON."""
    torch.set_num_threads(1)
    for name, stage in stages.items():
        if name in asked.split(","):
            began = time.process_time()
            stage()
            spent, seconds = bench.results["cpu_s"], time.process_time() - began
            spent[f"stage {name}"] = spent.get(f"stage {name}", 0.0) + seconds
            bench.keep()
            print(f"{name}: {seconds:.0f} s of CPU", flush=True)
    bench.print()
    said = {key: value for key, value in bench.results.items() if key != "scores"}
    print(json.dumps({"benchmark": bench.name, "effort": vars(bench.effort), **said}))
