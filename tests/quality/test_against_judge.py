"""Our measurement against the independent evaluation script that comes with the evaluation datasets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reconflow.datasets.loading import load_dataset
from reconflow.outputs.glb import write_glb
from reconflow.quality.measure import measure_quality
from tests.outputs.objects import labelled_box

DATASETS = Path(__file__).parents[3] / "shared" / "datasets"


@pytest.mark.slow
def test_every_measure_is_what_the_evaluation_script_finds(tmp_path: Path) -> None:
    root = DATASETS / "spot"
    if not (DATASETS / "evaluate.py").is_file() or not root.is_dir():
        pytest.skip("the evaluation datasets are not beside the repository")
    pytest.importorskip("embreex", reason="the evaluation script needs embreex")
    glb = tmp_path / "mesh.glb"
    write_glb(labelled_box(), glb)
    command = [sys.executable, DATASETS / "evaluate.py", glb, root, "--mask-depth"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    judged = json.loads(done.stdout)["inputs"]["per_view"]
    dataset = load_dataset(root)
    assert dataset.cameras is not None
    for view in measure_quality(glb, dataset.cameras, dataset).views:
        expected = judged[view.view]
        assert view.psnr_db == pytest.approx(expected["psnr"], abs=1e-3)
        assert view.psnr_object_db == pytest.approx(expected["psnr_fg"], abs=1e-3)
        assert view.ssim == pytest.approx(expected["ssim"], abs=1e-4)
        assert view.mask_iou == pytest.approx(expected["mask_iou"], abs=1e-3)
