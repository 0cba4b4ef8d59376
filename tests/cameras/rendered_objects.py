"""Objects with known cameras for the calibration tests: random shapes, symmetric ones, and their depth renders."""

from dataclasses import replace

import numpy as np
from numba import njit
from scipy.spatial.transform import Rotation
from skimage.measure import marching_cubes

from reconflow.cameras.camera import project_points
from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_rig
from reconflow.colour import srgb_from_linear
from reconflow.datasets.dataset import Dataset, DatasetLayout, DepthImage, MaskSource, View


@njit(cache=True)
def _depth_of(corners_px, corners_z, image):
    """Z-buffer at pixel centres; 1/z is linear in the image. `image` holds 1/z, 0 = nothing."""
    height, width = image.shape
    for i in range(len(corners_z)):
        ax, ay = corners_px[i, 0]
        bx, by = corners_px[i, 1]
        cx, cy = corners_px[i, 2]
        w = 1.0 / corners_z[i]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        for y in range(max(int(min(ay, by, cy)), 0), min(int(max(ay, by, cy)) + 1, height)):
            for x in range(max(int(min(ax, bx, cx)), 0), min(int(max(ax, bx, cx)) + 1, width)):
                px, py = x + 0.5, y + 0.5
                b = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) / area
                c = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) / area
                if b >= 0.0 and c >= 0.0 and b + c <= 1.0:
                    image[y, x] = max(image[y, x], w[0] * (1.0 - b - c) + w[1] * b + w[2] * c)


def depth_maps(vertices, faces, cameras):
    """(h, w) float64 depth per camera, 0 = nothing."""
    maps = []
    for camera in cameras:
        px, depth = project_points(vertices, camera)
        inverse = np.zeros(camera.image_hw)
        _depth_of(px[faces], depth[faces], inverse)
        maps.append(np.divide(1.0, inverse, out=np.zeros_like(inverse), where=inverse > 0))
    return maps


def six_view_dataset(depths, bits):
    """A dataset without cameras, its true depth scales in the depths' units."""
    top = 2**bits - 1
    views = []
    for name, z in zip(VIEW_NAMES, depths, strict=True):
        stored = DepthImage(np.round(top * z / z.max()).astype(np.uint16), top)
        mask = (z > 0).astype(np.float32)
        rgb = np.where(z[..., None] > 0, 90, 255).astype(np.uint8).repeat(3, axis=2)
        views.append(View(name, rgb, mask, MaskSource.DEPTH, stored))
    return Dataset("rendered", DatasetLayout.SIX_VIEW, tuple(views), None, "0"), np.array([z.max() for z in depths])


def rendered(mesh, fov_rad, distance, size, bits=8):
    """Six-view dataset of (vertices, faces), and its true depth scales with the distance as the unit."""
    depths = depth_maps(*mesh, six_axis_rig(fov_rad, distance, (size, size)))
    dataset, scales = six_view_dataset(depths, bits)
    return dataset, scales / distance


def with_soft_photos(dataset, mesh, fov_rad, distance, samples=4):
    """The same dataset with anti-aliased photos: each view in its own colour, mixed with white in linear light."""
    colours = np.random.default_rng(0).uniform(0.02, 0.7, (6, 1, 1, 3))
    height, width = dataset.views[0].image_hw
    fine = depth_maps(*mesh, six_axis_rig(fov_rad, distance, (height * samples, width * samples)))
    views = []
    for view, depth, colour in zip(dataset.views, fine, colours, strict=True):
        coverage = (depth > 0).reshape(height, samples, width, samples).mean(axis=(1, 3))[..., None]
        linear = coverage * colour + (1.0 - coverage)
        views.append(replace(view, rgb_srgb=np.round(255 * srgb_from_linear(linear)).astype(np.uint8)))
    return replace(dataset, views=tuple(views))


def fitted_to_unit_sphere(vertices):
    centred = vertices - 0.5 * (vertices.max(axis=0) + vertices.min(axis=0))
    return centred / np.linalg.norm(centred, axis=1).max()


def random_object(seed, cells=56):
    """A union of three to five turned ellipsoids and rounded boxes: asymmetric, with concavities."""
    random = np.random.default_rng(seed)
    axis = np.linspace(-1.3, 1.3, cells)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    field = np.full(grid.shape[:3], 9.0)
    for _ in range(random.integers(3, 6)):
        centre, half = random.uniform(-0.5, 0.5, 3), random.uniform(0.12, 0.55, 3)
        turned = (grid - centre) @ Rotation.random(rng=random).as_matrix()
        if random.random() < 0.5:
            part = (np.linalg.norm(turned / half, axis=-1) - 1) * half.min()
        else:
            beyond = np.abs(turned) - half
            part = np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(axis=-1), 0) - 0.03
        field = np.minimum(field, part)
    vertices, faces, _, _ = marching_cubes(field, 0.0)
    return fitted_to_unit_sphere(vertices.astype(np.float64)), faces


def lathed(profile, sections=96):
    """Surface of revolution about +y of a (N, 2) profile of radius and height."""
    turn = np.linspace(0, 2 * np.pi, sections, endpoint=False)
    rings = [np.stack([r * np.sin(turn), np.full(sections, y), r * np.cos(turn)], axis=1) for r, y in profile]
    ring = np.arange(sections)
    quads = np.stack([ring, np.roll(ring, -1), np.roll(ring, -1) + sections, ring + sections], axis=1)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    all_faces = np.concatenate([faces + k * sections for k in range(len(profile) - 1)])
    return fitted_to_unit_sphere(np.concatenate(rings)), all_faces


def sphere():
    angle = np.linspace(0, np.pi, 65)
    return lathed(np.stack([np.sin(angle), -np.cos(angle)], axis=1))


def bottle():
    y = np.linspace(-1, 1, 80)
    radius = 0.3 + 0.15 * np.sin(3 * y)
    return lathed(np.concatenate([[[0, -1]], np.stack([radius, y], axis=1), [[0, 1]]]))


def bumpy_bottle(seed):
    """A turned body of random profile with one bump, which alone says where its front is."""
    random = np.random.default_rng(seed)
    y = np.linspace(-1, 1, 60)
    waves = sum(random.uniform(-0.12, 0.12) * np.sin(k * y + random.uniform(0, 6)) for k in (1, 2, 3, 5))
    radius = np.maximum(random.uniform(0.25, 0.35) + waves, 0.06)
    vertices, faces = lathed(np.concatenate([[[0, -1]], np.stack([radius, y], axis=1), [[0, 1]]]))
    apart = np.linalg.norm(vertices - vertices[random.integers(len(vertices))], axis=1)
    return fitted_to_unit_sphere(vertices * (1 + 0.12 * np.exp(-((apart / 0.15) ** 2)))[:, None]), faces


def wheel(spokes=7, cells=96):
    """A rim, a hub that stands out to the front, and spokes; seen from the side it is a bar."""
    axis = np.linspace(-1.1, 1.1, cells)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    from_axle, wedge = np.hypot(x, y), 2 * np.pi / spokes
    rim = np.hypot(from_axle - 0.85, z) - 0.12
    hub = np.maximum(from_axle - 0.2, np.abs(z - 0.03) - 0.2)
    beside = np.abs(from_axle * np.sin((np.arctan2(y, x) + 0.4) % wedge - wedge / 2))
    spoke = np.maximum(np.hypot(beside, z) - 0.06, from_axle - 0.9)
    vertices, faces, _, _ = marching_cubes(np.minimum(np.minimum(rim, hub), spoke), 0.0)
    return fitted_to_unit_sphere(vertices.astype(np.float64)), faces


def box(half_sizes):
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half_sizes
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return fitted_to_unit_sphere(corners), np.array([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
