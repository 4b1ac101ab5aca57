"""Memory that is freed stays in the process while it is kept, and goes back to the system afterwards."""

from __future__ import annotations

import ctypes
import resource
import sys

import pytest

from tfbind_store import freed_memory
from tfbind_store.freed_memory import KEPT, MIB, USUAL, give_back, kept

HAS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
needs_glibc = pytest.mark.skipif(not HAS_GLIBC, reason="the switch is glibc's")
N_TURNS = 20


def faults_of_turns():
    """Take and free the same 48 MiB again and again, as training steps do; return how often a page was handed out."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(N_TURNS):
        bytearray(48 * MIB)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_mib():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MIB


@needs_glibc
def test_pages_are_handed_out_once():
    with kept():
        pass  # thresholds are the usual ones from here on, whatever other tests did
    given_back = faults_of_turns()
    with kept():
        bytearray(48 * MIB)
        reused = faults_of_turns()
    assert reused < given_back / 5


@needs_glibc
def test_memory_goes_back_at_the_end():
    give_back()
    before = resident_mib()
    with kept():
        pieces = [bytearray(MIB) for _ in range(300)]
        del pieces
        assert resident_mib() > before + 200
    assert resident_mib() < before + 100


@needs_glibc
def test_memory_goes_back_after_an_error_too():
    @kept()
    def fails():
        pieces = [bytearray(MIB) for _ in range(300)]
        del pieces
        raise ValueError("of the body")

    give_back()
    before = resident_mib()
    with pytest.raises(ValueError, match="of the body"):
        fails()
    assert resident_mib() < before + 100


def test_it_decorates_functions():
    @kept()
    def doubled(number):
        return 2 * number

    assert [doubled(2), doubled(3)] == [4, 6]


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(freed_memory, "_of_glibc", lambda name: None)
    with kept():
        give_back()


def test_a_refused_size_becomes_the_largest_that_old_versions_take(monkeypatch):
    asked = []

    def mallopt(name, size):
        asked.append((name, size))
        return size <= 64 * MIB or name != -3

    monkeypatch.setattr(freed_memory, "_of_glibc", {"mallopt": mallopt, "malloc_trim": lambda pad: 1}.get)
    with kept():
        assert asked == [*KEPT.items(), (-3, 32 * MIB)]
    assert asked[-len(USUAL) :] == list(USUAL.items())
