"""The stores that the storage tests run against."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconflow.storage import ArtifactStore, LocalStore


@pytest.fixture(params=["local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An empty store of each kind."""
    return LocalStore(tmp_path / "store")
