"""How Sphinx makes the guide: `make docs`."""

import fastce

project = "fastce"
author = "the fastce developers"
copyright = author
version = release = fastce.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
exclude_patterns = ["_build"]

html_theme = "pydata_sphinx_theme"
html_title = f"fastce {version}"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_show_sourcelink = False

myst_heading_anchors = 3
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's "Parameters" says it in words
numpydoc_show_class_members = False
autodoc_mock_imports = ["torch", "dask"]
