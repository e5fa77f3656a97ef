"""How the documentation is built: `tox -e docs`, or `sphinx-build -W docs build/docs`."""

import inspect
from importlib.metadata import version as installed_version
from typing import Any

project = "catga_store"
author = "catga_store contributors"
copyright = "2026, catga_store contributors"  # noqa: A001  Sphinx's name
version = release = installed_version("catga_store")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"catga_store {version}"
exclude_patterns = ["build", "figures"]
html_static_path = ["static"]
html_css_files = ["pages.css"]

# The copy button copies what is typed: no prompts, no output.
copybutton_prompt_text = r">>> |\.\.\. ?|\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
default_role = "code"  # docstrings write `names` as README does

# Signatures as they are written; members in the order of the source, which is that of the design.
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": False}
python_use_unqualified_type_names = True
maximum_signature_line_length = 88


def describe_commands() -> str:
    """The commands of `catga-store` as Markdown, from what their `--help` is made of."""
    from typer.main import get_command  # noqa: PLC0415  the settings can be read without it

    from catga_store.cli.app import app  # noqa: PLC0415  as above

    group: Any = get_command(app)
    parts = []
    for name, command in sorted(group.commands.items()):
        rows = []
        for one in command.params:
            about = getattr(one, "help", None)
            names = ", ".join((*one.opts, *one.secondary_opts))
            shown = (
                f"`{names}`"
                if one.param_type_name == "option"
                else f"`{one.metavar or one.name.upper()}`"
            )
            value = f" `{one.metavar}`" if one.param_type_name == "option" and one.metavar else ""
            rows.append(f"| {shown}{value} | {about or ''} |")

        table = ["| argument or option | |", "|---|---|", *rows] if rows else []
        text = inspect.cleandoc(command.help)
        parts += [f"## catga-store {name}", text, "\n".join(table), command.epilog]

    return "\n\n".join(part for part in parts if part)


def setup(app: Any) -> None:
    """Let the page on the command line be completed when it is read."""

    def read(_app: Any, page: str, source: list[str]) -> None:
        if page == "command-line":
            source[0] = source[0].replace("<!-- commands -->", describe_commands())

    app.connect("source-read", read)
