"""Copies of the catalog: what a failed write leaves, and how it is told."""

from __future__ import annotations

import errno

import pytest

from tests.crash_disk import Failing
from tfbind_store.catalog.snapshots import Snapshots
from tfbind_store.errors import NoSpace


def a_writer_has_ended(snapshots: Snapshots, content: bytes) -> None:
    snapshots.begin()
    snapshots.working.write_bytes(content)


class TestAFullDisk:
    @pytest.mark.parametrize("nth", range(3, 9))
    def test_is_what_the_error_is_about_and_the_older_snapshot_stays(self, tmp_path, nth):
        a_writer_has_ended(snapshots := Snapshots(tmp_path), b"first" * 1000)
        before = snapshots.publish().read_bytes()
        snapshots.end()
        fails = Snapshots(tmp_path, fs=(fs := Failing(10**9, errno.ENOSPC)))
        a_writer_has_ended(fails, b"second" * 1000)
        fs.nth = len(fs.calls) + nth
        with pytest.raises(NoSpace, match="the disk is full"):
            fails.publish()
        assert snapshots.newest().read_bytes() == before
