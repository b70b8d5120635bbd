"""How Sphinx builds the documentation: ``make docs``."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import persist_sb3

project = "persist-sb3"
author = "The persist-sb3 authors"
version = release = persist_sb3.__version__
html_title = f"persist-sb3 {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_copy_source = False
exclude_patterns = ["_build"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

# Docstrings give types in the signature and meanings in `:param:`, as Stable-Baselines3's do.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
# What overrides a method of gymnasium or SB3 would bring their docstrings, in another format.
autodoc_inherit_docstrings = False
maximum_signature_line_length = 100


def _read_page(app: Any, name: str, source: list[str]) -> None:
    """
    :param app: of Sphinx
    :param name: of the page
    :param source: its text, changed in place. In the repository pages link to the README, which is a page here; and a
        line ``modules of PACKAGE`` stands for the documentation of each of them
    """
    text = source[0].replace("](../README.md", "](/start/overview.md")
    source[0] = re.sub(r"^modules of (\S+)$", lambda match: _modules(match[1]), text, flags=re.MULTILINE)


def _modules(package: str) -> str:
    folder = importlib.import_module(package).__path__
    names = sorted(each.name for each in pkgutil.iter_modules(folder) if not each.ispkg and each.name[0] != "_")
    block = "### {0}\n\n```{{eval-rst}}\n.. automodule:: {0}\n```\n"
    return "\n".join(block.format(f"{package}.{name}") for name in names)


def _find_where_defined(app: Any, env: Any, node: Any, text: Any) -> Any:
    """
    :param app: of Sphinx
    :param env: all that it has read
    :param node: a reference that leads nowhere, since it goes by a package that only passes the name on
    :param text: of the reference
    :return: the reference to where the name is defined; None if it is no such name
    """
    package, _, name = node.get("reftarget", "").rpartition(".")
    if node.get("refdomain") != "py" or not package.startswith("persist_sb3"):
        return None
    found = getattr(importlib.import_module(package), name, None) if package in sys.modules else None
    if found is None or not hasattr(found, "__qualname__"):
        return None
    target = f"{found.__module__}.{found.__qualname__}"
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, text)


def setup(app: Any) -> None:
    """
    :param app: of Sphinx
    """
    app.connect("source-read", _read_page)
    app.connect("missing-reference", _find_where_defined)
