"""The documents as a site: built strictly, without a network, and with all that its pages show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.style.source import ROOT

LOADED = re.compile(r'<(?:img|script|link)\b[^>]*?\b(?:src|href)="([^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {
        "NO_MKDOCS_2_WARNING": "1",
        "PATH": "",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_document_is_a_page_and_is_found_by_the_search(site: Path) -> None:
    documents = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    pages = {path.relative_to(site) for path in site.rglob("*.html")}
    assert documents <= pages
    assert {Path("index.html"), Path("architecture.html"), Path("contributing.html")} <= pages
    assert 'href="kubernetes.html"' in (site / "guides" / "fleet.html").read_text(encoding="utf-8").partition("<h1")[2]
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {Path(entry["location"].partition("#")[0]) for entry in index["docs"]}
    assert documents <= found


def test_the_drawing_of_the_readme_is_a_picture_with_the_same_words(site: Path) -> None:
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    picture = (ROOT / "docs" / "request.svg").read_text(encoding="utf-8")
    words = {*re.findall(r"\b[a-z]{4,}\b", drawing)} - {"flowchart", "subgraph"}
    assert words == {*re.findall(r"\b[a-z]{4,}\b", " ".join(re.findall(r"<text[^>]*>(.*?)</text>", picture)))}
    page = (site / "index.html").read_text(encoding="utf-8")
    assert ("flowchart" in page, 'src="request.svg"' in page) == (False, True)


def test_pages_load_nothing_from_elsewhere_and_all_pictures_are_there(site: Path) -> None:
    pictures = 0
    for page in site.rglob("*.html"):
        for target in LOADED.findall(page.read_text(encoding="utf-8")):
            assert "://" not in target, f"{page.name} loads {target}"
            if page.name != "404.html" and not target.startswith("data:"):
                path = page.parent / unquote(target.partition("#")[0].partition("?")[0])
                assert path.exists(), f"{page.relative_to(site)} shows {target}"
                pictures += path.suffix in (".svg", ".png") and "assets" not in path.parts
    assert pictures >= 3
