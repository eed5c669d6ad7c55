"""The hook of mkdocs.yml: it adds pages from outside docs/, and converts links for the site.

Documents link to files of the repository. A link to a file that is not a page of the site becomes plain text. The
drawing of the README becomes a picture, since its renderer would be loaded from another site.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE: Mapping[str, str] = MappingProxyType(
    {
        "README.md": "index.md",
        "ARCHITECTURE.md": "architecture.md",
        "CONTRIBUTING.md": "contributing.md",
        "CHANGELOG.md": "changelog.md",
        "k8s/README.md": "guides/kubernetes.md",
        "benchmarks/README.md": "benchmarks.md",
    }
)
"""Documents outside docs/, and their pages."""
DRAWING = re.compile(r"```mermaid\n.*?```", re.DOTALL)
PICTURE = "![A request: identify, read, admit, score, choose, open, relay, settle](docs/request.svg)"
LINK = re.compile(r"(?P<text>!?\[(?:[^\]\[]|\[[^\]]*\])*\])\((?P<target>[^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents from outside docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text with the site's links. mkdocs passes `config` by name."""
    del config
    uri = page.file.src_uri
    by_page = {to: source for source, to in OUTSIDE.items()}
    folder = os.path.dirname(by_page.get(uri, f"docs/{uri}"))

    def replace(found: re.Match[str]) -> str:
        target, _, anchor = found["target"].partition("#")
        if not target or "://" in target:
            return found[0]
        path = os.path.normpath(os.path.join(folder, target))
        place = OUTSIDE.get(path) or path.removeprefix("docs/")
        if files.get_file_from_path(place) is None:
            return found["text"].removeprefix("[").removesuffix("]")
        shown = os.path.relpath(place, os.path.dirname(uri) or ".")
        return f"{found['text']}({shown}{'#' if anchor else ''}{anchor})"

    return LINK.sub(replace, DRAWING.sub(PICTURE, markdown))
