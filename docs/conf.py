"""The documentation site: docs/*.md, the pages that lie elsewhere in the repository, and references made from the code.

``make docs`` builds it. Links are written as they work in the repository; here they become links between pages.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

import fedspzo
from fedspzo.broker.rounds.job import Job
from fedspzo.cli import COMMANDS
from fedspzo.options.fields import reference

os.environ["COLUMNS"] = "100"  # of the commands' help texts
project = "FedSPZO"
author = copyright = "The FedSPZO contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = project
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True

DOCS = Path(__file__).resolve().parent
#: Pages whose text lies elsewhere, and where; what docs/ has of them in the repository is a link.
ELSEWHERE = {
    "about": DOCS.parent / "README.md",
    "android": DOCS.parent / "android_demo" / "README.md",
    "changelog": DOCS.parent / "CHANGELOG.md",
    "contributing": DOCS.parent / "CONTRIBUTING.md",
    "security": DOCS.parent / "SECURITY.md",
}
PAGES = {file: page for page, file in ELSEWHERE.items()}
#: Public names to document at a place of api.md.
PUBLIC = re.compile(r"^```\{public\}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)\s*(#[^)\s]*)?\s*\)")


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Takes the page's text from where it lies, turns its links into links of the site, and fills references."""
    file = ELSEWHERE.get(page, DOCS / f"{page}.md")
    app.env.note_dependency(str(file), docname=page)

    def link(match: re.Match[str]) -> str:
        target = (file.parent / match[1]).resolve()
        name = PAGES[target] + ".md" if target in PAGES else os.path.relpath(target, DOCS)
        return f"]({name}{match[2] or ''})"

    text = file.read_text(encoding="utf-8")
    source[0] = LINK.sub(link, text)
    if page == "options":
        source[0] += settings_of_a_job() + options_of_commands()
    if page == "api":
        source[0] = PUBLIC.sub(lambda match: "".join(map(directive, match[1].split())), source[0])
        if missing := set(fedspzo.__all__) - {name for names in PUBLIC.findall(text) for name in names.split()}:
            logging.getLogger(__name__).warning("docs/api.md does not have %s", ", ".join(sorted(missing)))


def settings_of_a_job() -> str:
    """A table of the fields of :class:`Job`."""
    lines = ["| option | key and field | type | default | what it sets |", "| --- | --- | --- | --- | --- |"]
    for own in reference(Job):
        lines.append(f"| `{own.flag}` | `{own.name}` | {own.type} | {own.default} | {own.help} |")
    return "\n".join(lines) + "\n"


def options_of_commands() -> str:
    """What ``fedspzo COMMAND --help`` prints, for all commands."""
    found = ["## Commands"]
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"fedspzo.commands.{name.replace(' ', '_')}")
        parser = argparse.ArgumentParser(prog=f"fedspzo {name}", description=module.__doc__)
        module.configure(parser)
        found.append(f"### {name}\n\n`fedspzo {name}`: {summary}.\n\n```text\n{parser.format_help()}```")
    return "\n\n".join(["", *found, ""])


def directive(name: str) -> str:
    """What documents a public name."""
    value = getattr(fedspzo, name)
    kind = "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "data"
    members = "   :members:\n" if kind == "class" else ""
    return f"```{{eval-rst}}\n.. auto{kind}:: fedspzo.{name}\n{members}```\n\n"


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_page)
