import builtins
import io

import pytest

from tfbind_store import processor


def says(monkeypatch, text):
    """Let the system say this of its processor."""
    real = builtins.open

    def opened(path, *args, **kwargs):
        if path != "/proc/cpuinfo":
            return real(path, *args, **kwargs)
        if text is None:
            raise FileNotFoundError(path)
        return io.StringIO(text)

    monkeypatch.setattr(builtins, "open", opened)


@pytest.fixture(autouse=True)
def _asked_anew():
    processor._first_core.cache_clear()
    yield
    processor._first_core.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("GenuineIntel", "fpu amx_bf16 amx_tile", (True, True)),
        ("AuthenticAMD", "fpu avx512_bf16", (False, True)),
        ("GenuineIntel", "fpu avx512f", (True, False)),
    ],
)
def test_the_first_core_is_read(monkeypatch, vendor, flags, expected):
    cores = [f"processor\t: {n}\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n" for n in (0, 1)]
    says(monkeypatch, "\n".join(cores).replace("processor\t: 1", "processor\t: 1\nflags: avx512_bf16"))
    assert (processor.is_intel(), processor.multiplies_bfloat16()) == expected


@pytest.mark.parametrize("text", [None, "", "Processor without colons\n", "model: ARM\n"])
def test_where_nobody_tells_it_is_neither(monkeypatch, text):
    says(monkeypatch, text)
    assert (processor.is_intel(), processor.multiplies_bfloat16()) == (False, False)
