"""How much faster proteins are embedded in batches of like length than one at a time through fair-esm.

    python benchmarks/encoders.py                                   # 2,000 proteins: about 10 minutes on one core
    python benchmarks/encoders.py --proteins 200 --lengths human
    python benchmarks/encoders.py --device cuda --precisions float32,bfloat16,float16

The peer is fair-esm as its own README calls it and as the reference implementation does: one sequence at a time, the
batch converter, ``model(tokens, repr_layers=[last])`` in eval mode without gradients, only the first 1,022 residues of
a protein. Ours reads every residue; ``cpu_ratio_read_whole`` is over the proteins that both read whole. Lengths follow
those of all yeast proteins or of 1,613 human transcription factors; residues are drawn from their usual shares; the
model is an ESM-2 of the smallest published size with random weights, which cost what trained ones cost. Blocks of
proteins go through all variants in turn. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator

import numpy as np
import torch

from tfbind_store.factors import AMINO_ACIDS
from tfbind_store.precompute.composition import BACKGROUND
from tfbind_store.precompute.esm import LONGEST, EsmEmbedder, EsmOptions, random_esm2

LENGTHS = {  # every 20th of the sorted lengths
    "yeast": (16, 96, 125, 158, 197, 227, 263, 297, 328, 363, 399, 438, 475, 520, 569, 624, 697, 800, 946, 1216, 4910),
    "human": (76, 222, 270, 305, 339, 372, 402, 426, 451, 477, 504, 531, 561, 590, 626, 670, 722, 802, 943, 1243, 3969),
}
LAYERS, DIM, HEADS = 6, 320, 20


def main() -> None:
    """Run all variants block by block, print a table and one line of JSON."""
    args = arguments()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model, alphabet = random_esm2(LAYERS, DIM, HEADS, seed=0)
    model = model.to(device).eval()
    options = {f"batched {p}": EsmOptions(precision=p, device=args.device) for p in args.precisions.split(",")}
    options["one at a time, ours"] = EsmOptions(device=args.device, tokens_per_batch=1)
    variants = {name: EsmEmbedder(model, alphabet, choice) for name, choice in options.items()}
    names = ["one at a time, fair-esm", *variants]
    seconds = {name: [0.0, 0.0] for name in names}
    whole = dict.fromkeys(names, 0.0)  # CPU seconds of proteins that the peer reads whole
    worst = dict.fromkeys(names, 0.0)
    proteins = draw(args.proteins, args.lengths)
    for block in blocks(proteins, args.block):
        expected: list[np.ndarray] = []
        for name in names:
            cpu, wall = time.process_time(), time.perf_counter()
            if name in variants:
                found = [result.values for result in variants[name].embed(block)]
            else:
                found = expected = list(one_at_a_time(model, alphabet, block, device))
            used = time.process_time() - cpu
            seconds[name][0] += used
            whole[name] += used if len(block[0]) <= LONGEST else 0.0
            seconds[name][1] += time.perf_counter() - wall
            worst[name] = max(worst[name], difference(found, expected))
    report(args, proteins, seconds, whole, worst)


def blocks(proteins: list[str], size: int) -> Iterator[list[str]]:
    """Yield blocks, longest protein first; no block mixes proteins that the peer reads whole with others."""
    for group in ([p for p in proteins if len(p) <= LONGEST], [p for p in proteins if len(p) > LONGEST]):
        for place in range(0, len(group), size):
            yield sorted(group[place : place + size], key=len, reverse=True)


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
def one_at_a_time(model, alphabet, proteins: list[str], device: torch.device) -> Iterator[np.ndarray]:
    convert = alphabet.get_batch_converter()
    for protein in proteins:
        _, _, tokens = convert([("", protein[:LONGEST])])
        layers = model(tokens.to(device), repr_layers=[LAYERS])["representations"]
        yield layers[LAYERS][0, 1:-1].cpu().numpy()


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Return the relative root mean square error over the proteins that the peer reads whole."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if len(a) == len(b) < LONGEST]
    if not pairs:
        return 0.0
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)))


def report(
    args: argparse.Namespace,
    proteins: list[str],
    seconds: dict[str, list[float]],
    whole: dict[str, float],
    worst: dict[str, float],
) -> None:
    peer = "one at a time, fair-esm"
    peer_cpu, peer_wall = seconds[peer]
    rows = {
        name: {
            "cpu_seconds": round(cpu, 2),
            "wall_seconds": round(wall, 2),
            "cpu_ratio": round(peer_cpu / cpu, 2),
            "wall_ratio": round(peer_wall / wall, 2),
            "cpu_ratio_read_whole": round(whole[peer] / whole[name], 2),
            "relative_rmse": float(f"{worst[name]:.2g}"),
        }
        for name, (cpu, wall) in seconds.items()
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
