"""Training steps of heads from a store against the reference with its disk cache hit; validation; memory.

    python -m venv PEER && PEER/bin/pip install tf-bind-transformer==0.0.118 pyBigWig pybedtools
    OMP_NUM_THREADS=1 python benchmarks/heads.py --peer PEER/bin/python              # about 8 minutes, 7 GiB
    python benchmarks/heads.py --parts validation,memory                             # without the peer
    python benchmarks/heads.py --parts steps,validation --device cuda                # ours alone, on a GPU

Steps: forward, backward and AdamW on whole windows, from where the embeddings lie on disk; reading them is part of the
step. The peer runs in a process of its own and takes turns with ours, so that both see the same machine; its trunk
costs nothing, each step is a cache hit. ``model`` is `AdapterModel` on stored embeddings: the peer's arithmetic, both
directions of attention. ``filip`` is the head for stored bins (residues do not attend to bins). ``dense`` is
``adapter`` as `tfbind train` has it by default: the bins of four windows against 16 factors, 64 samples a step. Reading
is what an ``adapter`` step spends before its first product. Without the peer, ratios are to ``model``; on a GPU wall
time counts, each step waited for. Validation: 100,000 cells, 1,000 bins against 100 factors.
Memory: the peak of a short training on stores of 1 and 20 GB, whose embeddings are holes in files. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from heads_store import SELECTION, invented_store

from tfbind_store import freed_memory
from tfbind_store.adapter_model import AdapterModel
from tfbind_store.feeding.feed import PairSource, choose_arrays
from tfbind_store.heads import Geometry, Head, make_head
from tfbind_store.learning.optimiser import adamw, trainable
from tfbind_store.store.folder import Store

SMALL = {"dna_dim": 384, "n_bins": 128, "protein_dim": 512, "residues": 128, "context_dim": 256}
FULL = {"dna_dim": 3072, "n_bins": 896, "protein_dim": 1280, "residues": 512, "context_dim": 768}
CASES: dict[str, dict[str, int]] = {
    "small": {**SMALL, "batch": 2, "factors": 8},
    "small, factors repeat": {**SMALL, "batch": 8, "factors": 2},
    "full": {**FULL, "batch": 1, "factors": 4},
}
WINDOWS = 6
VARIANTS = ("model", "filip", "adapter", "dense")
DENSE_WINDOWS, DENSE_FACTORS = 4, 16
"""Of a step of ``dense``: 512 bins of 128-bin windows against 16 experiments, as `tfbind train` reads them."""
STEPS_A_TURN = {"small": 8, "small, factors repeat": 4, "full": 1}
MEMORY_CHILD = """
import json, sys, threading, time
from pathlib import Path
from tfbind_store.store.folder import Store
from tfbind_store.training.train import TrainConfig, train_head
def status():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024**2 for line in lines if line.endswith(" kB")}
own = [0.0]
def watch():
    while True:
        own[0] = max(own[0], status()["RssAnon"])
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()
config = TrainConfig(steps=60, validate_every=60, pairs_per_step=4, max_valid_bins=1792, device="cpu")
train_head(Store.open(Path(sys.argv[1])), sys.argv[2], config, "run", overwrite=True)
print(json.dumps({"peak_gib": status()["VmHWM"], "own_gib": own[0]}))
"""


class Step(NamedTuple):
    """What one step took, in seconds."""

    cpu: float
    wall: float
    reading_cpu: float = 0.0


class Peer:
    """The reference in its own environment."""

    def __init__(self, python: Path, case: dict[str, int], cache: Path, threads: int) -> None:
        said = json.dumps({**case, "windows": WINDOWS, "cache": str(cache), "threads": threads})
        command = [str(python), str(Path(__file__).with_name("heads_peer.py")), said]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def step(self) -> Step:
        """Make one step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise SystemExit(f"the peer ended:\n{self.process.stderr.read()[-2000:]}")
        found = json.loads(line)
        return Step(found["cpu"], found["wall"])

    def close(self) -> None:
        """End it."""
        self.process.communicate()


class Ours:
    """One of our heads, from a store."""

    def __init__(self, store: Store, variant: str, case: dict[str, int], device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.variant, self.device = case, variant, device
        self.source = PairSource(store, choose_arrays(store), device)
        self.windows = store.array("embeddings/windows")
        geometry = Geometry(case["dna_dim"], case["protein_dim"], case["context_dim"])
        self.model: AdapterModel | Head
        if variant == "model":
            names = dict(zip(("dna_embed_dim", "aa_embed_dim", "contextual_embed_dim"), geometry, strict=True))
            self.model = AdapterModel(**names, binary_target=True)
        else:
            self.model = make_head("adapter" if variant == "dense" else variant, geometry, {"dropout": 0.0})
        self.model.to(device)
        self.optimizer = adamw(self.model, trainable(self.model), lr=3e-4, weight_decay=0.1)
        self.rng = np.random.default_rng(1)
        self.number = 0

    @property
    def n_samples(self) -> int:
        """Windows with a factor each, in a step."""
        return DENSE_WINDOWS * DENSE_FACTORS if self.variant == "dense" else self.case["batch"]

    def step(self) -> Step:
        """Read, forward, backward, update."""
        cpu, wall = time.process_time(), time.perf_counter()
        is_dense = self.variant == "dense"
        batch, n_bins = DENSE_WINDOWS if is_dense else self.case["batch"], self.case["n_bins"]
        rows = self.rng.integers(0, WINDOWS, batch)
        own = (np.arange(DENSE_FACTORS if is_dense else batch) + self.number) % self.case["factors"]
        dna = torch.from_numpy(np.ascontiguousarray(self.windows.gather_bins(rows * n_bins, n_bins)))
        dna = dna.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else dna
        inputs = self.source.inputs(own, own % 2)._replace(dna=dna.view(batch, n_bins, -1))
        reading = time.process_time() - cpu
        target = torch.from_numpy(own % 2).float().to(self.device)
        if isinstance(self.model, AdapterModel):
            loss = self.model(
                seq_embed=inputs.dna, aa_embed=inputs.protein[inputs.factor_index].float(),
                aa_mask=inputs.mask[inputs.factor_index], contextual_embed=inputs.context[inputs.context_index],
                target=target,
            )  # fmt: skip
        elif is_dense:
            logits = self.model.score_pairs(inputs.dna.flatten(0, 1), self.model.encode(inputs))
            loss = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits))
        else:
            logits = self.model(inputs)
            loss = F.binary_cross_entropy_with_logits(logits, target.unsqueeze(1).expand_as(logits))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.number += 1
        assert bool(loss.isfinite())
        return Step(time.process_time() - cpu, time.perf_counter() - wall, reading)


@freed_memory.kept()  # as `tfbind train` does; the peer is in another process
def steps(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Let the peer and ours make steps in turns, and compare medians."""
    case = CASES[name]
    widths = {key: case[key] for key in SMALL}
    store = invented_store(folder / f"{name}.store", n_windows=WINDOWS, n_factors=case["factors"], **widths)
    peer = Peer(args.peer, case, folder / f"{name}.cache", args.threads) if args.peer else None
    makers: dict[str, Callable[[], Step]] = {"reference": peer.step} if peer else {}
    ours = {variant: Ours(store, variant, case, torch.device(args.device)) for variant in VARIANTS}
    makers |= {variant: one.step for variant, one in ours.items()}
    against = next(iter(makers), "model")
    samples = {"reference": case["batch"], **{variant: one.n_samples for variant, one in ours.items()}}
    taken: dict[str, list[Step]] = {variant: [] for variant in makers}
    for number in range(args.rounds + 1):
        for variant, make in makers.items():
            # light steps more often, so that all windows are warm
            often = WINDOWS if variant in ("adapter", "dense") else 1
            found = [make() for _ in range(often * STEPS_A_TURN[name])]
            taken[variant] += found if number else []  # the first round warms up
    if peer:
        peer.close()
    medians = {
        variant: {
            "cpu_s": statistics.median(one.cpu for one in found) / samples[variant],
            "wall_s": statistics.median(one.wall for one in found) / samples[variant],
            "steps": len(found),
        }
        for variant, found in taken.items()
    }
    reading = statistics.median(one.reading_cpu / one.cpu for one in taken["adapter"])
    ratios = {variant: medians[against]["cpu_s"] / medians[variant]["cpu_s"] for variant in VARIANTS}
    walls = {variant: medians[against]["wall_s"] / medians[variant]["wall_s"] for variant in VARIANTS}
    print(f"{name}: {case}, ratios to {against}")
    for variant, found in medians.items():
        times = "" if variant == against else f"{ratios[variant]:8.2f} x CPU{walls[variant]:8.2f} x wall"
        print(f"  {variant:10}{found['cpu_s'] * 1e3:10.1f} ms CPU{found['wall_s'] * 1e3:10.1f} ms wall a sample{times}")
    print(f"  reading is {reading:.1%} of an adapter step")
    return {"per_sample": medians, "cpu_ratio": ratios, "wall_ratio": walls, "reading_share": reading}


def validation(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Score 100,000 cells by `two_tower` and by `filip`, in turns."""
    case = {**SMALL, "factors": 100}
    widths = {key: case[key] for key in SMALL}
    store = invented_store(folder / "validation.store", n_windows=WINDOWS, n_factors=100, **widths)
    device = torch.device(args.device)
    source = PairSource(store, choose_arrays(store), device)
    geometry = Geometry(case["dna_dim"], case["protein_dim"], case["context_dim"])
    heads = {name: make_head(name, geometry).eval().to(device) for name in ("filip", "two_tower")}
    bins, factors = store.array("embeddings/windows"), np.arange(100)
    taken: dict[str, list[Step]] = {name: [] for name in heads}
    for _ in range(args.rounds):
        for name, head in heads.items():
            cpu, wall = time.process_time(), time.perf_counter()
            with torch.inference_mode():
                dna = torch.from_numpy(bins.gather_bins(np.arange(1000), 1)).view(1000, -1).to(device)
                scores = head.score_pairs(dna, source.encode(head, factors, factors % 2)).cpu()
            assert scores.shape == (1000, 100)
            taken[name].append(Step(time.process_time() - cpu, time.perf_counter() - wall))
    cpu_s = {name: statistics.median(one.cpu for one in found) for name, found in taken.items()}
    wall_s = {name: statistics.median(one.wall for one in found) for name, found in taken.items()}
    ratio, wall_ratio = (found["filip"] / found["two_tower"] for found in (cpu_s, wall_s))
    print(
        f"validation of 100,000 rows: filip {cpu_s['filip']:.2f} s, two_tower {cpu_s['two_tower']:.3f} s: {ratio:.0f} x"
        f" CPU, {wall_ratio:.0f} x wall"
    )
    return {"cpu_s": cpu_s, "wall_s": wall_s, "cpu_ratio": ratio, "wall_ratio": wall_ratio}


def memory(folder: Path) -> dict[str, Any]:
    """Train on stores of 1 and 20 GB, each in a process of its own."""
    found = {}
    for gigabytes, n_windows in ((1, 180), (20, 3640)):
        place = folder / str(gigabytes)
        place.mkdir()
        store = invented_store(
            place / "m.store", n_windows=n_windows, n_factors=4, is_sparse=True,
            **{key: FULL[key] for key in SMALL},
        )  # fmt: skip
        command = [sys.executable, "-c", MEMORY_CHILD, str(store.path), SELECTION]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found[f"{gigabytes} GB"] = json.loads(done.stdout.splitlines()[-1])
        print(f"training on {gigabytes} GB: {found[f'{gigabytes} GB']}")
    growth = {key: found["20 GB"][key] / found["1 GB"][key] for key in ("peak_gib", "own_gib")}
    return {**found, "growth": growth}


def main() -> None:
    """Run the parts and print one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", type=Path, help="Python of an environment with tf-bind-transformer 0.0.118")
    parser.add_argument("--device", default="cpu", help="of ours")
    parser.add_argument("--parts", default="steps,validation,memory")
    parser.add_argument("--cases", default=";".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = args.parts.split(",")
    said: dict[str, Any] = {
        "benchmark": "heads", "threads": args.threads, "torch": torch.__version__, "device": args.device,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if "steps" in parts:
            said["steps"] = {name: steps(name, args, folder) for name in args.cases.split(";")}
        if "validation" in parts:
            said["validation"] = validation(args, folder)
        if "memory" in parts:
            said["memory"] = memory(folder)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
