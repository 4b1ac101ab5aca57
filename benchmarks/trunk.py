"""How much faster the fast forward embeds a stretch of genome than enformer-pytorch's own, and how near it stays.

    python benchmarks/trunk.py                              # dim 384, depth 4, 8 windows: about 10 minutes
    python benchmarks/trunk.py --dim 1536 --depth 11 --windows 3 --rounds 1
    python benchmarks/trunk.py --window-tokens 32 --keep-tokens 32 --stride-tokens 400 --windows 64

The peer is ``enformer_pytorch.Enformer`` as a careful user calls it: eval mode, inference mode, one-hot input, one
window at a time, ``return_only_embeddings=True``. Rounds interleave all variants; a ratio is the median of the rounds'
ratios. CPU seconds are the process's own. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from enformer_pytorch import Enformer

from tfbind_store.precompute.enformer import random_trunk
from tfbind_store.precompute.fast_forward import FastTrunk
from tfbind_store.precompute.stretch import Run, embed_run

BIN_BP = 128


def main() -> None:
    """Parse the sizes, run the rounds, print a table and one line of JSON."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    model = random_trunk({"dim": args.dim, "depth": args.depth, "heads": 8, "dim_divisible_by": 16}, seed=0).model
    run, codes = _genome(args)
    variants = _variants(args, model, run, codes)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    errors: dict[str, tuple[float, float]] = {}
    for _ in range(args.rounds):
        peer: list[torch.Tensor] = []
        for name, windows in variants.items():
            cpu, wall = time.process_time(), time.perf_counter()
            found = [window.float() for window in windows()]
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
            if name == "peer":
                peer = found
            errors[name] = _errors(found, peer)
    report = {name: _row(seconds["peer"], seconds[name], errors[name], run.n_windows) for name in variants}
    for name, row in report.items():
        print(f"{name:24s}" + "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    conditions = {**vars(args), "machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    print(json.dumps({"benchmark": "trunk", "conditions": conditions, "variants": report}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--window-tokens", type=int, default=1536)
    parser.add_argument("--keep-tokens", type=int, default=896)
    parser.add_argument("--stride-tokens", type=int, default=896)
    parser.add_argument("--batch-windows", type=int, default=1)
    parser.add_argument("--variants", default="peer,fp32,fp32_same_blas,bf16", help="also: peer_bf16")
    return parser.parse_args()


def _genome(args: argparse.Namespace) -> tuple[Run, np.ndarray]:
    first = (args.window_tokens - args.keep_tokens) // 2
    run = Run(
        start_bp=0,
        n_windows=args.windows,
        window_bp=args.window_tokens * BIN_BP,
        stride_bp=args.stride_tokens * BIN_BP,
        keep=slice(first, first + args.keep_tokens),
    )
    length = (args.windows * args.stride_tokens + args.window_tokens + 512) * BIN_BP
    codes = np.random.default_rng(0).integers(0, 4, length).astype(np.uint8)
    codes[9000:12_000] = 4
    return run, codes


def _variants(
    args: argparse.Namespace, model: Enformer, run: Run, codes: np.ndarray
) -> dict[str, Callable[[], Iterator[torch.Tensor]]]:
    table = torch.zeros(6, 4)
    table[:4], table[5] = torch.eye(4), 0.25
    asked = args.variants.split(",")

    def plain(network: Enformer) -> Iterator[torch.Tensor]:
        dtype = next(network.parameters()).dtype
        for i in range(run.n_windows):
            start = i * run.stride_bp
            one_hot = table[torch.from_numpy(codes[start : start + run.window_bp]).long()].to(dtype)
            with torch.inference_mode():
                yield network(one_hot[None], return_only_embeddings=True)[0, run.keep]

    def fast(trunk: FastTrunk) -> Iterator[torch.Tensor]:
        return embed_run(trunk, run, lambda start, end: codes[start:end], batch_windows=args.batch_windows)

    model.set_target_length(-1)
    variants: dict[str, Callable[[], Iterator[torch.Tensor]]] = {"peer": lambda: plain(model)}
    if "peer_bf16" in asked:
        import copy

        half = copy.deepcopy(model).bfloat16()
        variants["peer_bf16"] = lambda: plain(half)
    for name, options in {
        "fp32": {},
        "fp32_same_blas": {"onednn": False},
        "bf16": {"dtype": torch.bfloat16},
    }.items():
        if name in asked:
            trunk = FastTrunk(model, **options)  # type: ignore[arg-type]
            variants[name] = lambda trunk=trunk: fast(trunk)  # type: ignore[misc]
    return variants


def _errors(found: list[torch.Tensor], peer: list[torch.Tensor]) -> tuple[float, float]:
    """Return the worst window's relative RMS and the largest difference anywhere."""
    pairs = list(zip(found, peer, strict=True))
    rms = [float((a - b).double().pow(2).mean().sqrt() / b.double().pow(2).mean().sqrt()) for a, b in pairs]
    return max(rms), max(float((a - b).abs().max()) for a, b in pairs)


def _row(
    peer: list[tuple[float, float]], own: list[tuple[float, float]], errors: tuple[float, float], windows: int
) -> dict[str, float]:
    return {
        "cpu_ratio": statistics.median(p[0] / o[0] for p, o in zip(peer, own, strict=True)),
        "wall_ratio": statistics.median(p[1] / o[1] for p, o in zip(peer, own, strict=True)),
        "cpu_s_per_window": statistics.median(o[0] for o in own) / windows,
        "relative_rms": errors[0],
        "max_difference": errors[1],
        "peak_rss_mib_so_far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
