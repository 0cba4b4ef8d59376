"""What the documentation says exists, exists: codes, options, commands, links, names, and the README's example runs."""

from __future__ import annotations

import importlib
import re
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer.main

import reconflow
from flows.cli import app
from reconflow import errors
from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_pose
from reconflow.stage_results import RunSummary

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deployments/**/*.md")])
README = (ROOT / "README.md").read_text("utf-8")
TINY = {"steps": 4, "resolution": 96, "texture_size": 256, "target_faces": 2000, "preset": "draft"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of every table row in a page."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def code_blocks(text: str, language: str) -> list[str]:
    """Return the content of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the fragment names that a page's headings get."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def retryable_by_code() -> dict[str, bool]:
    """Return whether each code's errors may be retried, from the exception tree."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    own = [kind for kind in classes if issubclass(kind, errors.ReconflowError) and "code" in vars(kind)]
    return {code.value: False for code in errors.ErrorCode} | {kind.code.value: kind.retryable for kind in own}


def test_every_error_code_is_explained_once_with_a_way_out() -> None:
    rows = [row for row in table_rows((ROOT / "docs" / "errors.md").read_text("utf-8")) if row[0].isupper()]
    explained = [row for row in rows if re.fullmatch(r"`[A-Z_]+`", row[0])]
    assert sorted(row[0].strip("`") for row in explained) == sorted(code.value for code in errors.ErrorCode)
    assert all(len(row) == 4 and row[1] and row[2] for row in explained)


def test_the_page_on_errors_says_which_may_be_retried() -> None:
    rows = table_rows((ROOT / "docs" / "errors.md").read_text("utf-8"))
    said = {row[0].strip("`"): row[3] for row in rows if re.fullmatch(r"`[A-Z_]+`", row[0])}
    assert said == {code: "yes" if again else "no" for code, again in retryable_by_code().items()}


def test_the_readme_lists_the_options_of_run_and_no_others() -> None:
    listed = {option for row in table_rows(README) for option in re.findall(r"`(--[a-z-]+)`", row[0])}
    run = typer.main.get_command(app).commands["run"]
    real = {option for parameter in run.params for option in parameter.opts + parameter.secondary_opts}
    assert listed <= real
    assert {option for option in real if option.startswith("--")} - listed == {"--prefect"}


@each_page
def test_an_example_that_starts_a_server_has_analytics_off_and_a_password(page: Path) -> None:
    for block in code_blocks(page.read_text("utf-8"), "sh"):
        if "prefect server start" in block:
            assert "PREFECT_SERVER_ANALYTICS_ENABLED=false" in block
            assert "PREFECT_SERVER_API_AUTH_STRING=" in block


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not fragment or fragment in anchors(linked), target


@each_page
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for path in re.findall(r"`((?:reconflow|flows|tasks|blocks|samples|benchmarks|docs|tests)/[\w/.-]+)`", text):
        assert (ROOT / path.rstrip("/")).exists(), path
    for module in re.findall(r"python -m ((?:flows|samples|benchmarks)(?:\.[a-z]\w*)*)", text):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@each_page
def test_names_in_the_package_that_a_page_mentions_can_be_had(page: Path) -> None:
    for name in set(re.findall(r"`(reconflow(?:\.\w+)+)", page.read_text("utf-8"))):
        assert is_importable(name), name


def is_importable(dotted: str) -> bool:
    """Return whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        try:
            for attribute in parts[count:]:
                found = getattr(found, attribute)
        except AttributeError:
            return False
        return True
    return False


@each_page
def test_make_targets_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = page.read_text("utf-8")
    named = re.findall(r"`make ([a-z0-9]+)`", text) + re.findall(r"^make ([a-z0-9]+)", text, re.MULTILINE)
    assert set(named) <= targets


@each_page
def test_commands_of_reconflow_that_a_page_shows_exist(page: Path) -> None:
    commands = set(typer.main.get_command(app).commands)
    text = page.read_text("utf-8")
    shown = re.findall(r"`reconflow ([a-z]+)", text)
    shown += [word for block in code_blocks(text, "sh") for word in re.findall(r"^reconflow ([a-z]+)", block, re.M)]
    assert set(shown) <= commands


@each_page
def test_python_in_a_page_is_python(page: Path) -> None:
    for block in code_blocks(page.read_text("utf-8"), "python"):
        compile(block, str(page), "exec")


def test_tables_of_the_rig_agree_with_the_cameras() -> None:
    axes = {"x": 0, "y": 1, "z": 2}
    for name in ("cameras.md", "datasets.md"):
        rows = [row for row in table_rows((ROOT / "docs" / name).read_text("utf-8")) if row[0] in VIEW_NAMES]
        assert [row[0] for row in rows] == list(VIEW_NAMES)
        for view, position, up, right in rows:
            pose = six_axis_pose(view, 1.0)
            for said, column in ((position, pose[:3, 3]), (up, pose[:3, 1]), (right, pose[:3, 0])):
                assert column[axes[said[1]]] == (1.0 if said[0] == "+" else -1.0)


def test_the_index_of_decisions_is_complete() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    assert [page.name for page in sorted(folder.glob("0*.md")) if f"({page.name})" not in index] == []


def test_every_direct_dependency_has_its_licence_listed() -> None:
    listing = runpy.run_path(str(ROOT / "docs" / "list_licences.py"))
    needed = {(name, purpose) for purpose, names in listing["direct_requirements"]().items() for name in names}
    rows = [row for row in table_rows((ROOT / "docs" / "licences.md").read_text("utf-8")) if len(row) == 3]
    listed = {(package, purpose) for package, purpose, licence in rows[2:] if licence}
    assert listed == needed


def test_the_readme_s_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, except for smaller numbers and another output folder."""
    (example,) = code_blocks(README, "python")
    small = partial(shrunk_call, reconflow.reconstruct_folder, tmp_path)
    monkeypatch.setattr(reconflow, "reconstruct_folder", small, raising=False)
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[0] in {"normal", "warning"}
    assert Path(second).is_file()


def shrunk_call(function: Callable[..., RunSummary], out: Path, dataset: str, _out: str, **options: Any) -> RunSummary:
    """Call `reconstruct_folder` with the README's options, overridden by tiny ones."""
    return function(ROOT / dataset, out, **(options | TINY))
