"""The table of measured constants against the theorems' bounds."""

import csv
from pathlib import Path

from sgpo_lib.runs.store import replacing

COLUMNS = ("statement", "measured", "bound", "cases", "holds", "remark")


def constant(statement: str, measured: float, bound: str, cases: int, holds: bool, remark: str = "") -> dict:
    """One row: the claim, the extreme value measured, the line it was held against, in how many cases."""
    return {
        "statement": statement,
        "measured": f"{measured:.4g}",
        "bound": bound,
        "cases": cases,
        "holds": "yes" if holds else "no",
        "remark": remark,
    }


def to_markdown(rows) -> str:
    """The table as GitHub shows it."""
    cells = ([str(row[name]).replace("|", "\\|") for name in COLUMNS] for row in rows)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_constants(rows, folder: str | Path) -> list[Path]:
    """Write regret_constants.csv and regret_constants.md into the folder, each whole or not at all."""
    paths = [Path(folder, name) for name in ("regret_constants.csv", "regret_constants.md")]
    with replacing(paths[0]) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with replacing(paths[1]) as temporary:
        temporary.write_text(to_markdown(rows), encoding="utf-8")
    return paths
