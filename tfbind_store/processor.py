"""What kind of processor this is, where the system tells: who made it and what it can do."""

from __future__ import annotations

from functools import cache


@cache
def _first_core() -> dict[str, str]:
    """Return what Linux says of the first core; nothing elsewhere."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                name, colon, value = line.partition(":")
                if not colon:
                    break
                found[name.strip()] = value.strip()
    except OSError:
        return {}
    return found


def multiplies_bfloat16() -> bool:
    """Return whether it has products of bfloat16 (AVX512-BF16 or AMX); False where nobody can say."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_first_core().get("flags", "").split())


def is_intel() -> bool:
    """Return whether Intel made it; False where nobody can say."""
    return _first_core().get("vendor_id") == "GenuineIntel"
