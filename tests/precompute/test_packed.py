"""Products with weights laid out once, and the convolution made of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.precompute.fast_models import relative_rms
from tfbind_store.precompute.packed import CookToom, PackedLinear, Unary, product


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

    @pytest.mark.parametrize("unary", ["none", "swish"])
    def test_a_long_sum_is_added_up_in_parts(self, onednn: bool, unary: Unary) -> None:
        whole = PackedLinear(self.weight, self.bias, onednn=onednn)
        parts = PackedLinear(self.weight, self.bias, onednn=onednn, longest_sum=5)
        assert sum(parts.widths) == 12
        assert len(parts.parts) == (3 if parts.onednn else 1)
        torch.testing.assert_close(parts(self.x, unary), whole(self.x, unary))
        other = torch.randn(7, 5)
        before = other.clone()
        torch.testing.assert_close(parts.add(self.x, other), whole.add(self.x, before))
        assert torch.equal(other, before)

    def test_weights_that_stay_where_they_are(self, onednn: bool) -> None:
        packed = PackedLinear(self.weight, self.bias, onednn=onednn)
        left = PackedLinear(self.weight, self.bias, onednn=onednn, packed=False)
        assert left.parts[0].data_ptr() == self.weight.data_ptr()
        for x in (self.x, self.x[:2]):
            torch.testing.assert_close(left(x, "relu"), packed(x, "relu"))
            torch.testing.assert_close(left.add(x, packed(x)), packed.add(x, packed(x)))

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


def test_parts_make_rounding_smaller() -> None:
    make = torch.Generator().manual_seed(0)
    weight, x = torch.randn(64, 2048, generator=make), torch.randn(256, 2048, generator=make)
    exact = x.double() @ weight.double().T
    at_once, in_parts = (PackedLinear(weight, longest_sum=n) for n in (2048, 256))
    if not at_once.onednn:
        pytest.skip("this torch has no fused product")
    assert relative_rms(in_parts(x), exact) < 0.8 * relative_rms(at_once(x), exact)


@pytest.mark.parametrize("tiles", [1, 2, 9])
@pytest.mark.parametrize(("width_in", "width_out"), [(3, 5), (64, 48)])
def test_cook_toom_is_the_convolution(tiles: int, width_in: int, width_out: int) -> None:
    weight = torch.randn(width_out, width_in, 5) / (5 * width_in) ** 0.5
    x = torch.randn(4 * tiles + 4, width_in)
    found = CookToom(weight)(x.unflatten(0, (tiles + 1, 4)).transpose(0, 1).contiguous())
    expected = functional.conv1d(x.T[None].double(), weight.double())[0].T
    assert found.shape == (4, tiles, width_out)
    assert relative_rms(found.transpose(0, 1).flatten(0, 1), expected) < 3e-6
