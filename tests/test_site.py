"""The pages: they open without a network, show their formulas, lead nowhere dead, and their panels move."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
PANELS = {"notebooks/03_dro_reweighting.html": ".play", "notebooks/06_regret_bounds.html": "#one-game"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, ROOT / "site/build.py", "--out", out, "--without", "explore-widget"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / "html"


@pytest.fixture(scope="module")
def seen(site, browser) -> dict[str, dict]:
    """What each page holds once its scripts have run, at two widths."""
    found = {}
    for width in (1400, 400):
        page = browser.new_page(viewport={"width": width, "height": 900})
        asked, errors = [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        for path in sorted(site.rglob("*.html")):
            if "_static" in path.parts:
                continue
            asked.clear(), errors.clear()
            page.goto(path.as_uri())
            page.evaluate("() => window.MathJax?.startup?.promise")
            entry = found.setdefault(path.relative_to(site).as_posix(), {})
            entry |= {
                f"too_wide_{width}": page.evaluate("document.documentElement.scrollWidth - window.innerWidth"),
                "errors": [*entry.get("errors", []), *errors],
                "asked": {*entry.get("asked", []), *asked},
            }
            if width == 1400:
                entry |= page.evaluate(_LOOK)
        page.close()
    return found


_LOOK = r"""() => {
  const article = document.querySelector("article") || document.body, copy = article.cloneNode(true);
  const formulas = article.querySelectorAll(".math").length;
  copy.querySelectorAll("pre, code, script, mjx-container, table.dataframe").forEach(part => part.remove());
  return {
    formulas, rendered: article.querySelectorAll(".math mjx-container").length,
    raw: copy.textContent.match(/\\\(|\\\[|\$[^$\n]{1,200}\$/g) || [],
    links: [...document.querySelectorAll("a[href]")].map(a => a.href),
    ids: [...document.querySelectorAll("[id]")].map(e => e.id),
    without_alt: [...article.querySelectorAll("img")].filter(i => !i.alt).map(i => i.src.slice(0, 80)),
    broken: [...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 80)),
  };
}"""


def _bad(seen, key) -> dict:
    return {name: page[key] for name, page in seen.items() if page.get(key)}


def test_pages_ask_for_nothing_from_elsewhere_and_raise_no_error(seen):
    elsewhere = {
        name: [url for url in page["asked"] if urlsplit(url).scheme not in ("file", "data", "blob")]
        for name, page in seen.items()
    }
    assert {name: urls for name, urls in elsewhere.items() if urls} == {}
    assert _bad(seen, "errors") == {}


def test_every_formula_is_rendered(seen):
    assert sum(page["formulas"] for page in seen.values()) > 100
    assert {name: page for name, page in seen.items() if page["rendered"] < page["formulas"]} == {}
    assert _bad(seen, "raw") == {}


def test_no_link_within_the_site_is_dead(site, seen):
    dead = []
    for name, page in seen.items():
        for link in page["links"]:
            url = urlsplit(link)
            if url.scheme == "file":
                path = Path(unquote(url.path))
                target = seen.get(path.relative_to(site).as_posix()) if path.is_relative_to(site) else None
                if not path.exists() or (url.fragment and target and unquote(url.fragment) not in target["ids"]):
                    dead.append((name, link.replace(site.as_uri(), "")))
    assert dead == []


def test_pictures_are_there_and_say_what_they_show(seen):
    assert _bad(seen, "broken") == {}
    assert _bad(seen, "without_alt") == {}


@pytest.mark.parametrize("width", [1400, 400])
def test_no_page_is_wider_than_the_window(seen, width):
    assert {name: page[f"too_wide_{width}"] for name, page in seen.items() if page[f"too_wide_{width}"] > 0} == {}


@pytest.mark.parametrize("path", PANELS)
@pytest.mark.parametrize("width", [1400, 400])
def test_panels_move_without_a_kernel(site, browser, path, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((site / path).as_uri())
    panel = page.locator(PANELS[path])
    seen = {panel.inner_html()}
    panel.locator("input").first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
        seen.add(panel.inner_html())
    assert len(seen) == 4
    page.close()
