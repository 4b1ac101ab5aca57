"""How much faster the fast forward embeds a stretch of genome than enformer-pytorch's own, and how near it stays.

    python benchmarks/trunk.py                                              # dim 384, depth 4, 8 windows
    python benchmarks/trunk.py --dim 1536 --depth 11 --windows 3 --rounds 1
    python benchmarks/trunk.py --window-tokens 32 --keep-tokens 32 --stride-tokens 400 --windows 64 --batch-windows 16
    python benchmarks/trunk.py --growth 4,16,64                             # time per window, fast alone
    python benchmarks/trunk.py --memory --dim 1536 --depth 11               # peak of a process each
    python benchmarks/trunk.py --stages --dim 1536 --depth 11               # against the machine's own products
    python benchmarks/trunk.py --device cuda --dim 1536 --depth 11 --windows 24 --batch-windows 4 \\
        --variants compiled,peer_tf32,peer_bf16,fp32,tf32,bf16,fp16

The peer is ``enformer_pytorch.Enformer`` as a careful user calls it: eval mode, inference mode, one-hot input, as many
windows at a time as the fast forward, ``return_only_embeddings=True``; also compiled by ``torch.compile``, and cast by
``.bfloat16()``.
Errors are those against the peer in fp32, and, of the first window, of everybody against float64, the peer included.
On a GPU the peer's products and convolutions are in full float32; ``peer_tf32`` is the same model with both in TF32.
Rounds interleave all variants; a ratio is the median of the rounds' ratios. CPU seconds are the process's own, without
compiling; on a GPU wall time counts, results brought back to the host. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from enformer_pytorch import Enformer

from tfbind_store.precompute.fast_forward import FastTrunk
from tfbind_store.precompute.random_trunk import random_trunk
from tfbind_store.precompute.stretch import Run, embed_run

BIN_BP = 128
Windows = Callable[[], Iterator[torch.Tensor]]
Seconds = list[tuple[float, float]]


def main() -> None:
    """Parse the sizes, measure what was asked for, print a table and one line of JSON."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(_peak_mib(args))
        return
    if args.memory:
        report: object = _memory()
    elif args.growth:
        report = _growth(args)
    elif args.stages:
        from trunk_stages import stages

        report = stages(_model(args), window_tokens=args.window_tokens, keep_tokens=args.keep_tokens)
    else:
        report = _ratios(args)
    machine = platform.processor() or platform.machine() if args.device == "cpu" else torch.cuda.get_device_name()
    conditions = {**vars(args), "machine": machine, "torch": torch.__version__}
    print(json.dumps({"benchmark": "trunk", "conditions": conditions, "report": report}))


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
    parser.add_argument("--variants", default="compiled,peer_bf16,fp32,fp32_same_blas,bf16")
    parser.add_argument("--float64-windows", type=int, default=1, help="windows that float64 embeds too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--growth", metavar="N,N", help="time per window of runs of so many windows")
    parser.add_argument("--memory", action="store_true", help="peak memory, each variant in a process of its own")
    parser.add_argument("--stages", action="store_true", help="time of each stage against the machine's products")
    parser.add_argument("--peak-of", metavar="VARIANT", help=argparse.SUPPRESS)
    return parser.parse_args()


def _ratios(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    run, codes = _genome(args)
    model = _model(args)
    truth = _truth(model, run, codes, args.float64_windows)
    variants = _variants(args.variants.split(","), model, run, codes, args.batch_windows)
    if args.device != "cpu":
        for windows in variants.values():  # kernels are chosen, memory taken
            for _ in windows():
                pass
    seconds: dict[str, Seconds] = {name: [] for name in variants}
    errors: dict[str, dict[str, float]] = {}
    peaks: dict[str, float] = {}
    for _ in range(args.rounds):
        plain: list[torch.Tensor] = []
        for name, windows in variants.items():
            if args.device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            cpu, wall = time.process_time(), time.perf_counter()
            found = [window.float().cpu() for window in windows()]
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
            if args.device != "cpu":
                peaks[name] = torch.cuda.max_memory_allocated() / 2**20
            plain = found if name == "peer" else plain
            errors[name] = _errors(found, plain) | _errors_to_float64(found, truth)
    report = {name: _row(seconds, name, errors[name], len(run.starts_bp)) for name in variants}
    for name, peak in peaks.items():
        report[name]["gpu_peak_mib"] = peak
    for name, row in report.items():
        print(f"{name:16s}" + "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    return report


def _model(args: argparse.Namespace) -> Enformer:
    architecture = {"dim": args.dim, "depth": args.depth, "heads": 8, "dim_divisible_by": 16}
    model: Enformer = random_trunk(architecture, seed=0).model
    return model.to(args.device)


def _genome(args: argparse.Namespace) -> tuple[Run, np.ndarray]:
    first = (args.window_tokens - args.keep_tokens) // 2
    run = Run.evenly(
        start_bp=0,
        n_windows=args.windows,
        window_bp=args.window_tokens * BIN_BP,
        stride_bp=args.stride_tokens * BIN_BP,
        keep=slice(first, first + args.keep_tokens),
    )
    length = run.starts_bp[-1] + run.window_bp
    codes = np.random.default_rng(0).integers(0, 4, length).astype(np.uint8)
    codes[9000:12_000] = 4
    return run, codes


def _read(codes: np.ndarray) -> Callable[[int, int], np.ndarray]:
    """Read `codes`; 5 beyond both ends."""

    def read(start: int, end: int) -> np.ndarray:
        inside = codes[max(start, 0) : max(end, 0)]
        return np.pad(inside, (max(-start, 0), max(end - len(codes), 0)), constant_values=5)

    return read


def _plain(
    network: Callable[..., torch.Tensor],
    run: Run,
    codes: np.ndarray,
    dtype: torch.dtype,
    batch_windows: int,
    device: torch.device,
    *,
    tf32: bool = False,
) -> Windows:
    table = torch.zeros(6, 4)
    table[:4], table[5] = torch.eye(4), 0.25
    table = table.to(device, dtype)

    def windows() -> Iterator[torch.Tensor]:
        for first in range(0, len(run.starts_bp), batch_windows):
            starts = run.starts_bp[first : first + batch_windows]
            batch = np.stack([codes[start : start + run.window_bp] for start in starts])
            with torch.inference_mode(), _tf32(tf32):
                found = network(table[torch.from_numpy(batch).to(device).long()], return_only_embeddings=True)
                kept = found[:, run.keep]
            yield from kept

    return windows


@contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Let a GPU round the factors of products and of convolutions, or neither (torch's default: the latter)."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = wanted
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


def _compiled(model: Enformer) -> Callable[..., torch.Tensor]:
    """Compile the trunk, and pay for it here."""
    trunk = torch.compile(model._trunk)

    def network(one_hot: torch.Tensor, **_: object) -> torch.Tensor:
        found: torch.Tensor = trunk(one_hot)
        return found

    return network


def _variants(asked: list[str], model: Enformer, run: Run, codes: np.ndarray, batch_windows: int) -> dict[str, Windows]:
    model.set_target_length(-1)
    device = next(model.parameters()).device
    variants = {"peer": _plain(model, run, codes, torch.float32, batch_windows, device)}
    if "compiled" in asked:
        compiled = _plain(_compiled(model), run, codes, torch.float32, batch_windows, device)
        next(compiled())
        variants["compiled"] = compiled
    if "peer_tf32" in asked:
        variants["peer_tf32"] = _plain(model, run, codes, torch.float32, batch_windows, device, tf32=True)
    if "peer_bf16" in asked:
        half = copy.deepcopy(model).bfloat16()
        variants["peer_bf16"] = _plain(half, run, codes, torch.bfloat16, batch_windows, device)
    for name, options in {
        "fp32": {},
        "fp32_same_blas": {"onednn": False},
        "tf32": {"tf32": True},
        "fp16": {"dtype": torch.float16},
        "bf16": {"dtype": torch.bfloat16},
    }.items():
        if name in asked:
            trunk = FastTrunk(model, **options)  # type: ignore[arg-type]
            variants[name] = lambda trunk=trunk: embed_run(trunk, run, _read(codes), batch_windows=batch_windows)  # type: ignore[misc]
    return variants


def _errors(found: list[torch.Tensor], peer: list[torch.Tensor]) -> dict[str, float]:
    """Return the relative RMS of the worst window and of the worst bin, and the largest difference of two numbers."""
    pairs = [(a.double() - b.double(), b.double()) for a, b in zip(found, peer, strict=True)]
    return {
        "relative_rms": max(float(off.pow(2).mean().sqrt() / b.pow(2).mean().sqrt()) for off, b in pairs),
        "worst_bin_rms": max(float((off.pow(2).mean(1) / b.pow(2).mean(1)).max().sqrt()) for off, b in pairs),
        "max_difference": max(float(off.abs().max()) for off, _ in pairs),
    }


def _truth(model: Enformer, run: Run, codes: np.ndarray, n_windows: int) -> list[torch.Tensor]:
    """Return the first windows in float64 (position features stay float32: they are part of the trunk)."""
    if not n_windows:
        return []
    trunk = FastTrunk(model.double(), dtype=torch.float64, onednn=False)
    first = dataclasses.replace(run, starts_bp=run.starts_bp[:n_windows])
    windows = [window.to("cpu", copy=True) for window in embed_run(trunk, first, _read(codes))]
    model.float()
    return windows


def _errors_to_float64(found: list[torch.Tensor], truth: list[torch.Tensor]) -> dict[str, float]:
    off = _errors(found[: len(truth)], truth) if truth else {}
    return {f"{name}_to_float64": off[name] for name in ("relative_rms", "worst_bin_rms") if off}


def _row(seconds: dict[str, Seconds], name: str, errors: dict[str, float], windows: int) -> dict[str, float]:
    """Return a variant's ratios to every peer, its time and its errors."""
    own = seconds[name]
    row = {
        "cpu_ratio": _ratio(seconds["peer"], own, 0),
        "wall_ratio": _ratio(seconds["peer"], own, 1),
        "wall_s_per_window": statistics.median(wall for _, wall in own) / windows,
        "cpu_s_per_window": statistics.median(cpu for cpu, _ in own) / windows,
        **errors,
    }
    others = {
        f"cpu_ratio_to_{peer}": _ratio(seconds[peer], own, 0) for peer in ("compiled", "peer_bf16") if peer in seconds
    }
    others |= {
        f"wall_ratio_to_{peer}": _ratio(seconds[peer], own, 1)
        for peer in ("compiled", "peer_tf32", "peer_bf16")
        if peer in seconds
    }
    return row | others


def _ratio(peer: Seconds, own: Seconds, clock: int) -> float:
    return statistics.median(p[clock] / o[clock] for p, o in zip(peer, own, strict=True))


def _growth(args: argparse.Namespace) -> dict[str, float]:
    """Return CPU seconds per window of runs of several lengths, the weights laid out before."""
    trunk, report = FastTrunk(_model(args)), {}
    for n in [1, *map(int, args.growth.split(","))]:  # the first one warms up
        args.windows = n
        run, codes = _genome(args)
        cpu = time.process_time()
        for _ in embed_run(trunk, run, _read(codes), batch_windows=args.batch_windows):
            pass
        report[str(n)] = (time.process_time() - cpu) / n
        print(f"{n:4d} windows: {report[str(n)]:.3f} CPU s a window")
    return report


def _memory() -> dict[str, float]:
    """Return each variant's peak memory in MiB, and that of the model at rest."""
    command = [sys.executable, *sys.argv]
    peaks = {
        name: float(subprocess.run([*command, "--peak-of", name], check=True, capture_output=True, text=True).stdout)
        for name in ("weights", "peer", "fp32", "bf16")
    }
    for name, peak in peaks.items():
        print(f"{name:8s} {peak:8.0f} MiB, {peak / peaks['peer']:.0%} of the peer's")
    return peaks


def _peak_mib(args: argparse.Namespace) -> float:
    """Embed the windows by one variant and return the process's largest resident size.

    The figure is the kernel's own for this program: that of ``getrusage`` begins with the size of the parent.
    """
    model, (run, codes) = _model(args), _genome(args)
    if args.peak_of != "weights":
        *_, windows = _variants([args.peak_of], model, run, codes, args.batch_windows).values()
        for _ in windows():
            pass
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
