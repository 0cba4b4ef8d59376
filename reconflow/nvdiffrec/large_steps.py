"""Preconditioned descent on vertex positions: smooth steps from noisy image gradients.

Nicolet, Jacobson and Jakob, "Large Steps in Inverse Rendering of Geometry" (2021): the optimiser works on
u = (I + s L) v with the mesh's combinatorial Laplacian L, so that one step moves a neighbourhood together, and scales
all coordinates by one second-moment estimate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from reconflow.geometry.mesh import TriangleMesh

FloatArray = NDArray[np.float64]


def edge_laplacian(faces: NDArray[np.int32], vertex_count: int) -> Any:
    """Return the (V, V) combinatorial Laplacian (degree on the diagonal, -1 per edge) as a scipy CSC matrix."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = np.concatenate([ends, ends[:, ::-1]])
    adjacency = sparse.coo_matrix(
        (np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(vertex_count, vertex_count)
    ).tocsc()
    adjacency.data[:] = 1.0
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    return (sparse.diags(degree) - adjacency).tocsc()


def conjugate_gradient(
    system: Any, right: FloatArray, start: FloatArray, *, tolerance: float, max_iterations: int
) -> FloatArray:
    """Solve a sparse symmetric positive definite system by Jacobi-preconditioned conjugate gradients.

    All sums are numpy's pairwise ones, so that the result does not depend on how many threads a BLAS uses.

    Args:
        system: (N, N) scipy sparse matrix.
        right: (N,) right-hand side.
        start: (N,) first guess.
        tolerance: Residual to stop at, relative to the right-hand side's length.
        max_iterations: Stop after so many steps in any case.

    Returns:
        (N,) solution.
    """
    inverse_diagonal = 1.0 / system.diagonal()
    solution = start.copy()
    residual: FloatArray = right - system @ solution
    conditioned = inverse_diagonal * residual
    direction = conditioned.copy()
    energy = float((residual * conditioned).sum())
    limit = tolerance**2 * float((right * right).sum())
    for _ in range(max_iterations):
        if float((residual * residual).sum()) <= limit:
            break
        image: FloatArray = system @ direction
        length = energy / float((direction * image).sum())
        solution += length * direction
        residual -= length * image
        conditioned = inverse_diagonal * residual
        energy, last = float((residual * conditioned).sum()), energy
        direction = conditioned + energy / last * direction
    return solution


class PreconditionedDescent:
    """Adam with one shared second moment, on smoothed coordinates of a fixed-topology mesh."""

    def __init__(
        self,
        mesh: TriangleMesh,
        *,
        smoothness: float,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        """Factor the system once.

        Args:
            mesh: Where to start.
            smoothness: s above; how far one vertex pulls its neighbours, in squared edges.
            learning_rate: Step length in world units of the smoothed coordinates.
            betas: Decay of the first and second moment.
        """
        count = len(mesh.vertices)
        self.laplacian = edge_laplacian(mesh.faces, count)
        self._system = (sparse.identity(count, format="csc") + smoothness * self.laplacian).tocsc()
        self._solver = splu(self._system, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        self._coordinates: FloatArray = self._system @ mesh.vertices.astype(np.float64)
        self._learning_rate, self._betas = learning_rate, betas
        self._first: FloatArray = np.zeros((count, 3))
        self._second = 0.0
        self._steps = 0

    @property
    def vertices(self) -> FloatArray:
        """(V, 3) current positions, world units."""
        solved: FloatArray = self._solver.solve(self._coordinates)
        return solved

    def step(self, gradient: FloatArray, rate_scale: float = 1.0) -> FloatArray:
        """Take one step against a gradient and return the new (V, 3) positions.

        Args:
            gradient: (V, 3), derivative of the loss by vertex position.
            rate_scale: Factor on the learning rate, for schedules.
        """
        smooth: FloatArray = self._solver.solve(gradient)
        self._steps += 1
        first_decay, second_decay = self._betas
        self._first = first_decay * self._first + (1 - first_decay) * smooth
        self._second = second_decay * self._second + (1 - second_decay) * float(np.abs(smooth).max()) ** 2
        first = self._first / (1 - first_decay**self._steps)
        second = self._second / (1 - second_decay**self._steps)
        self._coordinates -= rate_scale * self._learning_rate * first / max(np.sqrt(second), 1e-20)
        return self.vertices
