"""The embedder of a stored array, made again from its spec.

A spec names the weights by their digest, not by their place, so whoever wants a model back says where it lies. What
the spec says of layer, pooling, strand and precision becomes options again; the rest can be given. The spec of what was
made is compared with the stored one before anybody uses it, so a wrong guess is refused, never believed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tfbind_store.precompute.embedder import (
    make_sequence_embedder,
    make_text_embedder,
    make_window_embedder,
)
from tfbind_store.precompute.window_options import options_in
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import Store

WITHOUT_WEIGHTS = frozenset({"toy", "composition", "hashed"})
"""Embedders that their spec decides whole."""
_SAME_NAME = {
    "enformer": {"tap": "layer", "strand": "strand", "precision": "matmul"},
    "borzoi": {"tap": "layer"},
    "esm": {"layer": "layer", "pooling": "pooling", "precision": "matmul"},
    "protalbert": {"layer": "layer", "pooling": "pooling", "precision": "matmul"},
    "bert": {"layer": "layer", "pooling": "pooling"},
    "imported": {"model": "model"},
    "composition": {"widths": "widths"},
}
"""By embedder: which option is which field of the identity."""
_NUMBER = re.compile(r"\d+")
_MAKERS = {"windows": make_window_embedder, "proteins": make_sequence_embedder, "contexts": make_text_embedder}


def remake(
    spec: EmbeddingSpec, *, checkpoint: str | None = None, settings: Mapping[str, Any] | None = None
) -> Any | None:
    """Return the embedder of a stored spec.

    Parameters
    ----------
    spec
        Of the array.
    checkpoint
        Where the weights are: folder, file or hub id.
    settings
        Options that the spec does not tell, or tells otherwise.

    Returns
    -------
    The embedder, which may still differ from the spec; None where weights are needed and their place was not given.
    """
    if checkpoint is None and not settings and spec.embedder not in WITHOUT_WEIGHTS:
        return None
    options = options_of(spec) | dict(settings or {})
    if checkpoint is not None:
        options["checkpoint"] = checkpoint
    return _MAKERS[spec.kind](spec.embedder, options)


def require_remade(embedder: Any, spec: EmbeddingSpec, store: Store, *, where: str) -> None:
    """Refuse an embedder that is not the one of `spec`.

    Raises
    ------
    SpecError
        With the first field that differs.
    """
    made = embedder.spec(store.meta.genome, store.grid) if spec.kind == "windows" else embedder.spec()
    spec.require_same(made, where=where, fix="give the model and the options it was embedded with")


def options_of(spec: EmbeddingSpec) -> dict[str, Any]:
    """Return the options that the spec's identity tells.

    Examples
    --------
    >>> options_of(EmbeddingSpec(kind="contexts", embedder="hashed", dim=64, identity={"ngrams": [3, 5]}))
    {'dim': 64, 'shortest': 3, 'longest': 5}
    """
    identity = spec.identity
    known = _SAME_NAME.get(spec.embedder, {})
    options: dict[str, Any] = {option: identity[field] for option, field in known.items() if field in identity}
    policy = str(identity.get("length_policy", ""))
    if spec.embedder == "toy" and spec.grid:
        options["bin_bp"] = spec.grid["bin_bp"]
    elif spec.embedder == "enformer":
        options["use_tf_gamma"] = identity["architecture"].get("use_tf_gamma")
    elif spec.embedder == "bert":
        options["max_tokens"] = int(_NUMBER.findall(policy)[0])
    elif spec.embedder in ("esm", "protalbert"):
        options |= _length_options(policy)
    elif spec.embedder == "hashed":
        options |= {"dim": spec.dim, "shortest": identity["ngrams"][0], "longest": identity["ngrams"][1]}
    elif spec.embedder == "imported":
        options["dim"] = spec.dim
    return options | (options_in(identity) if spec.kind == "windows" else {})


def _length_options(policy: str) -> dict[str, Any]:
    """Read a policy for long proteins as `ResidueEmbedder.spec` writes it."""
    numbers = [int(number) for number in _NUMBER.findall(policy)]
    if policy.startswith("stretches"):
        return {"long_proteins": "average", "window": numbers[0], "overlap": numbers[1]}
    return {"long_proteins": "first" if policy.startswith("first") else "refuse", "window": numbers[0]}
