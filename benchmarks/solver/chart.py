"""Line charts as PNG, with nothing but numpy and the standard library: torch and the planner bring no plotting library, and a chart
is too little to ask for one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 100, 30, 100, 80
INK, GRID = (40, 40, 40), (225, 225, 225)
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (140, 86, 75))
GLYPH = 5  # columns of a letter, each a byte with its top row in the lowest bit; one more is left between letters
FONT = bytes.fromhex(
    "0000000000 00005F0000 0007000700 147F147F14 242A7F2A12 2313086462 3649562050 0008070300 001C224100 0041221C00"
    "2A1C7F1C2A 08083E0808 0080703000 0808080808 0000606000 2010080402 3E5149453E 00427F4000 7249494946 2141494D33"
    "1814127F10 2745454539 3C4A494931 4121110907 3649494936 464949291E 0000140000 0040340000 0008142241 1414141414"
    "0041221408 0201590906 3E415D594E 7C1211127C 7F49494936 3E41414122 7F4141413E 7F49494941 7F09090901 3E41415173"
    "7F0808087F 00417F4100 2040413F01 7F08142241 7F40404040 7F021C027F 7F0408107F 3E4141413E 7F09090906 3E4151215E"
    "7F09192946 2649494932 03017F0103 3F4040403F 1F2040201F 3F4038403F 6314081463 0304780403 6159494D43 007F414141"
    "0204081020 004141417F 0402010204 4040404040 0003070800 2054547840 7F28444438 3844444428 384444287F 3854545418"
    "00087E0902 18A4A49C78 7F08040478 00447D4000 2040403D00 7F10284400 00417F4000 7C04780478 7C08040478 3844444438"
    "FC18242418 18242418FC 7C08040408 4854545424 04043F4424 3C4040207C 1C2040201C 3C4030403C 4428102844 4C9090907C"
    "4464544C44"
)  # from the space to z


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) that a line connects, and its name."""

    name: str
    points: tuple[tuple[float, float], ...]


def write_chart(path: Path, title: str, x_label: str, y_label: str, series: Sequence[Series]) -> None:
    """A PNG of 900 x 560 pixels; the y axis begins at 0."""
    picture = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    xs = [x for line in series for x, _ in line.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(0.0, max(y for line in series for _, y in line.points))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / y_ticks[-1] * (HEIGHT - TOP - BOTTOM)

    for y in y_ticks:
        _line(picture, at(x_ticks[0], y), at(x_ticks[-1], y), GRID, 1)
        _text(picture, f"{y:g}", LEFT - 10, at(x_ticks[0], y)[1] - 7, align=1.0)
    for x in x_ticks:
        _line(picture, at(x, 0), at(x, y_ticks[-1]), GRID, 1)
        _text(picture, f"{x:g}", at(x, 0)[0], HEIGHT - BOTTOM + 10, align=0.5)
    assert len(series) <= len(COLOURS), "each line has a colour of its own"
    for line, colour in zip(series, COLOURS, strict=False):
        for first, second in zip(line.points, line.points[1:], strict=False):
            _line(picture, at(*first), at(*second), colour, 3)
        for point in line.points:
            _line(picture, at(*point), at(*point), colour, 9)
    end = WIDTH - RIGHT
    for line, colour in reversed([*zip(series, COLOURS, strict=False)]):
        _text(picture, line.name, end, TOP - 35, align=1.0, colour=colour)
        end -= 2 * (GLYPH + 1) * (len(line.name) + 2)
    _text(picture, title, WIDTH / 2, 15, align=0.5, size=3)
    _text(picture, x_label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 35, align=0.5)
    _text(picture, y_label, 10, TOP - 35)
    path.write_bytes(png(picture))


def ticks(low: float, high: float) -> list[float]:
    """Some five round numbers from `low` or less to `high` or more."""
    step = 10.0 ** floor(log10((high - low or abs(high) or 1.0) / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 6)
    return [round(k * step, 12) for k in range(floor(low / step), max(ceil(high / step), floor(low / step) + 1) + 1)]


def png(picture: np.ndarray) -> bytes:
    """An RGB picture [height, width, 3] of uint8 as a PNG file (https://www.w3.org/TR/png-3/)."""
    height, width, _ = picture.shape
    lines = np.concatenate([np.zeros((height, 1), dtype=np.uint8), picture.reshape(height, -1)], axis=1)  # each unfiltered: 0
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _line(picture: np.ndarray, first: tuple[float, float], second: tuple[float, float], colour: tuple[int, int, int], width: int) -> None:
    steps = int(max(abs(second[0] - first[0]), abs(second[1] - first[1]))) + 1
    for share in np.linspace(0.0, 1.0, steps + 1):
        column, row = (round(a + share * (b - a)) - width // 2 for a, b in zip(first, second, strict=True))
        picture[row : row + width, column : column + width] = colour


def _text(
    picture: np.ndarray,
    text: str,
    x: float,
    y: float,
    *,
    align: float = 0.0,
    size: int = 2,
    colour: tuple[int, int, int] = INK,
) -> None:
    """Writes `text` with its top at y; `align` is the share of its width that is left of x."""
    bits = np.concatenate([_glyph(letter) for letter in text], axis=1).repeat(size, 0).repeat(size, 1)
    row, column = round(y), round(x - align * bits.shape[1])
    picture[row : row + bits.shape[0], column : column + bits.shape[1]][bits] = colour


def _glyph(letter: str) -> np.ndarray:
    """[8, 6] bits."""
    place = ord(letter) - ord(" ")
    assert 0 <= place < len(FONT) // GLYPH, f"no letter {letter!r}"
    columns = np.frombuffer(FONT[place * GLYPH : (place + 1) * GLYPH] + b"\0", dtype=np.uint8)
    return np.unpackbits(columns[None], axis=0, bitorder="little").astype(bool)
