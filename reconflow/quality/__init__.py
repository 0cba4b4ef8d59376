"""Quality: image, mask, depth and mesh metrics, and their classification against thresholds."""
