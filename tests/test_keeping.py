"""The commands that look after a store: what they print, and their exit status."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.precompute.small import Watched, make_store
from tfbind_store.cli import main
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute.enformer import EnformerEmbedder
from tfbind_store.precompute.random_trunk import random_trunk
from tfbind_store.precompute.run import embed_windows

NAME = "embeddings/windows"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
    store = make_store(tmp_path)
    embed_windows(store, Watched())
    return store


def tfbind(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def damage(store) -> None:
    path = store.array(NAME).layout.shard_path(0)
    content = bytearray(path.read_bytes())
    content[5] ^= 16
    path.write_bytes(content)


def test_verify_repair_embed_verify(store):
    assert tfbind("verify", store.path, "--deep").exit_code == 0
    damage(store)
    assert tfbind("verify", store.path).exit_code == 0
    found = tfbind("verify", store.path, "--deep")
    assert found.exit_code == 1
    assert "window 0 does not hash" in found.stdout
    assert [line.split(":")[0] for line in found.stderr.splitlines()] == ["Error", "  where", "  fix"]
    assert f"tfbind repair {store.path}" in found.stderr
    repaired = tfbind("repair", store.path, "--json")
    assert repaired.exit_code == 0
    assert json.loads(repaired.stdout)["shards"] == [{"array": NAME, "shard": 0, "n_kept": 3, "n_lost": 1}]
    assert tfbind("embed", store.path, "windows", "--embedder", "toy").exit_code == 0
    clean = tfbind("verify", store.path, "--deep", "--json")
    assert (clean.exit_code, json.loads(clean.stdout)["problems"]) == (0, [])
    assert json.loads(clean.stdout)["n_canaries"] == 8


def test_gc_lists_then_removes(store):
    litter = store.path / "embeddings" / "windows.zarr" / ".c.0.0.0.0123456789abcdef.tmp"
    litter.write_bytes(b"half")
    wanted = json.loads(tfbind("gc", store.path, "--dry-run", "--json").stdout)
    assert (wanted["files"], wanted["size_bytes"]) == ([str(litter.relative_to(store.path))], 4)
    assert litter.exists()
    assert "removed 1 files" in tfbind("gc", store.path).stdout
    assert not litter.exists()


def test_rebuild_catalog_says_from_what(store):
    store.snapshots.newest().write_bytes(b"nothing")
    assert "rebuild-catalog" in tfbind("info", store.path).stderr
    done = tfbind("rebuild-catalog", store.path)
    assert (done.exit_code, "catalog made from inputs: 0 imports, 3 shards" in done.stdout) == (0, True)
    assert tfbind("info", store.path).exit_code == 0


def test_a_dry_run_prints_the_plan_and_computes_nothing(tmp_path):
    store = make_store(tmp_path)
    done = tfbind("embed", store.path, "windows", "--embedder", "toy", "--dry-run", "--json")
    assert (done.exit_code, json.loads(done.stdout)["n_compute"]) == (0, 10)
    assert store.array_names() == []


def test_the_plan_says_what_weights_and_windows_take_of_memory(tmp_path):
    store = make_store(tmp_path)
    trunk = ["--set", "dim=48", "--set", "depth=1", "--device", "cpu"]
    words = ["embed", store.path, "windows", "--embedder", "enformer", *trunk, "--dry-run"]
    value = json.loads(tfbind(*words, "--json").stdout)
    architecture = {"dim": 48, "depth": 1, "heads": 4, "attn_dim_key": 32, "num_downsamples": 7, "dim_divisible_by": 16}
    own = EnformerEmbedder(random_trunk(architecture, seed=0), device="cpu").memory_need(store.grid)
    assert value["model"]["device"] == "cpu"
    assert value["model"]["weights_bytes"] == own.weights_bytes
    assert value["model"]["batch_bytes"] > value["model"]["batch_windows"] * 8 * 48 * 4
    assert value["free_memory_bytes"] > 2**20
    assert "of weights and" in tfbind(*words).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "2"], "--workers needs --engine"),
        (["--max-memory", "much"], "write a number of bytes"),
        (["--max-memory", "100"], "a shard takes"),
    ],
)
def test_choices_that_do_not_fit_are_refused(tmp_path, words, said):
    store = make_store(tmp_path)
    done = tfbind("embed", store.path, "windows", "--embedder", "toy", *words)
    assert done.exit_code == 1
    assert said in done.stderr
    assert store.array_names() == []
