"""How much faster proteins are embedded in batches of like length than one at a time through fair-esm.

    python benchmarks/encoders.py                                   # 2,000 proteins: about 10 minutes on one core
    python benchmarks/encoders.py --proteins 200 --lengths human
    python benchmarks/encoders.py --device cuda --precisions float32,bfloat16,float16

The peer is fair-esm as its own README calls it and as the reference implementation does: one sequence at a time, the
batch converter, ``model(tokens, repr_layers=[last])`` in eval mode without gradients. A protein of more than 1,022
residues goes through it in the same overlapping stretches as ours, which are then averaged: both sides do the same work
and must give the same embeddings (float32 further apart than 1e-5 ends the run). ``cpu_ratio_peer_cuts`` is against a
peer that reads the first 1,022 residues and leaves the rest out, as the reference does. Lengths follow those of all
yeast proteins or of 1,613 human transcription factors; residues are drawn from their usual shares; the model is an
ESM-2 of the smallest published size with random weights, which cost what trained ones cost. Blocks of proteins go
through all variants in turn. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tfbind_store.factors import AMINO_ACIDS
from tfbind_store.precompute.composition import BACKGROUND
from tfbind_store.precompute.embedder import batches
from tfbind_store.precompute.esm import LONGEST, EsmEmbedder, EsmOptions, random_esm2
from tfbind_store.precompute.residue_model import USUAL_OVERLAP, stretch_starts

LENGTHS = {  # every 20th of the sorted lengths
    "yeast": (16, 96, 125, 158, 197, 227, 263, 297, 328, 363, 399, 438, 475, 520, 569, 624, 697, 800, 946, 1216, 4910),
    "human": (76, 222, 270, 305, 339, 372, 402, 426, 451, 477, 504, 531, 561, 590, 626, 670, 722, 802, 943, 1243, 3969),
}
LAYERS, DIM, HEADS = 6, 320, 20


PEER = "one at a time, fair-esm"
FURTHEST = 1e-5
"""Relative RMS between two ways of adding up in float32; seen: 5e-7."""


@dataclass
class Tally:
    """What one variant took so far, and how far it was off the peer in the worst block."""

    cpu: float = 0.0
    wall: float = 0.0
    error: float = 0.0
    cpu_of_beginnings: float = 0.0
    """Of the peer: the first stretch of every protein."""


def main() -> None:
    """Run all variants block by block, print a table and one line of JSON."""
    args = arguments()
    torch.set_num_threads(args.threads)
    model, alphabet = random_esm2(LAYERS, DIM, HEADS, seed=0)
    model = model.to(args.device).eval()
    options = {f"batched {p}": EsmOptions(precision=p, device=args.device) for p in args.precisions.split(",")}
    options["one at a time, ours"] = EsmOptions(device=args.device, tokens_per_batch=1)
    variants = {name: EsmEmbedder(model, alphabet, choice) for name, choice in options.items()}
    tallies = {name: Tally() for name in (PEER, *variants)}
    proteins = draw(args.proteins, args.lengths)
    for block in batches(proteins, args.block):
        expected: list[np.ndarray] = []
        for name, tally in tallies.items():
            cpu, wall = time.process_time(), time.perf_counter()
            if name == PEER:
                found = expected = list(one_at_a_time(model, alphabet, block, tally))
            else:
                found = [result.values for result in variants[name].embed(block)]
            tally.cpu += time.process_time() - cpu
            tally.wall += time.perf_counter() - wall
            tally.error = max(tally.error, difference(found, expected))
            if tally.error > FURTHEST and name != PEER and options[name].precision == "float32":
                raise SystemExit(f"{name}: {tally.error:.2g} off the peer, so the two did not do the same")
    report(args, proteins, tallies)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--proteins", type=int, default=2000)
    parser.add_argument("--lengths", choices=sorted(LENGTHS), default="yeast")
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", default="float32,bfloat16")
    return parser.parse_args()


def draw(n: int, lengths: str) -> list[str]:
    """Return random proteins whose lengths follow the table, in random order."""
    rng = np.random.default_rng(0)
    quantiles = np.linspace(0, 1, len(LENGTHS[lengths]))
    drawn = np.interp(rng.permutation((np.arange(n) + 0.5) / n), quantiles, LENGTHS[lengths]).round().astype(int)
    shares = np.array(BACKGROUND) / sum(BACKGROUND)
    return ["".join(rng.choice(list(AMINO_ACIDS), length, p=shares)) for length in drawn]


@torch.no_grad()
def one_at_a_time(model: Any, alphabet: Any, proteins: list[str], tally: Tally) -> Iterator[np.ndarray]:
    """Yield one row per residue; where stretches overlap, their mean."""
    convert, device = alphabet.get_batch_converter(), next(model.parameters()).device
    for protein in proteins:
        total, count = np.zeros((len(protein), DIM), dtype=np.float32), np.zeros((len(protein), 1), dtype=np.float32)
        for start in stretch_starts(len(protein), LONGEST, USUAL_OVERLAP):
            cpu = time.process_time()
            _, _, tokens = convert([("", protein[start : start + LONGEST])])
            layers = model(tokens.to(device), repr_layers=[LAYERS])["representations"]
            part = slice(start, start + LONGEST)
            total[part] += layers[LAYERS][0, 1:-1].cpu().numpy()
            count[part] += 1
            tally.cpu_of_beginnings += time.process_time() - cpu if start == 0 else 0.0
        yield total / count


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Return the relative root mean square error over all residues."""
    off = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, expected, strict=True))
    return float(np.sqrt(off / sum(float((b**2).sum()) for b in expected)))


def report(args: argparse.Namespace, proteins: list[str], tallies: dict[str, Tally]) -> None:
    """Print a line for each variant, then everything as JSON."""
    peer = tallies[PEER]
    rows = {
        name: {
            "cpu_seconds": round(tally.cpu, 2),
            "wall_seconds": round(tally.wall, 2),
            "cpu_ratio": round(peer.cpu / tally.cpu, 2),
            "wall_ratio": round(peer.wall / tally.wall, 2),
            "cpu_ratio_peer_cuts": round(peer.cpu_of_beginnings / tally.cpu, 2),
            "relative_rmse": float(f"{tally.error:.2g}"),
        }
        for name, tally in tallies.items()
    }
    for name, row in rows.items():
        print(f"{name:26s}" + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    machine = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.machine()
    conditions = {
        **vars(args),
        "machine": machine,
        "torch": torch.__version__,
        "residues": sum(map(len, proteins)),
        "longer_than_1022": sum(len(protein) > LONGEST for protein in proteins),
        "model": f"ESM-2, {LAYERS} layers of {DIM}",
    }
    print(json.dumps({"benchmark": "encoders", "conditions": conditions, "variants": rows}))


if __name__ == "__main__":
    main()
