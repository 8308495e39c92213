"""Take the pictures of the terminal and of the report that the documentation shows: `make screenshots`.

The command runs in a terminal of its own, which `pyte` understands as an emulator does; the system's Chromium draws
both. Needs `pip install pyte` and Chromium.
"""

from __future__ import annotations

import fcntl
import html
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pyte
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from wcwidth import wcwidth

if TYPE_CHECKING:
    from pyte.screens import Char

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
COLUMNS, LINES = 100, 30
UNDER_WAY = re.compile(r"[2-5] of 7 images.* left")
TERMINAL = """<style>body {{ margin: 0; background: #1d2021 }}
pre {{ margin: 0; padding: 14px 18px; font: 14px/1.4 'DejaVu Sans Mono', NanumGothicCoding, monospace; color: #e8e4d8;
display: inline-block }}</style><pre id=screen>{}</pre>"""
COLORS = {"red": "#fb6a5a", "green": "#a9c04f", "brown": "#e8b23a", "blue": "#83a5d8", "cyan": "#7fc4b8"}


def main() -> None:
    """Both."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("this needs Chromium on the PATH")
    with tempfile.TemporaryDirectory(prefix="album-") as name, sync_playwright() as playwright:
        folder = Path(name)
        half, whole = run(["vdsr", "upscale", "photos", "photos-x2"], folder)
        report = ["vdsr", "report", "photos-x2", "-o", "report.html"]
        subprocess.run(report, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1000, "height": 1260})
        terminal(page, [*half, "", "...", "", *whole], FIGURES / "terminal.png")
        page.goto((folder / "report.html").as_uri())
        shot = Image.open(io.BytesIO(page.screenshot()))
        shot.quantize(256).save(FIGURES / "report.png", optimize=True)
        chromium.close()


def run(command: list[str], folder: Path) -> tuple[list[str], list[str]]:
    """Run a command in a terminal; its lines as HTML while it worked, and at its end."""
    shutil.copytree(ROOT / "examples" / "photos", folder / "photos")
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(command, cwd=folder, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    half: list[str] = []
    prompt = f"<b>$ {' '.join(command)}</b>"
    while data := _read(ours):
        stream.feed(data)
        if UNDER_WAY.search("\n".join(screen.display)):
            half = [prompt, *_lines(screen)]
    if process.wait() != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n" + "\n".join(screen.display))
    return half, [prompt, *_lines(screen)]


def environment() -> dict[str, str]:
    """A plain user's, with this Python's commands first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VDSR_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "TERM": "xterm-256color", "LANG": "C.UTF-8"}


def terminal(page: Page, lines: list[str], path: Path) -> None:
    """Draw lines as a terminal shows them."""
    page.set_content(TERMINAL.format("\n".join(lines)))
    page.locator("#screen").screenshot(path=path)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux' way to say that the other side is closed
        return b""


def _lines(screen: pyte.Screen) -> list[str]:
    lines = ["".join(_cell(screen.buffer[y][x]) for x in range(COLUMNS)).rstrip() for y in range(LINES)]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _cell(char: Char) -> str:
    text = html.escape(char.data)
    if wcwidth(char.data or " ") == 2:
        text = f'<span style="display:inline-block;width:2ch">{text}</span>'
    style = f"color:{COLORS[char.fg]};" if char.fg in COLORS else ""
    style += "font-weight:bold;" if char.bold else ""
    return f'<span style="{style}">{text}</span>' if style else text


if __name__ == "__main__":
    main()
