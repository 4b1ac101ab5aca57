"""Where the fast forward's time goes, and how far each stage is from the machine's own rate of products.

Called by ``trunk.py --stages``, for CPUs. A stage's operations are those that it really does (Cook-Toom in 8 products
for 20, half a pool, the distances that queries meet), so that its rate over that of one large product with packed
weights, measured beside it, says how much is lost to everything that is no product.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from enformer_pytorch import Enformer

from tfbind_store.precompute.fast_forward import FastTrunk, TowerLevel
from tfbind_store.precompute.packed import CookToom, PackedLinear
from tfbind_store.precompute.relative_attention import CPU_QUERIES, TransformerBlock
from tfbind_store.precompute.stretch import CPU_CHUNK_TOKENS

ROUNDS = 3
BASES_TIMES_CHANNELS = 60  # of the stem: 15 bases, 4 channels


def stages(model: Enformer, *, window_tokens: int, keep_tokens: int) -> dict[str, dict[str, dict[str, float]]]:
    """Print a table for float32 and one for bfloat16 and return them."""
    report = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        trunk = FastTrunk(model, dtype=dtype)
        machine = _machine_rate(dtype)
        rows = _tower(trunk) | _transformer(trunk, window_tokens, keep_tokens)
        whole = sum(row["seconds"] for row in rows.values())
        print(f"{name}: this machine multiplies {machine:.0f} GFLOP/s a thread; stages of a window in a long stretch")
        for stage, row in rows.items():
            row["of_machine"] = row["gflop"] / row["seconds"] / machine
            row["of_time"] = row["seconds"] / whole
            print(
                f"  {stage:14s} {row['seconds'] * 1e3:8.1f} ms {row['of_time']:6.1%} {row['gflop']:8.1f} GFLOP "
                f"{row['gflop'] / row['seconds']:6.0f} GFLOP/s, {row['of_machine']:.0%} of the machine's"
            )
        print(f"  {'window':14s} {whole * 1e3:8.1f} ms")
        report[name] = rows
    return report


def _machine_rate(dtype: torch.dtype) -> float:
    """Return GFLOP/s of one product of packed weights, large enough to be at its best."""
    rows, width = 4096, 768
    product, x = PackedLinear(torch.randn(width, width, dtype=dtype)), torch.randn(rows, width, dtype=dtype)
    return 2 * rows * width * width / _seconds(lambda: product(x), rounds=9) / 1e9


@torch.inference_mode()
def _tower(trunk: FastTrunk) -> dict[str, dict[str, float]]:
    """Time a chunk, level by level, and scale it to the 896 tokens that a window adds to a stretch."""
    tokens = CPU_CHUNK_TOKENS + 2 * trunk.geometry.halo_tokens
    share = 896 / CPU_CHUNK_TOKENS
    x = torch.randint(0, 4, (1, tokens * trunk.geometry.bp_per_token)).to(torch.uint8)
    width, n = trunk.stem.width, x.shape[1]
    gflop = n * width * (2 * BASES_TIMES_CHANNELS + 3 * width) / 1e9
    found = {"stem": {"seconds": share * _seconds(lambda: trunk.stem(x)), "gflop": share * gflop}}
    y = trunk.stem(x)
    for number, level in enumerate(trunk.levels, start=1):
        seconds = _seconds(lambda level=level, y=y: level(y))  # type: ignore[misc]
        found[f"tower {number}"] = {"seconds": share * seconds, "gflop": share * _level_gflop(level, y)}
        y = level(y)
    return found


def _level_gflop(level: TowerLevel, x: torch.Tensor) -> float:
    per_output = 8 / CookToom.TILE if level.fast is not None else 2 * level.half + 1
    return x.shape[1] * level.width * (2 * per_output * x.shape[2] + 3 * level.width) / 1e9


@torch.inference_mode()
def _transformer(trunk: FastTrunk, n: int, keep: int) -> dict[str, dict[str, float]]:
    if not trunk.blocks:
        return {}
    x = torch.randn(1, n, trunk.geometry.dim).to(trunk.dtype)
    first = (n - keep) // 2
    kept = slice(first, first + keep)
    block, repeats = trunk.blocks[0], len(trunk.blocks) - 1
    last = trunk.blocks[-1](x, kept)
    every = slice(0, n)
    return {
        f"{repeats} blocks": {
            "seconds": repeats * _seconds(lambda: block(x, every)), "gflop": repeats * _block_gflop(block, n, n)
        },
        "last block": {"seconds": _seconds(lambda: trunk.blocks[-1](x, kept)), "gflop": _block_gflop(block, n, keep)},
        "final": {
            "seconds": _seconds(lambda: trunk.pointwise(last)),
            "gflop": 4 * keep * trunk.geometry.dim**2 / 1e9,
        },
    }  # fmt: skip


def _block_gflop(block: TransformerBlock, n: int, queries: int) -> float:
    keys, values, dim = block.heads * block.key_dim, block.heads * block.value_dim, block.norm.normalized_shape[0]
    met = sum(
        min(CPU_QUERIES, queries - s) * (n + min(CPU_QUERIES, queries - s) - 1) for s in range(0, queries, CPU_QUERIES)
    )
    projections = n * dim * (keys + values) + queries * dim * (keys + values + 4 * dim)
    return 2 * (projections + queries * n * (keys + values) + met * keys) / 1e9


def _seconds(work: Callable[[], object], *, rounds: int = ROUNDS) -> float:
    """Return the median CPU time of some rounds, after one to warm up."""
    work()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)
