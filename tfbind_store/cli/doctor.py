"""`tfbind doctor`: what this machine has of what the package can use."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import click

from tfbind_store.cli.frame import Command, emit, json_option, size_text, table

OPTIONAL = ("flask", "lightmotif", "logomaker", "ray", "submitit", "tensorboard", "tensorstore", "wandb")
DISTRIBUTION = "tfbind-store"
LOW_DISK_BYTES = 5 * 2**30


class Finding(NamedTuple):
    """One thing looked at."""

    topic: str
    name: str
    found: str
    ok: bool
    note: str = ""


@click.command(cls=Command, examples=["tfbind doctor", "tfbind doctor . --json"])
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@json_option
def doctor(folder: Path, as_json: bool) -> int:
    """Show versions, GPU, memory, disk, outside programs and model weights; FOLDER is where stores will lie.

    Ends with exit status 1 if something that every run needs is absent or too old.
    """
    findings = [
        Finding("system", "python", platform.python_version(), True),
        Finding("system", "platform", platform.platform(), True),
        *_packages(),
        *_hardware(folder),
        _bedtools(),
        *_weights(),
    ]
    rows = [(f.topic, f.name, f.found, "ok" if f.ok else "LOOK", f.note) for f in findings]
    emit([f._asdict() for f in findings], table(("topic", "name", "found", "", "note"), rows), as_json=as_json)
    return 0 if all(f.ok for f in findings) else 1


def _packages() -> list[Finding]:
    try:
        needed = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        note = "run from a source tree; install it: pip install -e ."
        return [Finding("package", DISTRIBUTION, "not installed", True, note)]
    findings = [Finding("package", DISTRIBUTION, metadata.version(DISTRIBUTION), True)]
    for requirement in sorted(needed):
        name, _, marker = requirement.partition(";")
        if "extra" not in marker:
            findings.append(_package(name.strip()))
    for name in OPTIONAL:
        version = _version(name)
        findings.append(Finding("optional", name, version or "absent", True, "" if version else f"pip install {name}"))
    return findings


def _package(requirement: str) -> Finding:
    name = re.split(r"[<>=!~ \[]", requirement, maxsplit=1)[0]
    floor = re.search(r">=\s*([\d.]+)", requirement)
    version = _version(name)
    if version is None:
        return Finding("package", name, "absent", False, f"pip install '{requirement}'")
    good = floor is None or _numbers(version) >= _numbers(floor[1])
    return Finding("package", name, version, good, "" if good else f"pip install '{requirement}'")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release numbers of a version.

    Examples
    --------
    >>> _numbers("2.13.0+cpu")
    (2, 13, 0)
    """
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _hardware(folder: Path) -> list[Finding]:
    here = folder.expanduser().resolve()
    while not here.exists():
        here = here.parent
    free = shutil.disk_usage(here).free
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    writable = os.access(here, os.W_OK)
    note = "little room for a store" if free < LOW_DISK_BYTES else ""
    if not writable:
        note = f"{here} cannot be written"
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding("machine", "cores", str(n_cores), True),
        Finding("machine", "memory", size_text(memory), True),
        Finding("machine", "disk", f"{size_text(free)} free", writable, note),
        _gpu(),
    ]


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("machine", "gpu", "none", True, "everything runs on the CPU; whole human genomes want a GPU")
    card = torch.cuda.get_device_properties(0)
    return Finding("machine", "gpu", f"{torch.cuda.device_count()} x {card.name}, {size_text(card.total_memory)}", True)


def _bedtools() -> Finding:
    program = shutil.which("bedtools")
    if program is None:
        note = "only interchange with bedtools users needs it: apt install bedtools"
        return Finding("program", "bedtools", "absent", True, note)
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return Finding("program", "bedtools", answer.stdout.strip().removeprefix("bedtools v"), True, program)


def _weights() -> list[Finding]:
    findings: list[Finding] = []
    for place, names in _weight_places():
        present = sorted(names)
        shown = ", ".join(present) if present else "none"
        note = str(place) if present else f"looked in {place}; `composition` and `hashed` embedders need none"
        findings.append(Finding("weights", _short(place), shown, True, note))
    return findings


def _weight_places() -> list[tuple[Path, list[str]]]:
    """Return the two caches that pretrained models come from, with what is in them."""
    import torch
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE)
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    models = [p.name.removeprefix("models--").replace("--", "/") for p in hub.glob("models--*")]
    return [(hub, models), (checkpoints, [p.name for p in checkpoints.glob("*.pt")])]


def _short(place: Path) -> str:
    return "hugging face" if place.name != "checkpoints" else "torch hub"
