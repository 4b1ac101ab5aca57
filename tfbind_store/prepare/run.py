"""Do what a plan asks for and is not done yet; stop it at any time, the same command goes on."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfbind_store.durable import make_directory, sole_owner
from tfbind_store.errors import ConfigError, TfbindError
from tfbind_store.ingest.calls import SourceKey
from tfbind_store.ingest.retraction import prune, withdraw
from tfbind_store.prepare import doing
from tfbind_store.prepare.judge import Found, Verdict, judge, own_of, to_take_back, withdrawn
from tfbind_store.prepare.plan import Plan, Stage, read_plan
from tfbind_store.prepare.record import Done, Record, together
from tfbind_store.query.selection import Selection
from tfbind_store.store.folder import Store

_log = logging.getLogger(__name__)


class StageReport(NamedTuple):
    """What became of a stage."""

    stage: str
    state: str
    """``fresh``, ``done``, ``to do`` (of a dry run), ``taken back`` (the plan does not name it any more)."""
    why: str
    outcome: dict[str, Any]
    seconds: float


def prepare(plan: Plan | Path | str, *, dry_run: bool = False, offline: bool = False) -> list[StageReport]:
    """Bring a store to what a plan says.

    Parameters
    ----------
    plan
        Or the path of its file.
    dry_run
        Only say what would be done.
    offline
        Take downloads from the cache only.

    Returns
    -------
    A report on each stage, in the order of doing.

    Raises
    ------
    ConfigError
        If the plan is not valid, or the store was prepared by another plan.
    TfbindError
        Whatever a stage refuses, with its name in front; what was done before stays done.
    """
    plan = plan if isinstance(plan, Plan) else read_plan(plan)
    if dry_run:
        preparation = _Preparation(plan, _read_record(plan))
        return [preparation.told(verdict, "to do") for verdict in preparation.verdicts()] + preparation.leaving("to do")
    with _alone(plan):
        return _Preparation(plan, _read_record(plan)).run(offline=offline)


@contextlib.contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    """Keep a second preparation of the same store out; of a store that is still to be made, only one is made."""
    folder = plan.store / "locks"
    if not (plan.store / "store.json").exists():
        yield
        return
    make_directory(folder)
    with sole_owner(folder, doing="preparing this store"):
        yield


def _read_record(plan: Plan) -> Record:
    if not (plan.store / "store.json").exists():
        return Record(plan=plan.path.name)
    record = Record.read(Store.open(plan.store).prepared_path)
    if record.plan not in ("", plan.path.name):
        fix = "use that plan, or name another store in this one"
        raise ConfigError(f"the store was prepared by {record.plan}", where=str(plan.path), fix=fix)
    record.plan = plan.path.name
    return record


class _Preparation:
    """One run: the plan, and the record as it grows."""

    def __init__(self, plan: Plan, record: Record) -> None:
        self.plan, self.record = plan, record
        self.reports: list[StageReport] = []

    # looking --------------------------------------------------------------------------------------------------------

    def verdicts(self) -> list[Verdict]:
        """Look at all inputs and at the store."""
        found = self._found()
        fetched = self._fetched(found)
        own = {stage.id: own_of(stage, self.plan, self.record, fetched) for stage in self.plan.stages}
        return judge(self.plan, self.record, own, found)

    def _found(self) -> Found:
        downloads = {}
        for stage in self.plan.stages:
            done = self.record.stages.get(stage.id)
            if stage.kind == "fetch" and done is not None:
                with contextlib.suppress(TfbindError):
                    downloads[stage.id] = self.record.digest(Path(done.outcome["path"]))
        if not (self.plan.store / "store.json").exists():
            return Found(frozenset(), {}, downloads)
        store = Store.open(self.plan.store)
        with store.reader() as catalog:
            rows = catalog.rows("SELECT kind, sha256, options FROM data.sources")
        selections = {}
        for stage in self.plan.stages:
            if stage.kind == "select":
                with contextlib.suppress(TfbindError):
                    selections[stage.name] = str(Selection.open(store, stage.name).info["rows_sha256"])
        return Found({SourceKey(*map(str, row)) for row in rows}, selections, downloads)

    def _fetched(self, found: Found) -> dict[str, Path]:
        done = self.record.stages
        return {name.partition(" ")[2]: Path(done[name].outcome["path"]) for name in found.downloads}

    # doing ----------------------------------------------------------------------------------------------------------

    def run(self, *, offline: bool) -> list[StageReport]:
        """Do what is to be done."""
        known = dict(self.record.hashes)
        self._do_all([v for v in self.verdicts() if v.stage.kind == "fetch"], offline=offline)
        self._do_all([v for v in self.verdicts() if v.stage.kind == "init"], offline=offline)
        for name in withdrawn(self.plan, self.record):
            self._withdraw(name)
        rest = [v for v in self.verdicts() if v.stage.kind not in ("fetch", "init")]
        self._do_all([v for v in rest if v.stage.kind != "select"], offline=offline)
        prune(Store.open(self.plan.store))
        self._do_all([v for v in rest if v.stage.kind == "select"], offline=offline)
        if self.record.hashes != known:
            self._save()
        return self.reports

    def _do_all(self, verdicts: Sequence[Verdict], *, offline: bool) -> None:
        for place, verdict in enumerate(verdicts):
            if verdict.is_fresh:
                self.reports.append(self.told(verdict, "fresh"))
                continue
            _log.info("%s: %s", verdict.stage.id, verdict.why)
            begin = time.monotonic()
            try:
                self._do(verdict.stage, verdicts[place:], offline=offline)
            except TfbindError as error:
                error.what = f"{verdict.stage.id}: {error.what}"
                raise
            report = self.told(verdict, "done")._replace(seconds=round(time.monotonic() - begin, 3))
            self.reports.append(report)

    def _do(self, stage: Stage, pending: Sequence[Verdict], *, offline: bool) -> None:
        fetched = self._fetched(self._found())
        own = own_of(stage, self.plan, self.record, fetched)
        assert own is not None, "downloads come first"
        gone: list[str] = []
        if stage.kind == "fetch":
            outcome = doing.do_fetch(stage, self.plan, offline=offline)
        elif stage.kind == "init":
            outcome = doing.do_init(stage, self.plan, fetched)
        elif stage.kind == "select":
            outcome = self._select(stage)
        else:
            gone = to_take_back(stage, pending, self.record)
            old = together([self.record.stages[name].imported for name in gone])
            outcome = doing.do_import(stage, Store.open(self.plan.store), self.plan, fetched, old)
        # One write for both: whoever is killed here finds the old record and does the same again.
        for name in gone:
            self.record.stages.pop(name, None)
        upstream = {name: self.record.stages[name].key for name in stage.after if not name.startswith("fetch ")}
        said, imported, made = outcome
        self.record.stages[stage.id] = Done(own=own, upstream=upstream, outcome=said, imported=imported, made=made)
        self._save()

    def _select(self, stage: Stage) -> doing.Outcome:
        is_ours = stage.id in self.record.stages or stage.id in self.record.begun
        if is_ours or stage.name not in Store.open(self.plan.store).selections():
            self.record.begun.append(stage.id)
            self._save()
        outcome = doing.do_select(stage, Store.open(self.plan.store), is_ours=is_ours)
        self.record.begun = [name for name in self.record.begun if name != stage.id]
        return outcome

    def _withdraw(self, name: str) -> None:
        _log.info("%s: not in the plan any more", name)
        withdraw(Store.open(self.plan.store), self.record.stages[name].imported)
        del self.record.stages[name]
        self._save()
        self.reports.append(StageReport(name, "taken back", "not in the plan any more", {}, 0.0))

    def _save(self) -> None:
        if (self.plan.store / "store.json").exists():
            self.record.write(Store.open(self.plan.store).prepared_path)

    # telling --------------------------------------------------------------------------------------------------------

    def told(self, verdict: Verdict, state: str) -> StageReport:
        """Return the report on a stage."""
        done = self.record.stages.get(verdict.stage.id)
        outcome = dict(done.outcome) if done is not None else {}
        if verdict.is_fresh:
            return StageReport(verdict.stage.id, "fresh", "", outcome, 0.0)
        return StageReport(verdict.stage.id, state, verdict.why, {} if state == "to do" else outcome, 0.0)

    def leaving(self, state: str) -> list[StageReport]:
        """Return reports on the stages that the plan does not name any more."""
        why = "not in the plan any more"
        return [StageReport(name, state, why, {}, 0.0) for name in withdrawn(self.plan, self.record)]
