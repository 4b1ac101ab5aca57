import math

import pytest
import torch

from tfbind_store.heads.blocks import (
    Filip,
    FiLM,
    Hypergrid,
    QueryPool,
    SqueezeExcite,
    TokenAttention,
    log_average_exp,
    masked_mean,
)


class TestLogAverageExp:
    def test_of_two_values_by_hand(self):
        got = log_average_exp(torch.tensor([0.0, 0.1]), temperature=0.05)
        assert got.item() == pytest.approx(0.05 * math.log((1 + math.exp(2)) / 2))

    def test_masked_values_do_not_count(self):
        mask = torch.tensor([True, False, True])
        got = log_average_exp(torch.tensor([0.2, 9.0, 0.2]), temperature=0.05, mask=mask)
        assert got.item() == pytest.approx(0.2)

    def test_lies_between_mean_and_maximum(self):
        values = torch.tensor([0.1, 0.2, 0.6])
        assert log_average_exp(values, temperature=100.0).item() == pytest.approx(0.3, abs=1e-3)
        assert log_average_exp(values, temperature=0.001).item() == pytest.approx(0.6, abs=2e-3)


class TestFilip:
    def test_pools_cosines_and_the_normalised_null_by_log_average_exp(self):
        torch.manual_seed(0)
        filip = Filip(5, heads=2, head_dim=3, temperature=0.05)
        dna, tokens = torch.randn(1, 4, 1, 5), torch.randn(2, 6, 5)
        got = filip(dna, filip.project_tokens(tokens).unsqueeze(0))
        bins = filip.from_dna(dna[0, :, 0]).view(4, 2, 3)
        keys = filip.from_token(tokens).view(2, 6, 2, 3)
        for head in range(2):
            for n in range(4):
                for pair in range(2):
                    candidates = torch.cat([filip.null[head : head + 1], keys[pair, :, head]])
                    cosines = torch.cosine_similarity(bins[n, head].unsqueeze(0), candidates)
                    expected = log_average_exp(cosines, temperature=0.05)
                    torch.testing.assert_close(got[0, head, n, pair], expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("by_pair", [False, True])
    def test_masked_tokens_are_not_there(self, by_pair):
        torch.manual_seed(0)
        filip = Filip(5, heads=2, head_dim=3, temperature=0.05)
        dna, tokens = torch.randn(1, 4, 2 if by_pair else 1, 5), filip.project_tokens(torch.randn(1, 2, 6, 5))
        mask = torch.tensor([[[True, False, True, True, False, False], [True] * 4 + [False] * 2]])
        got = filip(dna, tokens, mask)
        for pair in range(2):
            own = dna[:, :, pair : pair + 1] if by_pair else dna
            alone = filip(own, tokens[:, pair : pair + 1][:, :, :, mask[0, pair]])
            torch.testing.assert_close(got[..., pair : pair + 1], alone)

    def test_a_factor_without_residues_meets_the_null_token_alone(self):
        torch.manual_seed(0)
        filip = Filip(5, heads=2, head_dim=3, temperature=0.05)
        dna, tokens = torch.randn(1, 4, 1, 5), filip.project_tokens(torch.randn(1, 1, 6, 5))
        got = filip(dna, tokens, torch.zeros(1, 1, 6, dtype=torch.bool))
        null_cosine = filip.cosines(dna, tokens)[0, 0, :, :, 0]
        torch.testing.assert_close(got[0, :, :, 0], null_cosine)

    def test_the_null_token_is_one_candidate_among_many_at_the_start(self):
        # the reference's was not normalised: it took most of the weight in 34 % of the cells
        torch.manual_seed(0)
        filip = Filip(64, heads=32, head_dim=64, temperature=0.05)
        cosines = filip.cosines(torch.randn(1, 8, 1, 64), filip.project_tokens(torch.randn(1, 1, 200, 64)))
        share = (cosines / 0.05).softmax(-1)[..., 0]
        assert (share > 0.5).float().mean() < 0.01

    def test_dropout_leaves_out_tokens_in_training_only(self):
        torch.manual_seed(0)
        filip = Filip(5, heads=2, head_dim=3, temperature=0.05, dropout=0.5)
        dna, tokens = torch.randn(1, 4, 1, 5), filip.project_tokens(torch.randn(1, 2, 6, 5))
        assert not torch.equal(filip.train()(dna, tokens), filip.train()(dna, tokens))
        assert torch.equal(filip.eval()(dna, tokens), filip.eval()(dna, tokens))

    def test_scaling_the_null_changes_nothing(self):
        torch.manual_seed(0)
        filip = Filip(5, heads=2, head_dim=3, temperature=0.05)
        dna, tokens = torch.randn(1, 4, 1, 5), filip.project_tokens(torch.randn(2, 6, 5)).unsqueeze(0)
        before = filip(dna, tokens)
        filip.null.data.mul_(8)
        torch.testing.assert_close(filip(dna, tokens), before)

    def test_bins_that_know_their_pair_give_the_same(self):
        torch.manual_seed(0)
        filip = Filip(5, heads=2, head_dim=3, temperature=0.05)
        dna, tokens = torch.randn(1, 4, 1, 5), filip.project_tokens(torch.randn(2, 6, 5)).unsqueeze(0)
        torch.testing.assert_close(filip(dna.expand(-1, -1, 2, -1), tokens), filip(dna, tokens))

    def test_stays_finite_at_the_coldest_temperature(self):
        filip = Filip(5, heads=2, head_dim=3, temperature=0.02)
        dna = torch.randn(1, 4, 1, 5) * 1e4
        assert filip(dna, filip.project_tokens(torch.randn(2, 6, 5) * 1e4).unsqueeze(0)).isfinite().all()


class TestTokenAttention:
    def test_is_softmax_over_real_tokens_by_hand(self):
        torch.manual_seed(0)
        block = TokenAttention(5, token_dim=4, heads=2, head_dim=3, dropout=0.0)
        dna, tokens = torch.randn(5), torch.randn(3, 4)
        mask = torch.tensor([True, True, False])
        queries = block.to_queries(block.norm_dna(dna)).view(2, 3)
        keys, values = block.to_keys_values(block.norm_token(tokens)).view(3, 2, 2, 3).unbind(1)
        attended = []
        for head in range(2):
            weights = (keys[:2, head] @ queries[head] / 3**0.5).softmax(0)
            attended.append(weights @ values[:2, head])
        expected = dna + block.out(torch.cat(attended))
        got = block(dna.view(1, 1, 1, 5), block.project(tokens.view(1, 1, 3, 4)), mask.view(1, 1, 3))
        torch.testing.assert_close(got.flatten(), expected)

    def test_without_a_real_token_it_is_finite(self):
        block = TokenAttention(5, token_dim=4, heads=2, head_dim=3, dropout=0.0)
        projected = block.project(torch.randn(1, 1, 3, 4))
        assert block(torch.randn(1, 2, 1, 5), projected, torch.zeros(1, 1, 3, dtype=torch.bool)).isfinite().all()


class TestSqueezeExcite:
    def test_gate_is_a_sigmoid_of_context_and_the_mean_over_real_positions(self):
        torch.manual_seed(0)
        block = SqueezeExcite(3, context_dim=2)
        x, context = torch.randn(1, 4, 3), torch.randn(1, 2)
        mask = torch.tensor([[True, True, False, False]])
        gate = block.to_gate(torch.cat([context[0], x[0, :2].mean(0)])).sigmoid()
        torch.testing.assert_close(block(x, context, mask), x * gate)

    def test_the_protein_reaches_its_own_gate_when_padded_with_zeros(self):
        # the reference's mean was over the padding: always zero
        torch.manual_seed(0)
        block = SqueezeExcite(3, context_dim=2)
        mask = torch.tensor([[True, True, False, False]])
        x, context = torch.randn(1, 4, 3) * mask.unsqueeze(-1), torch.randn(1, 2)
        gates = [block.gate(masked_mean(protein, mask), context) for protein in (x, 2 * x)]
        assert not torch.allclose(*gates)

    def test_padding_may_hold_anything(self):
        torch.manual_seed(0)
        block = SqueezeExcite(3, context_dim=2)
        x, context = torch.randn(1, 4, 3), torch.randn(1, 2)
        mask = torch.tensor([[True, True, False, False]])
        spoilt = x.masked_fill(~mask.unsqueeze(-1), torch.nan)
        torch.testing.assert_close(block(spoilt, context, mask)[:, :2], block(x, context, mask)[:, :2])


def test_mean_of_no_positions_is_zero():
    assert masked_mean(torch.randn(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0]]


def test_film_is_the_identity_at_the_start():
    film, x = FiLM(4, context_dim=3), torch.randn(2, 5, 4)
    assert torch.equal(film(x, torch.randn(2, 3)), x)


def test_film_multiplies_by_one_plus_gamma():
    film, x = FiLM(1, context_dim=1), torch.full((1, 1, 1), 3.0)
    film.to_gamma_beta.weight.data.copy_(torch.tensor([[0.5], [2.0]]))
    assert film(x, torch.ones(1, 1)).item() == 3 * 1.5 + 2


def test_pool_of_one_residue_is_that_residue():
    torch.manual_seed(0)
    pool = QueryPool(3, 4, n_queries=2)
    residues = torch.randn(1, 5, 3)
    mask = torch.tensor([[False, True, False, False, False]])
    expected = pool.to_token(residues[:, 1:2]) + pool.offset
    torch.testing.assert_close(pool(residues, mask), expected)


def test_pool_of_a_factor_without_residues_is_finite():
    pool = QueryPool(3, 4, n_queries=2)
    assert pool(torch.zeros(1, 5, 3), torch.zeros(1, 5, dtype=torch.bool)).isfinite().all()


def test_hypergrid_gates_each_cell_by_a_sigmoid_of_the_context():
    grid = Hypergrid(2, context_dim=1)
    grid.weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    grid.to_gate.weight.data.zero_()
    grid.to_gate.bias.data.copy_(torch.tensor([100.0, 0.0, -100.0, 0.0]))
    torch.testing.assert_close(grid.grid(torch.ones(1, 1)), torch.tensor([[[1.0, 1.0], [0.0, 2.0]]]))
