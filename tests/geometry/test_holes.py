import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconflow.geometry.components import submesh
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.holes import boundary_loops, fill_holes
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh import fix_non_manifold
from reconflow.geometry.surface import face_areas
from tests.geometry.shapes import SOLIDS, cube, iso_surface


def ball() -> TriangleMesh:
    return iso_surface(SOLIDS["sphere"][0], resolution=14)


def without_cap(mesh: TriangleMesh, height: float) -> TriangleMesh:
    middles = mesh.vertices[mesh.faces].mean(axis=1)
    return submesh(mesh, middles[:, 2] < height)


def is_closed(mesh: TriangleMesh) -> bool:
    facts = mesh_facts(mesh)
    return facts.watertight


def test_a_missing_side_of_a_cube_is_replaced_flat() -> None:
    whole = cube()
    opened = TriangleMesh(whole.vertices, whole.faces[2:])
    (loop,) = boundary_loops(opened.faces)
    assert len(loop) == 4
    filled, facts = fill_holes(opened, 4)
    assert (facts.holes, facts.faces, facts.left_open) == (1, 2, 0)
    assert is_closed(filled)
    assert face_areas(filled).sum() == pytest.approx(6.0)


def test_a_cap_is_closed_and_the_rest_stays() -> None:
    opened = without_cap(ball(), 0.8)
    (loop,) = boundary_loops(opened.faces)
    filled, facts = fill_holes(opened, 100)
    assert is_closed(filled)
    assert facts.faces == len(loop) - 2
    assert np.array_equal(filled.faces[: len(opened.faces)], opened.faces)
    assert np.array_equal(filled.vertices, opened.vertices)
    # an opening at height 0.8 of a unit sphere is a disc of radius 0.6
    assert face_areas(filled)[len(opened.faces) :].sum() == pytest.approx(np.pi * 0.36, rel=0.15)


def test_long_holes_stay_open() -> None:
    opened = without_cap(ball(), 0.0)
    filled, facts = fill_holes(opened, 10)
    assert (facts.holes, facts.left_open) == (0, 1)
    assert np.array_equal(filled.faces, opened.faces)


def test_a_closed_surface_is_returned_as_it_is() -> None:
    filled, facts = fill_holes(ball(), 50)
    assert (facts.holes, facts.faces, facts.left_open) == (0, 0, 0)
    assert len(filled.faces) == len(ball().faces)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=12, unique=True))
@settings(max_examples=20, deadline=None)
def test_a_surface_with_faces_missing_anywhere_is_closed_again(missing: list[int]) -> None:
    whole = ball()
    keep = np.ones(len(whole.faces), bool)
    keep[[index % len(whole.faces) for index in missing]] = False
    opened = fix_non_manifold(submesh(whole, keep))
    filled, facts = fill_holes(opened, 60)
    assert facts.left_open == 0
    assert is_closed(filled)
