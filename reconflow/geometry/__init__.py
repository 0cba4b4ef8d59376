"""Geometry: meshes, surfaces from depth, remeshing, UV atlases, mesh facts and repair. No rendering, no files."""
