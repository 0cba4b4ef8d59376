"""The embedded Prefect: whose settings it uses, and the schema that it creates instead of migrating to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from flows.embedded import client_settings, is_server_configured
from flows.embedded_server import create_schema


def test_the_schema_holds_every_column_and_index_of_prefects_models() -> None:
    from prefect.server.database import provide_database_interface

    metadata = provide_database_interface().Base.metadata
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        create_schema(connection, metadata)
        create_schema(connection, metadata)
        for table in metadata.sorted_tables:
            columns = connection.execute(sa.text(f"SELECT name FROM pragma_table_info('{table.name}')")).scalars()
            assert set(columns) == {column.name for column in table.columns}
            indexes = connection.execute(
                sa.text(f"SELECT name, \"unique\" FROM pragma_index_list('{table.name}') WHERE origin = 'c'")
            )
            assert {(name, bool(unique)) for name, unique in indexes} == {
                (str(index.name), bool(index.unique)) for index in table.indexes
            }
    engine.dispose()


def test_everything_embedded_stays_in_its_home(tmp_path: Path) -> None:
    settings = client_settings(tmp_path)
    assert settings["PREFECT_HOME"] == str(tmp_path)
    assert str(tmp_path) in settings["PREFECT_API_DATABASE_CONNECTION_URL"]
    assert str(tmp_path) in settings["PREFECT_PROFILES_PATH"]


def test_only_the_environment_names_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert not is_server_configured()
    monkeypatch.setitem(os.environ, "PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert is_server_configured()
