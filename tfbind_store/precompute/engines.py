"""Who embeds shards: this process, Ray actors, or Slurm jobs.

All of them run `shard_work.embed_shards`, which is idempotent; engines only hand out shards and bring back receipts.
Workers write shards themselves and send no numbers. They make their embedder from a recipe, as a model cannot travel.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tfbind_store.arrays.receipts import Receipt
from tfbind_store.errors import DependencyError, EmbeddingError
from tfbind_store.precompute.embedder import WindowEmbedder
from tfbind_store.precompute.guardian import descendants, guarded, is_alive
from tfbind_store.precompute.plan import ShardWork
from tfbind_store.precompute.shard_work import WindowJob, embed_shards, generations, still_missing
from tfbind_store.precompute.shard_writer import Published
from tfbind_store.precompute.stopping import StopRequest, stop_requests
from tfbind_store.store.folder import Store

MAX_DEATHS = 4
"""Times that a shard's worker may die: a window that kills is given up after three."""
WATCH_SECONDS = 2.0
Progress = Callable[[int], object]


class Engine(Protocol):
    """Hands out shards."""

    def embed(
        self,
        job: WindowJob,
        works: Sequence[ShardWork],
        *,
        stop: StopRequest,
        on_windows: Progress,
        n_waiting: int,
    ) -> Iterator[Published]:
        """Embed all of `works`, in any order, and yield each as it is published."""
        ...


class SerialEngine:
    """Does all of it in this process."""

    def embed(
        self, job: WindowJob, works: Sequence[ShardWork], *, stop: StopRequest, on_windows: Progress, n_waiting: int
    ) -> Iterator[Published]:
        """Embed in this process."""
        yield from embed_shards(job, works, stop=stop, on_windows=on_windows, n_waiting=n_waiting)


@dataclass(frozen=True, kw_only=True)
class EmbedderRecipe:
    """How a worker makes its embedder."""

    factory: str = "tfbind_store.precompute.embedder:make_window_embedder"
    """``module:function``; called with `arguments`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> WindowEmbedder:
        """Return the embedder."""
        module, _, function = self.factory.partition(":")
        embedder: WindowEmbedder = getattr(importlib.import_module(module), function)(**self.arguments)
        return embedder


@dataclass(frozen=True)
class WorkerJob:
    """What a worker is told: enough to make a `WindowJob`, and who told it."""

    store_path: str
    array_name: str
    recipe: EmbedderRecipe
    n_waiting: int = 1
    driver_pid: int | None = None
    """Of a driver on the same machine: workers leave when it is gone."""

    def open(self) -> WindowJob:
        """Open the store and make the embedder, which must be the array's."""
        store, embedder = Store.open(self.store_path), self.recipe.make()
        layout = store.array(self.array_name, on_damage="exclude").layout
        fix = "start workers with the driver's own options"
        layout.spec.require_same(embedder.spec(store.meta.genome, store.grid), where=self.array_name, fix=fix)
        return WindowJob(store, embedder, layout)

    def embed(self, works: Sequence[ShardWork]) -> list[tuple[bytes, float]]:
        """Embed shards; return receipts as text with the seconds that writing took."""
        if self.driver_pid is not None:
            leave_with(self.driver_pid)
        with stop_requests() as stop:  # before preemption Slurm warns with USR2: the shard at hand is finished
            published = embed_shards(self.open(), works, stop=stop, n_waiting=self.n_waiting)
            return [(receipt.to_json(), seconds) for receipt, seconds in published]


def received(answers: Sequence[tuple[bytes, float]]) -> list[Published]:
    """Return what a worker sent."""
    return [Published(Receipt.from_json(text, where="worker"), seconds) for text, seconds in answers]


def leave_with(pid: int) -> None:
    """End this process soon after the process `pid` has ended: nobody waits for its work any more."""

    def watch() -> None:
        while is_alive(pid):
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)  # publishing is atomic: nothing can be torn

    threading.Thread(target=watch, daemon=True, name="leave-with-driver").start()


class RayEngine:
    """Ray Core actors, one embedder each.

    Parameters
    ----------
    recipe
        How actors make their embedder.
    workers
        Actors; default one per GPU, else one per core.
    gpus_per_worker
        Share of a GPU that each holds.
    address
        Of a running cluster; default: a cluster of its own, on localhost only, without dashboard.
    """

    def __init__(
        self, recipe: EmbedderRecipe, *, workers: int = 1, gpus_per_worker: float = 0, address: str | None = None
    ) -> None:
        self.recipe, self.workers, self.gpus_per_worker, self.address = recipe, workers, gpus_per_worker, address

    def embed(
        self, job: WindowJob, works: Sequence[ShardWork], *, stop: StopRequest, on_windows: Progress, n_waiting: int
    ) -> Iterator[Published]:
        """Embed with actors that take one shard at a time."""
        ray = _package("ray")
        local = {} if self.address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        if not self.address:
            local["num_cpus"] = self.workers
        before = set(descendants(os.getpid()))
        ray.init(address=self.address, log_to_driver=False, logging_level="error", **local)
        with contextlib.ExitStack() as ending:
            ending.callback(ray.shutdown)
            # a killed driver cannot shut its own cluster down, and the cluster's servers may notice late
            servers = [] if self.address else sorted(set(descendants(os.getpid())) - before)
            ending.enter_context(guarded(servers))
            task = WorkerJob(
                str(job.store.path.absolute()), job.layout.name, self.recipe, n_waiting,
                None if self.address else os.getpid(),
            )  # fmt: skip
            options = {
                "num_cpus": 1,
                "num_gpus": self.gpus_per_worker,
                "max_restarts": MAX_DEATHS * 4,
                "max_task_retries": MAX_DEATHS,
            }
            remote = ray.remote(**options)(_Actor)
            actors = [remote.remote(task) for _ in range(min(self.workers, len(works)))]
            yield from self._hand_out(ray, actors, works, stop, on_windows)

    @staticmethod
    def _hand_out(
        ray: Any, actors: list[Any], works: Sequence[ShardWork], stop: StopRequest, on_windows: Progress
    ) -> Iterator[Published]:
        waiting = list(works)
        running: dict[Any, Any] = {}
        while (waiting and not stop) or running:
            while waiting and actors and not stop:
                actor = actors.pop()
                running[actor.embed.remote(waiting.pop(0))] = actor
            done, _ = ray.wait(list(running), timeout=0.5)
            for answer in done:
                actors.append(running.pop(answer))
                try:
                    published = received(ray.get(answer))
                except ray.exceptions.RayActorError as error:
                    raise EmbeddingError(f"a worker died {MAX_DEATHS} times: {error}", where="ray") from error
                for each in published:
                    on_windows(int(each.receipt.provenance.get("n_computed", 0)))
                    yield each


class _Actor:
    """A Ray actor: one process, one embedder."""

    def __init__(self, task: WorkerJob) -> None:
        if task.driver_pid is not None:
            leave_with(task.driver_pid)
        self.job = task.open()
        self.n_waiting = task.n_waiting

    def embed(self, work: ShardWork) -> list[tuple[bytes, float]]:
        """Embed one shard."""
        published = embed_shards(self.job, [work], n_waiting=self.n_waiting)
        return [(receipt.to_json(), seconds) for receipt, seconds in published]


class SlurmEngine:
    """Slurm job arrays through submitit; ``cluster="local"`` runs the jobs as processes of this machine.

    Parameters
    ----------
    recipe
        How jobs make their embedder.
    workers
        Jobs of the array; shards are dealt out among them.
    cluster
        None finds Slurm; ``local`` for tests and single machines.
    parameters
        For submitit: ``timeout_min``, ``slurm_partition``, ``gpus_per_node``, ...
    """

    def __init__(
        self,
        recipe: EmbedderRecipe,
        *,
        workers: int = 1,
        cluster: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.recipe, self.workers, self.cluster = recipe, workers, cluster
        self.parameters = {"timeout_min": 24 * 60, **(parameters or {})}

    def embed(
        self, job: WindowJob, works: Sequence[ShardWork], *, stop: StopRequest, on_windows: Progress, n_waiting: int
    ) -> Iterator[Published]:
        """Submit the shards as an array of jobs; what jobs that died have left is submitted again."""
        submitit = _package("submitit")
        folder = job.store.path / "logs" / "slurm"
        executor = submitit.AutoExecutor(folder=str(folder.absolute()), cluster=self.cluster)
        executor.update_parameters(**self.parameters)
        pid = os.getpid() if executor.cluster in ("local", "debug") else None
        task = WorkerJob(str(job.store.path.absolute()), job.layout.name, self.recipe, n_waiting, pid)
        before, reasons = generations(job.layout, works), ["they were stopped"]
        for turn in range(MAX_DEATHS + 1):
            rest = [still_missing(job.layout, work, since=before[work.shard_id]) for work in works]
            left = [work for work in rest if work.compute or work.all_n]
            if not left or stop:
                return
            if turn == MAX_DEATHS:
                raise EmbeddingError(f"jobs failed {MAX_DEATHS} times: {reasons[-1]}", where=str(folder))
            parts = [part for k in range(self.workers) if (part := left[k :: self.workers])]
            jobs = executor.map_array(task.embed, parts)
            for answers in self._answers(jobs, stop):
                if isinstance(answers, BaseException):
                    reasons.append(str(answers).strip().splitlines()[-1])
                    continue
                for published in received(answers):
                    on_windows(int(published.receipt.provenance.get("n_computed", 0)))
                    yield published

    @staticmethod
    def _answers(jobs: list[Any], stop: StopRequest) -> Iterator[Any]:
        waiting = list(jobs)
        while waiting:
            if stop:
                for job in waiting:
                    job.cancel()
                return
            for job in [job for job in waiting if job.done()]:
                waiting.remove(job)
                error = job.exception()
                yield job.result() if error is None else error
            time.sleep(0.2)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = {"ray": "ray", "submitit": "slurm"}[name]
        fix = f"pip install 'tfbind-store[{extra}]', or use --engine serial"
        raise DependencyError(f"{name} is not installed", where=f"--engine {extra}", fix=fix) from error
