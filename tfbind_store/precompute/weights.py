"""Reading model weights without running anything that a file brings along.

safetensors and ``torch.load(weights_only=True)`` only, with no fallback to an unsafe load; hub ids are looked up in the
local Hugging Face cache unless a download was asked for. An absent file is an error that names it and its place.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tfbind_store.errors import ConfigError, UnsafeFile, WeightsError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SIZES = re.compile(
    r"(?:hidden_size|intermediate_size|vocab_size|embed_dim|max_position_embeddings|max_positions|layers)\Z"
)
PART = re.compile(r"[\w-]+(?:\.safetensors|\.bin)", re.ASCII)
MAX_POSITIONS = 1 << 20
FLAG_WORDS = {"": False, "0": False, "no": False, "off": False, "false": False} | dict.fromkeys(
    ("1", "yes", "on", "true"), True
)
"""How an environment variable says yes or no."""


def hub_folder(name: str, *, files: Sequence[str], allow_download: bool = False, revision: str | None = None) -> Path:
    """Return the folder that holds a model: `name` itself if it is one, else its place in the local hub cache.

    Parameters
    ----------
    name
        A folder, or a hub id such as ``EleutherAI/enformer-official-rough``.
    files
        File name patterns that are wanted; only these are downloaded.
    allow_download
        Ask the hub for what is absent. Without it no network is touched.
    revision
        Branch, tag or commit on the hub.

    Raises
    ------
    WeightsError
        If there is neither a folder nor a cached copy.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(name):
        raise WeightsError(f"no model folder at {name!r}", where=str(folder), fix=f"a folder with {', '.join(files)}")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=list(files), local_files_only=not allow_download
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise WeightsError(
            f"the weights of {name} are not on this machine ({type(error).__name__})",
            where=f"{constants.HF_HUB_CACHE}/models--{name.replace('/', '--')}",
            fix=f"run again with --allow-download, or put {' / '.join(files)} into a folder and name that instead",
        ) from error
    return Path(found)


def first_file(folder: Path, names: Sequence[str], *, what: str) -> Path:
    """Return the first of `names` that is in `folder`.

    Raises
    ------
    WeightsError
        If none is.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{what}: none of {', '.join(names)} is there", where=str(folder), fix="copy the file there")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``.safetensors`` file, a pickled state dict, or an index of several such, on the CPU.

    Raises
    ------
    UnsafeFile
        If a pickle holds anything but tensors and plain containers.
    WeightsError
        If the file is absent or damaged.
    """
    if path.suffix == ".json":
        return {name: tensor for part in _parts(path) for name, tensor in read_tensors(part).items()}
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    return tensors_of(load_pickle(path), where=str(path))


def _parts(index: Path) -> list[Path]:
    """Return the files that an index of transformers names: in its own folder, and nowhere else."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"no index of weights: {error!r}", where=str(index), fix="copy it again") from error
    for name in names:
        if not isinstance(name, str) or not PART.fullmatch(name):
            raise UnsafeFile(f"refused: the index names {str(name)[:80]!r}", where=str(index), fix="copy it again")
    return [index.parent / name for name in names]


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file."""
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as error:
        raise WeightsError("no such weights file", where=str(path)) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"not a whole safetensors file: {error}", where=str(path), fix="copy it again") from error


def load_pickle(path: Path) -> Any:
    """Return what ``torch.save`` wrote, refusing everything that could run code.

    ``argparse.Namespace`` is let through: the published ESM files keep their options in one, and it holds data only.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError("no such weights file", where=str(path)) from error
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n", 1)[0]
        raise UnsafeFile(
            f"refused: the file holds more than tensors ({reason})",
            where=str(path),
            fix="convert it to safetensors where you trust it",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"not a whole weights file: {error}", where=str(path), fix="copy it again") from error


def tensors_of(value: Any, *, where: str) -> dict[str, torch.Tensor]:
    """Return a loaded state dict, checked to map names to tensors; ``{"state_dict": …}`` is opened."""
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    named = isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    )
    if not named:
        raise WeightsError("the file holds no state dict (names to tensors)", where=where)
    return dict(value)


def require_sizes(config: Mapping[str, object], tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Refuse a config that asks for a larger model than the weights fill, before anything of that size is made.

    Parameters
    ----------
    config
        Names and values; only those that decide how large a model is are looked at.
    tensors
        Of the file beside it.
    where
        For the error.

    Raises
    ------
    WeightsError
        If there are fewer tensors than layers, or none has one of the sizes.
    """
    widths = {size for tensor in tensors.values() for size in tensor.shape}
    for name, size in config.items():
        if not SIZES.search(name) or not isinstance(size, int) or isinstance(size, bool):
            continue
        if name.endswith("layers"):
            is_filled = size <= len(tensors)
        elif "position" in name:  # some models compute theirs
            is_filled = size <= MAX_POSITIONS or size in widths
        else:
            is_filled = size in widths or 2 * size in widths  # gate and value in one matrix
        if not is_filled:
            what = f"the config has {name} {size:,}, the weights do not"
            raise WeightsError(what, where=where, fix="config and weights are of different models: copy both again")


def weights_digest(tensors: Mapping[str, torch.Tensor], *, skip: Iterable[str] = ()) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of `tensors`, in order of names.

    Parameters
    ----------
    tensors
        A state dict.
    skip
        Prefixes of names that do not decide the numbers.
    """
    digest = hashlib.sha256()
    prefixes = tuple(skip)
    for name in sorted(tensors):
        if name.startswith(prefixes) or name.endswith("num_batches_tracked"):
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pick_device(name: str, *, cpu_flag: str | None = None) -> torch.device:
    """Return the device called `name`; ``auto`` takes the GPU if there is one.

    Parameters
    ----------
    name
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
    cpu_flag
        Environment variable that makes ``auto`` the CPU, such as PROTEIN_EMBED_USE_CPU.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    if name == "auto":
        on_cpu = (cpu_flag and environment_flag(cpu_flag)) or not torch.cuda.is_available()
        name = "cpu" if on_cpu else "cuda"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"no device is called {name!r}", where="device", fix="cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU that torch can use", where="device", fix="--device cpu")
    return device


def environment_flag(name: str) -> bool:
    """Return whether an environment variable is set to something that means yes; ``0``, ``no`` and ``false`` do not."""
    text = os.environ.get(name, "").strip().lower()
    if text not in FLAG_WORDS:
        raise ConfigError(f"{name} is {text!r}, neither yes nor no", where="environment", fix=f"{name}=1 or {name}=0")
    return FLAG_WORDS[text]


@contextlib.contextmanager
def exact_float32(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Switch TF32 off on a GPU for a while, or on if `tf32`; does nothing elsewhere."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def take_back(model: torch.nn.Module, device: torch.device) -> None:
    """Take a model's tensors off a GPU; the next forward pass brings them there again."""
    if device.type == "cuda":
        model.to("cpu")
        torch.cuda.empty_cache()
