from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from small_datasets import PX, depth, encode, insert_chunk, photo, png, png_chunk, rgba, save, six_views, the_fault

from reconflow.datasets import limits, loading
from reconflow.datasets.image_decoding import decode_depth, decode_mask, decode_photo
from reconflow.datasets.image_headers import Colours, read_header
from reconflow.datasets.loading import load_dataset, validate_dataset
from reconflow.errors import ErrorCode, FileTooLargeError, InvalidFileFormatError

FRONT = "multi_views/front.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return six_views(tmp_path / "mug")


def photo_of(content: bytes):  # type: ignore[no-untyped-def]
    return decode_photo(content, read_header(content, "p", 1), "p")


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_a_fault(root: Path, keep: float) -> None:
    content = (root / FRONT).read_bytes()
    (root / FRONT).write_bytes(content[: int(keep * len(content))])
    fault = the_fault(root)
    assert (fault.code, fault.file) == (ErrorCode.INVALID_FILE_FORMAT, FRONT)


def test_any_flipped_byte_in_a_png_is_noticed() -> None:
    content = bytearray(encode(Image.fromarray(photo(0))))
    for position in range(0, len(content), 7):
        content[position] ^= 0x10
        with pytest.raises((InvalidFileFormatError, FileTooLargeError)):
            photo_of(bytes(content))
        content[position] ^= 0x10
    photo_of(bytes(content))


def test_a_huge_header_is_refused_before_anything_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    (root / FRONT).write_bytes(png(60_000, 60_000, 8, 2, b"\0" * 1000))
    for view in ("back", "left", "right", "top", "bottom"):
        (root / f"multi_views/{view}.png").unlink()
    for path in (root / "depth_renders").iterdir():
        path.unlink()
    (root / "depth_renders").rmdir()
    faults = validate_dataset(root).faults
    bomb = [fault for fault in faults if fault.file == FRONT]
    assert [fault.code for fault in bomb] == [ErrorCode.FILE_TOO_LARGE]
    assert "60000 x 60000" in bomb[0].message


def test_pixels_that_do_not_fill_the_picture_are_a_fault() -> None:
    with pytest.raises(InvalidFileFormatError):
        photo_of(png(64, 64, 8, 2, b"\0" * (64 * 193 - 500)))


def test_a_file_above_the_limit_is_not_read(root: Path) -> None:
    with (root / FRONT).open("ab") as stream:
        stream.truncate(limits.MAX_FILE_BYTES + 1)
    fault = the_fault(root)
    assert (fault.code, fault.file) == (ErrorCode.FILE_TOO_LARGE, FRONT)
    with pytest.raises(FileTooLargeError):
        load_dataset(root)


def test_all_files_together_are_limited(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(path.stat().st_size for path in root.rglob("*.png"))
    monkeypatch.setattr(loading, "MAX_TOTAL_BYTES", total)
    assert validate_dataset(root).ok
    assert validate_dataset(root).total_bytes == total
    monkeypatch.setattr(loading, "MAX_TOTAL_BYTES", total - 1)
    assert the_fault(root).code is ErrorCode.FILE_TOO_LARGE


def test_all_pixels_together_are_limited(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_TOTAL_PIXELS", 6 * PX * PX - 1)
    assert the_fault(root).code is ErrorCode.FILE_TOO_LARGE


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (encode(Image.fromarray(photo(0)), "GIF"), "GIF"),
        (encode(Image.fromarray(photo(0)), "WEBP"), "WebP"),
        (encode(Image.fromarray(photo(0)), "TIFF"), "TIFF"),
        (encode(Image.fromarray(photo(0)), "BMP"), "BMP"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<html>not found</html>", "no picture"),
    ],
)
def test_other_formats_are_called_by_their_name(root: Path, content: bytes, kind: str) -> None:
    (root / FRONT).write_bytes(content)
    fault = the_fault(root)
    assert fault.code is ErrorCode.INVALID_FILE_FORMAT
    assert kind in fault.message


def test_an_animated_png_is_refused(root: Path) -> None:
    frames = [Image.fromarray(photo(i)) for i in range(2)]
    (root / FRONT).write_bytes(encode(frames[0], save_all=True, append_images=frames[1:]))
    assert "animated" in the_fault(root).message


def test_sixteen_bit_colours_are_used_with_eight_and_say_so() -> None:
    rows = photo(0).astype(">u2") * 257
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    decoded = photo_of(png(PX, PX, 16, 2, raw))
    np.testing.assert_array_equal(decoded.rgb_srgb, photo(0))
    assert "16 bits" in decoded.notes[0]


@pytest.mark.parametrize("bits", [8, 16])
def test_depth_keeps_its_stored_values(bits: int) -> None:
    content = encode(Image.fromarray(depth(0, bits=bits)))
    header = read_header(content, "d", 1)
    assert header.bits == bits
    values = decode_depth(content, header, "d")
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, depth(0, bits=bits))


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGB", "RGBA"])
def test_depth_in_another_mode_is_refused(mode: str) -> None:
    content = encode(Image.fromarray(depth(0)).convert(mode))
    with pytest.raises(InvalidFileFormatError):
        decode_depth(content, read_header(content, "d", 1), "d")


def test_a_palette_is_expanded_and_its_transparency_is_alpha() -> None:
    image = Image.fromarray(photo(0)).quantize(16)
    plain = photo_of(encode(image))
    np.testing.assert_array_equal(plain.rgb_srgb, np.asarray(image.convert("RGB")))
    assert plain.alpha is None
    assert "palette" in plain.notes[0]
    background = image.getpixel((0, 0))
    transparent = photo_of(encode(image, transparency=background))
    assert transparent.alpha is not None
    np.testing.assert_array_equal(transparent.alpha == 0, np.asarray(image) == background)


def test_an_interlaced_png_is_read() -> None:
    # Adam7 of a one-colour picture: every pass has its own rows, all alike.
    passes = [(8, 8), (8, 8), (16, 8), (16, 16), (32, 16), (32, 32), (64, 32)]
    raw = b"".join((b"\0" + bytes((9, 8, 7)) * width) * height for width, height in passes)
    decoded = photo_of(png(64, 64, 8, 2, raw, interlace=1))
    assert (decoded.rgb_srgb == (9, 8, 7)).all()


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_exif_orientation_turns_the_picture_upright(fmt: str, orientation: int) -> None:
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :48] = (250, 20, 20)
    inverse = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    operation = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }[inverse]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(upright).transpose(operation)
    content = encode(stored, fmt, exif=exif, **({"quality": 95} if fmt == "JPEG" else {}))
    header = read_header(content, "p", 1)
    decoded = photo_of(content)
    assert header.image_hw == decoded.rgb_srgb.shape[:2] == (64, 96)
    assert np.abs(decoded.rgb_srgb.astype(int) - upright).mean() < 3
    assert "upright" in decoded.notes[0]


def test_a_colour_profile_is_converted_to_srgb() -> None:
    wide = Image.new("RGB", (PX, PX), (200, 100, 50))
    lab = ImageCms.createProfile("LAB")
    unusable = photo_of(encode(wide, icc_profile=ImageCms.ImageCmsProfile(lab).tobytes()))
    assert (unusable.rgb_srgb == (200, 100, 50)).all()
    assert "cannot be used" in unusable.notes[0]
    srgb = photo_of(encode(wide, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()))
    assert (srgb.rgb_srgb == (200, 100, 50)).all()
    assert not srgb.notes


def test_a_wide_profile_changes_the_values() -> None:
    """A matrix profile with exchanged red and green primaries exchanges the channels."""
    content = encode(Image.new("RGB", (PX, PX), (200, 100, 50)), icc_profile=exchanged_primaries())
    decoded = photo_of(content)
    np.testing.assert_allclose(decoded.rgb_srgb[0, 0], (100, 200, 50), atol=2)
    assert "colour profile" in decoded.notes[0]


@pytest.mark.parametrize("data", [b"", b"name", b"name\0\0" + zlib.compress(b"junk"), b"name\0\0broken"])
def test_a_damaged_colour_profile_is_a_warning(root: Path, data: bytes) -> None:
    (root / FRONT).write_bytes(insert_chunk((root / FRONT).read_bytes(), b"iCCP", data))
    assert any("colour profile" in warning for warning in load_dataset(root).warnings)


def test_a_profile_that_unpacks_to_gigabytes_is_not_unpacked(root: Path) -> None:
    data = b"name\0\0" + zlib.compress(bytes(64 * 1024 * 1024))
    (root / FRONT).write_bytes(insert_chunk((root / FRONT).read_bytes(), b"iCCP", data))
    assert validate_dataset(root).ok


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"junk" * 5])
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    content = insert_chunk(encode(Image.fromarray(photo(0))), b"eXIf", exif)
    np.testing.assert_array_equal(photo_of(content).rgb_srgb, photo(0))


def test_text_chunks_never_reach_the_decoder() -> None:
    bomb = b"comment\0\0" + zlib.compress(bytes(128 * 1024 * 1024))
    content = insert_chunk(encode(Image.fromarray(photo(0))), b"zTXt", bomb)
    np.testing.assert_array_equal(photo_of(content).rgb_srgb, photo(0))


def test_a_jpeg_with_countless_scans_is_refused() -> None:
    content = encode(Image.fromarray(photo(0)), "JPEG", progressive=True)
    first = content.index(b"\xff\xda")
    with pytest.raises(InvalidFileFormatError):
        photo_of(content[:first] + content[first:-2] * 300 + content[-2:])


def test_a_flood_of_tiny_pieces_is_refused_quickly() -> None:
    jpeg = encode(Image.fromarray(photo(0)), "JPEG")
    for content in (
        jpeg[:2] + b"\xff\xe2\x00\x11ICC_PROFILE\0\1\1x" * 110_000 + jpeg[2:],
        encode(Image.fromarray(photo(0)))[:33] + png_chunk(b"IDAT", b"") * 110_000,
    ):
        with pytest.raises(InvalidFileFormatError, match="too many pieces"):
            photo_of(content)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_photo_without_rgb_is_refused(mode: str) -> None:
    with pytest.raises(InvalidFileFormatError):
        photo_of(encode(Image.fromarray(photo(0)).convert(mode), "JPEG"))


def test_masks_may_be_one_bit_grey_or_equal_channels() -> None:
    grey = Image.fromarray(rgba(0)[..., 3])
    for image in (grey, grey.convert("1"), grey.convert("RGB"), grey.convert("P")):
        content = encode(image)
        mask = decode_mask(content, read_header(content, "m", 1), "m")
        np.testing.assert_array_equal(mask, np.asarray(grey))
    coloured = encode(Image.fromarray(photo(0)))
    with pytest.raises(InvalidFileFormatError):
        decode_mask(coloured, read_header(coloured, "m", 1), "m")


def test_a_png_with_contradictory_header_is_refused() -> None:
    with pytest.raises(InvalidFileFormatError):
        photo_of(png(64, 64, 4, 2, b"\0" * 10_000))
    with pytest.raises(InvalidFileFormatError):
        photo_of(
            png(64, 64, 8, 2, b"\0" * (64 * 193), png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)))
        )


def test_headers_tell_the_colours() -> None:
    assert read_header(encode(Image.fromarray(rgba(0))), "p", 1).colours is Colours.RGBA
    assert read_header(encode(Image.fromarray(photo(0)), "JPEG"), "p", 1).colours is Colours.RGB


def test_a_folder_in_place_of_a_file_is_a_fault(root: Path) -> None:
    (root / FRONT).unlink()
    (root / FRONT).mkdir()
    assert the_fault(root).code is ErrorCode.INVALID_FILE_FORMAT


def exchanged_primaries() -> bytes:
    """An ICC v2 matrix profile: sRGB's primaries with red and green exchanged, a curve like sRGB's."""

    def s15(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    x = np.arange(1024) / 1023
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    curve = b"curv" + bytes(4) + struct.pack(">I", 1024) + np.round(linear * 65535).astype(">u2").tobytes()
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 10) + b"Exchanged\0" + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + s15(0.9642, 1.0, 0.8249),
        b"rXYZ": b"XYZ " + bytes(4) + s15(0.3851, 0.7169, 0.0971),
        b"gXYZ": b"XYZ " + bytes(4) + s15(0.4361, 0.2225, 0.0139),
        b"bXYZ": b"XYZ " + bytes(4) + s15(0.1431, 0.0606, 0.7141),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, data, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        padded = body + bytes(-len(body) % 4)
        table += name + struct.pack(">II", offset + len(data), len(body))
        data += padded
    header = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(data), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + s15(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + table + data


def test_links_may_not_leave_the_dataset_but_may_stay_inside(root: Path, tmp_path: Path) -> None:
    outside = save(tmp_path / "outside.png", photo(0))
    (root / FRONT).unlink()
    (root / FRONT).symlink_to(outside)
    fault = the_fault(root)
    assert (fault.code, fault.file) == (ErrorCode.VALIDATION_FAILED, FRONT)
    assert "leads out" in fault.message
    save(root / "original.png", photo(0))
    (root / FRONT).unlink()
    (root / FRONT).symlink_to("../original.png")
    assert validate_dataset(root).ok


def test_a_linked_folder_may_not_leave_the_dataset(root: Path, tmp_path: Path) -> None:
    (root / "multi_views").rename(tmp_path / "elsewhere")
    (root / "multi_views").symlink_to(tmp_path / "elsewhere")
    assert "leads out" in the_fault(root).message


def test_a_link_in_a_circle_and_a_dead_link_are_faults(root: Path) -> None:
    (root / FRONT).unlink()
    (root / FRONT).symlink_to("front.png")
    assert the_fault(root).file == FRONT
    (root / FRONT).unlink()
    (root / FRONT).symlink_to("nothing.png")
    assert the_fault(root).file == FRONT
