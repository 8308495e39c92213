"""How is the site made? Sphinx over the pages of this folder: `make docs`, every warning an error, nothing fetched."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from reference_pages import fill
from sphinx.application import Sphinx

from vdsr import __version__

project = "vdsr"
release = __version__
copyright = "the authors of vdsr, MIT licence"  # noqa: A001  # Sphinx's name for it

extensions = ["myst_parser"]
exclude_patterns = ["build"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3
highlight_language = "text"
nitpicky = True

html_theme = "furo"
html_title = "vdsr"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]


def setup(app: Sphinx) -> None:
    """Have the reference pages filled from the code as they are read."""
    app.connect("source-read", lambda _, name, content: content.__setitem__(0, fill(content[0])))
