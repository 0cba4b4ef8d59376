"""What operators read: forms, run names, the progress page and the pages about how a run has ended. No server."""

from __future__ import annotations

import importlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconflow.errors import (
    Cancelled,
    DiskFullError,
    QualityThresholdError,
    ReconflowError,
    StorageUnreachableError,
    ValidationFailedError,
)
from reconflow.nvdiffrec.options import Preset
from reconflow.outputs.package import FileEntry
from reconflow.request import RunRequest
from reconflow.stage_results import ModelSummary, RunSummary
from tasks.forecast import Forecast, duration_text, remaining_text

pytestmark = pytest.mark.prefect
ROOT = Path(__file__).resolve().parents[2]
ENTRYPOINTS = sorted(
    {entry["entrypoint"] for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]}
)


def form_of(entrypoint: str) -> dict[str, Any]:
    """Return the JSON schema that a deployment's form is drawn from."""
    from prefect.utilities.callables import parameter_schema

    path, function = entrypoint.removesuffix(".py").split(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    return parameter_schema(getattr(module, function)).model_dump()


def own_fields(schema: dict[str, Any]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return the fields of every object of a form, by the object's name."""
    return {
        name: list(part["properties"].items()) for name, part in schema["definitions"].items() if "properties" in part
    }


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_every_field_of_every_form_has_a_title_and_help_that_a_browser_shows_whole(entrypoint: str) -> None:
    schema = form_of(entrypoint)
    assert schema["properties"]["params"]["description"]
    fields = [(part, *field) for part, found in own_fields(schema).items() for field in found]
    assert fields
    for part, name, field in fields:
        assert "title" in field or "$ref" in field, f"{part}.{name} has no title"  # a choice is titled by its type
        assert field.get("description", "").strip(), f"{part}.{name} has no help"
        assert "<" not in field["description"], f"{part}.{name}: a browser takes <...> for a tag and shows nothing"
    assert all(part["additionalProperties"] is False for part in schema["definitions"].values() if "properties" in part)


def test_a_reconstruction_is_asked_for_from_what_matters_to_what_rarely_does() -> None:
    fields = dict(own_fields(form_of("flows/reconstruct.py:reconstruct")))["RunRequest"]
    names = [name for name, _ in fields]
    assert names[:5] == ["dataset", "out", "model", "preset", "device"]
    assert names[5:12] == [
        "fov_deg",
        "object_size_m",
        "quality_thresholds",
        "texture_size",
        "target_faces",
        "resolution",
        "steps",
    ]
    assert names[-1] == "seed"


def test_limits_that_the_form_does_not_show_stand_in_the_help() -> None:
    for name, field in RunRequest.model_json_schema()["properties"].items():
        kinds = [field, *field.get("anyOf", ())]
        bounds = [kind[key] for kind in kinds for key in ("minimum", "maximum") if kind.get(key) is not None]
        if name != "seed" and bounds:
            assert f"{bounds[-1]:.0f}" in field["description"], name


def test_choices_are_lists_to_pick_from() -> None:
    definitions = form_of("flows/reconstruct.py:reconstruct")["definitions"]
    assert definitions["Preset"]["enum"] == ["draft", "standard", "high"]
    assert definitions["Device"]["enum"] == ["auto", "cpu", "cuda"]
    assert "nvdiffrec" in json.dumps(definitions["ModelName"])


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("s3://bucket/datasets/mug", "mug"),
        ("s3://bucket/datasets/mug/", "mug"),
        ("s3://bucket", "bucket"),
        ("block://shelf/mug", "mug"),
        ("samples/lantern/", "lantern"),
        (".", Path.cwd().name),
    ],
)
def test_a_run_is_named_after_the_last_folder_of_its_dataset(dataset: str, name: str) -> None:
    assert RunRequest(dataset=dataset).dataset_name() == name


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_rest_is_forecast_from_the_pace_so_far() -> None:
    clock = Clock()
    forecast = Forecast(Preset.DRAFT, ["nvdiffrec"], clock)
    forecast.begin("validate")
    forecast.begin("transforms")
    clock.now_s = 16.0
    forecast.begin("load", "nvdiffrec")
    assert forecast.fraction == pytest.approx(0.16)
    assert forecast.remaining_s() == pytest.approx(16.0 / 0.16 * 0.84)
    assert "about 1 min left" in forecast.page()


def test_nothing_is_forecast_from_next_to_nothing() -> None:
    clock = Clock()
    forecast = Forecast(Preset.DRAFT, ["nvdiffrec"], clock)
    forecast.begin("validate")
    clock.now_s = 60.0
    assert forecast.remaining_s() is None
    assert "too early to say" in forecast.page()


def test_what_an_earlier_attempt_had_done_says_nothing_about_the_pace() -> None:
    clock = Clock()
    forecast = Forecast(Preset.DRAFT, ["nvdiffrec"], clock)
    forecast.begin("validate")
    forecast.begin("transforms")
    forecast.keep("transforms")
    forecast.begin("load", "nvdiffrec")
    forecast.begin("infer", "nvdiffrec")
    clock.now_s = 30.0
    forecast.move_to("infer", "nvdiffrec", 0.5, "infer: fitting")
    assert forecast.remaining_s() == pytest.approx(30.0 * 0.52 / (0.31 + 0.01 + 0.01))
    assert "| transforms | 15 % | done by an earlier attempt |" in forecast.page()
    assert "**infer**: fitting" in forecast.page()


def test_progress_never_falls_and_every_share_is_listed() -> None:
    forecast = Forecast(Preset.STANDARD, ["one", "two"], Clock())
    forecast.begin("infer", "one")
    forecast.move_to("infer", "one", 0.5)
    reached = forecast.fraction
    forecast.move_to("infer", "one", 0.4)
    forecast.begin("validate")
    assert forecast.fraction == reached > 0.2
    rows = [line.split("|")[2] for line in forecast.page().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 3 + 2 * 4
    assert sum(float(row.strip(" %")) for row in rows) == pytest.approx(100, abs=3)


def side_by_side(clock: Clock) -> Forecast:
    """A run of two models that have both begun to fit at 10 s, when `transforms` had taken those 10 s."""
    forecast = Forecast(Preset.STANDARD, ["one", "two"], clock)
    forecast.begin("transforms")
    forecast.run_side_by_side()
    clock.now_s = 10.0
    for model in ("one", "two"):
        forecast.begin("load", model)
        forecast.begin("infer", model)
    return forecast


def test_of_models_side_by_side_both_stages_are_under_way_and_what_they_did_adds_up() -> None:
    forecast = side_by_side(Clock())
    begun = forecast.fraction
    forecast.move_to("infer", "two", 0.5, "infer: sampling, step 3")
    forecast.move_to("infer", "one", 0.25, "infer: fitting")
    assert forecast.fraction - begun == pytest.approx(0.75 * 0.4)
    page = forecast.page()
    assert "**one infer**: fitting\n\n**two infer**: sampling, step 3\n\n10 s so far" in page
    assert "| transforms | 10 % | done in 10 s |" in page
    assert page.count("| now |") == 2
    forecast.begin("quality", "two")
    assert forecast.page().count("| now |") == 2
    forecast.begin("package")
    assert forecast.fraction == pytest.approx(0.99)
    assert forecast.closing_page("Done", completed=True).count("done in") == 7


def test_of_models_side_by_side_the_slowest_decides_how_long_the_rest_takes() -> None:
    clock = Clock()
    forecast = side_by_side(clock)
    clock.now_s = 70.0
    forecast.move_to("infer", "one", 0.1)
    forecast.move_to("infer", "two", 0.97)
    done = 0.005 + 0.1 * 0.4  # one's load and a tenth of its infer, out of its half of 88 %
    assert forecast.remaining_s() == pytest.approx(60.0 * (0.44 - done) / done)
    forecast.end_model("two", completed=True)
    assert forecast.remaining_s() == pytest.approx(60.0 * (0.44 - done) / done)
    forecast.end_model("one", completed=True)
    assert forecast.fraction == pytest.approx(0.99)
    assert forecast.remaining_s() == pytest.approx(70.0 * 0.01 / (0.10 + 2 * 0.405))


def test_a_model_that_is_through_is_no_longer_under_way_beside_the_other() -> None:
    clock = Clock()
    forecast = side_by_side(clock)
    forecast.begin("preview", "two")
    clock.now_s = 12.0
    forecast.end_model("two", completed=True)
    clock.now_s = 99.0
    assert "| two preview | 2 % | done in 2 s |" in forecast.page()
    assert forecast.page().count("| now |") == 1
    assert forecast.closing_page("Stopped", completed=False).startswith("**Stopped** in one infer after")


def test_a_model_that_failed_is_said_to_have_and_its_share_is_not_waited_for() -> None:
    forecast = side_by_side(Clock())
    begun = forecast.fraction
    forecast.end_model("two", completed=False)
    assert "| two infer | 40 % | failed |" in forecast.page()
    assert forecast.fraction - begun == pytest.approx(0.44 - 0.005)


def test_stages_that_begin_at_the_same_moment_are_both_under_way() -> None:
    from tasks.reporting import RunReporter

    def now_s() -> float:
        if threading.current_thread() is first:
            second.start()
            second.join(0.2)  # which it does not end in when the first has to be through
        return 0.0

    first = threading.Thread(target=lambda: reporter.of_stage("load", "one"))
    second = threading.Thread(target=lambda: reporter.of_stage("load", "two"))
    reporter = RunReporter(lambda *_, **__: None, Preset.DRAFT, clock=now_s, models=("one", "two"))
    reporter.forecast.run_side_by_side()
    first.start()
    first.join()
    second.join()
    assert reporter.forecast.page().count("| now |") == 2


def test_durations_are_as_exact_as_they_are_known() -> None:
    assert [duration_text(seconds) for seconds in (0.4, 59.4, 65, 3600 * 2 + 660)] == [
        "0 s",
        "59 s",
        "1 min 05 s",
        "2 h 11 min",
    ]
    assert [remaining_text(seconds) for seconds in (3, 40, 100, 4 * 3600)] == [
        "a few seconds left",
        "less than a minute left",
        "about 2 min left",
        "about 4.0 h left",
    ]


@pytest.mark.parametrize(
    ("error", "percent", "head"),
    [
        (None, 100.0, "**Done** after 7 s."),
        (Cancelled("Cancelled by Ada: wrong dataset", suggestion="-"), 99.0, "**Cancelled** in package after 7 s."),
        (DiskFullError("No room.", suggestion="-"), 99.0, "**Failed** in package after 7 s."),
        (KeyboardInterrupt(), 99.0, "**Stopped** in package after 7 s."),
    ],
)
def test_the_whole_is_shown_as_done_only_when_the_run_ended_well(
    error: BaseException | None, percent: float, head: str
) -> None:
    from tasks.reporting import RunReporter

    sent: list[tuple[float, str]] = []

    def send(percent: float, page: str, *, insisting: bool = False) -> None:
        sent.append((percent, page))

    clock = Clock()
    reporter = RunReporter(send, Preset.DRAFT, clock=clock, models=("nvdiffrec",))
    reporter.of_stage("package")(1, 1, "package: done")
    clock.now_s = 7.0
    reporter.close(error)
    assert sent[-1][0] == percent
    assert sent[-1][1].startswith(head)
    if isinstance(error, ReconflowError):
        assert error.message in sent[-1][1]


def summary_of(*models: str) -> RunSummary:
    """Return a finished run's facts."""
    facts = {"status": "normal", "psnr_db": 31.5, "ssim": 0.98, "mask_iou": 0.99, "faces": 20000, "vertices": 9998}
    parts = tuple(ModelSummary(model=model, mesh="m.glb", report="r.html", **facts) for model in models)
    return RunSummary(
        run_id="ab12cd34", location="/srv/x/runs/ab12cd34", mesh="m.glb", report="r.html", **facts, fov_x_deg=40.0,
        cameras="depth", seconds=75.0, stage_seconds={}, peak_rss_bytes=1 << 30, models=parts, warnings=("Dim.",),
    )  # fmt: skip


def test_the_summary_says_how_to_get_files_without_any_link_that_ends() -> None:
    from tasks.ending_pages import summary_page

    files = [FileEntry(path="nvdiffrec/mesh.glb", size=1_600_000, sha256="0" * 64)]
    page = summary_page(summary_of("nvdiffrec"), "block://shelf", files)
    assert "`reconflow fetch ab12cd34 --out block://shelf`" in page
    assert "`reconflow link ab12cd34 --out block://shelf`" in page
    assert "| `nvdiffrec/mesh.glb` | 1.6 MB |" in page
    assert "| nvdiffrec | normal | 31.50 | 0.9800 | 0.9900 | 20 000 | 9 998 |" in page
    assert "http" not in page
    assert "/srv" not in page
    assert "**Note:** Dim." in page


def test_results_in_a_folder_are_said_to_be_on_that_machine() -> None:
    from tasks.ending_pages import summary_page

    page = summary_page(summary_of("nvdiffrec"), "results/", [])
    assert "`results/runs/ab12cd34`, a folder of the machine that ran this." in page
    assert "reconflow link" not in page


def test_a_failure_says_code_message_way_out_next_step_and_every_fault() -> None:
    from tasks.ending_pages import failure_page

    faults = [{"file": "multi_views/top.png", "message": "is a | pipe"}, {"file": None, "message": "No cameras."}]
    error = ValidationFailedError("Two faults.", suggestion="Correct them.", faults=faults)
    page = failure_page(error, "ab12cd34")
    assert page.startswith(
        "### VALIDATION_FAILED\n\nTwo faults.\n\n**What to do:** Correct them.\n\n**Next step:** Correct"
    )
    assert "| `multi_views/top.png` | is a \\| pipe |" in page
    assert "|  | No cameras. |" in page
    assert "Run `ab12cd34`." in page


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (StorageUnreachableError, "Nothing has to be changed"),
        (QualityThresholdError, "…-quality"),
        (DiskFullError, "in order"),
        (ReconflowError, "report it with the run id"),
    ],
)
def test_the_next_step_follows_from_the_kind_of_failure(kind: type[ReconflowError], words: str) -> None:
    from tasks.ending_pages import next_step

    assert words in next_step(kind("-", suggestion="-"))


def test_a_cancelled_run_says_who_and_why() -> None:
    from tasks.ending_pages import cancelled_page

    page = cancelled_page(Cancelled("Cancelled by Ada: wrong dataset", suggestion="-"), "ab12cd34")
    assert page.startswith("### CANCELLED\n\nCancelled by Ada: wrong dataset")
    assert "Run `ab12cd34`." in page
