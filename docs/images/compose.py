"""Draws the README's picture: what goes in, and what comes out, of one finished run. Nothing else.

python docs/images/compose.py samples/lantern out/demo/runs/RUN_ID docs/images/lantern.webp
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from reconflow.cameras.six_axis import VIEW_NAMES
from reconflow.outputs.previews import to_bytes, turntable_cameras
from reconflow.quality.glb_reader import read_glb
from reconflow.rendering.shade import render_textured, render_wireframe

WIDTH_PX, MARGIN_PX, CAPTION_PX = 1200, 16, 34
TURNS = (4, 15)
"""Turntable frames, of 36, that show the texture; the triangles are shown from the first of them."""


def row_of(pictures: list[Image.Image], caption: str) -> Image.Image:
    """Lay pictures side by side over the full width, under a caption."""
    side = WIDTH_PX // len(pictures)
    row = Image.new("RGB", (WIDTH_PX, side + CAPTION_PX), "white")
    ImageDraw.Draw(row).text((MARGIN_PX, 6), caption, fill="#3a4654", font=ImageFont.load_default(18))
    for column, picture in enumerate(pictures):
        inner = side - MARGIN_PX
        shown = picture.convert("RGB").resize((inner, inner), Image.Resampling.LANCZOS)
        row.paste(shown, (column * side + MARGIN_PX // 2, CAPTION_PX + MARGIN_PX // 2))
    return row


def result_pictures(glb: Path, size: int) -> list[Image.Image]:
    """Render the packaged mesh from two sides, and its triangles."""
    textured = read_glb(glb)
    cameras = turntable_cameras(textured.mesh, 36, size)
    renders = [render_textured(textured, cameras[turn]) for turn in TURNS]
    renders.append(render_wireframe(textured.mesh, cameras[TURNS[0]]))
    return [Image.fromarray(to_bytes(render)) for render in renders]


def main(dataset: Path, run: Path, target: Path) -> None:
    """Compose and store the picture."""
    rows = [
        row_of([Image.open(dataset / "multi_views" / f"{view}.png") for view in VIEW_NAMES], "six pictures"),
        row_of([Image.open(dataset / "depth_renders" / f"{view}.png") for view in VIEW_NAMES], "six depth renders"),
        row_of(result_pictures(run / "nvdiffrec" / "mesh.glb", 800), "one textured mesh, seen from between the views"),
    ]
    canvas = Image.new("RGB", (WIDTH_PX, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    canvas.save(target, "WEBP", quality=88, method=6)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
