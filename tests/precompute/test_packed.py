"""Products with weights laid out once, and the convolution made of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.precompute.fast_models import relative_rms
from tfbind_store.precompute.packed import CookToom, PackedLinear, product


@pytest.mark.parametrize("onednn", [True, False])
class TestPackedLinear:
    x, weight, bias = torch.randn(7, 12), torch.randn(5, 12), torch.randn(5)

    @pytest.mark.parametrize(
        ("unary", "function"),
        [("none", lambda y: y), ("relu", functional.relu), ("sigmoid", torch.sigmoid), ("swish", functional.silu),
         ("gelu", functional.gelu)],
    )  # fmt: skip
    def test_product_and_function(self, onednn: bool, unary: str, function: object) -> None:
        packed = PackedLinear(self.weight, self.bias, onednn=onednn)
        expected = function(functional.linear(self.x, self.weight, self.bias))  # type: ignore[operator]
        torch.testing.assert_close(packed(self.x, unary), expected)  # type: ignore[arg-type]

    def test_addition_leaves_its_input_alone(self, onednn: bool) -> None:
        other = torch.randn(7, 5)
        before = other.clone()
        found = PackedLinear(self.weight, self.bias, onednn=onednn).add(self.x, other)
        torch.testing.assert_close(found, before + functional.linear(self.x, self.weight, self.bias))
        assert torch.equal(other, before)

    def test_strided_rows(self, onednn: bool) -> None:
        wide = torch.randn(7, 30)
        found = PackedLinear(self.weight, onednn=onednn)(wide[:, 3:15])
        torch.testing.assert_close(found, wide[:, 3:15] @ self.weight.T)
        torch.testing.assert_close(product(wide[:, :12], self.weight, onednn=onednn), wide[:, :12] @ self.weight.T)


@pytest.mark.parametrize("tiles", [1, 2, 9])
@pytest.mark.parametrize(("width_in", "width_out"), [(3, 5), (64, 48)])
def test_cook_toom_is_the_convolution(tiles: int, width_in: int, width_out: int) -> None:
    weight = torch.randn(width_out, width_in, 5) / (5 * width_in) ** 0.5
    x = torch.randn(4 * tiles + 4, width_in)
    found = CookToom(weight)(x.unflatten(0, (tiles + 1, 4)).transpose(0, 1).contiguous())
    expected = functional.conv1d(x.T[None].double(), weight.double())[0].T
    assert found.shape == (4, tiles, width_out)
    assert relative_rms(found.transpose(0, 1).flatten(0, 1), expected) < 3e-6
