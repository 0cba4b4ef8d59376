"""What `auto` stands for, and what is said of a gsplat that cannot be used. A package of that name stands in for it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconflow.errors import GpuUnavailableError, ModelUnavailableError
from reconflow.reconviagen.gaussian_engines import choose_engine, gsplat_fault
from reconflow.reconviagen.gaussian_rendering import render_gaussians
from reconflow.reconviagen.options import GaussianEngine
from tests.reconviagen.test_gaussian_rendering import camera, random_gaussians

AUTO, NUMBA, GSPLAT = GaussianEngine


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Installs a gsplat whose module with the CUDA code reads as given."""

    def write(backend: str) -> None:
        folder = tmp_path / "gsplat" / "cuda"
        folder.mkdir(parents=True)
        for package in (folder.parent, folder):
            (package / "__init__.py").write_text("", "utf-8")
        (folder / "_backend.py").write_text(backend, "utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "gsplat"}
    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
        del sys.modules[name]
    sys.modules.update(kept)


NOT_COMPILED = "print('gsplat: No CUDA toolkit found. gsplat will be disabled.')\n_C = None\n"


def test_auto_is_gsplat_on_a_gpu_that_can_use_it(install: Callable[[str], None]) -> None:
    install("_C = object()\n")
    assert choose_engine(AUTO, "cuda") is choose_engine(GSPLAT, "cuda") is GSPLAT
    assert choose_engine(AUTO, "cpu") is choose_engine(NUMBA, "cuda") is NUMBA


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (NOT_COMPILED, "not compiled"),
        ("raise RuntimeError('Error building extension')\n", "cannot be loaded (RuntimeError)"),
        ("import no_such_module_at_all\n", "cannot be loaded (ModuleNotFoundError)"),
    ],
    ids=["no toolkit", "does not compile", "something is missing"],
)
def test_an_installed_gsplat_without_its_cuda_code_is_named_with_a_way_out(
    install: Callable[[str], None], backend: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install(backend)
    assert choose_engine(AUTO, "cuda") is NUMBA
    for use in (
        lambda: choose_engine(GSPLAT, "cuda"),
        lambda: render_gaussians(random_gaussians(1), camera(), engine="gsplat"),
    ):
        with pytest.raises(ModelUnavailableError) as caught:
            use()
        assert words in caught.value.message
        assert "numba" in caught.value.suggestion
    assert capsys.readouterr().out == ""


def test_a_missing_gsplat_is_numba_for_auto_and_named_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert gsplat_fault() == "it is not installed"
    assert choose_engine(AUTO, "cuda") is NUMBA
    with pytest.raises(ModelUnavailableError, match="not installed") as caught:
        choose_engine(GSPLAT, "cuda")
    assert "numba" in caught.value.suggestion


def test_gsplat_on_the_cpu_is_refused() -> None:
    with pytest.raises(GpuUnavailableError, match="the device is the CPU") as caught:
        choose_engine(GSPLAT, "cpu")
    assert "numba" in caught.value.suggestion
