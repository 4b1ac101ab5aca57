"""Whoever embeds, the bytes are the same; nobody is left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.precompute.small import N_WINDOWS, Watched, make_store
from tfbind_store.arrays.sharded import WindowState
from tfbind_store.errors import DependencyError, SpecError
from tfbind_store.precompute import engines
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute.engines import EmbedderRecipe, RayEngine, SerialEngine, SlurmEngine, WorkerJob
from tfbind_store.precompute.run import embed_windows

NAME = "embeddings/windows"
ROOT = Path(__file__).resolve().parents[2]
TOY = EmbedderRecipe(factory="tests.precompute.test_engines:make_watched")
DEADLY = EmbedderRecipe(factory="tests.precompute.test_engines:make_deadly")
POISON = 5


def make_watched(seconds: float = 0.0) -> Watched:
    return Watched(seconds=seconds)


def make_deadly() -> Watched:
    class Deadly(Watched):
        def embed(self, windows, codes, tiling):
            for window in windows:
                if window == POISON:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield from super().embed([window], codes, tiling)

    return Deadly()


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 2)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return make_store(tmp_path)


def outcome(store) -> tuple[dict[str, str], list[tuple]]:
    """Return hashes of all shards, and what the catalog says of them."""
    paths = sorted((store.path / "embeddings").rglob("c.*"))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    with store.reader() as catalog:
        return files, catalog.rows("SELECT * FROM data.shards ORDER BY shard_id")


class Shuffled(SerialEngine):
    """Hands the shards out in another order."""

    def embed(self, job, works, **options):
        return super().embed(job, [works[k] for k in (3, 0, 5, 1, 4, 2)], **options)


def make(engine: str, workers: int, recipe: EmbedderRecipe = TOY):
    if engine == "ray":
        pytest.importorskip("ray", reason="ray is not installed: pip install 'tfbind-store[ray]'")
        return RayEngine(recipe, workers=workers)
    if engine == "slurm":
        pytest.importorskip("submitit", reason="submitit is not installed: pip install 'tfbind-store[slurm]'")
        return SlurmEngine(recipe, workers=workers, cluster="local", parameters={"timeout_min": 5})
    return Shuffled()


@pytest.mark.parametrize(
    ("engine", "workers"),
    [
        ("shuffled", 1),
        *(pytest.param(e, n, marks=pytest.mark.slow) for e in ("ray", "slurm") for n in (1, 2)),
    ],
)
def test_every_engine_gives_the_same_bytes_and_the_same_catalog(store, tmp_path, engine, workers):
    report = embed_windows(store, Watched(), engine=make(engine, workers))
    assert report.is_complete
    (tmp_path / "clean").mkdir()
    clean = make_store(tmp_path / "clean")
    embed_windows(clean, Watched())
    assert outcome(store) == outcome(clean)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_a_window_that_kills_its_worker_is_recorded_and_the_rest_is_done_in_one_run(store, engine):
    report = embed_windows(store, Watched(), engine=make(engine, 1, DEADLY))
    assert [(f.row, f.reason) for f in report.failures] == [(POISON, "the process died 3 times while embedding it")]
    assert report.n_missing == 0
    array = store.array(NAME)
    assert sum(array.state(w) is WindowState.ok for w in range(N_WINDOWS)) == 9


DRIVER = """
    import sys
    from tests.precompute import test_engines as t
    from tfbind_store.precompute import run
    from tfbind_store.precompute.engines import EmbedderRecipe
    from tfbind_store.store.folder import Store
    run.WINDOWS_PER_SHARD = 2
    recipe = EmbedderRecipe(factory=t.TOY.factory, arguments={"seconds": 3.0})
    run.embed_windows(Store.open(sys.argv[1]), t.make_watched(), engine=t.make(sys.argv[2], 2, recipe))
"""


def marked_processes(mark: str) -> list[int]:
    """Return the processes whose environment holds `mark`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see processes")
@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_a_killed_driver_leaves_no_worker_behind_and_the_next_run_completes(store, engine):
    make(engine, 2)
    mark = f"TFBIND_TEST_MARK={store.path}"
    environment = {**os.environ, "TFBIND_TEST_MARK": str(store.path)}
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(store.path), engine]
    with subprocess.Popen(command, env=environment, stdout=-3, stderr=-3) as driver:
        deadline = time.monotonic() + 90
        while not list((store.path / "receipts").rglob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(marked_processes(mark)) > 1
        driver.kill()
    deadline = time.monotonic() + 60
    while marked_processes(mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert marked_processes(mark) == []
    assert embed_windows(store, Watched()).is_complete


def test_a_worker_with_another_model_is_refused(store):
    embed_windows(store, Watched(), loci=None)
    path = store.path / "embeddings" / "windows.zarr" / "zarr.json"
    job = WorkerJob(str(store.path), NAME, EmbedderRecipe(factory="tests.precompute.test_engines:make_other"))
    before = path.read_bytes()
    with pytest.raises(SpecError, match="identity"):
        job.open()
    assert path.read_bytes() == before


def make_other():
    class Other(Watched):
        def spec(self, genome_digest, grid):
            from dataclasses import replace

            return replace(super().spec(genome_digest, grid), identity={"class": "other"})

    return Other()


@pytest.mark.parametrize(("engine", "package"), [(RayEngine, "ray"), (SlurmEngine, "submitit")])
def test_an_engine_that_is_not_installed_says_how_to_get_it(store, monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=f"{package} is not installed") as caught:
        embed_windows(store, Watched(), engine=engine(TOY))
    assert "pip install" in caught.value.fix


def test_a_process_leaves_when_its_driver_has_gone():
    script = f"import time; from {engines.__name__} import leave_with; leave_with(2**22 - 3); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
