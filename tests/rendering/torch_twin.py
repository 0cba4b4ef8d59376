"""The operators again, slow and readable: float64 PyTorch, gradients by autograd, loops where loops say it best."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pixel_homogeneous(pos: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """(V, 4) clip to (V, 3) (xh, yh, w) in pixels, row 0 at the bottom."""
    height, width = image_hw
    x, y, w = pos[:, 0], pos[:, 1], pos[:, 3]
    return torch.stack([(x + w) * width / 2, (y + w) * height / 2, w], dim=1)


def rasterize(pos: Tensor, tri: Tensor, image_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """One image: (V, 4) float64 to rast (H, W, 4) and rast_db (H, W, 4)."""
    height, width = image_hw
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixel = torch.stack([xs, ys, torch.ones_like(xs)], dim=-1).double()
    corners = pixel_homogeneous(pos, image_hw)[tri.long()].transpose(1, 2)  # (F, 3, 3), vertices as columns
    usable = torch.linalg.det(corners).abs() > 1e-12
    inverse = torch.linalg.inv(torch.where(usable[:, None, None], corners, torch.eye(3).double()))
    scaled = torch.einsum("fij,hwj->fhwi", inverse, pixel)
    total = scaled.sum(dim=-1)
    weights = scaled / total[..., None]
    z = (weights * pos[tri.long(), 2][:, None, None]).sum(-1)
    w = (weights * pos[tri.long(), 3][:, None, None]).sum(-1)
    depth = z / w
    hit = (weights >= 0).all(-1) & (total > 0) & (depth.abs() <= 1) & usable[:, None, None]
    depth = torch.where(hit, depth, torch.inf)
    nearest = depth.argmin(dim=0)
    seen = torch.isfinite(depth.min(dim=0).values)
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    u, v = weights[nearest, rows, cols, 0], weights[nearest, rows, cols, 1]
    slopes = inverse[nearest][..., :2]  # d scaled / d(X, Y)
    summed = slopes.sum(dim=-2, keepdim=True)
    picked = weights[nearest, rows, cols][..., None]
    derivative = (slopes - picked * summed) / total[nearest, rows, cols][..., None, None]
    rast = torch.stack([u, v, depth.min(dim=0).values.detach(), nearest + 1.0], dim=-1)
    rast_db = torch.cat([derivative[..., 0, :], derivative[..., 1, :]], dim=-1)
    return torch.where(seen[..., None], rast, 0.0), torch.where(seen[..., None], rast_db, 0.0)


def interpolate(attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Tensor) -> tuple[Tensor, Tensor]:
    """One image: (V, A) attributes to (H, W, A) and all their screen derivatives (H, W, 2 A)."""
    seen = rast[..., 3:] > 0
    corner = attr[tri.long()[(rast[..., 3].long() - 1).clamp(min=0)]]  # (H, W, 3, A)
    u, v = rast[..., 0:1], rast[..., 1:2]
    out = u * corner[..., 0, :] + v * corner[..., 1, :] + (1 - u - v) * corner[..., 2, :]
    along_u, along_v = corner[..., 0, :] - corner[..., 2, :], corner[..., 1, :] - corner[..., 2, :]
    by_x = rast_db[..., 0:1] * along_u + rast_db[..., 2:3] * along_v
    by_y = rast_db[..., 1:2] * along_u + rast_db[..., 3:4] * along_v
    return torch.where(seen, out, 0.0), torch.where(seen, torch.stack([by_x, by_y], dim=-1).flatten(-2), 0.0)


def bilinear(tex: Tensor, uv: Tensor, boundary: str) -> Tensor:
    """(Ht, Wt, C) at (..., 2), row 0 at v = 0."""
    height, width = tex.shape[:2]
    x, y = uv[..., 0] * width - 0.5, uv[..., 1] * height - 0.5
    x0, y0 = x.detach().floor(), y.detach().floor()
    out: Tensor | float = 0.0
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (x - x0 if dx else 1 - x + x0) * (y - y0 if dy else 1 - y + y0)
            out = out + weight[..., None] * texel(tex, x0.long() + dx, y0.long() + dy, boundary)
    assert isinstance(out, Tensor)
    return out


def texel(tex: Tensor, x: Tensor, y: Tensor, boundary: str) -> Tensor:
    height, width = tex.shape[:2]
    if boundary == "wrap":
        return tex[y % height, x % width]
    values = tex[y.clamp(0, height - 1), x.clamp(0, width - 1)]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return values if boundary == "clamp" else torch.where(inside[..., None], values, 0.0)


def mip_level(uv_da: Tensor, height: int, width: int) -> Tensor:
    """Half the log2 of the larger eigenvalue of J J^T, J in texels per pixel."""
    jacobian = uv_da.unflatten(-1, (2, 2)) * uv_da.new_tensor([[width], [height]])
    return 0.5 * torch.log2(torch.linalg.eigvalsh(jacobian @ jacobian.transpose(-1, -2))[..., -1])


def trilinear(levels: list[Tensor], uv: Tensor, level: Tensor, boundary: str) -> Tensor:
    level = level.clamp(0, len(levels) - 1)
    lower = level.detach().floor().long().clamp(max=max(0, len(levels) - 2))
    stack = torch.stack([bilinear(tex, uv, boundary) for tex in levels])
    pick = lambda index: stack.gather(0, index[None, ..., None].expand(1, *stack.shape[1:]))[0]  # noqa: E731
    blend = (level - lower)[..., None]
    return (1 - blend) * pick(lower) + blend * pick((lower + 1).clamp(max=len(levels) - 1))


def antialias(color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor) -> Tensor:
    """One image, by the rules of the silhouette edge walk, edge by edge and crossing by crossing."""
    height, width = color.shape[:2]
    homog = pixel_homogeneous(pos, (height, width))
    screen, key = homog[:, :2] / homog[:, 2:], pos[:, 2] / pos[:, 3]
    seen_key = torch.where(rast[..., 3] > 0, rast[..., 2].float().double(), 2.0)
    outermost: dict[tuple[int, int, int], tuple[float, Tensor, Tensor]] = {}
    for (a, b), side in silhouette(screen.detach(), tri):
        delta = screen[b] - screen[a]
        for axis in (0, 1):  # 0: crossings of pixel columns, 1: of pixel rows
            ends = sorted([screen[a, axis].item(), screen[b, axis].item()])
            for line in range(math.ceil(ends[0] - 0.5), math.ceil(ends[1] - 0.5)):
                if not 0 <= line < (width, height)[axis]:
                    continue
                s = (line + 0.5 - screen[a, axis]) / delta[axis]
                cross = screen[a, 1 - axis] + s * delta[1 - axis]
                j = math.floor(cross.item() - 0.5)
                if not 0 <= j < (height, width)[axis] - 1:
                    continue
                towards = side * (delta[0] if axis == 0 else -delta[1]).item()
                inner, outer = (j + 1, j) if towards > 0 else (j, j + 1)
                to_pixel = (lambda k: k * width + line) if axis == 0 else (lambda k: line * width + k)  # noqa: B023
                edge_key = (key[a] + s * (key[b] - key[a])).item()
                if seen_key.flatten()[to_pixel(outer)].item() <= edge_key + 1e-6 * abs(edge_key):
                    continue
                distance = (cross - (inner + 0.5)) * (outer - inner)
                share = (delta[axis] ** 2 / (delta**2).sum()).detach()
                slot = (to_pixel(inner), to_pixel(outer), axis)
                if slot not in outermost or distance.item() > outermost[slot][0]:
                    outermost[slot] = (distance.item(), distance, share)
    flat = color.reshape(height * width, -1)
    out = flat.clone()
    for (inner, outer, _), (t, distance, share) in outermost.items():
        target, other = (inner, outer) if t < 0.5 else (outer, inner)
        out[target] = out[target] + share * (distance - 0.5).abs() * (flat[other] - flat[target])
    return out.reshape(color.shape)


def silhouette(screen: Tensor, tri: Tensor) -> list[tuple[tuple[int, int], int]]:
    """Edges whose faces lie on one side of them on screen, with that side."""
    sides: dict[tuple[int, int], list[int]] = {}
    for face in tri.tolist():
        a, b, c = (screen[k] for k in face)
        area = float((b - a)[0] * (c - a)[1] - (c - a)[0] * (b - a)[1])
        for k in range(3):
            start, stop = face[k], face[(k + 1) % 3]
            turn = 1 if start < stop else -1
            sides.setdefault((min(start, stop), max(start, stop)), []).append(turn * (1 if area > 0 else -1))
    return [(edge, found[0]) for edge, found in sorted(sides.items()) if len(set(found)) == 1]
