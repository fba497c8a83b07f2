"""Dropout of heads in training: its share, its mean, its gradients, and nothing of it afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from training.masks import MaskedDropout, with_masks


def dropout(share: float, relu: bool, seed: int = 0) -> MaskedDropout:
    return MaskedDropout(share, np.random.SFC64(seed), relu).train()


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("shape", [(400, 251), (33, 7)])
def test_a_share_is_left_out_and_the_mean_stays(share, shape):
    ones = torch.ones(shape)
    out = dropout(share, relu=False)(ones)
    dropped = float((out == 0).float().mean())
    assert dropped == pytest.approx(share, abs=4 * (share * (1 - share) / out.numel()) ** 0.5)
    assert out.unique().tolist() == [0, pytest.approx(1 / (1 - share), rel=1e-4)]
    assert torch.equal(ones, torch.ones(shape))


def test_with_relu_it_is_the_product_of_both_and_so_are_its_gradients():
    x, slope = torch.randn(64, 40, generator=torch.Generator().manual_seed(1)), torch.arange(40.0)
    mask = dropout(0.3, relu=False)(torch.ones(64, 40))
    both = {}
    for name, layer in (("apart", lambda y: y.relu() * mask), ("together", dropout(0.3, relu=True))):
        leaf = x.clone().requires_grad_()
        out = layer(leaf * 2)  # not the leaf itself, which may not be written over
        (out * slope).sum().backward()
        both[name] = (out.detach(), leaf.grad)
    for apart, together in zip(both["apart"], both["together"], strict=True):
        torch.testing.assert_close(together, apart)


def test_two_batches_have_other_masks_and_a_seed_the_same():
    layer, again, ones = dropout(0.5, True), dropout(0.5, True), torch.ones(8, 64)
    first, second = layer(ones.clone()), layer(ones.clone())
    assert not torch.equal(first, second)
    assert torch.equal(first, again(ones.clone()))


def test_a_head_keeps_its_layers_and_leaves_nothing_out_afterwards():
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 3), nn.Dropout(0.2))
    masked = with_masks(head, seed=3)
    assert [type(each).__name__ for each in masked.children()] == [
        *("MaskedDropout", "Linear", "MaskedDropout", "Linear", "MaskedDropout")
    ]
    assert list(masked.parameters()) == list(head.parameters())
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(masked.train()(x), head.eval()(x))
    assert torch.equal(masked.eval()(x), head.eval()(x))
