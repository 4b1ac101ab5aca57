import errno
import json

import pytest
import safetensors
import safetensors.torch
import torch

from tests.head_contract import shaken_head
from tfbind_store.errors import CheckpointError, NoSpace
from tfbind_store.heads import header_for, load_checkpoint, read_header, save_checkpoint


@pytest.fixture
def saved(tmp_path):
    head = shaken_head("linear", {})
    header = header_for(
        head,
        arrays={"windows": {"name": "embeddings/windows", "fingerprint": "a" * 64}},
        trained_on={"factors": ["REB1"], "chromosomes": ["chrI"], "biotypes": ["BY4741"]},
        metrics={"auprc": 0.25},
    )
    path = tmp_path / "head.safetensors"
    save_checkpoint(path, head, header)
    return path, header


def test_header_is_read_without_the_weights(saved):
    path, header = saved
    assert read_header(path) == header


def test_header_is_json_in_the_safetensors_metadata(saved):
    with safetensors.safe_open(saved[0], framework="pt") as file:
        metadata = file.metadata()
    said = json.loads(metadata["tfbind_head"])
    assert said["format"] == "tfbind_store.head"
    assert said["header"]["trained_on"]["factors"] == ["REB1"]


@pytest.mark.parametrize(
    ("train", "loss"), [({}, "bce"), ({"loss": {"kind": "mse"}}, "mse"), ({"tracks": {"species": {}}}, "tracks")]
)
def test_the_loss_that_gave_scores_their_scale_is_known(train, loss):
    assert header_for(shaken_head("linear", {}), train=train).loss == loss


def test_same_head_gives_the_same_bytes(saved, tmp_path):
    path, header = saved
    head = load_checkpoint(path).head
    save_checkpoint(tmp_path / "again.safetensors", head, header)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_another_array_is_refused_with_its_kind(saved):
    assert load_checkpoint(saved[0], expected_arrays={"windows": "a" * 64}).head.name == "linear"
    with pytest.raises(CheckpointError, match=r"arrays\.windows\.fingerprint"):
        load_checkpoint(saved[0], expected_arrays={"windows": "b" * 64})


def test_truncated_file_is_refused(saved):
    saved[0].write_bytes(saved[0].read_bytes()[:-8])
    with pytest.raises(CheckpointError):
        load_checkpoint(saved[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors | {"odd": torch.zeros(1)}, "0 absent [], 1 unknown ['odd']"),
        (lambda tensors: {k: v for k, v in tensors.items() if k != "logit_bias"}, "1 absent ['logit_bias']"),
        (lambda tensors: tensors | {"logit_bias": torch.zeros(3)}, "logit_bias is [3], must be []"),
        (lambda tensors: tensors | {"logit_bias": torch.zeros((), dtype=torch.int32)}, "logit_bias is of torch.int32"),
        (
            lambda tensors: tensors | {"logit_bias": torch.tensor(float("nan"))},
            "logit_bias holds numbers that are none",
        ),
    ],
)
def test_tensors_of_another_head_are_named(saved, change, said):
    path, header = saved
    head = load_checkpoint(path).head
    changed = change(head.state_dict())
    head.state_dict = lambda **unused: changed
    save_checkpoint(path, head, header)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert said in caught.value.what


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trained_on": None}, "trained_on"),
        ({"trained_on": {"factors": 3}}, "trained_on"),
        ({"trained_on": {"factors": [{}]}}, "trained_on"),
        ({"trunk_trained_on": {"factors": "REB1"}}, "trunk_trained_on"),
        ({"train": None}, "train"),
        ({"train": {"loss": "bce"}}, r"train\.loss"),
        ({"arrays": {"windows": {"name": 3, "fingerprint": "a"}}}, "arrays"),
        ({"signals": {"name": []}}, "signals"),
        ({"selection": {"leaks": {}}}, r"selection\.leaks"),
        ({"zzz": 1}, "zzz"),
    ],
)
def test_headers_that_hold_something_else_are_refused(saved, change, said):
    with safetensors.safe_open(saved[0], framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    whole = json.loads(metadata["tfbind_head"])
    whole["header"].update(change)
    safetensors.torch.save_file(tensors, saved[0], {"tfbind_head": json.dumps(whole)})
    with pytest.raises(CheckpointError, match=f"header cannot be read.*{said}"):
        read_header(saved[0])


def test_a_header_nested_too_deep_is_refused(saved):
    deep = '{"format": ' + "[" * 100_000 + "]" * 100_000 + "}"
    safetensors.torch.save_file({"a": torch.zeros(1)}, saved[0], {"tfbind_head": deep})
    with pytest.raises(CheckpointError, match="header cannot be read"):
        read_header(saved[0])


def test_a_file_cannot_ask_for_more_memory_than_it_holds(saved):
    with safetensors.safe_open(saved[0], framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    whole = json.loads(metadata["tfbind_head"])
    whole["header"]["geometry"]["dna_dim"] = 10**13
    safetensors.torch.save_file(tensors, saved[0], {"tfbind_head": json.dumps(whole)})
    with pytest.raises(CheckpointError, match=r"is \[.*must be \[.*10000000000000"):
        load_checkpoint(saved[0])


def test_absent_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_header(tmp_path / "head.safetensors")


def test_file_of_others_is_refused(tmp_path):
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="this code reads"):
        read_header(tmp_path / "x.safetensors")


def test_failed_write_leaves_the_old_file(saved, monkeypatch):
    path, header = saved
    before = path.read_bytes()
    monkeypatch.setattr("os.rename", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
    with pytest.raises(NoSpace):
        save_checkpoint(path, shaken_head("linear", {}, seed=1), header)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["head.safetensors"]
