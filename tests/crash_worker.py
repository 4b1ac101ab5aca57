"""A process that publishes the shards of a small array, to be killed: ``python crash_worker.py FOLDER SEED [CALL]``.

With CALL it kills itself before that call to the operating system; else it goes through the missing shards in an order
given by SEED until none is missing.
"""

import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.crash_disk import NAME, Killing, all_ok, open_small, rows_of
from tfbind_store.arrays.commit import claim_shard
from tfbind_store.arrays.layouts import read_layout
from tfbind_store.arrays.sharded import publish_shard
from tfbind_store.durable import FileSystem


def main(folder: str, seed: str, call: str = "") -> None:
    path = Path(folder)
    layout = read_layout(path / "w.zarr", path / "receipts", name=NAME)
    fs = Killing(int(call)) if call else FileSystem()
    order = list(range(layout.n_shards))
    random.Random(int(seed)).shuffle(order)
    for shard_id in order:
        if shard_id in open_small(layout, on_damage="exclude").receipts():
            continue
        with claim_shard(layout, shard_id):  # also without the claim: the race is what we try
            publish_shard(layout, shard_id, rows_of(layout, shard_id), all_ok(layout, shard_id), fs=fs)
        os.write(1, f"{shard_id}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
