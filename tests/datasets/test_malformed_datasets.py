"""Whatever is done to a valid dataset, it loads or is refused by a structured error; nothing else is ever raised."""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_datasets import PX, depth, encode, photo, png, posed_views, six_views

from reconflow.datasets.dataset import Dataset
from reconflow.datasets.loading import load_dataset, validate_dataset
from reconflow.errors import ErrorCode, InputError

Files = dict[str, bytes]
Mutation = Callable[[Path], None]


def contents(build: Callable[[Path], Path]) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        root = build(Path(folder) / "mug")
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.*"))}


def posed_with_everything(root: Path) -> Path:
    posed_views(root, 3, mask_path="masks/{}.png", depth_file_path="depth/{}.png")
    for i in range(3):
        for folder, image in (("masks", np.uint8(255) * (depth(i) > 0)), ("depth", depth(i, bits=16))):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / f"view_{i}.png").write_bytes(encode(Image.fromarray(image)))
    spec = json.loads((root / "transforms.json").read_text())
    (root / "images/view_0.png").unlink()
    (root / "images/view_0.jpg").write_bytes(encode(Image.fromarray(photo(0)), "JPEG"))
    spec["frames"][0]["file_path"] = "images/view_0.jpg"
    (root / "transforms.json").write_text(json.dumps(spec))
    return root


DATASETS = [
    contents(lambda root: six_views(root, cameras=True)),
    contents(lambda root: six_views(root, bits=16)),
    contents(lambda root: six_views(root, with_depth=False)),
    contents(posed_with_everything),
]
NASTY = st.sampled_from(
    [
        float("nan"),
        float("inf"),
        1e308,
        -1e308,
        0,
        -1,
        10**400,
        True,
        None,
        "",
        "x",
        "../x",
        "\ud800",
        [],
        {},
        [[1]],
        1e-320,
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
WRONG_PICTURES = [
    encode(Image.fromarray(photo(0)).convert(mode), fmt)
    for mode, fmt in [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG")]
    if mode != "I;16"
] + [
    encode(Image.fromarray(depth(0, bits=16))),
    png(50_000, 50_000, 8, 2, b"\0" * 100),
    png(64, 64, 8, 2, b"\0" * 100),
    png(64, 64, 16, 6, b"\0" * (64 * 513)),
    png(1, 1, 8, 0, b"\0\0"),
    encode(Image.fromarray(photo(0)), "GIF"),
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
]


def resealed(content: bytes) -> bytes:
    """Give every PNG chunk a matching checksum, so that damage reaches the decoder."""
    out, position = bytearray(content[:8]), 8
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        body = content[position + 4 : position + 8 + length]
        out += content[position : position + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        position += 12 + length
    return bytes(out)


@st.composite
def mutations(draw: st.DrawFn, files: Files) -> Mutation:
    names = sorted(files)
    name, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
    kind = draw(st.sampled_from(sorted(_KINDS)))
    share = draw(st.floats(0, 1))
    replacement = draw(st.sampled_from(WRONG_PICTURES))
    flips = draw(st.lists(st.tuples(st.floats(0, 0.9999), st.integers(1, 255)), min_size=1, max_size=5))
    new_name = draw(st.sampled_from(["Front.png", "extra.txt", "front.jpg", "x/../y.png", "ü\n.png", "back.PNG"]))
    return lambda root: _KINDS[kind](root, name, other, share, replacement, flips, new_name)


def _flip(content: bytes, flips: list[tuple[float, int]]) -> bytes:
    damaged = bytearray(content)
    for place, value in flips:
        if damaged:
            damaged[int(place * len(damaged))] ^= value
    return bytes(damaged)


def _write(path: Path, content: bytes) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    if not path.is_dir():
        path.write_bytes(content)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _link(path: Path, target: str) -> None:
    if path.is_file() or path.is_symlink():
        path.unlink()
        path.symlink_to(target)


def _directory(path: Path) -> None:
    if path.is_file() or path.is_symlink():
        path.unlink()
        path.mkdir()


def _swap(first: Path, second: Path) -> None:
    one, two = _read(first), _read(second)
    _write(first, two)
    _write(second, one)


def _rename(path: Path, name: str) -> None:
    if path.exists() and "/" not in name and not (path.parent / name).is_dir():
        path.rename(path.parent / name)


_KINDS: dict[str, Callable[..., None]] = {
    "truncate": lambda root, n, o, share, *_: _write(root / n, _read(root / n)[: int(share * len(_read(root / n)))]),
    "flip": lambda root, n, o, s, r, flips, *_: _write(root / n, _flip(_read(root / n), flips)),
    "reseal": lambda root, n, o, s, r, flips, *_: _write(root / n, resealed(_flip(_read(root / n), flips))),
    "empty": lambda root, n, *_: _write(root / n, b""),
    "delete": lambda root, n, *_: (root / n).unlink() if (root / n).is_file() else None,
    "append": lambda root, n, o, s, r, *_: _write(root / n, _read(root / n) + r),
    "replace": lambda root, n, o, s, r, *_: _write(root / n, r),
    "swap": lambda root, n, o, *_: _swap(root / n, root / o),
    "rename": lambda root, n, o, s, r, f, new: _rename(root / n, new),
    "link out": lambda root, n, *_: _link(root / n, "/etc/hostname"),
    "link self": lambda root, n, *_: _link(root / n, Path(n).name),
    "directory": lambda root, n, *_: _directory(root / n),
}


@pytest.mark.parametrize("files", DATASETS)
def test_undamaged_they_load(files: Files, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert validate_dataset(tmp_path).faults == ()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_damaged_files_load_or_are_refused_by_a_structured_error(data: st.DataObject) -> None:
    files = data.draw(st.sampled_from(DATASETS))
    check(files, data.draw(st.lists(mutations(files), min_size=1, max_size=3)))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_damaged_transforms_load_or_are_refused_by_a_structured_error(data: st.DataObject) -> None:
    files = data.draw(st.sampled_from([DATASETS[0], DATASETS[3]]))
    spec = json.loads(files["transforms.json"])
    for _ in range(data.draw(st.integers(1, 3))):
        spoil(data, spec)
    text = json.dumps(spec).encode("utf-8", "surrogatepass")
    check({**files, "transforms.json": text}, [])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_transforms_load_or_are_refused_by_a_structured_error(content: bytes) -> None:
    check({**DATASETS[0], "transforms.json": content}, [])


def spoil(data: st.DataObject, spec: Any) -> None:
    """Replace, remove or add one value somewhere in a JSON tree."""
    node = spec
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 3)):
            node = node[key]
            continue
        action = data.draw(st.sampled_from(["nasty", "json", "remove", "double"]))
        if action == "remove":
            del node[key]
        elif action == "double" and isinstance(node, list):
            node.append(node[key])
        else:
            node[key] = data.draw(NASTY if action == "nasty" else JSON)
        return


def check(files: Files, damage: list[Mutation]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "mug"
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        for mutate in damage:
            mutate(root)
        before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
        report = validate_dataset(root)
        text = json.dumps(report.to_dict())
        assert folder not in text
        if report.ok:
            check_loaded(load_dataset(root), report.digest)
        else:
            with pytest.raises(InputError) as caught:
                load_dataset(root)
            error = caught.value
            assert error.code in ErrorCode
            assert error.message
            assert error.suggestion
            assert folder not in json.dumps(error.to_dict())
            assert all(fault.message.isprintable() and fault.suggestion for fault in report.faults)
        assert before == {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
        shutil.rmtree(root)


def check_loaded(dataset: Dataset, digest: str | None) -> None:
    assert dataset.digest == digest
    for view in dataset.views:
        assert view.rgb_srgb.shape == (*view.image_hw, 3)
        assert view.alpha.shape == view.image_hw
        assert 0 <= view.alpha.min() <= view.alpha.max() <= 1
        assert min(view.image_hw) >= PX
    if dataset.cameras is not None:
        assert [c.name for c in dataset.cameras] == [v.name for v in dataset.views]
        assert all(np.isfinite(c.cam_from_world).all() for c in dataset.cameras)
