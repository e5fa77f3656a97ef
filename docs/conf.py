"""How the documentation is built: `tox -e docs`, or `sphinx-build -W docs build/docs`."""

import inspect
import sys
from importlib.metadata import version as installed_version
from typing import Any

project = "catga_store"
author = "catga_store contributors"
copyright = "2026, catga_store contributors"  # noqa: A001  Sphinx's name
version = release = installed_version("catga_store")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
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
autodoc_default_options = {"members": True}
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

        table = ["| argument or option | meaning |", "|---|---|", *rows] if rows else []
        text = inspect.cleandoc(command.help)
        # The page says once where the URL may come from.
        examples = command.epilog.partition(" You can also set the URL")[0]
        parts += [f"## catga-store {name}", text, "\n".join(table), examples]

    return "\n\n".join(part for part in parts if part)


def find_sources() -> None:
    """Let autodoc find the source order of names that the package shows as its own.

    `catga_store.Store` is defined in a module below the package; autodoc would look for the order of
    its methods in the package's `__init__.py`, and sort them by name.
    """
    from sphinx.pycode import ModuleAnalyzer  # noqa: PLC0415  only Sphinx itself calls this

    import catga_store  # noqa: PLC0415  the settings can be read without it

    package = ModuleAnalyzer.for_module("catga_store")
    package.analyze()
    public = {name for name in catga_store.__all__ if hasattr(catga_store, name)}  # imports all
    for module in [name for name in sys.modules if name.startswith("catga_store.")]:
        analyzer = ModuleAnalyzer.for_module(module)
        analyzer.analyze()
        for found, into in (
            (analyzer.tagorder, package.tagorder),
            (analyzer.overloads, package.overloads),
        ):
            into.update({key: at for key, at in found.items() if key.split(".")[0] in public})

        # The same holds for the texts below attributes, whose keys are a class and an attribute.
        package.attr_docs.update(
            {
                key: text
                for key, text in analyzer.attr_docs.items()
                if key[0].split(".")[0] in public
            }
        )


PLAIN = ("Bulk", "Run", "Session", "Store")
HIDDEN = {f"catga_store.{prefix}{name}" for name in PLAIN for prefix in ("", "Async")}
HIDDEN.add("catga_store.core.holding.Holding")


def hide_signature(*event: Any) -> tuple[str, None] | None:
    """Leave out the constructors of classes that users get from a store or from a worker."""
    name: str = event[2]
    return ("", None) if name in HIDDEN else None


def setup(app: Any) -> None:
    """Connect what completes the pages to Sphinx's events."""

    def read(_app: Any, page: str, source: list[str]) -> None:
        if page == "command-line":
            source[0] = source[0].replace("<!-- commands -->", describe_commands())

    app.connect("source-read", read)
    app.connect("builder-inited", lambda _app: find_sources())
    app.connect("autodoc-process-signature", hide_signature)
