"""What judging costs: exact scores beside scikit-learn's, a hundred million bins, a whole yeast genome, the report.

    python benchmarks/evaluation.py                                        # scores alone
    python benchmarks/evaluation.py --run yeast.store/runs/adapter         # and every bin x every factor of a store
    python benchmarks/evaluation.py --run yeast.store/runs/adapter --motifs JASPAR2024_yeast.jaspar

The peer of the scores is scikit-learn: ``roc_auc_score`` and ``average_precision_score`` of the same bins, rounds
interleaved; the difference is the largest over random and tied scores. With ``--run`` a copy of the run is evaluated on
all chromosomes, as `tfbind evaluate` does it, and its page is opened in a headless chromium where there is one. CPU
seconds are those of the process. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from tfbind_store.metrics.ranking import score_binary

SHARE = 0.003
MANY = """
import resource, sys, time
import numpy as np
from tfbind_store.metrics.ranking import score_binary
rng, n = np.random.default_rng(0), int(sys.argv[1])
scores, labels = rng.standard_normal(n, dtype=np.float32), np.empty(n, dtype=np.float32)
for at in range(0, n, 1_000_000):
    labels[at : at + 1_000_000] = rng.random(min(n - at, 1_000_000), dtype=np.float32) < 0.003
begin = time.process_time()
score_binary(labels, scores)
print(time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def against_scikit_learn(n_bins: int, rounds: int) -> dict[str, float]:
    """Return the median ratio of CPU seconds, and the largest difference of the two areas."""
    rng = np.random.default_rng(0)
    labels = (rng.random(n_bins) < SHARE).astype(np.float32)
    exact = rng.normal(size=n_bins).astype(np.float32) + labels
    ratios, differences = [], []
    for scores in (exact, exact.round(1)):
        for _ in range(rounds):
            begin = time.process_time()
            own = score_binary(labels, scores)
            middle = time.process_time()
            theirs = roc_auc_score(labels, scores), average_precision_score(labels, scores)
            ratios.append((time.process_time() - middle) / (middle - begin))
            differences.append(max(abs(own.auroc - theirs[0]), abs(own.auprc - theirs[1])))
    return {"bins": n_bins, "times_faster": statistics.median(ratios), "largest_difference": max(differences)}


def many_bins(n_bins: int) -> dict[str, float]:
    """Return CPU seconds and peak GiB of a process that scores so many bins."""
    command = [sys.executable, "-c", MANY, str(n_bins)]
    seconds, gib = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    return {"bins": n_bins, "cpu_s": seconds, "peak_gib": gib}


def whole_store(run: Path, motifs: Path | None, threads: int) -> dict[str, Any]:
    """Evaluate a copy of a run on every chromosome and write its page."""
    import torch

    from tfbind_store.evaluation.evaluate import EvaluateConfig, evaluate_run
    from tfbind_store.reporting.report import write_report
    from tfbind_store.store.folder import Store

    torch.set_num_threads(threads)
    store = Store.open(run.resolve().parent.parent)
    copy = store.run_dir(f"{run.name}-benchmark")
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("report*", "*.parquet", "calibration*"))
    try:
        begin = time.perf_counter(), time.process_time()
        result = evaluate_run(store, copy.name, EvaluateConfig(chroms=store.tiling.chroms, motifs=motifs))
        wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        model = result.columns["scorer"] == "model"
        cells = int(result.columns["n_bins"][model].sum())
        page = write_report([copy]).page
        found = {
            "threads": threads,
            "wall_s": wall,
            "cpu_s": cpu,
            "bin_scores": cells,
            "rows": result.n_rows,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "page_mb": page.stat().st_size / 1e6,
        }
        return found | _interactive(page)
    finally:
        shutil.rmtree(copy)


def _interactive(page: Path) -> dict[str, float]:
    """Return after how many seconds a browser can use the page; nothing without a browser."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests import browser

    if browser.find() is None:
        return {}
    with tempfile.TemporaryDirectory() as profile, browser.Browser(Path(profile)) as shown:
        return {"interactive_s": min(shown.open(page.as_uri()) for _ in range(3))}


def main() -> None:
    """Measure what was asked for, print it, end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=int, default=1_000_000, help="for scikit-learn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=100_000_000)
    parser.add_argument("--run", type=Path, help="STORE/runs/NAME of an embedded store")
    parser.add_argument("--motifs", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="more of them wait for each other on a busy machine")
    asked = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "evaluation", "machine": platform.processor() or platform.machine()}
    result["scikit_learn"] = found = against_scikit_learn(asked.bins, asked.rounds)
    print(f"{found['times_faster']:.1f} times less CPU time than scikit-learn for {found['bins']:,} bins,")
    print(f"  largest difference {found['largest_difference']:.1g}")
    result["many"] = found = many_bins(asked.many)
    print(f"{found['bins']:,} bins: {found['cpu_s']:.1f} s of CPU, {found['peak_gib']:.2f} GiB at most")
    if asked.run:
        result["store"] = found = whole_store(asked.run, asked.motifs, asked.threads)
        print(f"{found['bin_scores']:,} bin scores beside their baselines: {found['wall_s']:.0f} s,")
        print(f"  {found['cpu_s']:.0f} s of CPU, {found['peak_gib']:.2f} GiB at most")
        print(f"page: {found['page_mb']:.1f} MB, usable after {found.get('interactive_s', float('nan')):.2f} s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
