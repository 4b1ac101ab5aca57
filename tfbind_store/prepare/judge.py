"""Which stages are to be done, and why: pure, from the plan, the record, and what is found in the store.

A stage is done again if its own options or inputs changed, if what it made is gone, or if a stage that it stands on is.
Taking back what a stage brought in can take others along: of files that correct each other all are read again, in
order; a peak file whose rows were partly there already is read again when those may have gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfbind_store.ingest.calls import SourceKey
from tfbind_store.prepare.plan import IN_ORDER, Plan, Stage, fetched_name
from tfbind_store.prepare.record import Done, Record

RETRACTED = ("proteins", "peaks", "experiments", "biotypes", "blacklist", "loci")
"""Kinds whose rows can be taken back."""


@dataclass(frozen=True)
class Found:
    """What is in the store."""

    sources: Set[SourceKey]
    selections: Mapping[str, str]
    """sha256 of the rows of each selection."""
    downloads: Mapping[str, str]
    """sha256 of each download that is there, by its stage's id."""


@dataclass(frozen=True)
class Verdict:
    """What is to become of a stage."""

    stage: Stage
    why: str
    """Empty where it is fresh."""

    @property
    def is_fresh(self) -> bool:
        """Whether nothing is to be done."""
        return not self.why


def judge(plan: Plan, record: Record, own: Mapping[str, Mapping[str, Any] | None], found: Found) -> list[Verdict]:
    """Return a verdict on each stage, in order.

    Parameters
    ----------
    own
        What each stage says of itself now, by id: `Done.own`; None where an input is still to be fetched.
    """
    why: dict[str, str] = {}
    for stage in plan.stages:
        if reason := _itself(stage, record.stages.get(stage.id), own[stage.id], found):
            why[stage.id] = reason
    while True:
        before = len(why)
        _follow(plan, record, why)
        for stage in plan.stages:
            if stage.id not in why and (reason := _taken_along(stage, plan, record, why)):
                why[stage.id] = reason
        if len(why) == before:
            return [Verdict(stage, why.get(stage.id, "")) for stage in plan.stages]


def _itself(stage: Stage, done: Done | None, own: Mapping[str, Any] | None, found: Found) -> str:
    if own is None:
        return "an input is still to be fetched"
    if done is None:
        return "new"
    if done.own != own:
        return _difference(done.own, own)
    if stage.kind in RETRACTED and not set(done.imported.sources) <= found.sources:
        return "its rows are not in the catalog any more"
    if stage.kind == "fetch" and found.downloads.get(stage.id) != done.made:
        return "the download is not there any more"
    if stage.kind == "select" and found.selections.get(stage.name) != done.made:
        return "the selection is not the one that was made"
    return ""


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if old["options"] != new["options"]:
        keys = sorted(old["options"].keys() | new["options"].keys())
        changed = [key for key in keys if old["options"].get(key) != new["options"].get(key)]
        return f"changed in the plan: {', '.join(changed)}"
    names = sorted(old["inputs"].keys() | new["inputs"].keys())
    changed = [key for key in names if old["inputs"].get(key) != new["inputs"].get(key)]
    return f"changed input: {', '.join(changed)}"


def _follow(plan: Plan, record: Record, why: dict[str, str]) -> None:
    """Mark what stands on a stage that is to be done, or that was done again since."""
    for stage in plan.stages:
        done = record.stages.get(stage.id)
        if stage.id in why or done is None:
            continue
        redone = [name for name in stage.after if name in why and not name.startswith("fetch ")]
        wanted = {name for name in stage.after if not name.startswith("fetch ")}
        gone = sorted(done.upstream.keys() - wanted)
        moved = [n for n in wanted if n in record.stages and done.upstream.get(n) != record.stages[n].key]
        if redone or gone or moved:
            why[stage.id] = f"after {', '.join(redone or sorted(moved))}" if redone or moved else f"without {gone[0]}"


def withdrawn(plan: Plan, record: Record) -> list[str]:
    """Return the ids of stages that were done and that the plan does not name any more; only what can be taken back."""
    named = {stage.id for stage in plan.stages}
    return [name for name in record.stages if name not in named and name.split(" ", 1)[0] in RETRACTED]


def _taken_along(stage: Stage, plan: Plan, record: Record, why: Mapping[str, str]) -> str:
    """Return why a fresh stage loses rows when others are taken back."""
    done = record.stages.get(stage.id)
    if done is None:
        return ""
    leaving = {name for name in (*why, *withdrawn(plan, record)) if name in record.stages}
    if any(not set(done.imported.sources).isdisjoint(record.stages[name].imported.sources) for name in leaving):
        return "another stage brought in the same file"
    if stage.kind in IN_ORDER and any(name.split(" ", 1)[0] == stage.kind for name in leaving):
        return f"other {stage.kind} are read again"
    if stage.kind == "peaks":
        shares = done.outcome.get("dropped", {}).get("already_stored")
        if shares and any(name.startswith("peaks ") for name in leaving):
            return "it shares rows with peaks that are read again"
    return ""


def to_take_back(stage: Stage, pending: Iterable[Verdict], record: Record) -> list[str]:
    """Return the ids of the stages whose rows go as `stage` is done again: its own, and files that correct each other.

    Parameters
    ----------
    pending
        Verdicts on this stage and those that come after it.
    """
    is_group = stage.kind in IN_ORDER
    names = [v.stage.id for v in pending if not v.is_fresh and v.stage.kind == stage.kind and is_group]
    return [name for name in dict.fromkeys([stage.id, *names]) if name in record.stages]


def own_of(stage: Stage, plan: Plan, record: Record, fetched: Mapping[str, Path]) -> dict[str, Any] | None:
    """Return what a stage says of itself now; None where an input is still to be fetched."""
    inputs: dict[str, str] = {}
    for files in stage.files().values():
        for file in files:
            name = fetched_name(file)
            if name is not None and name not in fetched:
                return None
            path = plan.place(file) if name is None else fetched[name]
            inputs[str(file)] = record.digest(path)
    return {"options": stage.choices(), "inputs": inputs}
