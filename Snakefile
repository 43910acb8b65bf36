"""The whole pipeline as a graph of artefacts: each rule runs one notebook through papermill.

    snakemake --cores 2 --config params=params/smollm2-135m.yaml seeds=0,1 methods=ssapo

What is up to date is not run again; what a kill left incomplete is. A change of the params that a step
reads, or of its notebook, runs that step and what depends on it again.
"""

import hashlib
import json
import shlex
from pathlib import Path

from sgpo_lib.report import executed_notebook
from sgpo_lib.run import STEPS, Run

PARAMS = config.get("params", "params/smollm2-135m.yaml")
SEEDS = [int(seed) for seed in str(config.get("seeds", 0)).split(",")]
METHODS = str(config.get("methods", "ssapo")).split(",")
OVERRIDES = json.loads(config.get("overrides", "{}"))
THREADS = int(config.get("threads", workflow.cores))
run0 = Run.open(PARAMS, SEEDS[0], METHODS[0], OVERRIDES)
RUNS = str(run0.folder.parent)
EVALUATIONS = expand(f"{RUNS}/seed-{{seed}}/{{method}}/evaluation/evaluation.json", seed=SEEDS, method=METHODS)
ROUNDS = range(1, run0.params.n_rounds + 1)
REGRET_NOTEBOOK = str(run0.folder.parents[1] / "notebooks" / "06_regret_bounds.ipynb")
FIGURES = f"{config.get('figures', 'figures')}/{run0.params.name}"


wildcard_constraints:
    seed=r"\d+",
    round=r"\d+",
    method=r"[^/]+",


def step(name, w):
    run = Run.open(PARAMS, w.seed, w.get("method", METHODS[0]), OVERRIDES)
    return run.step(name, int(w.round) if "round" in w.keys() else None)


def code_of(notebook):
    """Hash of a notebook's code; its prose may change without running anything again."""
    cells = json.loads(Path(workflow.basedir, "notebooks", f"{notebook}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:12]


def made_by(name):
    """What a step is made from besides its inputs: its params and its notebook's code."""
    return lambda w: json.dumps([step(name, w).params, code_of(STEPS[name].notebook)], sort_keys=True)


def needs(name):
    return lambda w: [before.record_file for before in step(name, w).inputs]


def papermill(name, w, **parameters):
    """The command that executes a step's notebook; the executed copy stays in the run, also when it fails."""
    of_run = step(name, w)
    values = {"params_file": PARAMS, "overrides": OVERRIDES, "seed": of_run.run.seed, **parameters}
    return execute(of_run.notebook, executed_notebook(of_run), values)


def execute(notebook, executed, values):
    executed.parent.mkdir(parents=True, exist_ok=True)
    source = Path(workflow.basedir, "notebooks", f"{notebook}.ipynb")
    return f"papermill --no-request-save-on-cell-execute {source} {executed} -y {shlex.quote(json.dumps(values))}"


rule all:
    default_target: True
    input:
        EVALUATIONS,  # named although the figures follow from them: those come with the repository, runs do not
        f"{FIGURES}/summary.md",
        REGRET_NOTEBOOK,


rule seed_dpo:
    input: needs("seed_dpo")
    output: f"{RUNS}/seed-{{seed}}/dpo/seed_dpo.json"
    params: made_by=made_by("seed_dpo"), run=lambda w: papermill("seed_dpo", w)
    threads: THREADS
    message: "01 seed DPO (seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule annotation:
    input: needs("annotation")
    output: f"{RUNS}/seed-{{seed}}/{{method}}/round-{{round}}/annotation.json"
    params:
        made_by=made_by("annotation"),
        run=lambda w: papermill("annotation", w, method=w.method, round=int(w.round)),
    threads: THREADS
    message: "02 self-annotation, round {wildcards.round} ({wildcards.method}, seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule follower:
    input: needs("follower")
    output: f"{RUNS}/seed-{{seed}}/{{method}}/round-{{round}}/follower.json"
    params:
        made_by=made_by("follower"),
        run=lambda w: papermill("follower", w, method=w.method, round=int(w.round)),
    threads: THREADS
    message: "03 DRO reweighting, round {wildcards.round} ({wildcards.method}, seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule leader:
    input: needs("leader")
    output: f"{RUNS}/seed-{{seed}}/{{method}}/round-{{round}}/leader.json"
    params:
        made_by=made_by("leader"),
        run=lambda w: papermill("leader", w, method=w.method, round=int(w.round)),
    threads: THREADS
    message: "04 weighted training, round {wildcards.round} ({wildcards.method}, seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule evaluation:
    input: needs("evaluation")
    output: f"{RUNS}/seed-{{seed}}/{{method}}/evaluation/evaluation.json"
    params: made_by=made_by("evaluation"), run=lambda w: papermill("evaluation", w, method=w.method)
    threads: THREADS
    message: "05 evaluation ({wildcards.method}, seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule figures:
    input: EVALUATIONS
    output: f"{FIGURES}/summary.md"
    params:
        run=execute(
            "07_paper_figures",
            Path(RUNS, "notebooks", "07_paper_figures.ipynb"),
            {
                "params_file": PARAMS,
                "seeds": SEEDS,
                "methods": METHODS,
                "figures_dir": str(Path(FIGURES).parent),
                "overrides": OVERRIDES,
            },
        ),
        made_by=code_of("07_paper_figures"),
    message: "07 figures"
    shell: "{params.run}"


rule regret:
    output: REGRET_NOTEBOOK, f"{Path(FIGURES).parent}/regret_constants.md"
    params:
        run=execute("06_regret_bounds", Path(REGRET_NOTEBOOK), {"figures_dir": str(Path(FIGURES).parent)}),
        made_by=code_of("06_regret_bounds"),
    message: "06 regret bounds"
    shell: "{params.run}"
