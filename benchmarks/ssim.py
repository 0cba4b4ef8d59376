"""SSIM: CPU time of ours against scikit-image's on the same picture, in alternation.

    python -m benchmarks.ssim [--size 1024] [--rounds 5]

Prints the median ratio and the largest difference; the target is a fifth of scikit-image's time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from skimage.metrics import structural_similarity

from reconflow.quality.ssim import ssim


def _cpu_seconds(work: Callable[[], float]) -> tuple[float, float]:
    start = time.process_time()
    value = work()
    return time.process_time() - start, value


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    first = rng.random((args.size, args.size, 3))
    second = np.clip(first + 0.1 * rng.standard_normal(first.shape), 0, 1)
    ssim(first, second)
    ratios, ours_s, theirs_s, difference = [], [], [], 0.0
    for _ in range(args.rounds):
        ours, value = _cpu_seconds(lambda: ssim(first, second))
        theirs, reference = _cpu_seconds(
            lambda: float(
                structural_similarity(
                    first,
                    second,
                    channel_axis=2,
                    data_range=1,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                )
            )
        )
        ratios.append(ours / theirs)
        ours_s.append(ours)
        theirs_s.append(theirs)
        difference = max(difference, abs(value - reference))
    print(f"ssim {args.size}x{args.size}x3, CPU seconds, median of {args.rounds}")
    print(f"  reconflow     {statistics.median(ours_s):8.3f}")
    print(f"  scikit-image  {statistics.median(theirs_s):8.3f}")
    print(f"  ratio         {statistics.median(ratios):8.3f}   (target: <= 0.200)")
    print(f"  largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
