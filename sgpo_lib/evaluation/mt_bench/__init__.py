"""MT-Bench: its questions answered by our policies (`questions`), and rated by a judge (`ratings`)."""

from sgpo_lib.evaluation.mt_bench.questions import REFERENCES, REQUIREMENT, MTBench, answer, load
from sgpo_lib.evaluation.mt_bench.ratings import Judge, parse_rating, rate, summarize, summary_table

__all__ = [
    "REFERENCES",
    "REQUIREMENT",
    "Judge",
    "MTBench",
    "answer",
    "load",
    "parse_rating",
    "rate",
    "summarize",
    "summary_table",
]
