"""How far half precision takes an Enformer's embeddings from float32, on weights of the scale that training leaves.

    python benchmarks/trunk_precision.py                            # dim 384, depth 4, statistics from the data
    python benchmarks/trunk_precision.py --checkpoint TRUNK_FOLDER --fasta GENOME.fa --window-tokens 128

An untrained trunk's BatchNorms are first given the statistics of sequences (of a Markov chain, so that k-mers have
unequal shares), as training would leave them; its ``to_out`` is drawn, not zero. Each precision is held against
float64, enformer-pytorch's own float32 too. float16 and bfloat16 run on any CPU, slowly where it lacks them; TF32 is
imitated by rounding the factors of every product to its 10 bits. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from enformer_pytorch import Enformer

from tfbind_store.genome import GenomeSource
from tfbind_store.precompute.enformer import one_hot
from tfbind_store.precompute.fast_forward import FastTrunk
from tfbind_store.precompute.random_trunk import random_trunk
from tfbind_store.precompute.trunk_files import load_trunk

TF32_BITS_OFF = 13  # of float32's 23


def main() -> None:
    """Build or read the trunk, run every precision, print a table and one line of JSON."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    bp = args.window_tokens * 2**7
    if args.checkpoint:
        model = load_trunk(args.checkpoint).model
    else:
        model = random_trunk({"dim": args.dim, "depth": args.depth, "heads": 8, "dim_divisible_by": 16}, seed=0).model
        _calibrate(model, _sequences(8, 1 << 14, seed=1))
    codes = _genome(args.fasta, args.windows, bp) if args.fasta else _sequences(args.windows, bp, seed=2)
    truth = _embed(FastTrunk(model.double(), dtype=torch.float64, onednn=False), codes)
    model.float()
    report = {"enformer-pytorch, float32": _compare(_plain(model, codes), truth)}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        report[name] = _compare(_embed(FastTrunk(model, dtype=dtype, onednn=dtype != torch.float16), codes), truth)
    with _tf32_products():
        report["tf32 (imitated)"] = _compare(_embed(FastTrunk(model, tf32=True, onednn=False), codes), truth)
    report["float32, stored as float16"] = _compare(_embed(FastTrunk(model), codes).half(), truth)
    for name, row in report.items():
        print(f"{name:28s}" + "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    print(f"values: standard deviation {float(truth.std()):.3g}, largest {float(truth.abs().max()):.3g}")
    print(json.dumps({"benchmark": "trunk_precision", "conditions": vars(args), "report": report}, default=str))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--fasta", type=Path, help="windows of its first sequence, evenly spaced")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--window-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _sequences(n: int, bp: int, *, seed: int) -> torch.Tensor:
    """Return codes [n, bp] of a Markov chain of first order."""
    rng = np.random.default_rng(seed)
    steps = rng.dirichlet(np.full(4, 2.0), size=4).cumsum(axis=1)
    draws = rng.random((bp, n))
    codes = np.zeros((bp, n), dtype=np.uint8)
    for i in range(1, bp):
        codes[i] = np.minimum((draws[i, :, None] > steps[codes[i - 1]]).sum(axis=1), 3)
    return torch.from_numpy(np.ascontiguousarray(codes.T))


def _genome(fasta: Path, n: int, bp: int) -> torch.Tensor:
    """Return codes [n, bp] of windows along the first chromosome."""
    with GenomeSource(fasta) as source:
        bases = np.array(source.codes(source.chroms[0]))
    starts = np.linspace(0, len(bases) - bp, n).astype(int)
    return torch.from_numpy(np.stack([bases[start : start + bp] for start in starts]))


@torch.no_grad()
def _calibrate(model: Enformer, codes: torch.Tensor) -> None:
    """Give every BatchNorm the mean and variance of what it sees."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all sequences
        norm.train()
    for row in codes:
        model(one_hot(row[None].numpy()), return_only_embeddings=True)
    model.eval()


@torch.inference_mode()
def _embed(trunk: FastTrunk, codes: torch.Tensor) -> torch.Tensor:
    found = [trunk.pointwise(trunk.transform(trunk.conv(row[None]), slice(None)))[0] for row in codes]
    return torch.stack(found)


@torch.inference_mode()
def _plain(model: Enformer, codes: torch.Tensor) -> torch.Tensor:
    model.set_target_length(-1)
    return torch.stack([model(one_hot(row[None].numpy()), return_only_embeddings=True)[0] for row in codes])


@contextlib.contextmanager
def _tf32_products() -> Iterator[None]:
    """Round both factors of every product and convolution of torch to TF32 for a while."""
    functional, plain = torch.nn.functional, {}
    for name in ("linear", "conv2d"):
        plain[name] = getattr(functional, name)
    matmul = torch.matmul
    try:
        for name, function in plain.items():
            setattr(functional, name, lambda x, w, *rest, f=function: f(_tf32(x), _tf32(w), *rest))
        torch.matmul = lambda a, b: matmul(_tf32(a), _tf32(b))  # type: ignore[assignment]
        yield
    finally:
        for name, function in plain.items():
            setattr(functional, name, function)
        torch.matmul = matmul


def _tf32(x: torch.Tensor) -> torch.Tensor:
    """Round to nearest at 10 bits of fraction."""
    bits = x.contiguous().view(torch.int32)
    return (bits + (1 << TF32_BITS_OFF - 1) & ~((1 << TF32_BITS_OFF) - 1)).view(torch.float32)


def _compare(found: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Return relative RMS, the same over each channel's deviation from its mean, and the worst bin and number."""
    found, difference = found.double(), found.double() - truth
    cosine = torch.nn.functional.cosine_similarity(found, truth, dim=-1)
    return {
        "relative_rms": float(difference.pow(2).mean().sqrt() / truth.pow(2).mean().sqrt()),
        "relative_rms_of_deviations": float(
            difference.pow(2).mean().sqrt() / truth.std(dim=(0, 1)).pow(2).mean().sqrt()
        ),
        "lowest_cosine": float(cosine.min()),
        "largest_over_sd": float(difference.abs().max() / truth.std()),
        "n_not_finite": float((~found.isfinite()).sum()),
    }


if __name__ == "__main__":
    main()
