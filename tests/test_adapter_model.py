"""Every example of the reference's README that calls its model, on small ones; each option; each old defect."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from enformer_pytorch import Enformer
from torch import nn

from tests.heads.test_joint import by_hand
from tests.precompute.test_bert import write_folder
from tfbind_store import AdapterModel
from tfbind_store.errors import ConfigError, ProteinError
from tfbind_store.heads import make_head
from tfbind_store.precompute.embedder import make_sequence_embedder, make_text_embedder
from tfbind_store.precompute.enformer import random_trunk

BIN, N_BINS, LENGTH = 32, 8, 512
ESM = {"name": "esm", "num_layers": 2, "embed_dim": 16, "attention_heads": 4, "device": "cpu"}
SMALL = {"latent_dim": 4, "latent_heads": 4}
PROTEINS = ["KVFGRCELAA", ("AMKRHGLDNY", "YNDLGHRKMA")]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def enformer():
    shape = {"dim": 24, "depth": 2, "heads": 2, "attn_dim_key": 6, "num_downsamples": 5, "dim_divisible_by": 4}
    model = Enformer.from_hparams(**shape, target_length=N_BINS, output_heads={"human": 7})
    model.load_state_dict(random_trunk(shape, seed=0).model.state_dict(), strict=False)
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    write_folder(folder)
    return {"name": "bert", "checkpoint": str(folder), "device": "cpu"}


def sequence(n=1):
    return torch.randint(0, 4, (n, LENGTH))


def trunk_says(enformer, seq):
    with torch.no_grad():
        return enformer.eval()(seq, return_only_embeddings=True)


def mixed_by_hand(model, dna, proteins, contexts):
    rows = dna.expand(len(proteins), -1, -1)
    return torch.stack([by_hand_row(model, *row) for row in zip(rows, proteins, contexts, strict=True)])


def by_hand_row(model, dna, protein, context):
    """As tests/heads/test_joint.py writes it, at the reference's 8 heads of 64 and this model's FILIP."""
    from tests.heads import test_joint

    before = dict(test_joint.SMALL)
    test_joint.SMALL.update(attention_dim=64)
    try:
        return by_hand(model.adapter, dna, protein, context)
    finally:
        test_joint.SMALL.update(before)


def has_gradient(module):
    return sorted(name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0)


class TestReadmeEmbeddingsGiven:
    """Usage: the adapter with embeddings of protein and context that are given."""

    def test_it(self, enformer):
        model = AdapterModel(enformer=enformer, aa_embed_dim=10, contextual_embed_dim=6, **SMALL)
        seq, aa_embed, aa_mask = sequence(), torch.randn(1, 12, 10), torch.ones(1, 12).bool()
        contextual_embed, target = torch.randn(1, 6), torch.rand(1, N_BINS)
        given = {"aa_embed": aa_embed, "aa_mask": aa_mask, "contextual_embed": contextual_embed}
        loss = model(seq, **given, target=target)
        loss.backward()
        corr_coef = model(seq, **given, target=target, return_corr_coef=True)

        rates = model(seq, **given)
        mixed = mixed_by_hand(model, trunk_says(enformer, seq), aa_embed, contextual_embed)
        logits = mixed @ model.head.to_logit[1].weight[0] + model.head.to_logit[1].bias
        torch.testing.assert_close(rates, F.softplus(logits), rtol=1e-4, atol=1e-4)
        assert rates.shape == (1, N_BINS)
        torch.testing.assert_close(loss, (rates - target * rates.log()).mean())
        assert loss.shape == corr_coef.shape == ()
        torch.testing.assert_close(corr_coef, torch.corrcoef(torch.stack([rates[0], target[0]]))[0, 1])
        assert has_gradient(model.adapter)
        assert has_gradient(enformer) == []


class TestReadmeProteinsEncoded:
    """Using ESM or ProtAlbert: proteins as integers, encoded in the call."""

    def test_it(self, enformer):
        model = AdapterModel(
            enformer=enformer, use_aa_embeds=True, aa_embed_encoder=ESM, contextual_embed_dim=6, **SMALL
        )
        seq, tf_aa = sequence(), torch.tensor([[10, 8, 20, 17]])
        contextual_embed, target = torch.randn(1, 6), torch.rand(1, N_BINS)
        loss = model(seq, aa=tf_aa, contextual_embed=contextual_embed, target=target)
        loss.backward()
        options = {key: value for key, value in ESM.items() if key != "name"}
        (embedded,) = make_sequence_embedder("esm", options).embed(["MKV"])
        given = torch.from_numpy(embedded.values).unsqueeze(0)
        mixed = mixed_by_hand(model, trunk_says(enformer, seq), given, contextual_embed)
        rates = F.softplus(model.head.logit(mixed))
        torch.testing.assert_close(loss, (rates - target * rates.log()).mean(), rtol=1e-4, atol=1e-4)
        assert has_gradient(model)
        assert not any("esm" in name for name in model.state_dict())


class TestReadmeFreeText:
    """Context passed in as free text: complexes, texts, mean pooling."""

    def test_it(self, enformer, bert):
        model = AdapterModel(
            enformer=enformer, use_aa_embeds=True, aa_embed_encoder=ESM, use_free_text_context=True,
            free_text_context_encoder=bert, free_text_embed_method="mean_pool", **SMALL,
        )  # fmt: skip
        seq, target = sequence(2), torch.rand(2, N_BINS)
        texts = ["cell type: GM12878 | dual cross-linked", "cell type: H1-hESC"]
        loss = model(seq, target=target, aa=PROTEINS, contextual_free_text=texts)
        loss.backward()
        options = {key: value for key, value in ESM.items() if key != "name"}
        single, *pair = (
            torch.from_numpy(found.values)
            for found in make_sequence_embedder("esm", options).embed([PROTEINS[0], *PROTEINS[1]])
        )
        place = {key: value for key, value in bert.items() if key != "name"}
        contexts = torch.from_numpy(make_text_embedder("bert", {**place, "pooling": "mean"}).embed(texts).values)
        dna = trunk_says(enformer, seq)
        mixed = mixed_by_hand(model, dna, [single, torch.cat(pair)], contexts)
        rates = F.softplus(model.head.logit(mixed))
        torch.testing.assert_close(loss, (rates - target * rates.log()).mean(), rtol=1e-4, atol=1e-4)
        assert (single.shape, torch.cat(pair).shape) == ((10, 16), (20, 16))

    def test_the_method_of_pooling_counts(self, enformer, bert):
        # the reference's cache gave cls where mean_pool was asked for
        common = {"enformer": enformer, "aa_embed_dim": 6, "use_free_text_context": True, **SMALL}
        vectors = [
            AdapterModel(**common, free_text_context_encoder=bert, free_text_embed_method=method).texts(
                ["liver cell"], torch.device("cpu")
            )
            for method in ("cls", "mean_pool")
        ]
        assert not torch.allclose(*vectors)


class TestReadmeBinary:
    """Binary prediction: one sequence, two factors, their contexts as text."""

    def test_it(self, enformer, bert):
        model = AdapterModel(
            enformer=enformer, use_aa_embeds=True, aa_embed_encoder=ESM, use_free_text_context=True,
            free_text_context_encoder=bert, free_text_embed_method="mean_pool", condition_squeeze_excite=True,
            binary_target=True, target_mse_loss=False, **SMALL,
        )  # fmt: skip
        seq, binary_target = sequence(), torch.tensor([0, 1])
        texts = [
            "cell type: GM12878 | chip-seq dual cross-linked",
            "cell type: H1-hESC | chip-seq single cross-linked",
        ]
        call = {"aa": PROTEINS, "contextual_free_text": texts}
        loss = model(seq, target=binary_target, **call)
        loss.backward()
        residues, mask = model.proteins(PROTEINS, seq.device)
        rows = [own[real] for own, real in zip(residues, mask, strict=True)]
        mixed = mixed_by_hand(model, trunk_says(enformer, seq), rows, model.texts(texts, seq.device))
        norm, linear = model.head.to_logit
        logits = linear(norm(mixed.mean(1))).squeeze(-1)
        found = model(seq, **call)
        assert found.shape == (2,)
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
        expected = (logits[0].exp().log1p() + (-logits[1]).exp().log1p()) / 2
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
        assert has_gradient(model.adapter.head.condition_protein)

    @pytest.mark.parametrize(
        ("typo", "meant"),
        [
            ("use_squeeze_excite", "condition_squeeze_excite"),
            ("binary_targets", "binary_target"),
            ("latent_hed", "latent_heads"),
        ],
    )
    def test_an_unknown_keyword_is_a_type_error(self, enformer, typo, meant):
        with pytest.raises(TypeError, match=f"no keyword '{typo}'; did you mean '{meant}'"):
            AdapterModel(enformer=enformer, aa_embed_dim=4, contextual_embed_dim=4, **{typo: True})

    def test_so_is_one_of_a_call(self):
        with pytest.raises(TypeError, match="did you mean 'contextual_embed'"):
            given_model()(contextual_embd=torch.randn(1, 6))

    def test_an_option_without_a_name_is_a_type_error(self, enformer):
        with pytest.raises(TypeError):
            AdapterModel(enformer)


class TestReadmeTracks:
    """Predicting tracks from bigWig: ours are in the store, binned; the call is the same."""

    def test_it(self, enformer):
        model = AdapterModel(
            enformer=enformer, use_aa_embeds=True, aa_embed_encoder="composition", use_free_text_context=True,
            free_text_context_encoder="hashed", **SMALL,
        )  # fmt: skip
        seq, target = sequence(2), torch.rand(2, N_BINS).mul(10)
        target[0, 3] = torch.nan
        call = {"aa": ["KVFGRCELAA", "AMKRHGLDNY"], "contextual_free_text": ["Blood", "Liver"]}
        loss = model(seq, target=target, **call)
        loss.backward()
        rates, known = model(seq, **call), ~target.isnan()
        cells = (rates - target * rates.log())[known]
        torch.testing.assert_close(loss, cells.mean())
        assert known.sum() == 2 * N_BINS - 1
        assert has_gradient(model.adapter.head.filip)


def given_model(enformer=None, **options):
    width = {} if enformer is not None else {"dna_embed_dim": 12}
    return AdapterModel(enformer=enformer, aa_embed_dim=6, contextual_embed_dim=6, **width, **SMALL, **options)


def given(n=2, *, n_sequences=None, n_residues=5):
    return {
        "seq_embed": torch.randn(n_sequences or n, N_BINS, 12),
        "aa_embed": torch.randn(n, n_residues, 6),
        "contextual_embed": torch.randn(n, 6),
    }


class TestOptions:
    def test_every_option_of_the_reference_is_there(self):
        ours = inspect.signature(AdapterModel).parameters
        reference = (
            "enformer latent_dim latent_heads aa_embed_dim aa_embed_encoder contextual_embed_dim use_aa_embeds "
            "use_free_text_context free_text_context_encoder free_text_embed_method dropout binary_target "
            "target_mse_loss aux_read_value_loss read_value_aux_loss_weight joint_cross_attn_depth "
            "genome_self_attn_depth fourier_dims condition_squeeze_excite condition_film condition_hypergrid "
            "use_corr_coef_loss finetune_output_heads"
        )
        assert set(reference.split(" ")) <= set(ours)
        defaults = {
            "latent_dim": 64,
            "latent_heads": 32,
            "joint_cross_attn_depth": 1,
            "read_value_aux_loss_weight": 0.05,
        }
        assert {name: ours[name].default for name in defaults} == defaults
        call = (
            "seq aa aa_embed contextual_embed contextual_free_text aa_mask target read_value peaks_nr "
            "return_corr_coef finetune_enformer finetune_enformer_ln_only unfreeze_enformer_last_n_layers head"
        )
        assert set(call.split(" ")) <= set(inspect.signature(AdapterModel.forward).parameters)

    @pytest.mark.parametrize(
        "options",
        [
            {"genome_self_attn_depth": 2},
            {"joint_cross_attn_depth": 0},
            {"joint_cross_attn_depth": 2, "condition_film": True},
            {"condition_squeeze_excite": True},
            {"condition_hypergrid": False},
        ],
    )
    @pytest.mark.parametrize("binary", [True, False])
    def test_each_gives_what_the_formulas_say(self, options, binary):
        model, inputs = given_model(binary_target=binary, **options), given()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        mixed = mixed_by_hand(model, inputs["seq_embed"], inputs["aa_embed"], inputs["contextual_embed"])
        expected = model.head.logit(mixed.mean(1)) if binary else F.softplus(model.head.logit(mixed))
        torch.testing.assert_close(model(**inputs), expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("depth", [0, 1])
    def test_one_sequence_with_many_factors_at_any_depth(self, depth):
        model, inputs = given_model(joint_cross_attn_depth=depth), given(3, n_sequences=1)
        alone = [model(**{k: v[:1] if k == "seq_embed" else v[i : i + 1] for k, v in inputs.items()}) for i in range(3)]
        torch.testing.assert_close(model(**inputs), torch.cat(alone))

    def test_mask_is_of_residues_whatever_the_width_of_a_latent(self):
        # the reference's default mask had the length of a latent
        model, inputs = given_model(), given(n_residues=9)
        full = model(**inputs, aa_mask=torch.ones(2, 9, dtype=torch.bool))
        assert torch.equal(model(**inputs), full)
        mask = torch.arange(9) < torch.tensor([[4], [9]])
        short = {**inputs, "aa_embed": inputs["aa_embed"][:, :4]}
        torch.testing.assert_close(model(**inputs, aa_mask=mask)[0], model(**short)[0])

    @pytest.mark.parametrize("depth", [0, 1])
    @pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e6])
    def test_padding_may_hold_anything_and_a_factor_may_be_nothing_else(self, depth, junk):
        model, inputs = given_model(joint_cross_attn_depth=depth), given(n_residues=9)
        mask = torch.arange(9) < torch.tensor([[4], [0]])
        filled = {**inputs, "aa_embed": inputs["aa_embed"].masked_fill(~mask.unsqueeze(-1), junk)}
        found = model(**filled, aa_mask=mask)
        assert found.isfinite().all()
        torch.testing.assert_close(found, model(**inputs, aa_mask=mask))

    def test_mse_is_of_the_logit(self):
        model, inputs = given_model(binary_target=True, target_mse_loss=True), given()
        target = torch.tensor([1.0, 0.0])
        torch.testing.assert_close(model(**inputs, target=target), (model(**inputs) - target).square().mean())

    def test_corr_coef_loss_is_one_minus_pearson(self):
        model, inputs = given_model(use_corr_coef_loss=True), given()
        target = torch.rand(2, N_BINS)
        correlation = model(**inputs, target=target, return_corr_coef=True)
        torch.testing.assert_close(model(**inputs, target=target), 1 - correlation)
        constant = torch.cat([target[:1], torch.ones(1, N_BINS)])
        one = torch.corrcoef(torch.stack([model(**inputs)[0], target[0]]))[0, 1]
        torch.testing.assert_close(model(**inputs, target=constant, return_corr_coef=True), one)
        nothing = model(**inputs, target=torch.ones(2, N_BINS), return_corr_coef=True)
        assert math.isnan(nothing.item())

    def test_read_values_are_an_auxiliary_loss(self):
        model, inputs = given_model(binary_target=True, aux_read_value_loss=True), given()
        call = {**inputs, "target": torch.tensor([1, 0]), "read_value": torch.tensor([[800.0], [0.0]])}
        call["peaks_nr"] = [5000, None]
        losses = model(**call, return_losses=True)
        torch.testing.assert_close(losses.total, losses.main + 0.05 * losses.auxiliary)
        assert 0 < 0.05 * losses.auxiliary < losses.main
        assert torch.equal(model(**call), losses.total)
        losses.total.backward()
        assert has_gradient(model.read_values)
        assert given_model(binary_target=True).read_values is None
        with pytest.raises(ConfigError, match="needs read_value and peaks_nr"):
            model(**inputs, target=torch.tensor([1, 0]))

    def test_intermediates_on_request(self):
        found = given_model(joint_cross_attn_depth=2)(**given(), return_intermediates=True)
        assert found.interactions.shape == (2, N_BINS, 4)
        assert [own.shape for own in found.back_attention] == [(2, 8, N_BINS, 5)] * 2

    def test_dropout_is_of_training_only(self):
        model, inputs = given_model(dropout=0.5), given()
        assert not torch.equal(model.train()(**inputs), model.train()(**inputs))
        assert torch.equal(model.eval()(**inputs), model.eval()(**inputs))

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            ({"target_mse_loss": True}, "needs binary_target"),
            ({"aux_read_value_loss": True}, "needs binary_target"),
            ({"use_corr_coef_loss": True, "binary_target": True}, "of tracks"),
            ({"condition_film": True, "condition_squeeze_excite": True}, "parts of the filip head"),
            ({"fourier_dims": 5}, "even"),
        ],
    )
    def test_options_that_contradict_each_other_are_refused(self, options, what):
        with pytest.raises(ConfigError, match=what):
            given_model(**options)

    def test_widths_are_known_or_said(self, enformer):
        with pytest.raises(ConfigError, match="aa_embed_dim is not known"):
            AdapterModel(enformer=enformer, contextual_embed_dim=6)
        with pytest.raises(ConfigError, match="dna_embed_dim is not known"):
            AdapterModel(aa_embed_dim=6, contextual_embed_dim=6)
        with pytest.raises(ConfigError, match="the encoder gives 16"):
            AdapterModel(
                enformer=enformer, use_aa_embeds=True, aa_embed_encoder=ESM, aa_embed_dim=1280, contextual_embed_dim=6
            )
        with pytest.raises(ConfigError, match="free_text_embed_method 'mean'"):
            given_model(use_free_text_context=True, free_text_context_encoder="hashed", free_text_embed_method="mean")


class TestInputs:
    def test_numbers_and_channels_are_one(self, enformer):
        model, rest = given_model(enformer), {k: v for k, v in given(1).items() if k != "seq_embed"}
        seq = torch.randint(-1, 5, (1, LENGTH))
        channels = F.one_hot(seq.clamp(0, 3), 4).float()
        channels[seq == 4], channels[seq == -1] = 0.0, 0.25
        torch.testing.assert_close(model(seq, **rest), model(channels, **rest))

    def test_unknown_bases_are_read_alike_in_training_and_evaluation(self, enformer):
        # the reference's cache turned N and padding into A, in training only
        model, rest = given_model(enformer), {k: v for k, v in given(1).items() if k != "seq_embed"}
        seq = sequence()
        seq[:, :200] = 4
        torch.testing.assert_close(model.train()(seq, **rest), model.eval()(seq, **rest))
        assert not torch.allclose(model(seq, **rest), model(seq.clamp(max=3).masked_fill(seq == 4, 0), **rest))

    def test_embeddings_of_a_store_stand_in_for_the_trunk(self, enformer):
        model, rest, seq = given_model(enformer), {k: v for k, v in given(1).items() if k != "seq_embed"}, sequence()
        torch.testing.assert_close(model(seq_embed=trunk_says(enformer, seq), **rest), model(seq, **rest))
        without = AdapterModel(dna_embed_dim=48, aa_embed_dim=6, contextual_embed_dim=6, **SMALL)
        without.load_head_tensors(model.head_tensors())
        stored = trunk_says(enformer, seq).half()
        assert torch.equal(without(seq_embed=stored, **rest), model(seq_embed=stored, **rest))
        with pytest.raises(ConfigError, match="needs a trunk"):
            without(seq, **rest)

    @pytest.mark.parametrize(
        ("odd", "what"),
        [
            ({"contextual_free_text": ["liver"]}, "give contextual_embed or contextual_free_text"),
            ({"contextual_embed": None}, "give contextual_embed or contextual_free_text"),
            ({"aa": ["MKV"]}, "give aa or aa_embed"),
            ({"aa": ["MKV"], "aa_embed": None}, "use_aa_embeds=True"),
            ({"contextual_embed": torch.zeros(3, 6)}, "2 sequences, 2 proteins, 3 contexts"),
            ({"target": torch.zeros(2, N_BINS + 1)}, "target of shape"),
            ({"finetune_enformer": True}, "from seq only"),
            ({"seq": torch.zeros(2, LENGTH, dtype=torch.long)}, "give seq or seq_embed"),
        ],
    )
    def test_calls_that_cannot_be_meant_are_refused(self, odd, what):
        with pytest.raises(ConfigError, match=what):
            given_model()(**{**given(), **odd})

    def test_proteins_that_are_none_are_refused(self, enformer):
        model = AdapterModel(
            enformer=enformer, use_aa_embeds=True, aa_embed_encoder=ESM, contextual_embed_dim=6, **SMALL
        )
        for odd in ("MKV", ["MK1"], torch.full((1, 4), 20)):
            with pytest.raises(ProteinError):
                model(sequence(), aa=odd, contextual_embed=torch.zeros(1, 6))
        with pytest.raises(ConfigError, match="without a subunit"):
            model(sequence(), aa=[()], contextual_embed=torch.zeros(1, 6))
        with pytest.raises(ConfigError, match="other numbers than"):
            model(sequence() + 2, aa=["MKV"], contextual_embed=torch.zeros(1, 6))

    def test_each_distinct_protein_is_encoded_once(self, enformer):
        class Counting:
            def __init__(self):
                self.inner, self.asked = make_sequence_embedder("composition"), []

            def spec(self):
                return self.inner.spec()

            def embed(self, sequences):
                self.asked += sequences
                return self.inner.embed(sequences)

        encoder = Counting()
        model = AdapterModel(
            enformer=enformer, use_aa_embeds=True, aa_embed_encoder=encoder, contextual_embed_dim=6, **SMALL
        )
        for _ in range(2):
            model(sequence(), aa=["MKV", ("MKV", "LLR"), "MKV"], contextual_embed=torch.zeros(3, 6))
        assert encoder.asked == ["MKV", "LLR"]


class TestTrunk:
    def call(self, model, **how):
        rest = {k: v for k, v in given(1).items() if k != "seq_embed"}
        model.zero_grad(set_to_none=True)
        model(sequence(), **rest, target=torch.rand(1, N_BINS), **how).backward()
        return has_gradient(model.enformer)

    def test_each_mode_trains_what_it_says_after_any_other(self, enformer):
        model = given_model(enformer).train()
        norms = {
            f"{name}.{part}" for name, module in enformer.named_modules() if isinstance(module, nn.LayerNorm)
            for part in ("weight", "bias")
        }  # fmt: skip
        modes = [
            {"finetune_enformer_ln_only": True},
            {"finetune_enformer": True},
            {},
            {"unfreeze_enformer_last_n_layers": 1},
        ]
        for how in [modes[0], *modes[1:], modes[0], modes[3], modes[1]]:
            found = self.call(model, **how)
            if how == modes[0]:
                assert found
                assert set(found) <= norms
            elif how == modes[1]:
                assert any(name.startswith("stem") for name in found)
            elif how == modes[3]:
                assert found
                assert all(name.startswith("transformer.1.") for name in found)
            else:
                assert found == []

    def test_two_ways_at_once_are_refused(self, enformer):
        with pytest.raises(ConfigError, match="one way"):
            self.call(given_model(enformer), finetune_enformer=True, finetune_enformer_ln_only=True)

    def test_batchnorms_stay_and_dropout_is_what_was_asked_for(self, enformer):
        model = given_model(enformer, trunk_dropout=0.3)
        self.call(model.train(), finetune_enformer=True)
        norms = [m for m in enformer.modules() if isinstance(m, nn.BatchNorm1d)]
        assert norms
        assert not any(m.training for m in norms)
        dropouts = [m for m in enformer.transformer.modules() if isinstance(m, nn.Dropout)]
        assert {(m.training, m.p) for m in dropouts} == {(True, 0.3)}
        model.eval()
        assert not any(m.training for m in dropouts)
        self.call(given_model(enformer).train(), finetune_enformer=True)
        assert not any(m.training for m in dropouts)

    def test_any_module_can_be_the_trunk(self):
        class Bins(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv1d(4, 12, BIN, stride=BIN)

            def forward(self, x):
                return self.conv(x.transpose(1, 2)).transpose(1, 2)

        model = AdapterModel(enformer=Bins(), dna_embed_dim=12, aa_embed_dim=6, contextual_embed_dim=6, **SMALL)
        rest = {k: v for k, v in given(1).items() if k != "seq_embed"}
        assert model(sequence(), **rest).shape == (1, LENGTH // BIN)
        model(sequence(), **rest, finetune_enformer=True).sum().backward()
        assert has_gradient(model.enformer) == ["conv.bias", "conv.weight"]

    def test_state_of_the_head_is_without_trunk_and_encoders(self, enformer):
        names = given_model(enformer).head_tensors()
        assert names
        assert not any("enformer" in name for name in names)
        with pytest.raises(ConfigError, match="do not fit"):
            given_model(enformer, genome_self_attn_depth=1).load_head_tensors(names)


class TestPlainTracks:
    def test_heads_of_species(self, enformer):
        model, seq = given_model(enformer, finetune_output_heads={"human": 5, "mouse": 3}), sequence(2)
        prediction = model(seq, head="mouse")
        linear = model.track_heads["mouse"][0]
        torch.testing.assert_close(prediction, F.softplus(linear(trunk_says(enformer, seq))), rtol=1e-4, atol=1e-5)
        target = torch.rand(2, N_BINS, 3)
        loss = model(seq, head="mouse", target=target)
        torch.testing.assert_close(loss, (prediction - target * prediction.log()).mean())
        loss.backward()
        assert has_gradient(model.track_heads) == ["mouse.0.bias", "mouse.0.weight"]
        correlation = model(seq, head="mouse", target=target, return_corr_coef=True)
        pairs = [
            torch.corrcoef(torch.stack([prediction[b, :, t], target[b, :, t]]))[0, 1]
            for b in range(2)
            for t in range(3)
        ]
        torch.testing.assert_close(correlation, torch.stack(pairs).mean())

    def test_without_any_the_trunks_own_serve(self, enformer):
        model, seq = given_model(enformer), sequence()
        torch.testing.assert_close(model(seq, head="human"), enformer(seq)["human"], rtol=1e-4, atol=1e-5)
        model(seq, head="human").sum().backward()
        assert has_gradient(enformer) == ["_heads.human.0.bias", "_heads.human.0.weight"]

    def test_mistakes_are_named(self, enformer):
        model, seq = given_model(enformer, finetune_output_heads={"human": 5}), sequence()
        with pytest.raises(ConfigError, match="no head 'humn'") as caught:
            model(seq, head="humn")
        assert "human" in caught.value.fix
        with pytest.raises(ConfigError, match=r"the head gives \[1, 8, 5\]"):
            model(seq, head="human", target=torch.rand(1, N_BINS, 4))
        with pytest.raises(ConfigError, match="has no tracks"):
            given_model(enformer, binary_target=True)(seq, head="human")
        with pytest.raises(ConfigError, match="no correlation"):
            given_model(binary_target=True)(**given(), target=torch.ones(2), return_corr_coef=True)


def test_its_head_is_the_filip_head_of_stored_bins():
    model = given_model(binary_target=True)
    settings = model.head.settings()
    again = make_head(settings["head"], model.head.geometry, settings["options"])
    again.load_state_dict(model.head.state_dict())
    inputs = given()
    one_bin = model(**{**inputs, "seq_embed": inputs["seq_embed"][:, :1]})
    mixed = model.adapter(
        inputs["seq_embed"][:, :1], inputs["aa_embed"], torch.ones(2, 5).bool(), inputs["contextual_embed"]
    )
    torch.testing.assert_close(again.logit(mixed.mixed.mean(1)), one_bin)
