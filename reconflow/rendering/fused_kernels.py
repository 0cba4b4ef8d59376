"""Compiled steps of the fused renderer, one view at a time. Called only by `fused`, which owns the buffers.

A view's work is a list of *entries*: first the covered pixels in raster order, then the empty pixels that the
silhouette blends touch. Everything that is neither costs nothing: its loss is known before the first step.

Columns of an entry (float32): 0-2 colour, 3 coverage, 4-6 and 7-9 derivative of the colour by the weights of vertices
0 and 1, 10-11 those weights, 12-13 fraction between texels.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from reconflow.rendering.raster import F32, F64, I32, NEAR_FRACTION, edge_coefficients
from reconflow.rendering.shade import bilinear_texel
from reconflow.rendering.silhouette import scatter_crossing_gradient

ENTRY_COLUMNS = 14
NO_COLOUR, TEXTURE, VERTEX_COLOUR = 0, 1, 2


@njit(cache=True, nogil=True)
def project_vertices(vertices: F32, projection: F64, homog: F64, screen: F64) -> None:
    """Write pixel-homogeneous and screen coordinates of (V, 3) vertices; as `raster.pixel_homogeneous`."""
    farthest = 1e-30
    for i in range(vertices.shape[0]):
        x, y, z = float(vertices[i, 0]), float(vertices[i, 1]), float(vertices[i, 2])
        homog[i, 0] = projection[0, 0] * x + projection[0, 1] * y + projection[0, 2] * z + projection[0, 3]
        homog[i, 1] = projection[1, 0] * x + projection[1, 1] * y + projection[1, 2] * z + projection[1, 3]
        homog[i, 3] = projection[2, 0] * x + projection[2, 1] * y + projection[2, 2] * z + projection[2, 3]
        farthest = max(farthest, homog[i, 3])
    near = NEAR_FRACTION * farthest
    for i in range(vertices.shape[0]):
        homog[i, 2] = -near
        w = homog[i, 3]
        if w >= near:
            inverse = 1.0 / w
            screen[i, 0] = homog[i, 0] * inverse
            screen[i, 1] = homog[i, 1] * inverse
            screen[i, 2] = -near * inverse
            screen[i, 3] = 1.0
        else:
            screen[i, :] = 0.0


@njit(cache=True, nogil=True)
def list_covered(homog: F64, faces: I32, face_id: I32, place: I32, entry_pixel: I32, entries: F32) -> int:
    """List the covered pixels and where on their faces they look; returns how many there are.

    Args:
        homog: (V, 4).
        faces: (F, 3).
        face_id: (H, W) from `raster_rows`.
        place: (H * W,), written at covered pixels: the pixel's entry.
        entry_pixel: written: pixel of each entry.
        entries: written: coverage and weights.
    """
    height, width = face_id.shape
    count = 0
    last = -1
    a0 = b0 = c0 = a1 = b1 = c1 = a2 = b2 = c2 = 0.0
    for row in range(height):
        y = row + 0.5
        for col in range(width):
            f = face_id[row, col]
            if f < 0:
                continue
            if f != last:
                last = f
                i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
                a0, b0, c0 = edge_coefficients(homog, i1, i2)
                a1, b1, c1 = edge_coefficients(homog, i2, i0)
                a2, b2, c2 = edge_coefficients(homog, i0, i1)
            x = col + 0.5
            e0, e1, e2 = a0 * x + (b0 * y + c0), a1 * x + (b1 * y + c1), a2 * x + (b2 * y + c2)
            inverse = 1.0 / (e0 + e1 + e2)
            p0 = min(max(e0 * inverse, 0.0), 1.0)
            place[row * width + col] = count
            entry_pixel[count] = row * width + col
            entries[count, 3] = 1.0
            entries[count, 10] = p0
            entries[count, 11] = min(max(e1 * inverse, 0.0), 1.0 - p0)
            count += 1
    return count


@njit(cache=True, nogil=True)
def shade_texture(
    covered: int,
    face_id: I32,
    texture: F32,
    uvs: F32,
    uv_faces: I32,
    entry_pixel: I32,
    entries: F32,
    texels: I32,
) -> None:
    """Look up the texture at the covered entries, with its derivative by the weights.

    Args:
        covered: Entries that show the surface.
        face_id: (H * W,) from `raster_rows`.
        texture: (Ht, Wt, 3), row 0 at v = 1.
        uvs: (T, 2).
        uv_faces: (F, 3).
        entry_pixel: Pixel of each entry.
        entries: written: colour, its derivatives, fractions between texels.
        texels: written: row * Wt + column of the texel left above each lookup.
    """
    tall, wide = texture.shape[:2]
    flat = texture.reshape(-1)
    last = -1
    u0 = v0 = u1 = v1 = u2 = v2 = 0.0
    for n in range(covered):
        f = face_id[entry_pixel[n]]
        if f != last:
            last = f
            t0, t1, t2 = uv_faces[f, 0], uv_faces[f, 1], uv_faces[f, 2]
            u0, v0 = float(uvs[t0, 0]), float(uvs[t0, 1])
            u1, v1 = float(uvs[t1, 0]), float(uvs[t1, 1])
            u2, v2 = float(uvs[t2, 0]), float(uvs[t2, 1])
        p0, p1 = float(entries[n, 10]), float(entries[n, 11])
        p2 = 1.0 - p0 - p1
        u, v = p0 * u0 + p1 * u1 + p2 * u2, p0 * v0 + p1 * v1 + p2 * v2
        x0, x1, y0, y1, p, q = bilinear_texel(texture, u, v)
        texels[n] = y0 * wide + x0
        entries[n, 12] = p
        entries[n, 13] = q
        along_u0, along_v0 = (u0 - u2) * wide, (v2 - v0) * tall
        along_u1, along_v1 = (u1 - u2) * wide, (v2 - v1) * tall
        upper, lower = 3 * y0 * wide, 3 * y1 * wide
        i00, i01 = np.uint64(upper + 3 * x0), np.uint64(upper + 3 * x1)
        i10, i11 = np.uint64(lower + 3 * x0), np.uint64(lower + 3 * x1)
        for k in range(3):
            c = np.uint64(k)
            t00, t01, t10, t11 = flat[i00 + c], flat[i01 + c], flat[i10 + c], flat[i11 + c]
            low, high = t00 + p * (t01 - t00), t10 + p * (t11 - t10)
            by_x, by_y = (t01 - t00) + q * ((t11 - t10) - (t01 - t00)), high - low
            entries[n, k] = low + q * by_y
            entries[n, 4 + k] = by_x * along_u0 + by_y * along_v0
            entries[n, 7 + k] = by_x * along_u1 + by_y * along_v1


@njit(cache=True, nogil=True)
def shade_vertex_colours(covered: int, faces: I32, face_id: I32, colours: F32, entry_pixel: I32, entries: F32) -> None:
    """Interpolate (V, 3) vertex colours at the covered entries, with their derivative by the weights."""
    for n in range(covered):
        f = face_id[entry_pixel[n]]
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        p0, p1 = float(entries[n, 10]), float(entries[n, 11])
        for k in range(3):
            k0, k1, k2 = float(colours[i0, k]), float(colours[i1, k]), float(colours[i2, k])
            entries[n, k] = p0 * k0 + p1 * k1 + (1.0 - p0 - p1) * k2
            entries[n, 4 + k] = k0 - k2
            entries[n, 7 + k] = k1 - k2


@njit(cache=True, nogil=True)
def blend_silhouette(
    pixels: I32,
    crossing: F64,
    covered: int,
    background: F32,
    place: I32,
    entry_pixel: I32,
    entries: F32,
    blended: F32,
) -> int:
    """Append the empty pixels that pairs touch, and write the antialiased (entries, 4) values; returns the count."""
    count = covered
    for p in range(pixels.shape[0]):
        for side in range(2):
            pixel = pixels[p, side]
            if place[pixel] < 0:
                place[pixel] = count
                entry_pixel[count] = pixel
                entries[count, 0] = background[0]
                entries[count, 1] = background[1]
                entries[count, 2] = background[2]
                entries[count, 3] = 0.0
                count += 1
    for n in range(count):
        for k in range(4):
            blended[n, k] = entries[n, k]
    for p in range(pixels.shape[0]):
        inner, outer, t = place[pixels[p, 0]], place[pixels[p, 1]], crossing[p, 0]
        target, other = (inner, outer) if t < 0.5 else (outer, inner)
        weight = abs(t - 0.5) * crossing[p, 2]
        for k in range(4):
            blended[target, k] += weight * (entries[other, k] - entries[target, k])
    return count


@njit(cache=True, nogil=True)
def image_losses(
    count: int,
    entry_pixel: I32,
    blended: F32,
    background: F32,
    rgb: F32,
    coverage: F32,
    rgb_weight: F32,
    coverage_weight: F32,
    scale: float,
    grad: F32,
) -> tuple[float, float]:
    """Return what the entries add to the two image losses of an empty view, and write the gradient of the entries.

    Args:
        count: Entries.
        entry_pixel: Pixel of each entry.
        blended: (entries, 4) antialiased colour and coverage.
        background: (3,) linear.
        rgb: (H * W, 3) target; (0, 3) for none.
        coverage: (H * W,) target.
        rgb_weight: (H * W,), or (1,) for all pixels.
        coverage_weight: (H * W,), or (1,) for all pixels.
        scale: Factor on both losses; the colour loss is divided by 3 as well.
        grad: (entries, 4), written.
    """
    with_rgb = rgb.shape[0] > 0
    total_rgb = total_coverage = 0.0
    for n in range(count):
        pixel = entry_pixel[n]
        if with_rgb:
            weight = scale / 3.0 * rgb_weight[pixel if rgb_weight.shape[0] > 1 else 0]
            for k in range(3):
                target = float(rgb[pixel, k])
                off, empty = blended[n, k] - target, background[k] - target
                total_rgb += weight * (off * off - empty * empty)
                grad[n, k] = 2.0 * weight * off
        else:
            grad[n, 0] = 0.0
            grad[n, 1] = 0.0
            grad[n, 2] = 0.0
        weight = scale * coverage_weight[pixel if coverage_weight.shape[0] > 1 else 0]
        target = float(coverage[pixel])
        off = blended[n, 3] - target
        total_coverage += weight * (off * off - target * target)
        grad[n, 3] = 2.0 * weight * off
    return total_rgb, total_coverage


@njit(cache=True, nogil=True)
def silhouette_gradient(
    pixels: I32,
    crossing: F64,
    edges: I32,
    screen: F64,
    homog: F64,
    place: I32,
    count: int,
    entries: F32,
    grad_blended: F32,
    grad_entries: F32,
    grad_homog: F64,
) -> None:
    """Pass the gradient of the blended values on to the entries and to the silhouette's vertices."""
    for n in range(count):
        for k in range(4):
            grad_entries[n, k] = grad_blended[n, k]
    for p in range(pixels.shape[0]):
        inner, outer, t = place[pixels[p, 0]], place[pixels[p, 1]], crossing[p, 0]
        target, other = (inner, outer) if t < 0.5 else (outer, inner)
        weight = abs(t - 0.5) * crossing[p, 2]
        gradient = 0.0
        for k in range(4):
            g = float(grad_blended[target, k])
            gradient += g * (entries[inner, k] - entries[outer, k])
            grad_entries[other, k] += weight * g
            grad_entries[target, k] -= weight * g
        sign = 1.0 if pixels[p, 0] < pixels[p, 1] else -1.0
        a, b = edges[pixels[p, 2], 0], edges[pixels[p, 2], 1]
        on_column = 1 if pixels[p, 3] & 2 == 0 else 0
        gradient *= crossing[p, 2]
        scatter_crossing_gradient(screen, homog, a, b, on_column, crossing[p, 1], sign, gradient, grad_homog)


@njit(cache=True, nogil=True)
def surface_gradient(
    covered: int,
    homog: F64,
    faces: I32,
    face_id: I32,
    mode: int,
    entry_pixel: I32,
    entries: F32,
    grad_entries: F32,
    depth: F32,
    tolerance: F32,
    depth_weight: F32,
    knee: float,
    scale: float,
    grad_homog: F64,
    grad_vertex_colour: F64,
) -> float:
    """Add the gradients of colour and depth on the surface to the vertices; returns the depth loss.

    With the pixel fixed, a gradient g on the weights moves vertex k of the face by -b_k sum_i (g_i - mean) N_i, N_i the
    rows of the inverse of the face's homogeneous matrix (see `rasterize_op`). Depth is sum_k b_k w_k.

    Args:
        covered: Entries that show the surface.
        homog: (V, 4).
        faces: (F, 3).
        face_id: (H * W,).
        mode: NO_COLOUR, TEXTURE or VERTEX_COLOUR.
        entry_pixel: Pixel of each entry.
        entries: See the module.
        grad_entries: (entries, 4).
        depth: (H * W,) target, 0 or NaN for none; (0,) without depth.
        tolerance: (H * W,) half-width of the dead zone, or (1,).
        depth_weight: (H * W,), or (1,).
        knee: Where the penalty turns from quadratic to linear.
        scale: Factor on the depth loss.
        grad_homog: (V, 3), added to.
        grad_vertex_colour: (V, 3), added to for VERTEX_COLOUR.
    """
    with_depth = depth.shape[0] > 0
    loss = 0.0
    last = -1
    i0 = i1 = i2 = 0
    a0 = b0 = c0 = a1 = b1 = c1 = a2 = b2 = c2 = w0 = w1 = w2 = inverse = 0.0
    for n in range(covered):
        pixel = entry_pixel[n]
        f = face_id[pixel]
        p0, p1 = float(entries[n, 10]), float(entries[n, 11])
        p2 = 1.0 - p0 - p1
        g0 = g1 = gz = 0.0
        if mode != NO_COLOUR:
            r, g, b = float(grad_entries[n, 0]), float(grad_entries[n, 1]), float(grad_entries[n, 2])
            g0 = r * entries[n, 4] + g * entries[n, 5] + b * entries[n, 6]
            g1 = r * entries[n, 7] + g * entries[n, 8] + b * entries[n, 9]
        if f != last:
            last = f
            i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
            a0, b0, c0 = edge_coefficients(homog, i1, i2)
            a1, b1, c1 = edge_coefficients(homog, i2, i0)
            a2, b2, c2 = edge_coefficients(homog, i0, i1)
            w0, w1, w2 = homog[i0, 3], homog[i1, 3], homog[i2, 3]
            determinant = a0 * homog[i0, 0] + b0 * homog[i0, 1] + c0 * w0
            inverse = 1.0 / determinant if determinant != 0.0 else 0.0
        if mode == VERTEX_COLOUR:
            for k in range(3):
                gk = float(grad_entries[n, k])
                grad_vertex_colour[i0, k] += p0 * gk
                grad_vertex_colour[i1, k] += p1 * gk
                grad_vertex_colour[i2, k] += p2 * gk
        if with_depth and depth[pixel] > 0.0:
            off = p0 * w0 + p1 * w1 + p2 * w2 - depth[pixel]
            excess = abs(off) - tolerance[pixel if tolerance.shape[0] > 1 else 0]
            if excess > 0.0:
                weight = scale * depth_weight[pixel if depth_weight.shape[0] > 1 else 0]
                loss += weight * (0.5 * excess * excess / knee if excess < knee else excess - 0.5 * knee)
                gz = math.copysign(weight * min(excess / knee, 1.0), off)
                g0 += gz * (w0 - w2)
                g1 += gz * (w1 - w2)
        if g0 == 0.0 and g1 == 0.0 and gz == 0.0:
            continue
        mean = g0 * p0 + g1 * p1
        m0, m1, m2 = (g0 - mean) * inverse, (g1 - mean) * inverse, -mean * inverse
        qx, qy, qw = m0 * a0 + m1 * a1 + m2 * a2, m0 * b0 + m1 * b1 + m2 * b2, m0 * c0 + m1 * c1 + m2 * c2 - gz
        grad_homog[i0, 0] -= p0 * qx
        grad_homog[i0, 1] -= p0 * qy
        grad_homog[i0, 2] -= p0 * qw
        grad_homog[i1, 0] -= p1 * qx
        grad_homog[i1, 1] -= p1 * qy
        grad_homog[i1, 2] -= p1 * qw
        grad_homog[i2, 0] -= p2 * qx
        grad_homog[i2, 1] -= p2 * qy
        grad_homog[i2, 2] -= p2 * qw
    return loss


@njit(cache=True, nogil=True)
def world_gradient(grad_homog: F64, projection: F64, grad_vertices: F64) -> None:
    """Write (V, 3) gradients in the world's frame from those of (xh, yh, w)."""
    for i in range(grad_homog.shape[0]):
        gx, gy, gw = grad_homog[i, 0], grad_homog[i, 1], grad_homog[i, 2]
        for k in range(3):
            grad_vertices[i, k] = gx * projection[0, k] + gy * projection[1, k] + gw * projection[2, k]


@njit(cache=True, nogil=True)
def keep_lookups(covered: int, texels: I32, entries: F32, grad_entries: F32, kept_texel: I32, kept: F32) -> None:
    """Copy what the texture's gradient needs of one view: texel, fractions, gradient of the colour."""
    for n in range(covered):
        kept_texel[n] = texels[n]
        kept[n, 0] = entries[n, 12]
        kept[n, 1] = entries[n, 13]
        for k in range(3):
            kept[n, 2 + k] = grad_entries[n, k]


@njit(cache=True, nogil=True)
def forget_places(count: int, entry_pixel: I32, place: I32) -> None:
    """Reset the places of a view's entries to -1."""
    for n in range(count):
        place[entry_pixel[n]] = -1


@njit(cache=True, nogil=True)
def scatter_texture_gradient(count: int, kept_texel: I32, kept: F32, start: int, stop: int, grad_texture: F32) -> None:
    """Add one view's lookups to the texture rows in [start, stop), in the order of the entries."""
    height, width = grad_texture.shape[:2]
    flat = grad_texture.reshape(-1)
    one = np.float32(1.0)
    for n in range(count):
        y0 = kept_texel[n] // width
        y1 = y0 + 1 if y0 + 1 < height else 0
        low, high = start <= y0 < stop, start <= y1 < stop
        if not (low or high):
            continue
        x0 = kept_texel[n] - y0 * width
        x1 = x0 + 1 if x0 + 1 < width else 0
        p, q = kept[n, 0], kept[n, 1]
        for k in range(3):
            g = kept[n, 2 + k]
            if low:
                flat[np.uint64(3 * (y0 * width + x0) + k)] += (one - p) * (one - q) * g
                flat[np.uint64(3 * (y0 * width + x1) + k)] += p * (one - q) * g
            if high:
                flat[np.uint64(3 * (y1 * width + x0) + k)] += (one - p) * q * g
                flat[np.uint64(3 * (y1 * width + x1) + k)] += p * q * g
