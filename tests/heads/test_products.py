import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tfbind_store.heads import products
from tfbind_store.heads.products import Linear, product


@pytest.fixture(autouse=True)
def _not_intel(monkeypatch):
    monkeypatch.setattr(products, "is_intel", lambda: False)


@pytest.fixture
def _always(monkeypatch):
    monkeypatch.setattr(products, "FEWEST_PRODUCTS", 0)


def gradients(function, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    value.square().sum().backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.usefixtures("_always")
class TestProduct:
    @pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 4, 3, 5), (0, 5)])
    def test_values_and_gradients_are_those_of_a_linear_layer(self, shape):
        torch.manual_seed(0)
        tensors = torch.randn(*shape), torch.randn(7, 5), torch.randn(7)
        for mine, its in zip(gradients(product, *tensors), gradients(F.linear, *tensors), strict=True):
            torch.testing.assert_close(mine, its)

    def test_tensors_that_do_not_lie_in_rows(self):
        torch.manual_seed(0)
        x, weight = torch.randn(5, 3).t(), torch.randn(5, 7).t()
        for mine, its in zip(gradients(product, x, weight), gradients(F.linear, x, weight), strict=True):
            torch.testing.assert_close(mine, its)

    @pytest.mark.parametrize("kind", ["repeated rows", "repeated columns", "every other column", "some rows"])
    def test_views_are_read_by_their_strides(self, kind):
        """The operator is handed transposed views as they are, to save a copy of each."""
        torch.manual_seed(0)
        whole = torch.randn(64, 96)
        x = {
            "repeated rows": whole[:1, :48].expand(32, 48), "repeated columns": whole[:32, :1].expand(32, 48),
            "every other column": whole[:32, ::2], "some rows": whole[10:42, :48],
        }[kind]  # fmt: skip
        weight, bias = torch.randn(40, 48, requires_grad=True), torch.randn(40, requires_grad=True)
        upstream = torch.randn(1, 40).expand(32, 40)
        found = torch.autograd.grad(product(x, weight, bias), (weight, bias), upstream)
        expected = torch.autograd.grad(F.linear(x, weight, bias), (weight, bias), upstream)
        for mine, its in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, its)

    def test_a_frozen_weight_gets_no_gradient(self):
        layer = Linear(5, 7).requires_grad_(False)
        x = torch.randn(3, 5, requires_grad=True)
        layer(x).sum().backward()
        assert layer.weight.grad is None
        torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 5))

    def test_in_inference_mode(self):
        layer = Linear(5, 7)
        with torch.inference_mode():
            x = torch.randn(3, 5)
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))

    def test_autocast_decides_the_precision(self):
        layer, x = Linear(5, 7), torch.randn(3, 5)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16

    def test_other_precisions_are_left_to_torch(self):
        x, weight = torch.randn(3, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
        torch.testing.assert_close(product(x, weight), F.linear(x, weight))


def test_small_products_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(products, "_onednn", lambda *tensors: pytest.fail("sent to oneDNN"))
    product(torch.randn(10, 10), torch.randn(10, 10))
    with pytest.raises(pytest.fail.Exception):
        product(torch.randn(1000, 1000), torch.randn(20, 1000))


@pytest.mark.usefixtures("_always")
def test_on_intel_products_are_left_to_its_own_library(monkeypatch):
    monkeypatch.setattr(products, "is_intel", lambda: True)
    monkeypatch.setattr(products, "_onednn", lambda *tensors: pytest.fail("sent to oneDNN"))
    layer, x = Linear(5, 7), torch.randn(3, 5)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_without_the_operator_it_is_a_linear_layer(monkeypatch):
    monkeypatch.setattr(products, "onednn_available", lambda: False)
    monkeypatch.setattr(products, "FEWEST_PRODUCTS", 0)
    layer, x = Linear(5, 7), torch.randn(3, 5)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_parameters_are_those_of_a_linear_layer_so_that_decay_and_checkpoints_fit():
    torch.manual_seed(0)
    mine = Linear(5, 7)
    torch.manual_seed(0)
    its = torch.nn.Linear(5, 7)
    assert isinstance(mine, torch.nn.Linear)
    assert torch.equal(mine.weight, its.weight)
    assert list(mine.state_dict()) == list(its.state_dict())
