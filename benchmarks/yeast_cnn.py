"""The plainest thing that could do: a convolutional net on yeast's bases with an output for each experiment.

    python benchmarks/yeast_cnn.py                   # 15 minutes of CPU
    python benchmarks/yeast_cnn.py --cpu-minutes 4

No store of embeddings, no protein, no trunk of the package: motifs of 19 bases, pooled by 8, 4 and 4 to bins of 128 bp,
four dilated convolutions, 337 logits, cross-entropy, AdamW. Chromosomes IV and XVI are scored, XIII is left out,
twenty factors drawn by seed have no output, as in ``yeast.py``; what it can say of them is the mean of its outputs.
Medians over experiments with so many bound bins or more, both strands' mean. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from stages import Effort
from torch import Tensor, nn
from yeast import Yeast

from tfbind_store.metrics.ranking import score_binary
from tfbind_store.precompute.enformer import one_hot
from tfbind_store.pretraining.feed import COMPLEMENT, TrackFeed
from tfbind_store.pretraining.pretrain import PretrainConfig, training_feed
from tfbind_store.query import rows, splits
from tfbind_store.query.selection import Selection

BATCH, RATE, DECAY = 4, 2e-3, 0.05


class Residual(nn.Module):
    """Norm, activation, convolution, added to what came in."""

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.conv = nn.Conv1d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.conv(F.silu(self.norm(x))), 0.1, self.training)


def plain_cnn(n_tracks: int, width: int = 128) -> nn.Sequential:
    """Return the net: ``[b, 4, bp]`` in, ``[b, tracks, bins]`` out."""
    return nn.Sequential(
        nn.Conv1d(4, width, 19, padding=9), nn.BatchNorm1d(width), nn.SiLU(), nn.MaxPool1d(8),
        nn.Conv1d(width, width, 7, padding=3), nn.BatchNorm1d(width), nn.SiLU(),
        Residual(width, 3, 1), nn.MaxPool1d(4),
        Residual(width, 5, 1), Residual(width, 5, 2), nn.MaxPool1d(4),
        *(Residual(width, 3, dilation) for dilation in (1, 2, 4, 8)),
        nn.BatchNorm1d(width), nn.SiLU(), nn.Dropout(0.1), nn.Conv1d(width, n_tracks, 1),
    )  # fmt: skip


def logits(model: nn.Module, codes: np.ndarray) -> Tensor:
    """Return ``[b, bins, tracks]``."""
    with torch.autocast("cpu", torch.bfloat16):
        found: Tensor = model(one_hot(codes).transpose(1, 2))
    return found.transpose(1, 2).float()


def train(model: nn.Module, feed: TrackFeed, cpu_minutes: float) -> int:
    """Train until the process has spent so much; return the passes that were begun."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, betas=(0.9, 0.98))
    rng, began, n_passes, batches = np.random.default_rng(0), time.process_time(), 0, iter(())
    while (share := (time.process_time() - began) / 60 / cpu_minutes) < 1:
        if (batch := next(batches, None)) is None:
            stretches, n_passes = feed.one_pass(rng), n_passes + 1
            batches = (feed.batch(stretches[at : at + BATCH]) for at in range(0, len(stretches), BATCH))
            continue
        rate = min(1.0, share / 0.05 + 1e-3) if share < 0.05 else 0.5 + 0.5 * math.cos(math.pi * (share - 0.05) / 0.95)
        optimizer.param_groups[0]["lr"] = RATE * rate
        labels = torch.from_numpy(batch.labels)
        losses = F.binary_cross_entropy_with_logits(logits(model, batch.codes), labels.nan_to_num(), reduction="none")
        optimizer.zero_grad()
        (losses * ~labels.isnan()).sum().div(labels.shape[0] * labels.shape[1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
    return n_passes


@torch.inference_mode()
def predict(model: nn.Module, feed: TrackFeed) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and labels ``[bins, tracks]``."""
    model.eval()
    scores, labels = [], []
    for stretch in sorted(feed.one_pass(np.random.default_rng(0))):
        batch = feed.batch([stretch])
        other = logits(model, COMPLEMENT[batch.codes[:, ::-1]]).flip(1)
        scores.append((logits(model, batch.codes) + other)[0].numpy() / 2)
        labels.append(batch.labels[0])
    return np.concatenate(scores), np.concatenate(labels)


def medians(scores: np.ndarray, labels: np.ndarray, least: Sequence[int]) -> list[dict[str, float]]:
    """Return medians over the experiments with so many bound bins or more."""
    found = [score_binary(labels[:, at], scores[:, at]) for at in range(labels.shape[1])]
    return [
        {
            "least": number,
            "n": sum(one.n_positive >= number for one in found),
            **{
                name: statistics.median(getattr(one, name) for one in found if one.n_positive >= number)
                for name in ("auroc", "auprc", "prevalence")
            },
        }
        for number in least
    ]


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="default: yeast_sacCer3 in $TFBIND_TEST_DATA")
    parser.add_argument("--cpu-minutes", type=float, default=15.0)
    args = parser.parse_args()
    data = args.data or Path(os.environ.get("TFBIND_TEST_DATA", "")) / "yeast_sacCer3"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        bench = Yeast(Path(folder), data, Effort(0, 0, 0, 0), ())
        bench.store()
        selection = Selection.open(bench.open, "held_out")
        feed = training_feed(bench.open, selection, PretrainConfig())
        model = plain_cnn(len(feed.experiment_ids))
        n_passes = train(model, feed, args.cpu_minutes)
        known, unseen = scored_feeds(bench, selection, feed)
        scores, labels = predict(model, known)
        mean, held_out = scores.mean(1, keepdims=True), predict(model, unseen)[1]
    tables = {
        "seen factors": medians(scores, labels, (1, 10, 20)),
        "unseen factors, by the mean": medians(np.repeat(mean, held_out.shape[1], 1), held_out, (20,)),
    }
    for name, table in tables.items():
        for row in table:
            print(
                f"{name}: {row['n']} with {row['least']} bound bins or more, AUROC {row['auroc']:.3f}, "
                f"AUPRC {row['auprc']:.3f}, prevalence {row['prevalence']:.4f}"
            )
    said = {
        "cpu_minutes": args.cpu_minutes,
        "passes": n_passes,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    print(json.dumps({"benchmark": "yeast_cnn", **said, "tables": tables}))


def scored_feeds(bench: Yeast, selection: Selection, feed: TrackFeed) -> tuple[TrackFeed, TrackFeed]:
    """Return the test chromosomes with the training experiments, and with those of held-out factors."""
    store, test = bench.open, selection.place_parts() == splits.TEST
    with store.reader() as catalog:
        evidence = rows.gather(store, catalog)
    evidence = evidence._replace(scorable=evidence.scorable & test)
    chroms = tuple(store.tiling.chrom_index[chrom] for chrom in bench.split.test_chroms)
    names, factors = evidence.experiments["experiment_id"].astype(np.int64), evidence.experiments["factor"].tolist()
    out = np.array([factor in selection.held_out["factors"] for factor in factors])
    return tuple(  # type: ignore[return-value]
        TrackFeed(feed.genome, evidence, feed.rule, ids, chroms, feed.window_bp, False, False)
        for ids in (feed.experiment_ids, names[out])
    )


if __name__ == "__main__":
    sys.exit(main())
