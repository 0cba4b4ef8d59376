"""Blocks: typed settings and credentials as Prefect blocks."""
