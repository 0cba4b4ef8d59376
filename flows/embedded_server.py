"""The embedded Prefect server's own process: a socket, a schema, a web server, and an end that follows its parent's.

Run by `flows.embedded`, never by hand. It talks to nobody but its parent: two JSON lines on standard output, one when
its port is known and one when the API answers; and the end of standard input means that the parent is gone, however
it went. Nothing here knows of flows.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlalchemy as sa

SHUTDOWN_GRACE_S = 5.0


def create_schema(connection: sa.Connection, metadata: sa.MetaData) -> None:
    """Create every table and index of Prefect's own models that does not exist yet.

    Replaying Prefect's hundred-odd migrations on an empty database takes about 10 CPU seconds, this takes 0.3. The
    tables are those that the installed Prefect reads and writes. The database carries no migration stamp and is never
    migrated, which is why its file name holds Prefect's version (see `flows.embedded`).
    """
    from sqlalchemy.schema import CreateIndex, CreateTable

    for table in metadata.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        by_name = {str(index.name): index for index in table.indexes}  # the models declare one index twice
        for _, index in sorted(by_name.items()):
            connection.execute(CreateIndex(index, if_not_exists=True))


async def prepare_database() -> None:
    """Bring the configured database to the schema of the installed Prefect."""
    from prefect.server.database import provide_database_interface

    database: Any = provide_database_interface()
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.run_sync(create_schema, database.Base.metadata)


async def serve(listener: socket.socket, parent_gone: threading.Event) -> None:
    """Serve the API on an open socket until the parent is gone."""
    import uvicorn
    from prefect.server.api.server import create_app

    await prepare_database()
    config = uvicorn.Config(
        create_app(ephemeral=True, final=True),
        lifespan="on",
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        _tell_parent(ready=True)
    await asyncio.to_thread(parent_gone.wait)
    server.should_exit = True
    await serving


def _watch_parent(parent_gone: threading.Event) -> None:
    sys.stdin.buffer.read()
    parent_gone.set()
    threading.Timer(SHUTDOWN_GRACE_S, os._exit, args=(1,)).start()


def _tell_parent(**fact: object) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Open a loopback socket on a free port, say which, and serve on it."""
    parent_gone = threading.Event()
    threading.Thread(target=_watch_parent, args=(parent_gone,), daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        _tell_parent(port=listener.getsockname()[1])
        asyncio.run(serve(listener, parent_gone))
    os._exit(0)


if __name__ == "__main__":
    main()
