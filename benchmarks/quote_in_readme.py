"""Put the tables that figures/ holds between README's markers, so that what README says is what was measured.

python benchmarks/quote_in_readme.py           # write README.md
python benchmarks/quote_in_readme.py --check   # only say whether it is up to date
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUOTED = {
    "summary": "figures/smollm2-135m/summary.md",
    "timing": "figures/smollm2-135m/timing.md",
    "follower": "figures/follower_benchmark.md",
    "leader": "figures/leader_benchmark.md",
    "annotation": "figures/annotation_benchmark.md",
}


def quoted(readme: str) -> str:
    """Return README's text with every marked section holding its file."""
    for marker, file in QUOTED.items():
        section = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
        if len(section.findall(readme)) != 1:
            raise ValueError(f"README.md must have one section marked {marker!r}.")
        text = (ROOT / file).read_text().strip()
        readme = section.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", readme)
    return readme


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = quoted(readme.read_text())
    if "--check" in sys.argv:
        sys.exit(text != readme.read_text() and "README.md does not quote figures/ as they are.")
    readme.write_text(text)
