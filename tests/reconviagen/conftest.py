"""Golden tests: `@pytest.mark.golden("kind")` runs a test, which takes `golden`, once for each golden of that kind.

`--goldens DIR` names the folder. Without a folder these tests are skipped and say so; with one, a golden test that is
skipped for any reason fails, and so does one whose kind the folder does not hold.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest
from golden_files import Golden, find_goldens

_SHARED = Path(__file__).resolve().parents[3] / "shared" / "reconviagen"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        type=Path,
        default=None,
        metavar="DIR",
        help=f"folder with golden vectors of the networks (default: {_SHARED / 'goldens'})",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(kind): runs once for each golden of that kind; takes `golden`")
    asked: Path | None = config.getoption("--goldens", default=None)
    if asked is not None and not asked.is_dir():
        raise pytest.UsageError(f"--goldens: there is no folder {asked}")


def golden_folder(config: pytest.Config) -> Path:
    """The folder of this run; one that was asked for by name exists."""
    asked: Path | None = config.getoption("--goldens", default=None)
    return _SHARED / "goldens" if asked is None else asked.resolve()


@cache
def _goldens_in(folder: Path) -> tuple[Golden, ...]:
    return tuple(find_goldens(folder, is_reference=folder == _SHARED / "goldens"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        return
    (kind,) = marker.args
    folder = golden_folder(metafunc.config)
    goldens = [found for found in _goldens_in(folder) if found.kind == kind] if folder.is_dir() else []
    values: list[Golden | str] = [*goldens] or [kind]
    metafunc.parametrize(
        "golden", values, indirect=True, ids=[v if isinstance(v, str) else v.path.stem for v in values]
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """One golden of the kind that the test's marker names."""
    if isinstance(request.param, Golden):
        return request.param
    folder = golden_folder(request.config)
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}; name a folder with --goldens DIR")
    pytest.fail(f"the folder {folder} holds no golden of the kind {request.param!r}")


@pytest.fixture(scope="session")
def goldens(request: pytest.FixtureRequest) -> tuple[Golden, ...]:
    """Every golden of the folder."""
    folder = golden_folder(request.config)
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}; name a folder with --goldens DIR")
    return _goldens_in(folder)


@pytest.fixture(scope="session")
def manifests() -> Path:
    """The folder with the names, shapes and dtypes of the official files' tensors."""
    folder = _SHARED / "manifests"
    if not folder.is_dir():
        pytest.skip(f"no manifests of the official files at {folder}")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped golden test into a failed one when the folder is there."""
    report = yield
    if report.skipped and item.get_closest_marker("golden") and golden_folder(item.config).is_dir():
        report.outcome = "failed"
        report.longrepr = f"skipped although the golden vectors are there: {report.longrepr}"
    return report
