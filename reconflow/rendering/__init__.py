"""Rendering: differentiable rasterise / interpolate / texture / antialias on the CPU, and plain renders of a mesh."""
