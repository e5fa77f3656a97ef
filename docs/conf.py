"""How the documentation is built: `tox -e docs`, or `sphinx-build -W docs build/docs`."""

from importlib.metadata import version as installed_version

project = "catga_store"
author = "catga_store contributors"
copyright = "2026, catga_store contributors"  # noqa: A001  Sphinx's name
version = release = installed_version("catga_store")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"catga_store {version}"
exclude_patterns = ["build", "figures"]
default_role = "code"  # docstrings write `names` as README does

# Signatures as they are written; members in the order of the source, which is that of the design.
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
