"""Outputs: GLB/OBJ/PLY writers, previews, the report and the package."""
