"""The documentation's site: `make docs`. Pages are the Markdown files of the repository, read where they lie."""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]

project = "oacir"
author = copyright = "The oacir authors"
root_doc = "docs/README"
extensions = ["myst_parser", "pages"]
include_patterns = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "docs/**.md",
]
exclude_patterns = ["**/.*", "build"]
html_theme = "furo"
html_title = "oacir"
html_extra_path = ["index.html"]
html_show_sourcelink = False
html_copy_source = False
html_last_updated_fmt = None

smartquotes = False
nitpicky = True
myst_heading_anchors = 4
