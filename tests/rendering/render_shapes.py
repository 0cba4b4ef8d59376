"""Generated meshes and cameras that the rendering tests share."""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from torch import Tensor

from reconflow.cameras.camera import PinholeCamera


def bumpy_sphere(subdivisions: int, bumps: float = 0.25, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """An icosphere of 20 * 4^subdivisions faces, deformed asymmetrically; bumps = noise = 0 is the plain sphere."""
    sphere = trimesh.creation.icosphere(subdivisions)
    unit = np.asarray(sphere.vertices)
    radius = 1 + bumps * np.sin(3 * unit[:, 0] + 1) * np.cos(4 * unit[:, 1])
    radius += 0.4 * bumps * np.sin(7 * unit[:, 2] + 2 * unit[:, 0])
    radius += noise * np.random.default_rng(0).normal(size=len(unit))
    return (unit * radius[:, None]).astype(np.float32), np.asarray(sphere.faces).astype(np.int32)


def spherical_uvs(vertices: np.ndarray) -> np.ndarray:
    """(V, 2) longitude and latitude of vertices around the origin, in [0, 1]."""
    unit = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    return np.stack(
        [np.arctan2(unit[:, 0], unit[:, 2]) / (2 * np.pi) + 0.5, np.arccos(-unit[:, 1]) / np.pi], axis=1
    ).astype(np.float32)


def look_from(direction: tuple[float, float, float], distance: float, size: int, fov: float = 0.8) -> PinholeCamera:
    """A square camera looking at the origin from a direction, +y up."""
    back = np.array(direction) / np.linalg.norm(direction)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
    world_from_cam[:3, 3] = distance * back
    return PinholeCamera.from_fov("view", fov, world_from_cam, (size, size))


def clip_positions(vertices: Tensor, camera: PinholeCamera) -> Tensor:
    """(1, V, 4) float32 clip-space positions, differentiable in the vertices."""
    projection = torch.tensor(camera.clip_from_world(0.1, 100.0))
    homogeneous = torch.cat([vertices.double(), torch.ones(len(vertices), 1, dtype=torch.float64)], dim=1)
    return (homogeneous @ projection.T).float()[None]
