"""Golden tests: `@pytest.mark.golden("kind")` runs a test, which takes `golden`, once for each golden of that kind.

`--goldens DIR` names the folder. Without a folder these tests are skipped and say so; with one, a golden test that is
skipped for any reason fails, and so does one whose kind the folder does not hold. With `gpu=True` the marker runs the
test a second time with everything on CUDA; without a GPU that one is skipped. `--pretend-gpu` runs it on a GPU that is
not there (`tests.support.pretended_gpu`), in a process of its own, because the pretence lasts as long as the process.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from golden_files import Golden, find_goldens

from reconflow.reconviagen.precision import full_float32
from tests.support.pretended_gpu import DEVICE, pretended_gpu

_SHARED = Path(__file__).resolve().parents[3] / "shared" / "reconviagen"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        type=Path,
        default=None,
        metavar="DIR",
        help=f"folder with golden vectors of the networks (default: {_SHARED / 'goldens'})",
    )
    parser.addoption("--pretend-gpu", action="store_true", help="run GPU tests on a GPU that is not there")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(kind, gpu=False): runs for each golden of that kind; takes `golden`")
    asked: Path | None = config.getoption("--goldens", default=None)
    if asked is not None and not asked.is_dir():
        raise pytest.UsageError(f"--goldens: there is no folder {asked}")
    if config.getoption("--pretend-gpu", default=False):
        pretence = pretended_gpu()
        pretence.__enter__()
        config.add_cleanup(lambda: pretence.__exit__(None, None, None))


def gpu_of(config: pytest.Config) -> str:
    """The device of tests that need a GPU."""
    return DEVICE if config.getoption("--pretend-gpu", default=False) else "cuda"


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
    cases = [pytest.param(found, id=found.path.stem) for found in goldens] or [pytest.param(kind, id=kind)]
    if marker.kwargs.get("gpu"):
        on_gpu = [replace(found, device=gpu_of(metafunc.config)) for found in goldens]
        cases += [pytest.param(found, id=f"{found.path.stem}-cuda", marks=pytest.mark.gpu) for found in on_gpu]
    metafunc.parametrize("golden", cases, indirect=True)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Iterator[Golden]:
    """One golden of the kind that the test's marker names; on CUDA convolutions are computed in full float32."""
    if isinstance(request.param, Golden):
        if request.param.device == "cuda" and not torch.cuda.is_available():
            pytest.skip("there is no GPU")
        with full_float32():
            yield request.param
        return
    folder = golden_folder(request.config)
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}; name a folder with --goldens DIR")
    pytest.fail(f"the folder {folder} holds no golden of the kind {request.param!r}")


@pytest.fixture(scope="session")
def goldens(golden_folder_of_this_run: Path) -> tuple[Golden, ...]:
    """Every golden of the folder."""
    return _goldens_in(golden_folder_of_this_run)


@pytest.fixture(scope="session")
def golden_folder_of_this_run(request: pytest.FixtureRequest) -> Path:
    """The folder with the goldens."""
    folder = golden_folder(request.config)
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}; name a folder with --goldens DIR")
    return folder


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
    """Turn a skipped golden test into a failed one when the folder is there, and the GPU if it needs one."""
    report = yield
    could_run = item.get_closest_marker("gpu") is None or torch.cuda.is_available()
    if report.skipped and could_run and item.get_closest_marker("golden") and golden_folder(item.config).is_dir():
        report.outcome = "failed"
        report.longrepr = f"skipped although the golden vectors are there: {report.longrepr}"
    return report
