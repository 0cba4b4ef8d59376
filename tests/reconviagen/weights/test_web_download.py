"""Downloads that break off, from a server on this machine that breaks them off, go on where they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from reconflow.errors import Cancelled, JobNotReadyError, StorageUnreachableError
from reconflow.progress import ignore_progress
from reconflow.reconviagen.web_download import CutError, download
from reconflow.reconviagen.weight_sources import WebSource
from reconflow.reconviagen.weights import DINOV2, WeightFile
from reconflow.run_lock import try_lock

PIECE = 1 << 20


def content_of(seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, 5 * PIECE // 2, np.uint8).tobytes()


@dataclass
class Served:
    """What the server has, how it behaves, and what it was asked.

    Attributes:
        content: Of the one file.
        tag: Its ETag; None for none.
        sends: Bytes that it sends of each answer before it cuts the connection; the last one holds for all later.
        ranges: Whether it can send parts.
        asked: The range that each request asked for.
        url: Of the file.
    """

    content: bytes = content_of(0)
    tag: str | None = '"one"'
    sends: list[int | None] = field(default_factory=lambda: [None])
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)
    url: str = ""

    def sent(self) -> int | None:
        return self.sends.pop(0) if len(self.sends) > 1 else self.sends[0]


@pytest.fixture
def served() -> Iterator[Served]:
    """A web server with one file."""
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            state.asked.append(self.headers.get("Range"))
            if not self.path.endswith("/file"):
                self.send_error(404)
                return
            start = 0
            if state.ranges and self.headers.get("Range") and self.headers.get("If-Range") == state.tag:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= len(state.content):
                    self.send_error(416)
                    return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            if state.tag is not None:
                self.send_header("ETag", state.tag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.sent()])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/file"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def ignore(done: int, total: int | None) -> None:
    """Hear nothing."""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_connection_that_breaks_is_taken_up_where_it_broke(served: Served, tmp_path: Path) -> None:
    served.sends = [PIECE, 1000, None]
    told: list[tuple[int, int | None]] = []
    assert download(served.url, tmp_path / "file", lambda done, total: told.append((done, total)))
    assert (tmp_path / "file").read_bytes() == served.content
    assert served.asked == [None, f"bytes={PIECE}-", f"bytes={PIECE + 1000}-"]
    assert names(tmp_path) == {"file"}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (len(served.content), len(served.content))


def test_the_next_attempt_goes_on_from_what_the_last_one_got(served: Served, tmp_path: Path) -> None:
    served.sends = [PIECE, 0]
    with pytest.raises(CutError):
        download(served.url, tmp_path / "file", ignore)
    assert names(tmp_path) == {".file.download", ".file.download.json"}
    served.sends, served.asked = [None], []
    assert download(served.url, tmp_path / "file", ignore)
    assert served.asked == [f"bytes={PIECE}-"]
    assert (tmp_path / "file").read_bytes() == served.content
    assert names(tmp_path) == {"file"}


def test_what_was_cancelled_goes_on_too(served: Served, tmp_path: Path) -> None:
    def cancel(done: int, total: int | None) -> None:
        if done > 0:
            raise Cancelled("Stopped.", suggestion="Start again.")

    with pytest.raises(Cancelled):
        download(served.url, tmp_path / "file", cancel)
    assert download(served.url, tmp_path / "file", ignore)
    assert served.asked == [None, f"bytes={PIECE}-"]
    assert (tmp_path / "file").read_bytes() == served.content


def test_another_version_is_fetched_whole(served: Served, tmp_path: Path) -> None:
    served.sends = [PIECE, 0]
    with pytest.raises(CutError):
        download(served.url, tmp_path / "file", ignore)
    served.content, served.tag, served.sends = content_of(1), '"two"', [None]
    assert download(served.url, tmp_path / "file", ignore)
    assert (tmp_path / "file").read_bytes() == served.content


@pytest.mark.parametrize("lacks", ["ranges", "mark", "strong mark"])
def test_a_server_that_cannot_go_on_sends_everything_again(served: Served, tmp_path: Path, lacks: str) -> None:
    served.ranges = lacks != "ranges"
    served.tag = {"ranges": '"one"', "mark": None, "strong mark": 'W/"one"'}[lacks]
    served.sends = [PIECE]
    with pytest.raises(CutError):
        download(served.url, tmp_path / "file", ignore)
    served.sends, served.asked = [None], []
    assert download(served.url, tmp_path / "file", ignore)
    assert served.asked == ([f"bytes={PIECE}-"] if lacks == "ranges" else [None])
    assert (tmp_path / "file").read_bytes() == served.content


def test_a_file_that_has_shrunk_below_what_is_there_is_fetched_whole(served: Served, tmp_path: Path) -> None:
    served.sends = [PIECE, 0]
    with pytest.raises(CutError):
        download(served.url, tmp_path / "file", ignore)
    served.content, served.sends, served.asked = content_of(2)[:1000], [None], []
    assert download(served.url, tmp_path / "file", ignore)
    assert served.asked == [f"bytes={PIECE}-", None]
    assert (tmp_path / "file").read_bytes() == served.content


def test_bytes_that_were_not_made_sure_of_are_fetched_again(served: Served, tmp_path: Path) -> None:
    """As after a power failure: the file is longer than what was noted, with anything in it."""
    served.sends = [PIECE, 0]
    with pytest.raises(CutError):
        download(served.url, tmp_path / "file", ignore)
    with (tmp_path / ".file.download").open("ab") as stream:
        stream.write(bytes(5000))
    served.sends = [None]
    assert download(served.url, tmp_path / "file", ignore)
    assert (tmp_path / "file").read_bytes() == served.content


def test_a_connection_that_always_breaks_is_given_up(served: Served, tmp_path: Path) -> None:
    served.sends = [1000]
    with pytest.raises(CutError):
        download(served.url, tmp_path / "file", ignore)
    assert len(served.asked) == 5


def test_nothing_is_left_of_a_file_that_is_not_there(served: Served, tmp_path: Path) -> None:
    assert not download(f"{served.url}s", tmp_path / "file", ignore)
    served.sends = [0]
    with pytest.raises(CutError):
        download(served.url, tmp_path / "file", ignore)
    assert names(tmp_path) == set()


def test_two_processes_do_not_write_one_file(served: Served, tmp_path: Path) -> None:
    held = try_lock(tmp_path / ".file.download")
    assert held is not None
    with pytest.raises(JobNotReadyError, match="Another process is fetching file"):
        download(served.url, tmp_path / "file", ignore)
    assert served.asked == []


def test_weights_are_taken_up_after_an_error_that_says_so(served: Served, tmp_path: Path) -> None:
    source, file, target = (
        WebSource(served.url.removesuffix("/file")),
        WeightFile(DINOV2, "file", 1_000),
        tmp_path / "it",
    )
    served.sends = [PIECE, 0]
    with pytest.raises(StorageUnreachableError, match="the connection was cut") as caught:
        source.copy(file, target, ignore_progress)
    assert "what has arrived stays" in caught.value.suggestion
    served.sends = [None]
    assert source.copy(file, target, ignore_progress) is not None
    assert served.asked[-1] == f"bytes={PIECE}-"
    assert target.read_bytes() == served.content
