"""Fill a store as a plan says: stages with declared inputs and outputs, done once, and again where an input changed.

A plan is a TOML file of what to fetch, import and select. Every stage that was done leaves a record in the store: the
hashes of its inputs, its options, and which stages it stands on. The same command later does only what is new, and what
depends on something that changed; what an earlier version of a file brought in is taken back first.
"""

from tfbind_store.prepare.plan import Plan, Stage, read_plan
from tfbind_store.prepare.run import StageReport, prepare

__all__ = ["Plan", "Stage", "StageReport", "prepare", "read_plan"]
