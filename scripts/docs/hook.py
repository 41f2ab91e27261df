"""MkDocs' hook: pages that are generated, pages that lie outside ``docs/``, and links between all of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.docs import c_header, commands
from scripts.docs.links import DOCS, INCLUDED, ROOT, SOURCES, links_of, pages, rewritten, site_path, target_of

_ROLE = re.compile(r":(?:class|func|meth|mod):(?=<code>)")
_ARGUMENT = re.compile(r"(?<=\.)\s+(?=(?:[a-z_]\w*(?:, \w+)*: |Raises |Returns ))")
"""Where a docstring passes on to its next argument."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, the included ones, and the files of the repository that pages link to."""
    made = {"reference/commands.md": commands.reference(), "reference/c.md": c_header.reference()}
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    for source, uri in INCLUDED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=rewritten(text, source)))
    for target in sorted(_linked()):
        if target.startswith(SOURCES) and files.get_file_from_path(target) is None:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target.removeprefix(f"{SOURCES}/"))))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of ``docs/`` lead to the site's copy."""
    source = f"{DOCS}/{page.file.src_uri}"
    return rewritten(markdown, source) if (ROOT / source).is_file() else markdown


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name other objects with Sphinx's roles, which Markdown does not know, and argument after argument."""
    if page.file.src_uri != "reference/python.md":
        return html
    return _ARGUMENT.sub("<br>", _ROLE.sub("", html))


def _linked() -> set[str]:
    """What the pages link to, by its place on the site."""
    return {
        site_path(target_of(source, link))
        for source in pages()
        for link in links_of((ROOT / source).read_text(encoding="utf-8"))
        if link.is_local
    }
