"""Put measured tables and code between the markers of README and docs/, so that a page says what is so.

A marker names what stands below it: <!-- quote figures/follower_benchmark.md --> ... <!-- /quote -->. A Markdown file
is quoted as it is, a program as a block of code from below its docstring on, and `sgpo_lib.leader.as_table()` as the
table that it returns.

python benchmarks/quote_tables.py           # write the pages
python benchmarks/quote_tables.py --check   # only say which are not up to date
"""

import re
import sys
from pathlib import Path

from sgpo_lib import leader

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"(<!-- quote (\S+) -->\n).*?(<!-- /quote -->)", re.DOTALL)


def source(name: str) -> str:
    """Return the Markdown that stands for what a marker names."""
    if name == "sgpo_lib.leader.as_table()":
        return leader.as_table()
    text = (ROOT / name).read_text().strip()
    if name.endswith(".py"):
        text = text.split('"""', 2)[2].strip()  # the page has said what it is
        return f"```python\n{text}\n```"
    return text


def quoted(page: str) -> str:
    """Return a page's text with what its markers name, as it is now."""
    if page.count("<!-- quote ") != len(MARKED.findall(page)):
        raise ValueError("a marker <!-- quote ... --> has no <!-- /quote --> of its own")
    return MARKED.sub(lambda found: f"{found[1]}{source(found[2])}\n{found[3]}", page)


if __name__ == "__main__":
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        if quoted(text) != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(quoted(text))
    if "--check" in sys.argv and stale:
        sys.exit(f"{', '.join(stale)}: not what is measured or written; run python benchmarks/quote_tables.py.")
