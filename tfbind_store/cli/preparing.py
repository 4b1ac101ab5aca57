"""`tfbind prepare`: a store as a plan says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfbind_store.cli.frame import Command, emit, json_option, show_log_of, table

if TYPE_CHECKING:
    from tfbind_store.prepare import StageReport


@click.command(cls=Command, examples=["tfbind prepare plan.toml --dry-run", "tfbind prepare plan.toml"])
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and why.")
@click.option("--offline", is_flag=True, help="Take downloads from the cache; touch no network.")
@json_option
def prepare(plan: Path, dry_run: bool, offline: bool, as_json: bool) -> None:
    """Fetch, import and select as a PLAN says, a TOML file; what is done and unchanged is not done again.

    Stop it at any time: the same command goes on. Where a file or an option changed, what it had brought in is taken
    back, and only the stages that depend on it are done again. examples/yeast.toml is a plan to begin with.
    """
    from tfbind_store.prepare import prepare as run

    show_log_of("prepare")
    reports = run(plan, dry_run=dry_run, offline=offline)
    emit({"plan": plan, "stages": reports}, _lines(reports), as_json=as_json)


def _lines(reports: list[StageReport]) -> list[str]:
    rows = [(r.stage, r.state, f"{r.seconds:.1f} s" if r.state == "done" else "-", r.why) for r in reports]
    lines = table(("stage", "state", "time", "why"), rows)
    for report in reports:
        if report.state == "done":
            lines += [f"{report.stage}: {line}" for line in _told(report.outcome)]
    left = sum(report.state == "to do" for report in reports)
    lines.append(f"{left} of {len(reports)} stages to do" if left else "all stages are fresh")
    return lines


def _told(outcome: Mapping[str, Any]) -> list[str]:
    """Return what the user should know of a stage: what was kept, left out, too few."""
    lines = []
    if "rows_read" in outcome:
        lines.append(f"{outcome['rows_kept']:,} of {outcome['rows_read']:,} rows kept")
    if "rows" in outcome:
        lines.append(f"{outcome['rows']:,} rows")
    dropped = outcome.get("dropped", {})
    lines += [f"left out {count:,}: {cause.replace('_', ' ')}" for cause, count in dropped.items() if count]
    lines += [
        f"too few {kind} negatives: {lack['rows']:,} rows short in {lack['experiments']:,} experiments"
        for kind, lack in outcome.get("shortfall", {}).items()
    ]
    return lines + list(outcome.get("notes", []))
