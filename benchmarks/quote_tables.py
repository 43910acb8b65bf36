"""Put measured tables and the example program between the markers of README and docs/, as they are.

A marker names its file, relative to the repository: <!-- figures/follower_benchmark.md --> ... <!-- / -->
`leader modes` in place of a file is the registry's table.

python benchmarks/quote_tables.py           # write the pages
python benchmarks/quote_tables.py --check   # only say which are not up to date
"""

import re
import sys
from pathlib import Path

from sgpo_lib.leader import as_table

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"(<!-- ((?:figures|examples)/\S+|leader modes) -->\n).*?(<!-- / -->)", re.DOTALL)


def content_of(source: str) -> str:
    """Return what stands between the markers of a source."""
    if source == "leader modes":
        return as_table()
    text = (ROOT / source).read_text().strip()
    if source.endswith(".py"):  # without its options
        text = f"```python\n{text.split('parser.parse_args()')[1].strip()}\n```"
    return text


def quoted(page: str) -> str:
    """Return a page's text with every marked section holding its source."""
    return MARKED.sub(lambda found: f"{found[1]}{content_of(found[2])}\n{found[3]}", page)


if __name__ == "__main__":
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = quoted(page.read_text())
        if text != page.read_text():
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(text)
    if "--check" in sys.argv and stale:
        sys.exit(f"{', '.join(stale)}: what is quoted there is not what the files say. Run {sys.argv[0]}.")
