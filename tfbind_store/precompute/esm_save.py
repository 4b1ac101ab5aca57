"""Write an ESM-2 as a folder that transformers, and `load_esm`, read: after fine-tuning it is a model of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save

from tfbind_store.durable import make_directory, publish
from tfbind_store.errors import ConfigError
from tfbind_store.precompute.esm import ELSEWHERE

# fair-esm's names (left) of transformers' parts (right); the inverse of esm.RENAMED
_RENAMED = (
    (r"^embed_tokens\.", "embeddings.word_embeddings."),
    (r"^emb_layer_norm_after\.", "encoder.emb_layer_norm_after."),
    (r"^layers\.(\d+)\.self_attn\.q_proj\.", r"encoder.layer.\1.attention.self.query."),
    (r"^layers\.(\d+)\.self_attn\.k_proj\.", r"encoder.layer.\1.attention.self.key."),
    (r"^layers\.(\d+)\.self_attn\.v_proj\.", r"encoder.layer.\1.attention.self.value."),
    (r"^layers\.(\d+)\.self_attn\.out_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layer.\1.attention.LayerNorm."),
    (r"^layers\.(\d+)\.final_layer_norm\.", r"encoder.layer.\1.LayerNorm."),
    (r"^layers\.(\d+)\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^layers\.(\d+)\.fc2\.", r"encoder.layer.\1.output.dense."),
)


def save_esm2(model: Any, alphabet: Any, folder: Path) -> Path:
    """Write `model` into `folder`.

    Raises
    ------
    ConfigError
        If it is an ESM-1b, whose layout transformers' folders do not have.
    """
    if type(model).__name__ != "ESM2":
        raise ConfigError("only an ESM-2 can be written", where=type(model).__name__, fix="fine-tune an ESM-2")
    make_directory(folder)
    tensors = {
        f"esm.{transformers_name(name)}": tensor.detach().cpu().contiguous().clone()
        for name, tensor in sorted(model.state_dict().items())
        if not ELSEWHERE.search(name) and not name.endswith("inv_freq")
    }
    config = {
        "model_type": "esm",
        "architectures": ["EsmModel"],
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": bool(model.token_dropout),
        "num_hidden_layers": int(model.num_layers),
        "hidden_size": int(model.embed_dim),
        "intermediate_size": 4 * int(model.embed_dim),
        "num_attention_heads": int(model.attention_heads),
        "vocab_size": len(alphabet.all_toks),
        "pad_token_id": int(alphabet.padding_idx),
        "mask_token_id": int(alphabet.mask_idx),
        "max_position_embeddings": 1026,
    }
    publish(folder / "vocab.txt", ["\n".join(alphabet.all_toks).encode()])
    publish(folder / "config.json", [json.dumps(config, indent=1, sort_keys=True).encode()])
    publish(folder / "model.safetensors", [save(tensors, {"format": "pt"})])
    return folder


def transformers_name(name: str) -> str:
    """Return transformers' name of a tensor that fair-esm names `name`.

    Examples
    --------
    >>> transformers_name("layers.3.self_attn.k_proj.weight")
    'encoder.layer.3.attention.self.key.weight'
    """
    for pattern, replacement in _RENAMED:
        name, n = re.subn(pattern, replacement, name)
        if n:
            return name
    return name
