"""The site of docs/: built without a warning, complete, and asking nobody for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cli.main import COMMANDS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages, with every warning an error, as `make docs` has it."""
    folder = tmp_path_factory.mktemp("site")
    words = ["--fail-on-warning", "--keep-going", "--fresh-env", "--quiet", "-b", "html", str(DOCS), str(folder)]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, check=False, timeout=300
    )
    assert (built.returncode, built.stderr) == (0, "")
    return folder


class Fetched(HTMLParser):
    """What a browser asks for by itself when it opens a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        passive = tag == "link" and named.get("rel") in ("next", "prev", "search", "index", "author", "canonical")
        url = named.get("href") if tag == "link" and not passive else named.get("src")
        if url:
            self.urls.append(url)


def test_every_page_is_in_the_site_and_asks_only_for_files_that_lie_there(site: Path) -> None:
    sources = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}

    asked = {(site / page, url) for page in sources for url in Fetched(site / page).urls}

    assert len(asked) > 5 * len(sources)
    assert sorted(url for _, url in asked if re.match(r"\w+:|//", url) and not url.startswith("data:")) == []
    local = [page.parent / url.partition("?")[0].partition("#")[0] for page, url in asked if url[:5] != "data:"]
    assert [path for path in local if not path.exists()] == []
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert [
        found for text in styles for found in re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//\S+", text)
    ] == []


def test_the_reference_has_what_the_code_has(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text()
    errors = (site / "reference" / "errors.html").read_text()

    assert [name for name in COMMANDS if f"Usage: vdsr {name} " not in commands] == []
    assert "Usage: vdsr models rollback" in commands
    assert "--self-ensemble" in commands
    assert "<td><p>124</p></td>" in errors
    assert "storage_unavailable" in errors
    assert "Upscaler.upscale(" in re.sub(r"<[^>]+>", "", (site / "reference" / "library.html").read_text())
