"""`AdapterModel`: the reference's model, whole and repaired, from sequence, proteins and contexts to a prediction.

The trunk is run live, or embeddings of a store take its place (`seq_embed`). For training on many rows a store is far
cheaper: `Trainer` takes an `AdapterModel` and trains the part of it that works on stored bins. What differs from the
reference, and why, is in docs/migration.md, option by option.
"""

# b rows · s sequences (b, or 1 for one with many factors) · n bins · d trunk dim · l residues · e protein dim
# t context dim · h FILIP heads

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from enformer_pytorch import Enformer
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tfbind_store.errors import ConfigError
from tfbind_store.finetuning.modes import free_layernorms, set_running, set_trunk_mode
from tfbind_store.heads.base import Geometry, Intermediates
from tfbind_store.heads.filip import FilipConfig, FilipHead
from tfbind_store.heads.joint import Joint
from tfbind_store.heads.read_values import ReadValueLoss
from tfbind_store.heads.track_losses import LossKind, mean_loss, mean_pearson
from tfbind_store.model_inputs import (
    Encoder,
    Protein,
    ProteinReader,
    TextReader,
    as_numbers,
    known_width,
    read_dna,
    refuse_unknown,
    require_rows,
    require_sound,
)
from tfbind_store.precompute.embedder import SequenceEmbedder, TextEmbedder
from tfbind_store.pretraining.forward import live_features


class Losses(NamedTuple):
    """The parts of a loss."""

    total: Float[Tensor, ""]
    """What is trained on: ``main``, plus the auxiliary loss times its weight."""
    main: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    """Of the read values; zero where it is off."""


class AdapterModel(nn.Module):
    """DNA, protein and context in; one logit per sequence, or one rate per bin, out.

    Parameters
    ----------
    enformer
        The trunk: an Enformer, or any module from [b, bp, 4] to [b, n, d] with `dna_embed_dim` said. It is frozen
        unless a call asks otherwise; its BatchNorms always are. None where only `seq_embed` is ever given.
    dna_embed_dim
        Numbers per bin; an Enformer's is known.
    latent_dim, latent_heads
        Width and number of FILIP heads.
    aa_embed_dim
        Numbers per residue of `aa_embed`; an encoder's is known.
    use_aa_embeds, aa_embed_encoder
        Encode proteins in the call: ``esm``, ``protalbert``, ``alphafold2``, the name of another embedder, a mapping
        with ``name`` and its options, or an embedder.
    contextual_embed_dim
        Numbers of `contextual_embed`; an encoder's is known.
    use_free_text_context, free_text_context_encoder, free_text_embed_method
        Encode texts in the call: ``pubmed`` or as above; ``cls`` or ``mean_pool``.
    dropout
        Of attention, feed-forwards, and residues in FILIP.
    binary_target
        One logit per sequence; else one rate per bin.
    target_mse_loss
        Squared error of the logit in place of the binary cross-entropy.
    aux_read_value_loss, read_value_aux_loss_weight, fourier_dims
        With `binary_target`: also learn log(1 + score) of the peak.
    joint_cross_attn_depth, genome_self_attn_depth
        Blocks between bins and residues, and among bins.
    condition_squeeze_excite, condition_film, condition_hypergrid
        Where the context comes in.
    use_corr_coef_loss
        1 - Pearson in place of the Poisson loss.
    finetune_output_heads
        Tracks of each species, for calls with `head`; without it, the trunk's own heads serve.
    trunk_dropout
        Of the trunk's transformer, in calls that train it.
    checkpointing
        Keep no activations within the trunk's blocks, in calls that train it.

    Raises
    ------
    TypeError
        On an unknown keyword; the message names the nearest.
    ConfigError
        If a width is unknown, or options contradict each other.
    """

    def __init__(
        self,
        *,
        enformer: nn.Module | None = None,
        dna_embed_dim: int | None = None,
        latent_dim: int = 64,
        latent_heads: int = 32,
        aa_embed_dim: int | None = None,
        aa_embed_encoder: Encoder | SequenceEmbedder = "esm",
        contextual_embed_dim: int | None = None,
        use_aa_embeds: bool = False,
        use_free_text_context: bool = False,
        free_text_context_encoder: Encoder | TextEmbedder = "pubmed",
        free_text_embed_method: str = "cls",
        dropout: float = 0.0,
        binary_target: bool = False,
        target_mse_loss: bool = False,
        aux_read_value_loss: bool = False,
        read_value_aux_loss_weight: float = 0.05,
        joint_cross_attn_depth: int = 1,
        genome_self_attn_depth: int = 0,
        fourier_dims: int = 256,
        condition_squeeze_excite: bool = False,
        condition_film: bool = False,
        condition_hypergrid: bool = True,
        use_corr_coef_loss: bool = False,
        finetune_output_heads: Mapping[str, int] | None = None,
        trunk_dropout: float = 0.0,
        checkpointing: bool = False,
        **unknown: Any,
    ) -> None:
        refuse_unknown(unknown, type(self).__init__, "AdapterModel")
        require_sound(
            {
                "target_mse_loss needs binary_target": target_mse_loss and not binary_target,
                "aux_read_value_loss needs binary_target": aux_read_value_loss and not binary_target,
                "use_corr_coef_loss is of tracks, not of a binary_target": use_corr_coef_loss and binary_target,
                "fourier_dims must be even": bool(fourier_dims % 2),
            }
        )
        super().__init__()
        self.proteins = ProteinReader(aa_embed_encoder) if use_aa_embeds else None
        self.texts = None
        if use_free_text_context:
            self.texts = TextReader(free_text_context_encoder, method=free_text_embed_method)
        if isinstance(enformer, Enformer):
            dna_embed_dim = 2 * enformer.dim
        geometry = Geometry(
            known_width("dna_embed_dim", dna_embed_dim, None),
            known_width("aa_embed_dim", aa_embed_dim, self.proteins),
            known_width("contextual_embed_dim", contextual_embed_dim, self.texts),
        )
        config = FilipConfig(
            latent_heads=latent_heads, latent_dim=latent_dim, joint_depth=joint_cross_attn_depth, dropout=dropout,
            film=condition_film, squeeze_excite=condition_squeeze_excite, hypergrid=condition_hypergrid,
            norm_heads=binary_target, fourier_dims=fourier_dims,
            read_values=read_value_aux_loss_weight if aux_read_value_loss else 0.0,
        )  # fmt: skip
        self.adapter = Joint(FilipHead(config, geometry), self_attention_depth=genome_self_attn_depth)
        self.binary_target, self.target_mse_loss = binary_target, target_mse_loss
        self.loss_kind: LossKind = "pearson" if use_corr_coef_loss else "poisson"
        self.track_heads = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(geometry.dna_dim, n), nn.Softplus())
             for name, n in (finetune_output_heads or {}).items()}
        )  # fmt: skip
        self.enformer, self.trunk_dropout, self.checkpointing = enformer, trunk_dropout, checkpointing
        self._mode = ""
        self._set_mode("head")

    @property
    def head(self) -> FilipHead:
        """The part that works on stored bins; a head like those of `heads.HEADS`."""
        return self.adapter.head

    @property
    def read_values(self) -> ReadValueLoss | None:
        """The auxiliary loss, where there is one."""
        return self.head.read_values

    def train(self, mode: bool = True) -> AdapterModel:
        """Train or evaluate; the trunk runs as in evaluation either way, but for `trunk_dropout`."""
        super().train(mode)
        if self.enformer is not None:
            self._run_trunk()
        return self

    def head_tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state but the trunk's; encoders are in no state."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("enformer.")}

    def load_head_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `head_tensors` gave; the trunk stays as it is.

        Raises
        ------
        ConfigError
            If a tensor is missing, too many or of another shape.
        """
        own = {name: tensor.shape for name, tensor in self.head_tensors().items()}
        given = {name: tensor.shape for name, tensor in tensors.items()}
        if odd := sorted(name for name in {*own, *given} if own.get(name) != given.get(name)):
            raise ConfigError(f"tensors do not fit: {', '.join(odd[:3])}", where="AdapterModel", fix="same options")
        self.load_state_dict(dict(tensors), strict=False)

    def forward(
        self,
        seq: Tensor | None = None,
        *,
        seq_embed: Float[Tensor, "s n d"] | None = None,
        aa: Sequence[Protein] | Tensor | None = None,
        aa_embed: Float[Tensor, "b l e"] | None = None,
        aa_mask: Bool[Tensor, "b l"] | None = None,
        contextual_embed: Float[Tensor, "b t"] | None = None,
        contextual_free_text: Sequence[str] | None = None,
        target: Tensor | None = None,
        read_value: Any = None,
        peaks_nr: Any = None,
        return_corr_coef: bool = False,
        return_losses: bool = False,
        return_intermediates: bool = False,
        finetune_enformer: bool = False,
        finetune_enformer_ln_only: bool = False,
        unfreeze_enformer_last_n_layers: int = 0,
        head: str | None = None,
        **unknown: Any,
    ) -> Tensor | Losses | Intermediates:
        """Return a prediction, or with `target` its loss.

        Parameters
        ----------
        seq
            Long [s, bp]: A 0, C 1, G 2, T 3, N 4, outside the chromosome -1; or float [s, bp, 4].
        seq_embed
            What the trunk said, from a store, in place of `seq`.
        aa
            Proteins: strings, tuples of strings (complexes), or long [b, m] of 0 to 19, 20 is padding.
        aa_embed, aa_mask
            Embeddings of residues in place of `aa`, and which are real; without a mask all are.
        contextual_embed, contextual_free_text
            Vectors, or texts.
        target
            [b] of 0 and 1, or rates [b, n] ([b, n, tracks] with `head`); NaN is not counted.
        read_value, peaks_nr
            Score of each peak, and number of peaks of its experiment: None, NaN or 0 where unknown.
        return_corr_coef
            Mean Pearson over bins in place of the loss.
        return_losses
            The parts of the loss, by name.
        return_intermediates
            What the prediction came from, in place of it.
        finetune_enformer, finetune_enformer_ln_only, unfreeze_enformer_last_n_layers
            Train the trunk, its LayerNorms or its last blocks with this call; at most one of them.
        head
            Plain tracks of a species from DNA alone.

        Returns
        -------
        Without `target`: logits [b] (binary), rates [b, n] (tracks) or [b, n, tracks] (`head`). With it: a scalar.
        """
        refuse_unknown(unknown, type(self).forward, "AdapterModel's call")
        modes = {
            "all": finetune_enformer,
            "layernorm": finetune_enformer_ln_only,
            f"last:{unfreeze_enformer_last_n_layers}": unfreeze_enformer_last_n_layers > 0,
        }
        dna = self._dna(seq, seq_embed, [mode for mode, is_asked in modes.items() if is_asked])
        if head is not None:
            return self._plain_tracks(dna, head, target, return_corr_coef=return_corr_coef)
        residues, mask = self._residues(aa, aa_embed, aa_mask, dna.device)
        context = self._context(contextual_embed, contextual_free_text, dna.device)
        require_rows(dna.shape[0], residues.shape[0], context.shape[0])
        mixed, details = self.adapter(dna, residues, mask, context, with_details=return_intermediates)
        if details is not None:
            return cast(Intermediates, details)
        prediction = self._prediction(mixed)
        if target is None:
            return prediction
        if return_corr_coef:
            return self._correlation(prediction, target)
        losses = self._losses(prediction, mixed, target, read_value, peaks_nr)
        return losses if return_losses else losses.total

    def _prediction(self, mixed: Float[Tensor, "b n h"]) -> Tensor:
        if self.binary_target:
            return self.head.logit(mixed.mean(1))
        return F.softplus(self.head.logit(mixed))

    def _losses(self, prediction: Tensor, mixed: Tensor, target: Tensor, read_value: Any, peaks_nr: Any) -> Losses:
        none = prediction.new_zeros(())
        if prediction.shape != target.shape:
            what = f"a target of shape {list(target.shape)} for predictions of shape {list(prediction.shape)}"
            raise ConfigError(what, where="AdapterModel: target", fix="one per sequence (binary), or one per bin")
        if not self.binary_target:
            loss = mean_loss(self.loss_kind, prediction, target)
            return Losses(loss, loss, none)
        compare = F.mse_loss if self.target_mse_loss else F.binary_cross_entropy_with_logits
        main = compare(prediction, target.float())
        if self.read_values is None:
            return Losses(main, main, none)
        if read_value is None or peaks_nr is None:
            fix = "give both; None or NaN where one is unknown"
            raise ConfigError("aux_read_value_loss needs read_value and peaks_nr", where="AdapterModel", fix=fix)
        device = prediction.device
        auxiliary = self.read_values(mixed, as_numbers(peaks_nr, device), as_numbers(read_value, device))
        return Losses(main + self.head.options.read_values * auxiliary, main, auxiliary)

    def _correlation(self, prediction: Tensor, target: Tensor) -> Float[Tensor, ""]:
        if self.binary_target:
            fix = "use the logits, or a model without binary_target"
            raise ConfigError("one number per sequence has no correlation over bins", where="return_corr_coef", fix=fix)
        return mean_pearson(prediction, target)

    def _plain_tracks(self, dna: Tensor, name: str, target: Tensor | None, *, return_corr_coef: bool) -> Tensor:
        if self.binary_target:
            raise ConfigError("a binary_target model has no tracks", where=f"head {name!r}", fix="binary_target=False")
        heads = self.track_heads if len(self.track_heads) else getattr(self.enformer, "_heads", {})
        if name not in heads:
            close = difflib.get_close_matches(name, list(heads), n=1)
            fix = f"did you mean {close[0]!r}?" if close else "finetune_output_heads={NAME: TRACKS} makes one"
            raise ConfigError(f"no head {name!r}", where="AdapterModel: head", fix=fix)
        prediction: Tensor = heads[name].requires_grad_(True)(dna)
        if target is None:
            return prediction
        if prediction.shape != target.shape:
            what = f"the head gives {list(prediction.shape)}, the target has {list(target.shape)}"
            raise ConfigError(what, where=f"head {name!r}", fix="one number per sequence, bin and track")
        if return_corr_coef:
            return self._correlation(prediction, target)
        return mean_loss(self.loss_kind, prediction, target)

    def _dna(self, seq: Tensor | None, seq_embed: Tensor | None, modes: list[str]) -> Float[Tensor, "s n d"]:
        require_sound(
            {
                "give seq or seq_embed": (seq is None) == (seq_embed is None),
                "seq needs a trunk: AdapterModel(enformer=…)": seq is not None and self.enformer is None,
                "the trunk can be trained from seq only": seq is None and bool(modes),
                "ask for one way of training the trunk": len(modes) > 1,
            }
        )
        if seq_embed is not None:
            return seq_embed.float()
        assert seq is not None, "refused above"
        assert self.enformer is not None, "refused above"
        self._set_mode(modes[0] if modes else "head")
        with torch.set_grad_enabled(bool(modes) and torch.is_grad_enabled()):
            return self._embedded(read_dna(seq))

    def _embedded(self, sequence: Float[Tensor, "s l 4"]) -> Float[Tensor, "s n d"]:
        if not isinstance(self.enformer, Enformer):
            return cast(Callable[[Tensor], Tensor], self.enformer)(sequence).float()
        n_bins = cast(Any, self.enformer.crop_final).target_length
        return live_features(
            self.enformer, sequence, n_bins=None if n_bins == -1 else n_bins, checkpointing=self.checkpointing
        )

    def _set_mode(self, mode: str) -> None:
        if mode == self._mode or self.enformer is None:
            return
        if isinstance(self.enformer, Enformer):
            set_trunk_mode(self.enformer, mode)
        elif mode.startswith("last:"):
            raise ConfigError("only an Enformer's blocks can be counted", where="unfreeze_enformer_last_n_layers")
        else:
            self.enformer.requires_grad_(mode == "all")
            if mode == "layernorm":
                free_layernorms(self.enformer)
        self._mode = mode
        self._run_trunk()

    def _run_trunk(self) -> None:
        assert self.enformer is not None, "there is a trunk"
        if isinstance(self.enformer, Enformer):
            trains = self.training and self._mode != "head"
            set_running(self.enformer, dropout=self.trunk_dropout if trains else 0.0)
        else:
            self.enformer.eval()

    def _residues(
        self, aa: Any, aa_embed: Tensor | None, aa_mask: Tensor | None, device: torch.device
    ) -> tuple[Float[Tensor, "b l e"], Bool[Tensor, "b l"]]:
        require_sound(
            {
                "give aa or aa_embed": (aa is None) == (aa_embed is None),
                "aa needs an encoder: use_aa_embeds=True": aa is not None and self.proteins is None,
                "aa_mask belongs to aa_embed": aa_mask is not None and aa_embed is None,
            }
        )
        if aa_embed is None:
            assert self.proteins is not None, "refused above"
            return self.proteins(aa, device)
        mask = torch.ones(aa_embed.shape[:2], dtype=torch.bool, device=device) if aa_mask is None else aa_mask.bool()
        return aa_embed.masked_fill(~mask.unsqueeze(-1), 0.0), mask  # padding may hold anything

    def _context(self, vectors: Tensor | None, texts: Any, device: torch.device) -> Float[Tensor, "b t"]:
        require_sound(
            {
                "give contextual_embed or contextual_free_text": (vectors is None) == (texts is None),
                "texts need an encoder: use_free_text_context=True": texts is not None and self.texts is None,
            }
        )
        if vectors is not None:
            return vectors
        assert self.texts is not None, "refused above"
        return self.texts(texts, device)
