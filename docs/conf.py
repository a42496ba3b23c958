"""The site that `make site` builds from these pages, with Sphinx."""

from lascl import __version__


project = "LaSCL"
author = "The LaSCL developers"
copyright = author
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["README.md"]  # it is the first page, by index.rst
myst_heading_anchors = 4
html_theme = "furo"  # light and dark, as the reader's system is
html_title = f"LaSCL {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = []
