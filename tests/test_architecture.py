"""The direction of imports and who may touch the heavy libraries, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tfbind_store

PACKAGE = Path(tfbind_store.__file__).parent

# From the top down: a room imports only from rooms on lines below it; rooms on one line do not know each other.
# A room is one module or package, or several modules that are one thing in several files.
LAYERS: list[list[set[str]]] = [
    [{"cli", "__main__"}],
    [{"demo"}, {"browsing"}],
    [{"reporting"}, {"trainers"}, {"interpretation"}],
    [{"adapter_model", "model_inputs"}],
    [{"finetuning"}],
    [{"pretraining"}],
    [{"evaluation"}],
    [{"prediction"}],
    [{"training"}],
    [{"learning"}],
    [{"scoring"}],
    [{"feeding"}, {"prepare"}],
    [{"precompute"}, {"query"}, {"heads"}, {"ingest"}],
    [{"keeping"}, {"random_ranges"}],
    [{"store"}],
    [{"catalog", "migrations"}, {"arrays"}],
    [{"genome"}, {"peaks"}, {"factors"}, {"contexts"}, {"fetch", "fetch_each"}, {"tracks"}],
    [{"names"}],
    [{"loci"}, {"spec"}, {"config"}, {"batch"}, {"durable"}, {"textfiles"}, {"drawing"}, {"metrics"}],
    [{"processor"}, {"freed_memory"}],
    [{"errors"}],
]
TORCH_ROOMS = {
    "cli",
    "demo",
    "browsing",
    "reporting",
    "trainers",
    "interpretation",
    "finetuning",
    "pretraining",
    "evaluation",
    "adapter_model",
    "model_inputs",
    "prediction",
    "training",
    "learning",
    "scoring",
    "feeding",
    "heads",
}
TORCH_FREE_PRECOMPUTE = {"precompute", "precompute.embedder", "precompute.plan", "precompute.toy"}
TORCH_LIBRARIES = {"torch", "enformer_pytorch", "esm", "transformers", "accelerate", "torchmetrics"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield every module of the package: its name without the package's, and its source as a tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        yield ".".join(parts), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of everything imported anywhere in a module, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(room: str) -> tuple[int, int]:
    for line, rooms in enumerate(LAYERS):
        for index, names in enumerate(rooms):
            if room in names:
                return line, index
    raise AssertionError(f"{room} has no place in LAYERS: give it one")


MODULES = dict(modules())


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_point_downwards(module: str) -> None:
    line, index = place(module.split(".")[0])
    for name in imports(MODULES[module]):
        library, _, rest = name.partition(".")
        if library != "tfbind_store" or not rest or rest == "__version__":
            continue
        other_line, other_index = place(rest.split(".")[0])
        same_room = (other_line, other_index) == (line, index)
        assert same_room or other_line > line, f"{module} imports {name}, which is not below it"


def test_heads_know_no_store() -> None:
    for module, tree in MODULES.items():
        if module.split(".")[0] == "heads":
            used = {name.split(".")[1] for name in imports(tree) if name.startswith("tfbind_store.")}
            assert used <= {"heads", "errors", "config", "spec", "batch", "durable", "processor"}, module


@pytest.mark.parametrize(
    ("library", "room"),
    [
        ("duckdb", {"catalog.database", "catalog.stranger_process"}),
        ("zarr", {"arrays.sharded", "arrays.groups"}),
    ],
)
def test_only_one_module_knows(library: str, room: set[str]) -> None:
    users = {module for module, tree in MODULES.items() for name in imports(tree) if name.split(".")[0] == library}
    assert users <= room


@pytest.mark.parametrize("module", list(MODULES))
def test_torch_stays_upstairs(module: str) -> None:
    room = module.split(".")[0]
    if room in TORCH_ROOMS or (room == "precompute" and module not in TORCH_FREE_PRECOMPUTE):
        return
    for name in imports(MODULES[module]):
        assert name.split(".")[0] not in TORCH_LIBRARIES, f"{module} imports {name}"
        assert not name.startswith("safetensors.torch"), f"{module} imports {name}"


def run_python(code: str) -> str:
    """Run `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_cheap() -> None:
    # The best of three: other processes may be busy on this machine.
    code = (
        "import time, sys; begin = time.perf_counter(); import tfbind_store; seconds = time.perf_counter() - begin;"
        "heavy = {'torch', 'duckdb', 'zarr', 'numpy', 'click', 'matplotlib'} & set(sys.modules);"
        "assert not heavy, heavy; print(seconds)"
    )
    assert min(float(run_python(code)) for _ in range(3)) < 0.5


def test_the_command_line_loads_nothing_heavy_for_help() -> None:
    run_python(
        "import sys; from tfbind_store import cli;"
        "heavy = {'torch', 'duckdb', 'zarr', 'matplotlib', 'sklearn'} & set(sys.modules); assert not heavy, heavy"
    )


def test_the_query_side_never_loads_torch() -> None:
    rooms = {"query", "store", "ingest", "catalog", "arrays"}
    loads = "; ".join(f"import tfbind_store.{module}" for module in MODULES if module.split(".")[0] in rooms)
    run_python(f"import sys; {loads}; assert 'torch' not in sys.modules")
