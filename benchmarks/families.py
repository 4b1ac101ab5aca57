"""Families of proteins the first time that they are asked for, beside aligning every pair that might be alike.

    python benchmarks/families.py PROTEINS.fa.gz                 # 1,613 human factors: about a minute of CPU
    python benchmarks/families.py PROTEINS.fa.gz --proteins 500

The families are found whole, in the order of a user's first selection by family. The peer aligns pairs in full, as
``identities_of`` does without a threshold: a sample of the
same pairs, times their number. For the sampled pairs both must agree on who is alike. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from tfbind_store.query.similarity import candidates, identities_of, joined, plain
from tfbind_store.textfiles import read_lines


def main() -> None:
    """Find families, align a sample, print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--proteins", type=int, default=0, help="so many of them, by seed; default: all")
    parser.add_argument("--identity", type=float, default=0.4)
    parser.add_argument("--sample", type=int, default=12_000, help="pairs that are aligned in full")
    args = parser.parse_args()
    sequences, rng = _sequences(args.fasta), np.random.default_rng(0)
    if args.proteins:
        sequences = [sequences[place] for place in rng.choice(len(sequences), args.proteins, replace=False)]
    begun = time.process_time()
    pairs = candidates(sequences, least=args.identity)
    family = joined(sequences, pairs, least=args.identity)
    spent = time.process_time() - begun
    sample = pairs[rng.choice(len(pairs), min(args.sample, len(pairs)), replace=False)]
    begun = time.process_time()
    identity = np.array(identities_of(sequences, sample))
    each = (time.process_time() - begun) / len(sample)
    alike = sample[identity >= args.identity]
    assert (family[alike[:, 0]] == family[alike[:, 1]]).all(), "a pair that is alike is in two families"
    result = {
        "proteins": len(sequences),
        "pairs_to_look_at": len(pairs),
        "families": len(set(family.tolist())),
        "cpu_s": round(spent, 1),
        "every_pair_aligned_cpu_s": round(each * len(pairs), 1),
        "times_less": round(each * len(pairs) / spent, 2),
        "sampled_pairs_alike": len(alike),
    }
    for key, value in result.items():
        print(f"{key:28s}{value:>12,}")
    print(json.dumps({"benchmark": "families", "cores": os.cpu_count(), **result}))


def _sequences(path: Path) -> list[str]:
    parts = "\n".join(line for _, line in read_lines(path)).split(">")[1:]
    return [plain("".join(part.splitlines()[1:])) for part in parts]


if __name__ == "__main__":
    main()
