"""Settings of the documentation, which `make check` builds with warnings as errors."""

from importlib.metadata import version as version_of

project = "samehost"
author = "samehost contributors"
copyright = "2026, samehost contributors"
release = version = version_of("samehost")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # docstrings write `name` for code, as Markdown does

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else an attribute in the class's docstring would be described twice
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "samehost"
html_copy_source = False
html_show_sphinx = False
