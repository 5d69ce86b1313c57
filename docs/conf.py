"""How Sphinx makes the guide: `make docs`."""

import fastce

project = "fastce"
author = "the fastce developers"
copyright = author
version = release = fastce.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

html_theme = "pydata_sphinx_theme"
html_title = f"fastce {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"show_toc_level": 2, "show_nav_level": 2, "navigation_with_keys": False}
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's "Parameters" says it in words
numpydoc_show_class_members = False
autodoc_mock_imports = ["torch", "dask"]
copybutton_prompt_text = r">>> |\.\.\. "  # copied without prompts and without results
copybutton_prompt_is_regexp = True
