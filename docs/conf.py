"""Sphinx configuration: MyST pages and an API reference from docstrings, built with warnings as errors."""

import delineate

project = "delineate"
author = "the delineate developers"
copyright = "2026, the delineate developers"
version = release = delineate.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}

html_theme = "furo"
html_title = f"delineate {release}"
