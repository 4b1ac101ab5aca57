"""Several processes embed one store and are killed: nothing is lost, torn, called failed, or long computed twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tests.precompute.small import Watched, make_store
from tfbind_store.arrays.sharded import WindowState
from tfbind_store.keeping.verify import verify_store
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute.run import embed_windows
from tfbind_store.store.folder import Store

NAME = "embeddings/windows"
ROOT = Path(__file__).resolve().parents[2]
CHILD = """
    import sys
    from tests.precompute.small import Watched
    from tfbind_store.precompute import run
    from tfbind_store.store.folder import Store
    run.WINDOWS_PER_SHARD = 4
    embedder = Watched(seconds=float(sys.argv[2]))
    report = run.embed_windows(Store.open(sys.argv[1]), embedder)
    print(len(embedder.asked), report.is_complete)
"""


def start(store: Store, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(store.path), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def shards_of(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store.path / "embeddings").rglob("c.*"))}


@pytest.fixture
def stores(tmp_path, monkeypatch) -> tuple[Store, Store]:
    """A store with some thirty shards, and another of the same genome that was embedded without trouble."""
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
    (tmp_path / "clean").mkdir()
    clean = make_store(tmp_path / "clean", n_bp=60_000)
    embed_windows(clean, Watched())
    return make_store(tmp_path, n_bp=60_000), clean


def test_two_users_at_once_share_the_work(stores):
    store, clean = stores
    children = [start(store, 0.01) for _ in range(2)]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    n_asked = [int(out.split()[0]) for out, _ in outputs]
    n_compute = store.array(NAME).completeness().n_ok
    # each may have begun one shard that the other took, and looks at one window again
    assert n_compute <= sum(n_asked) <= n_compute + 2 * 5
    assert shards_of(store) == shards_of(clean)


def kill_loop(store: Store, n_rounds: int, seed: int) -> int:
    """Begin two processes and kill them at a random time, again and again; return how many windows were failed."""
    rng, n_kills = np.random.default_rng(seed), 0
    for _ in range(n_rounds):
        children = [start(store, 0.02) for _ in range(2)]
        time.sleep(1.0 + 1.2 * rng.random())
        for child in children:
            n_kills += child.poll() is None
            child.kill()
            child.communicate()
    return n_kills


@pytest.mark.slow
def test_racing_processes_killed_at_random_lose_nothing_and_blame_no_window(stores):
    store, clean = stores
    assert kill_loop(store, 12, seed=1) > 0
    assert embed_windows(store, Watched()).is_complete
    assert store.array(NAME).completeness().n_failed == 0
    assert shards_of(store) == shards_of(clean)
    assert verify_store(store, deep=True).problems == ()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR2, 143), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_preemption_ends_within_the_shard_with_its_status(stores, number, status):
    store, _ = stores
    command = [sys.executable, "-m", "tfbind_store", "embed", str(store.path), "windows", "--embedder", "toy"]
    slow = "import time, tfbind_store.precompute.toy as t; old = t.toy_columns\n"
    slow += "def columns(*a):\n time.sleep(0.05)\n return old(*a)\n"
    slow += "t.toy_columns = columns\nimport sys\nfrom tfbind_store.cli import main\nsys.argv = sys.argv[1:]\nmain()"
    command = [sys.executable, "-c", slow, "tfbind", *command[3:]]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        deadline = time.monotonic() + 60
        while not list((store.path / "receipts").rglob("*.attempt")) and time.monotonic() < deadline:
            time.sleep(0.02)
        started = time.monotonic()
        child.send_signal(number)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == status, errors
    assert time.monotonic() - started < 30
    assert b"run the same command again" in errors
    assert not list(store.path.rglob("*.tmp"))
    array = store.array(NAME)
    assert 0 < sum(array.state(w) is WindowState.ok for w in range(32)) < 32
