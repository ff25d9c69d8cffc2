#!/usr/bin/env python3
"""Runs the demo and writes its output: the first part as docs/demo.svg, all of it into docs/demo.md.

    cargo build --release && docs/demo.py
"""

import html
import os
import pathlib
import pty
import re

HERE = pathlib.Path(__file__).parent
COLUMNS = 92
CHARACTER, LINE, MARGIN = 7.8, 18, 16
COLOURS = {"1": "bold", "2": "dim", "31": "red", "32": "green", "33": "yellow", "36": "cyan"}
STYLE = """
  rect { fill: #16181d } text { fill: #d6d8dd; font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre }
  .bold { font-weight: bold } .dim { fill: #8a8f98 } .red { fill: #f07178 } .green { fill: #7fd08a } .yellow { fill: #e5c07b } .cyan { fill: #6cc7d8 }
"""
BEGIN, END = "<!-- output: written by demo.py -->\n", "<!-- end of output -->"


def run():
    """The demo's output on a terminal of COLUMNS columns, with its escape sequences."""
    pieces = []

    def read(terminal):
        piece = os.read(terminal, 4096)
        pieces.append(piece)
        return piece

    os.environ.update(COLUMNS=str(COLUMNS), TERM="xterm-256color")
    os.environ.pop("NO_COLOR", None)
    if pty.spawn([HERE.parent / "target/release/pilotlight", "demo"], read) != 0:
        raise SystemExit("the demo failed")
    return b"".join(pieces).decode().replace("\r\n", "\n")


def spans(line):
    """The line's pieces with their classes."""
    classes = []
    for piece in re.split(r"(\x1b\[[0-9;]*m)", line):
        if piece.startswith("\x1b"):
            for code in piece[2:-1].split(";"):
                classes = classes + [COLOURS[code]] if code in COLOURS else []
        elif piece:
            yield piece, " ".join(classes)


def svg(lines):
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, len(lines) * LINE + 2 * MARGIN
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" role="img">',
           f"<title>The beginning of a run of the demo</title><style>{STYLE}</style>",
           '<rect width="100%" height="100%" rx="8"/>']
    for number, line in enumerate(lines):
        column, y = 0, MARGIN + 13 + number * LINE
        for text, classes in spans(line):
            if text.strip():
                blank = len(text) - len(text.lstrip())
                shown = text.strip()
                # The width is set, so that columns align in every font.
                out.append(f'<text class="{classes}" x="{MARGIN + (column + blank) * CHARACTER:.1f}" y="{y}" '
                           f'textLength="{len(shown) * CHARACTER:.1f}">{html.escape(shown)}</text>')
            column += len(text)
    return "\n".join(out + ["</svg>", ""])


def main():
    lines = run().strip("\n").split("\n")
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    second = next(number for number, line in enumerate(plain) if line.startswith("2  "))
    (HERE / "demo.svg").write_text(svg(lines[:second - 1]))
    page = (HERE / "demo.md").read_text()
    before, rest = page.split(BEGIN)
    (HERE / "demo.md").write_text(before + BEGIN + "\n```text\n" + "\n".join(plain) + "\n```\n\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
