"""The report: complete, self-contained, within its size, and safe with hostile names."""

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from reconflow.datasets.dataset import Dataset
from reconflow.geometry.mesh import TexturedMesh
from reconflow.outputs.charts import Curve, Mark, curve_svg
from reconflow.outputs.glb import write_glb
from reconflow.outputs.report import render_report, write_report
from reconflow.outputs.report_cameras import overall_residuals, residual_meanings, residual_table, shift_table
from reconflow.outputs.report_parts import difference_picture, duration, share_text, short
from reconflow.quality.glb_reader import read_glb
from tests.outputs.finished_run import RIG, report_data
from tests.outputs.objects import labelled_box
from tests.quality.test_measure import dataset_of

HOSTILE = "<script>alert('x')</script>\"&'"


class Page(HTMLParser):
    """What the page refers to and runs, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.scripts = 0
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def box() -> TexturedMesh:
    return labelled_box(2)


@pytest.fixture(scope="module")
def dataset(box: TexturedMesh) -> Dataset:
    return dataset_of(box, RIG)


@pytest.fixture(scope="module")
def glb(box: TexturedMesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "mesh.glb"
    write_glb(box, path)
    return path


@pytest.fixture(scope="module")
def page(box: TexturedMesh, dataset: Dataset, glb: Path) -> str:
    return render_report(report_data(box, dataset, glb))


def test_the_page_asks_for_nothing_from_outside(page: str) -> None:
    found = Page(page)
    assert found.references
    assert all(reference.startswith("data:") for reference in found.references)
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?https?:""", page)
    assert "default-src 'none'" in page


def test_the_page_shows_three_pictures_of_every_view(page: str) -> None:
    assert len([r for r in Page(page).references if r.startswith("data:image/webp")]) == 18
    text = " ".join(Page(page).text)
    for view in ("front", "back", "left", "right", "top", "bottom"):
        assert view in text


def test_the_embedded_model_is_the_mesh(page: str, box: TexturedMesh, tmp_path: Path) -> None:
    (model,) = re.findall(r'id="model">([^<]*)<', page)
    (tmp_path / "m.glb").write_bytes(base64.b64decode(model))
    again = read_glb(tmp_path / "m.glb")
    np.testing.assert_array_equal(again.mesh.vertices[again.mesh.faces], box.mesh.vertices[box.mesh.faces])


RESIDUALS = {"mask_violation": 0.0125, "back.mask_violation": 0.5, "front.unheard_of": 3.0, "rim_miss_px": 0.7}


def test_residuals_of_a_view_stand_in_its_row_and_the_whole_in_the_last() -> None:
    table = residual_table(RESIDUALS, RIG)
    assert table is not None
    assert table.head == ("view", "outside silhouettes, %", "unheard of")
    assert table.rows == (("front", "–", "3"), ("back", "50.00", "–"), ("all views", "1.25", "–"))


def test_residuals_of_no_view_stand_alone_and_every_known_one_is_explained() -> None:
    assert overall_residuals(RESIDUALS, RIG) == [("silhouettes' rims miss by, px", "0.70")]
    explained = dict(residual_meanings(RESIDUALS, RIG))
    assert set(explained) == {"outside silhouettes, %", "silhouettes' rims miss by, px"}
    assert explained["outside silhouettes, %"] == "share of points outside another view's silhouette"
    assert residual_table({"rim_miss_px": 0.7}, RIG) is None


def test_photo_shifts_are_told_in_pixels_and_as_share_of_the_width() -> None:
    table = shift_table({"back": (3.0, -4.0)}, RIG)
    assert table is not None
    assert table.rows[0] == ("front", "–", "–", "–", "–")
    assert table.rows[1] == ("back", "+3.0", "-4.0", "5.0", "7.81")
    assert shift_table({}, RIG) is None


@pytest.mark.parametrize(
    ("share", "shown"), [(0.9997, "99.9"), (1.0, "100.0"), (0.99949, "99.9"), (0.9984, "99.8"), (0.0, "0.0")]
)
def test_a_share_reads_as_whole_only_when_it_is(share: float, shown: str) -> None:
    assert share_text(share, 1, 100) == shown


def test_the_phase_that_writes_the_page_is_timed_up_to_it(box: TexturedMesh, dataset: Dataset, glb: Path) -> None:
    page = render_report(report_data(box, dataset, glb, under_way_s=lambda: 7.5))
    assert "package, up to this page" in page
    assert "20 s" in page  # the computing time, with the 12.5 s of the fit


def test_a_warning_told_twice_is_shown_once(box: TexturedMesh, dataset: Dataset, glb: Path) -> None:
    data = report_data(box, dataset, glb, warnings=("Pale object.", "Mean PSNR is low.", "Pale object."))
    twice = replace(
        data,
        quality=data.quality.model_copy(update={"reasons": ("Mean PSNR is low.",)}),
        calibration=replace(data.calibration, notes=("Pale object.",)),
    )
    page = render_report(twice)
    assert (page.count("Pale object."), page.count("Mean PSNR is low.")) == (1, 1)


def test_hostile_text_stays_text(box: TexturedMesh, dataset: Dataset, glb: Path, page: str) -> None:
    hostile = render_report(
        report_data(
            box,
            replace(dataset, file_hashes={HOSTILE: HOSTILE}),
            glb,
            title=HOSTILE,
            subtitle=HOSTILE,
            unit=HOSTILE,
            warnings=(HOSTILE,),
            options={HOSTILE: HOSTILE},
            losses={HOSTILE: [[0, 1.0], [1, 2.0]]},
            timings_s={HOSTILE: 1.0},
            machine={HOSTILE: HOSTILE},
            licences={HOSTILE: HOSTILE},
        )
    )
    assert "<script>alert" not in hostile
    assert Page(hostile).scripts == Page(page).scripts
    assert HOSTILE in "".join(Page(hostile).text)


def test_a_mesh_too_large_for_the_page_is_left_out_and_said_so(
    box: TexturedMesh, dataset: Dataset, glb: Path, tmp_path: Path
) -> None:
    size = write_report(tmp_path / "report.html", report_data(box, dataset, glb), max_bytes=120_000)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert size == (tmp_path / "report.html").stat().st_size
    assert 'id="model"' not in page
    assert "too large for an embedded 3D view" in page


def test_a_large_texture_is_shrunk_until_the_page_fits(dataset: Dataset, box: TexturedMesh, glb: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3)).astype(np.uint8)
    data = report_data(replace(box, base_colour_srgb=noise), dataset, glb)
    page = render_report(data, max_bytes=1_200_000)
    assert 'id="model"' in page
    assert len(page) < 1_200_000


def test_many_views_are_all_measured_but_not_all_shown(box: TexturedMesh, dataset: Dataset, glb: Path) -> None:
    views = tuple(replace(view, name=f"{view.name}{n}") for n in range(5) for view in dataset.views)
    cameras = tuple(replace(camera, name=f"{camera.name}{n}") for n in range(5) for camera in RIG)
    data = report_data(box, dataset, glb)
    measured = tuple(
        view.model_copy(update={"view": f"{view.view}{n}"}) for n in range(5) for view in data.quality.views
    )
    many = replace(
        data,
        dataset=replace(dataset, views=views),
        cameras=cameras,
        quality=data.quality.model_copy(update={"views": measured}),
    )
    page = render_report(many)
    assert "24 of 30 are shown" in page
    assert page.count("data:image/webp") == 72


def test_the_difference_is_white_where_equal_and_dark_where_far_apart() -> None:
    first = np.zeros((1, 3, 3))
    second = np.array([[[0, 0, 0], [0.05, 0, 0], [0, 0, 0.9]]])
    picture = difference_picture(first, second)
    assert tuple(picture[0, 0]) == (255, 255, 255)
    assert picture[0, 2].max() < 50
    assert picture[0, 0].sum() > picture[0, 1].sum() > picture[0, 2].sum()


def test_a_curve_survives_values_that_are_not_finite_and_none_at_all() -> None:
    assert "no values" in curve_svg(Curve("c", ((0, math.nan),)))
    svg = curve_svg(Curve("c", ((0, 1.0), (1, math.inf), (2, 1.0))))
    assert "nan" not in svg
    assert "inf" not in svg


def test_a_curve_starts_where_its_values_do_and_breaks_at_its_marks() -> None:
    values = [0.0, 0.0, 8.0, 4.0, 9.0, 3.0]
    marks = (Mark(0, "128 px"), Mark(2, "128 px, colour"), Mark(4, "<256>"))
    svg = curve_svg(Curve("c", tuple(enumerate(values)), marks))
    pieces = [piece.split() for piece in re.findall(r'polyline points="([^"]*)"', svg)]
    assert [len(piece) for piece in pieces] == [2, 2]
    at_marks = re.findall(r'class="mark" x1="([^"]*)"', svg)
    assert [piece[0].split(",")[0] for piece in pieces] == at_marks[1:]
    assert "128 px, colour" in svg
    assert "&lt;256&gt;" in svg


def test_positive_values_are_drawn_logarithmically() -> None:
    (points,) = re.findall(r'polyline points="([^"]*)"', curve_svg(Curve("c", ((0, 1.0), (1, 2.0), (2, 4.0)))))
    first, second, third = (float(point.split(",")[1]) for point in points.split())
    assert first - second == pytest.approx(second - third, abs=0.2)
    linear = curve_svg(Curve("c", ((0, 1.0), (1, 0.0), (2, 2.0))))
    assert len(re.findall(r'polyline points="([^"]*)"', linear)[0].split()) == 3


def test_a_falling_curve_falls_on_the_page() -> None:
    (points,) = re.findall(r'polyline points="([^"]*)"', curve_svg(Curve("c", ((0, 5.0), (5, 1.0)))))
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points.split())
    assert x1 > x0
    assert y1 > y0


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.84, "0.8 s"), (42.4, "42 s"), (187.2, "3 min 07 s"), (119.6, "2 min 00 s")]
)
def test_durations_read_well(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_values_are_written_for_people() -> None:
    assert short(True) == "yes"
    assert short(None) == "–"
    assert short(40000) == "40\u202f000"
    assert short([1, 2.5]) == "1, 2.5"
