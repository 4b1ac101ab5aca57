"""What a killed process had started is ended; what one has started that ends well is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tfbind_store.precompute.guardian import descendants, is_alive, main

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
    import subprocess, sys, time
    from tfbind_store.precompute.guardian import descendants, guarded
    import os
    parent = "import subprocess, sys, time; subprocess.Popen(['sleep', '300']); time.sleep(300)"
    child = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True, stdout=-3)
    while len(descendants(os.getpid())) < 2:
        time.sleep(0.02)
    with guarded([child.pid]):
        print(child.pid, *descendants(child.pid), flush=True)
        time.sleep(float(sys.argv[1]))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see processes")


def started(seconds: float) -> tuple[subprocess.Popen, list[int]]:
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(seconds)]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    return driver, [int(word) for word in driver.stdout.readline().split()]


def gone(pids, *, within: float = 30) -> bool:
    deadline = time.monotonic() + within
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def test_children_and_grandchildren_of_a_killed_driver_are_ended():
    driver, pids = started(300)
    assert len(pids) == 2
    driver.kill()
    driver.communicate()
    assert gone(pids)


def test_nothing_is_killed_after_a_driver_that_left_the_block():
    driver, pids = started(0)
    driver.communicate()
    time.sleep(1)
    assert all(map(is_alive, pids))
    for pid in pids:
        subprocess.run(["kill", str(pid)], check=True)


def test_who_is_gone_is_passed_over():
    with subprocess.Popen(["sleep", "300"]) as bystander:
        nobody = 2**22  # above the largest process id
        main(nobody, [nobody + 1])
        assert is_alive(bystander.pid)
        assert bystander.pid in descendants(os.getpid())
        bystander.kill()
    assert not is_alive(bystander.pid)
