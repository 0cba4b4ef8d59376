"""Voxel sets, pooling, convolution and attention on them, against dense or slower answers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from reconflow.errors import ModelError, ValidationFailedError
from reconflow.reconviagen import sparse_conv
from reconflow.reconviagen.sparse_attention import full_attention, window_attention
from reconflow.reconviagen.sparse_conv import PointwiseConv3d, SparseGroupNorm32, SubmanifoldConv3d
from reconflow.reconviagen.sparse_tensor import SparseTensor, VoxelSet, concatenate

SIDE = 6


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def random_voxels(batch: int = 2, share: float = 0.4) -> VoxelSet:
    """Voxels of several items, in random order within each."""
    items = [torch.nonzero(torch.rand(1, SIDE, SIDE, SIDE) < share * (1 + item) / batch) for item in range(batch)]
    for item, coords in enumerate(items):
        coords[:, 0] = item
    return VoxelSet(torch.cat([coords[torch.randperm(len(coords))] for coords in items]))


def dense(x: SparseTensor, side: int = SIDE) -> Tensor:
    b, i, j, k = x.voxels.coords.long().unbind(1)
    grid = torch.zeros(x.voxels.batch_size, side, side, side, x.feats.shape[1])
    grid[b, i, j, k] = x.feats
    return grid.movedim(-1, 1)


def at_voxels(grid: Tensor, voxels: VoxelSet) -> Tensor:
    b, i, j, k = voxels.coords.long().unbind(1)
    return grid.movedim(1, -1)[b, i, j, k]


@torch.no_grad()
def test_a_submanifold_convolution_is_a_dense_one_read_at_the_voxels() -> None:
    voxels, conv = random_voxels(), SubmanifoldConv3d(5, 7)
    x = SparseTensor(voxels, torch.randn(len(voxels), 5))
    weight = conv.conv.weight.permute(0, 4, 1, 2, 3)
    expected = F.conv3d(dense(x), weight, conv.conv.bias, padding=1)
    torch.testing.assert_close(conv(x).feats, at_voxels(expected, voxels))


@torch.no_grad()
def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, conv = random_voxels(), SubmanifoldConv3d(5, 7)
    x = SparseTensor(voxels, torch.randn(len(voxels), 5))
    whole = conv(x).feats
    monkeypatch.setattr(sparse_conv, "_CHUNK_VALUES_CPU", 70)
    torch.testing.assert_close(conv(x).feats, whole)


@torch.no_grad()
def test_a_convolution_of_children_can_be_computed_from_their_parents() -> None:
    voxels, conv = random_voxels(), SubmanifoldConv3d(5, 7)
    x = SparseTensor(voxels, torch.randn(len(voxels), 5))
    ours, expected = conv.on_subdivided(x), conv(x.subdivide())
    assert torch.equal(ours.voxels.coords, expected.voxels.coords)
    torch.testing.assert_close(ours.feats, expected.feats)


@torch.no_grad()
def test_half_precision_adds_up_in_float32() -> None:
    voxels, conv = random_voxels(), SubmanifoldConv3d(32, 32)
    feats = torch.randn(len(voxels), 32)
    expected = conv(SparseTensor(voxels, feats)).feats
    conv.conv.to(torch.bfloat16)
    for result in (conv(SparseTensor(voxels, feats.bfloat16())),):
        assert result.feats.dtype == torch.bfloat16
        torch.testing.assert_close(result.feats.float(), expected, rtol=0.02, atol=0.02)


def test_gradients_of_a_convolution_are_right() -> None:
    voxels, conv = VoxelSet(random_voxels().coords[:12]), SubmanifoldConv3d(2, 3).double()
    feats = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: conv(SparseTensor(voxels, f)).feats, feats)
    assert torch.autograd.gradcheck(lambda f: conv.on_subdivided(SparseTensor(voxels, f)).feats, feats)


@torch.no_grad()
def test_a_pointwise_convolution_reads_its_weights_memory_as_in_by_out() -> None:
    conv = PointwiseConv3d(2, 3)
    conv.conv.weight.copy_(torch.arange(6.0).reshape(3, 1, 1, 1, 2))
    conv.conv.bias.zero_()
    x = SparseTensor(VoxelSet(torch.zeros(1, 4, dtype=torch.int32)), torch.tensor([[1.0, 10.0]]))
    assert conv(x).feats.tolist() == [[0 + 30, 1 + 40, 2 + 50]]


def test_group_norm_is_the_usual_one_for_each_item() -> None:
    voxels, norm = random_voxels(), SparseGroupNorm32(64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = SparseTensor(voxels, 3 + torch.randn(len(voxels), 64))
    for ours, feats in zip(norm(x).item_feats(), x.item_feats(), strict=True):
        expected = F.group_norm(feats.T[None], 32, norm.weight, norm.bias, 1e-5)[0].T
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="48 channels"):
        SparseGroupNorm32(48)


def test_pooling_divides_by_one_more_than_the_children() -> None:
    coords = torch.tensor([[0, 2, 2, 2], [0, 3, 2, 3], [0, 0, 0, 0], [1, 3, 3, 3]])
    x = SparseTensor(VoxelSet(coords), torch.tensor([[3.0], [6.0], [2.0], [8.0]]))
    down = x.downsample()
    assert down.voxels.coords.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]
    assert down.feats.flatten().tolist() == [1, 3, 4]
    assert down.upsample(x.voxels).feats.flatten().tolist() == [3, 3, 1, 4]
    with pytest.raises(ValidationFailedError, match="pooled"):
        down.upsample(VoxelSet(coords))


def test_children_follow_their_parent_with_the_last_axis_fastest() -> None:
    x = SparseTensor(VoxelSet(torch.tensor([[0, 1, 0, 2], [0, 0, 0, 0]])), torch.tensor([[1.0], [2.0]]))
    fine = x.subdivide()
    expected = [[0, 2 + a, b, 4 + c] for a, b, c in itertools.product(range(2), repeat=3)]
    assert fine.voxels.coords[:8].tolist() == expected
    assert fine.feats.flatten().tolist() == [1] * 8 + [2] * 8


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_attend_like_softmax_with_a_mask(shift: int) -> None:
    voxels = random_voxels()
    q, k, v = torch.randn(3, len(voxels), 2, 4).unbind(0)
    windows = torch.div(voxels.coords + torch.tensor([0, shift, shift, shift]), torch.tensor([1, 4, 4, 4]))
    windows = windows.floor()
    together = (windows[:, None] == windows).all(-1)
    item = voxels.coords[:, 0]
    cases = [(window_attention(voxels, q, k, v, 4, shift), together)]
    cases.append((full_attention(voxels, q, k, v), item[:, None] == item))
    for ours, mask in cases:
        expected = F.scaled_dot_product_attention(q.movedim(1, 0), k.movedim(1, 0), v.movedim(1, 0), attn_mask=mask)
        torch.testing.assert_close(ours, expected.movedim(0, 1).flatten(1))


def test_bad_voxels_are_refused() -> None:
    with pytest.raises(ValidationFailedError, match="no voxel set"):
        VoxelSet(torch.zeros(0, 4, dtype=torch.int32))
    with pytest.raises(ValidationFailedError, match="no voxel set"):
        VoxelSet(torch.zeros(3, 4))
    with pytest.raises(ValidationFailedError, match="not sorted"):
        VoxelSet(torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]))
    with pytest.raises(ValidationFailedError, match="more than once"):
        _ = VoxelSet(torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0]])).neighbours
    with pytest.raises(ValidationFailedError, match="too far apart"):
        _ = VoxelSet(torch.tensor([[0, 0, 0, 0], [0, 2**30, 2**30, 2**30]])).neighbours
    with pytest.raises(ValidationFailedError, match="more than the 1"):
        VoxelSet(torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0]]), batch_size=1)
    voxels = random_voxels()
    with pytest.raises(ValidationFailedError, match="3 rows"):
        SparseTensor(voxels, torch.zeros(3, 2))
    x = SparseTensor(voxels, torch.zeros(len(voxels), 2))
    with pytest.raises(ValidationFailedError, match="joined"):
        concatenate([x, x.downsample()])
