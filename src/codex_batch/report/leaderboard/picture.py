"""The chart as a file: SVG, and PNG with Pillow (`pip install 'codex-pool[png]'`)."""

from __future__ import annotations

import io
import unicodedata
from typing import TYPE_CHECKING, Any

from .. import plots
from ..markup import printable, render
from .chart import FONT, STYLES, Chart

if TYPE_CHECKING:
    from PIL import ImageFont

SCALE = 2
"""Pixels of a unit in a PNG. Shapes are drawn in twice as many, and made smaller."""
_FINER = 2
_DOT_RADIUS = 4.5
# The first that the machine has draws all texts, so that one chart looks alike everywhere on it.
_FONTS = (
    ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    ("LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf"),
    ("NotoSans-Regular.ttf", "NotoSans-Bold.ttf"),
    ("Arial.ttf", "Arial Bold.ttf"),
    ("arial.ttf", "arialbd.ttf"),
)
# In place of what the font inside of Pillow lacks, for a machine without any other.
_PLAIN = str.maketrans({"\u2212": "-", "\u2013": "-", "→": "->"})
_IN_PILLOW = frozenset("©«°±´·»‘’“”…‹›⁄™")  # noqa: RUF001


class PictureError(Exception):
    """A chart that cannot be drawn here; the message gives the remedy."""


def svg(chart: Chart) -> str:
    """Return the chart as an SVG file."""
    return render("chart.svg", chart=chart, styles=STYLES, font=FONT)


def png(chart: Chart) -> bytes:
    """Return the chart as a PNG file. Raises PictureError without Pillow."""
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise PictureError(
            "a PNG is drawn with Pillow, which is not installed: pip install 'codex-pool[png]', or take --svg"
        ) from None
    finer = SCALE * _FINER
    size = round(chart.width), round(chart.height)
    large = Image.new("RGB", (size[0] * finer, size[1] * finer), STYLES["page"].colour)
    draw = ImageDraw.Draw(large)
    for shape in chart.shapes:
        if isinstance(shape, plots.Line):
            _line(draw, shape, finer)
        elif isinstance(shape, plots.Dot):
            x, y, radius = shape.x * finer, shape.y * finer, _DOT_RADIUS * finer
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=STYLES["dot"].colour)
    image = large.resize((size[0] * SCALE, size[1] * SCALE), Image.Resampling.LANCZOS)
    draw, fonts = ImageDraw.Draw(image), _Fonts()
    for shape in chart.shapes:
        if isinstance(shape, plots.Label):
            style = STYLES[shape.class_]
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
            place = shape.x * SCALE, shape.y * SCALE
            font = fonts.of(round(style.size * SCALE), style.bold)
            draw.text(place, fonts.drawable(shape.text), fill=style.colour, font=font, anchor=anchor)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, dpi=(96 * SCALE, 96 * SCALE))
    return file.getvalue()


def _line(draw: Any, line: plots.Line, scale: int) -> None:
    style = STYLES[line.class_]
    width = round(style.size * scale)
    x1, y1, x2, y2 = (place * scale for place in (line.x1, line.y1, line.x2, line.y2))
    if not style.dashed:
        draw.line((x1, y1, x2, y2), fill=style.colour, width=width)
        return
    # The only dashed lines are upright.
    dash = 4 * scale
    y = min(y1, y2)
    while y < max(y1, y2):
        draw.line((x1, y, x2, min(y + dash, max(y1, y2))), fill=style.colour, width=width)
        y += 2 * dash


class _Fonts:
    """The font of this machine, or the one inside of Pillow, which has little more than ASCII."""

    def __init__(self) -> None:
        self._files = next((files for files in _FONTS if all(map(_is_there, files))), None)
        self._loaded: dict[tuple[int, bool], Any] = {}

    def of(self, size: int, bold: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        from PIL import ImageFont

        if (size, bold) not in self._loaded:
            self._loaded[size, bold] = (
                ImageFont.load_default(size)
                if self._files is None
                else ImageFont.truetype(self._files[1 if bold else 0], size)
            )
        found: ImageFont.FreeTypeFont | ImageFont.ImageFont = self._loaded[size, bold]
        return found

    def drawable(self, text: str) -> str:
        """Return the text in characters that the font has: on a machine without fonts, little more than ASCII."""
        text = str(printable(text))
        if self._files is not None:
            return text
        parts = unicodedata.normalize("NFKD", text.translate(_PLAIN))
        kept = (letter for letter in parts if not unicodedata.combining(letter))
        return "".join(letter if letter.isascii() or letter in _IN_PILLOW else "?" for letter in kept)


def _is_there(name: str) -> bool:
    from PIL import ImageFont

    try:
        ImageFont.truetype(name, 12)
    except (OSError, ImportError):
        return False
    return True
