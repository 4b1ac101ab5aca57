"""Heads against each other on one store and split, with one budget: AUPRC, parameters, FLOPs, steps a second.

    cp -r OUT_DIR/yeast.store copy.store && tfbind rebuild-catalog copy.store     # of examples/yeast.sh
    OMP_NUM_THREADS=1 python benchmarks/head_table.py copy.store                  # about 15 minutes
    python benchmarks/head_table.py copy.store --heads adapter,filip --minutes 5

Every head gets the same: `--rates` learning rates of `--minutes` each with seed 0, the best by AUPRC on validation
cells; then `--seeds` seeds at that rate, as long each. The split is that of examples/yeast.sh, made as selection
``table`` if it is not there. The scores are on test chromosomes, which chose nothing: medians over experiments of the
AUPRC of a bin, on evenly spread bins and experiments with 20 bound bins or more there. FLOPs are of one window of 896
bins with one factor of 512 residues at the widths of Enformer and ESM-1b. Runs are named ``table-…`` and made anew.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tfbind_store.batch import Batch
from tfbind_store.feeding.feed import Experiments, choose_arrays
from tfbind_store.heads import Geometry, load_checkpoint, make_head
from tfbind_store.metrics.ranking import score_binary
from tfbind_store.query.selection import INFO_FILE, Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.scoring.bins import score_bins
from tfbind_store.store.folder import Store
from tfbind_store.training.material import Material, gather_material, labels_of
from tfbind_store.training.train import TrainConfig, TrainResult, train_head

RATES = (1e-3, 3e-3, 3e-4)
FULL = Geometry(dna_dim=3072, protein_dim=1280, context_dim=768)
N_BINS, RESIDUES = 896, 512
ENOUGH = 20
STEP = {"filip": (64, 8)}
"""Bins and experiments of a step; of `filip` fewer, since it meets every residue of proteins of up to 4,910."""


def flops(name: str) -> int:
    """Count those of scoring one full window with one factor."""
    one = torch.zeros(1, dtype=torch.long, device="meta")
    with torch.device("meta"):
        head = make_head(name, FULL).eval()
        batch = Batch(
            dna=torch.empty(1, N_BINS, FULL.dna_dim),
            protein=torch.empty(1, RESIDUES, FULL.protein_dim),
            mask=torch.empty(1, RESIDUES, dtype=torch.bool),
            subunit=torch.empty(1, RESIDUES, dtype=torch.int16),
            factor_index=one,
            context=torch.empty(1, FULL.context_dim),
            context_index=one,
            signal=None,
            labels=torch.empty(1, N_BINS),
            weights=torch.empty(1),
            rows=one,
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            pairs = tuple(tensor.unsqueeze(1) for tensor in head.encode(batch))
            head.interact(head.encode_dna(batch.dna), pairs)
    return int(counter.get_total_flops())


def trained(store: Store, name: str, rate: float, seed: int, args: argparse.Namespace) -> TrainResult:
    """Train one head for its minutes."""
    bins, pairs = STEP.get(name, (512, 16))
    config = TrainConfig(
        head=name, lr=rate, seed=seed, minutes=args.minutes, steps=10**6, validate_every=10**6, save_every=10**6,
        bins_per_step=bins, pairs_per_step=pairs, max_valid_bins=args.valid_bins, device=args.device,
        windows=args.windows, precision=args.precision,
    )  # fmt: skip
    return train_head(store, args.selection, config, f"table-{name}-{rate:g}-{seed}", overwrite=True)


class Test:
    """The test cells."""

    def __init__(self, material: Material, n_bins: int, n_experiments: int) -> None:
        store, truth = material.store, material.truth
        bins = material.selection.bins("test")
        embedded = store.array(material.arrays.windows).is_ok(bins // store.grid.n_bins)
        bins = bins[embedded & truth.scorable[bins]]
        self.bins = bins[np.linspace(0, len(bins) - 1, min(n_bins, len(bins))).astype(np.int64)]
        labels = labels_of(truth, material.training, self.bins)
        enough = np.flatnonzero(np.nansum(labels, axis=0) >= ENOUGH)
        chosen = enough[np.linspace(0, len(enough) - 1, min(n_experiments, len(enough))).astype(np.int64)]
        self.experiments: Experiments = material.training.take(chosen)
        self.labels = labels[:, chosen]
        self.source = material.source

    def auprc(self, path: Path) -> float:
        """Return the median over experiments."""
        head = load_checkpoint(path).head.to(self.source.device)
        pairs = self.experiments
        blocks = score_bins(head, self.source, pairs.factor_id, pairs.biotype_id, self.bins)
        scores = np.concatenate([block.scores for block in blocks])
        found = [score_binary(self.labels[:, at], scores[:, at]).auprc for at in range(scores.shape[1])]
        return float(np.nanmedian(found))


def one_head(store: Store, name: str, test: Test, args: argparse.Namespace) -> dict[str, Any]:
    """Tune, train with each seed, and score."""
    trials = {rate: trained(store, name, rate, 0, args) for rate in RATES[: args.rates]}
    best = max(trials, key=lambda rate: trials[rate].metrics["valid_auprc"])
    runs = [trials[best], *(trained(store, name, best, seed, args) for seed in range(1, args.seeds))]
    found = [test.auprc(run.path / "head.safetensors") for run in runs]
    with torch.device("meta"):
        n_parameters = sum(parameter.numel() for parameter in make_head(name, FULL).parameters())
    return {
        "head": name,
        "rate": best,
        "valid_auprc": {f"{rate:g}": run.metrics["valid_auprc"] for rate, run in trials.items()},
        "test_auprc": found,
        "mean": statistics.mean(found),
        "spread": statistics.stdev(found) if len(found) > 1 else 0.0,
        "parameters": n_parameters,
        "gflops": flops(name) / 1e9,
        "steps": [run.steps for run in runs],
        "steps_per_s": statistics.median(run.steps for run in runs) / (60 * args.minutes),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--windows", default="embeddings/windows", help="array")
    parser.add_argument("--selection", default="table")
    parser.add_argument("--valid-chroms", default="chrXIII")
    parser.add_argument("--test-chroms", default="chrIV,chrXVI")
    parser.add_argument("--heads", default="adapter,filip,two_tower,bilinear,linear")
    parser.add_argument("--minutes", type=float, default=0.5, help="of each training")
    parser.add_argument("--rates", type=int, default=2, choices=(1, 2, 3), help="learning rates that each head tries")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--valid-bins", type=int, default=1500)
    parser.add_argument("--test-bins", type=int, default=8000)
    parser.add_argument("--experiments", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    store = Store.open(args.store)
    if not (store.selection_dir(args.selection) / INFO_FILE).exists():
        chroms = tuple(args.valid_chroms.split(",")), tuple(args.test_chroms.split(","))
        split = SplitConfig(
            valid_chroms=chroms[0], test_chroms=chroms[1], hold_out_random=("factor:20:min_peaks=100",),
            hold_out_valid_share=0.0,
        )  # fmt: skip
        negatives = ("random:1", "scoped:1")
        make_selection(
            store, args.selection, SelectionConfig(split=split, negatives=negatives, allow_leaks=("paralog",))
        )
    selection = Selection.open(store, args.selection)
    device = torch.device(args.device)
    arrays = choose_arrays(store, windows=args.windows)
    material = gather_material(store, selection, arrays, device=device, max_valid_bins=args.valid_bins)
    test = Test(material, args.test_bins, args.experiments)
    prevalence = float(np.nanmean(test.labels))
    print(f"{len(test.bins):,} test bins, {test.labels.shape[1]} experiments, prevalence {prevalence:.4f}")
    print(f"{'head':10}{'AUPRC':>8}{'spread':>8}{'rate':>8}{'parameters':>13}{'GFLOP':>9}{'steps/s':>9}")
    table = []
    for name in args.heads.split(","):
        row = one_head(store, name, test, args)
        table.append(row)
        print(
            f"{name:10}{row['mean']:8.3f}{row['spread']:8.3f}{row['rate']:8g}{row['parameters']:13,}"
            f"{row['gflops']:9.2f}{row['steps_per_s']:9.2f}",
            flush=True,
        )
    said = {"minutes": args.minutes, "rates": args.rates, "seeds": args.seeds, "prevalence": prevalence}
    print(json.dumps({"benchmark": "head_table", **said, "table": table}))


if __name__ == "__main__":
    main()
