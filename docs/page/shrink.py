"""Makes the pictures of docs/page.md from those that the browser tests leave in target/page. Needs Pillow."""

import pathlib
import sys

from PIL import Image

# Name here, name there.
PICTURES = {
    "empty": "empty",
    "three": "busy",
    "many": "many-200",
    "ten-thousand": "many-10000",
    "permission": "permission",
    "permission-asked": "permission-asked",
    "crash": "crash",
    "crash-why": "crash-why",
    "load": "load",
    "charts": "charts",
    "load-lines": "load-lines",
    "spend-lines": "spend-lines",
    "tools": "tools",
    "live": "live",
    "nodes": "nodes",
    "phone": "phone-light",
    "phone-permission": "permission-phone",
    "dark": "desktop-dark",
}
# Text stays readable.
COLOURS = 96
# Longer pages are cut.
TALLEST = 1100

here = pathlib.Path(__file__).parent
there = pathlib.Path(sys.argv[1])
for name, source in PICTURES.items():
    picture = Image.open(there / f"{source}.png").convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, TALLEST)))
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(here / f"{name}.png", optimize=True)
