"""Accuracy and cost of the calibration on rendered random objects: `python -m benchmarks.calibration [COUNT]`.

Prints one line per object and the distribution. CPU seconds are of this process, after a warm-up.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np

from reconflow.cameras.calibration import calibrate
from reconflow.errors import CalibrationAmbiguousError
from tests.cameras.rendered_objects import random_object, rendered


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate COUNT random rigs and print how far off they come out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=20)
    count = parser.parse_args(argv).count
    calibrate(rendered(random_object(3), 0.8, 3.0, 128)[0])
    errors, scale_errors, levels_off, sigmas, seconds, refused = [], [], [], [], [], 0
    for seed in range(count):
        random = np.random.default_rng(seed)
        fov, slack = math.radians(random.uniform(25, 75)), random.uniform(1.05, 1.6)
        size, bits = int(random.choice([128, 256, 512])), int(random.choice([8, 16]))
        dataset, scales = rendered(random_object(seed), fov, slack / math.sin(fov / 2), size, bits)
        start = time.process_time()
        try:
            found = calibrate(dataset)
        except CalibrationAmbiguousError:
            refused += 1
            print(f"{seed:4d}  {size} px  {bits:2d} bit  fov {math.degrees(fov):5.1f}  ambiguous")
            continue
        seconds.append(time.process_time() - start)
        errors.append(math.degrees(found.fov_x_rad - fov))
        scale_errors.append(100 * np.abs(np.array(found.depth_scales) / scales - 1).max())
        if bits == 8:
            levels_off.append(255 * np.mean(np.array(found.depth_scales) / scales - 1))
        sigmas.append(found.fov_uncertainty_deg)
        print(
            f"{seed:4d}  {size} px  {bits:2d} bit  fov {math.degrees(fov):5.1f}  {found.method:11s}"
            f"  error {errors[-1]:+.3f} ± {sigmas[-1]:.3f} deg  scales {scale_errors[-1]:.3f} %"
            f"  {seconds[-1]:.1f} CPU s"
        )
    off = np.abs(errors)
    print(f"refused {refused} of {count}")
    print(f"|error| median {np.median(off):.3f}, 90 % {np.percentile(off, 90):.3f}, largest {off.max():.3f} degrees")
    print(f"largest scale error median {np.median(scale_errors):.3f}, largest {np.max(scale_errors):.3f} %")
    print(
        f"with sign, in the mean: error {np.mean(errors):+.3f} degrees, 8-bit scales {np.mean(levels_off):+.3f} levels"
    )
    print(f"|error| / sigma 90 % {np.percentile(off / sigmas, 90):.1f}; CPU seconds median {np.median(seconds):.1f}")


if __name__ == "__main__":
    main()
