"""The golden machinery itself: nothing of a folder goes unread."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from golden_files import KINDS, Golden, assert_matches, halves_of_goldens, kind_of
from safetensors.torch import save_file

pytest_plugins = ("pytester",)


def claimed_kinds() -> set[str]:
    """Kinds that a `golden` marker of this folder's tests names."""
    claimed = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.golden":
                claimed.add(ast.literal_eval(node.args[0]))
    return claimed


def test_every_kind_of_golden_has_a_test() -> None:
    assert claimed_kinds() == KINDS


def test_every_file_of_the_folder_is_of_a_known_kind(goldens: tuple[Golden, ...]) -> None:
    assert [golden.path.name for golden in goldens if golden.kind is None] == []
    assert {golden.kind for golden in goldens} == KINDS


def test_no_golden_of_the_folder_lacks_one_of_its_files(golden_folder_of_this_run: Path) -> None:
    assert halves_of_goldens(golden_folder_of_this_run) == []


def test_a_golden_without_its_tensors_or_its_facts_is_found(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name, facts in {"below/ss_flow_2": "{}", "other": '{"tensors": {}}', "index": '["ss_flow_2"]'}.items():
        (tmp_path / f"{name}.json").write_text(facts, encoding="utf-8")
    save_file({"in.x": torch.zeros(1)}, tmp_path / "cameras.safetensors")
    assert [path.name for path in halves_of_goldens(tmp_path)] == [
        "cameras.safetensors", "ss_flow_2.json", "other.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stem", "name", "kind"),
    [
        ("sampler_multi_image", "", "sampler_multi_image"),
        ("sampler_2", "", "sampler"),
        ("mesh_extract_torus", "", "mesh_extract"),
        ("odd", "SLatFlowModel", "slat_flow"),
        ("torus_2", "SparseFeatures2Mesh", "mesh_extract"),
        ("seed_7_pipeline_tiny", "", "pipeline_tiny"),
        ("odd_sampler_multi_image", "", "sampler_multi_image"),
        ("odd", "", None),
    ],
)
def test_the_kind_follows_from_the_file_name_or_the_class(stem: str, name: str, kind: str | None) -> None:
    assert kind_of(stem, {"name": name}) == kind


def test_a_comparison_refuses_nan_other_shapes_and_other_integers() -> None:
    ones = torch.ones(2, 3)
    assert_matches(ones + 1e-6, ones)
    for wrong in (ones * float("nan"), torch.ones(3, 2), ones + 1e-4):
        with pytest.raises(AssertionError):
            assert_matches(wrong, ones)
    with pytest.raises(AssertionError):
        assert_matches(torch.tensor([1, 2]), torch.tensor([1, 3], dtype=torch.int32))


def run_one_skipped_test(
    pytester: pytest.Pytester, *arguments: str, marker: str = "golden('cameras')"
) -> pytest.RunResult:
    for name in ("conftest.py", "golden_files.py"):
        source = Path(__file__).with_name(name).read_text(encoding="utf-8")
        (pytester.path / name).write_text(source, encoding="utf-8")
    test = f"import pytest\n@pytest.mark.{marker}\ndef test_it(golden):\n    pytest.skip('no time')\n"
    (pytester.path / "test_one.py").write_text(test, encoding="utf-8")
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def test_a_golden_test_that_skips_although_the_folder_exists_fails(pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("goldens")
    save_file({"in.x": torch.zeros(1)}, folder / "cameras.safetensors")
    (folder / "cameras.json").write_text("{}", encoding="utf-8")
    result = run_one_skipped_test(pytester, "--goldens", str(folder))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*skipped although the golden vectors are there*no time*"])


def test_a_folder_without_the_kind_fails_and_no_folder_skips_with_the_reason(pytester: pytest.Pytester) -> None:
    run_one_skipped_test(pytester, "--goldens", str(pytester.mkdir("empty"))).assert_outcomes(failed=0, errors=1)
    result = run_one_skipped_test(pytester, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no golden vectors at*"])
    assert run_one_skipped_test(pytester, "--goldens", "nowhere").ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_only_the_twin_on_a_gpu_may_be_skipped_and_says_why(pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("goldens")
    save_file({"in.x": torch.zeros(1)}, folder / "cameras.safetensors")
    (folder / "cameras.json").write_text("{}", encoding="utf-8")
    marker = "golden('cameras', gpu=True)"
    result = run_one_skipped_test(pytester, "-rs", "--goldens", str(folder), marker=marker)
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*there is no GPU*"])
