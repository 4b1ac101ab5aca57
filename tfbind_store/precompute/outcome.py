"""What a run of embedding did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tfbind_store.errors import EmbeddingError


class Failure(NamedTuple):
    """One window, protein or text that could not be embedded."""

    row: int
    """Window id; -1 for proteins and texts, which have no row then."""
    name: str
    """Its locus, gene symbols or text."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """Counts of one run, and every failure that stands after it."""

    array: str
    unit: str
    """``window``, ``protein`` or ``text``."""
    n_asked: int
    n_done_before: int
    """Of those asked for: there before this run."""
    n_computed: int
    """Embedded by this run, failed ones included."""
    n_all_n: int = 0
    """Windows that hold only N: nothing to embed."""
    n_missing: int = 0
    """Neither embedded nor failed: another process is at it, or a shard is damaged."""
    n_truncated: int = 0
    """Embedded without their end."""
    failures: tuple[Failure, ...] = ()
    precision_rms: float | None = None
    """Largest error of a fast precision against float32 on canary windows, as a share; None where float32 was used."""
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for is there."""
        return not self.failures and not self.n_missing

    def require_complete(self) -> None:
        """Raise if anything asked for is not there.

        Raises
        ------
        EmbeddingError
            With the number of failures and the first one.
        """
        if self.failures:
            first = self.failures[0]
            again = "embed again with --retry-failed" if self.unit == "window" else "run the same command again"
            raise EmbeddingError(
                f"{len(self.failures)} of {self.n_asked} {self.unit}s failed; first {first.name}: {first.reason}",
                where=self.array,
                fix=f"the others are kept; {again} after the cause is gone",
            )
        if self.n_missing:
            raise EmbeddingError(
                f"{self.n_missing} of {self.n_asked} {self.unit}s are not there",
                where=self.array,
                fix="run the same command again",
            )
