import math

import pytest
import torch

from tfbind_store.heads.blocks import Filip, FiLM, Hypergrid, QueryPool, log_average_exp


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
