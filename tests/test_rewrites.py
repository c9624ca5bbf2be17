"""Each exact rewrite against the official code it replaces (facebookresearch/sam2 @2b90b9f)."""

import pytest
import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine, apply_rotary_enc, compute_axial_cis
from torch import nn

from fastsam2.enums import ExportTarget
from fastsam2.export.rewrites import position_tables
from fastsam2.export.rewrites.attention import attend
from fastsam2.export.rewrites.rotate_half import halves, rotate
from fastsam2.export.rewrites.value_absorption import absorb
from fastsam2.export.wrappers.mask_prompt import shrink_matrix

FLOAT32_ANGLE = 1e-5  # angles reach 63 radians, where float32 steps by 4e-6


@pytest.mark.parametrize("grid", [8, 16, 64])
def test_sine_table_is_the_official_code(grid: int) -> None:
    official = PositionEmbeddingSine(num_pos_feats=64)
    want = official(torch.zeros(1, 1, grid, grid))[0].flatten(1).T
    table = position_tables.sine_table(grid, 64, temperature=official.temperature, scale=official.scale)
    assert torch.allclose(table[: grid * grid], want, atol=FLOAT32_ANGLE)
    assert (table[-1] == 0).all()


@pytest.mark.parametrize(("grid", "width"), [(8, 64), (64, 256)])
def test_rotary_tables_are_the_official_angles(grid: int, width: int) -> None:
    official = compute_axial_cis(dim=width, end_x=grid, end_y=grid)
    cos, sin = position_tables.rotary_tables(grid, width, theta=position_tables.recover_theta(official, width))
    assert torch.allclose(torch.complex(cos, sin)[: grid * grid], official, atol=FLOAT32_ANGLE)
    assert (cos[-1] == 1).all()
    assert (sin[-1] == 0).all()


def test_pooled_rows_lie_between_their_four_cells() -> None:
    centres = position_tables.grid_centres(8)
    cells = centres[:64].reshape(4, 2, 4, 2, 2)
    assert torch.equal(centres[64:], cells.mean(dim=(1, 3)).reshape(16, 2))


def test_an_odd_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="even grid"):
        position_tables.grid_centres(7)


def test_theta_is_recovered_from_the_table() -> None:
    for theta in (100.0, 10000.0):
        assert position_tables.recover_theta(compute_axial_cis(dim=64, end_x=4, end_y=4, theta=theta), 64) == theta


def test_rotation_of_halves_gives_the_official_scores() -> None:
    torch.manual_seed(0)
    grid, width = 8, 32
    q_proj, k_proj = nn.Linear(16, width), nn.Linear(16, width)
    x = torch.randn(2, grid * grid, 16)
    cis = compute_axial_cis(dim=width, end_x=grid, end_y=grid)
    q, k = apply_rotary_enc(q_proj(x)[:, None], k_proj(x)[:, None], cis)
    cos, sin = position_tables.rotary_tables(grid, width, theta=10000.0)
    index = torch.arange(grid * grid).expand(2, -1)
    ours_q = rotate(halves(q_proj)(x), index, cos, sin, target=ExportTarget.TENSORRT)
    ours_k = rotate(halves(k_proj)(x), index, cos, sin, target=ExportTarget.TENSORRT)
    assert torch.allclose(ours_q @ ours_k.mT, (q @ k.mT)[:, 0], atol=1e-4)


def test_absorbed_values_give_the_same_output() -> None:
    torch.manual_seed(0)
    value, out = nn.Linear(8, 32), nn.Linear(32, 24)
    weights, rows = torch.randn(5, 40).softmax(-1), torch.randn(40, 8)
    assert torch.allclose(absorb(value, out)(weights @ rows), out(weights @ value(rows)), atol=1e-5)


def test_bias_hides_keys() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    bias = torch.zeros(2, 9)
    bias[:, 5:] = -1e4
    hidden = attend(q, k, v, heads=2, target=ExportTarget.TENSORRT, bias=bias)
    assert torch.allclose(hidden, attend(q, k[:, :5], v[:, :5], heads=2, target=ExportTarget.TENSORRT), atol=1e-6)


def test_the_onnxruntime_form_takes_no_bias() -> None:
    with pytest.raises(ValueError, match="no bias"):
        attend(*(torch.zeros(1, 2, 8),) * 3, heads=1, target=ExportTarget.ONNXRUNTIME, bias=torch.zeros(1, 2))


def test_shrinking_by_matrices_is_the_antialiased_resize() -> None:
    mask = (torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)) > 0.6).float() * 20 - 10
    want = torch.nn.functional.interpolate(mask, size=(32, 32), mode="bilinear", align_corners=False, antialias=True)
    matrix = shrink_matrix(128)
    assert torch.allclose(matrix @ mask @ matrix.T, want, atol=1e-5)
