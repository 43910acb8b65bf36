"""The whole pipeline as a graph of artefacts: each rule runs one notebook through papermill.

    snakemake --cores 2 --config params=params/smollm2-135m.yaml seeds=0,1 methods=ssapo,spa
    snakemake --cores 2 --config study=params/studies/adversary.yaml threads=1

What is up to date is not run again; what a kill left incomplete is. A change of the params that a step
reads, or of its notebook, runs that step and what depends on it again.
"""

import json
import shlex
from pathlib import Path

from sgpo_lib.evaluation.report import executed_notebook
from sgpo_lib.runs import STEPS
from sgpo_lib.runs.notebooks import code_of
from sgpo_lib.runs.store import sha256_of
from sgpo_lib.runs.study import find_study, study_of

if "study" in config:
    STUDY = find_study(config["study"]).first(config.get("n_seeds"))
else:
    STUDY = study_of(
        config.get("params", "params/smollm2-135m.yaml"),
        [int(seed) for seed in str(config.get("seeds", 0)).split(",")],
        str(config.get("methods", "ssapo")).split(","),
        config.get("overrides"),
    )
THREADS = int(config.get("threads", workflow.cores))
VARIANTS = {}
for variant in STUDY.variants:
    run = STUDY.run(variant, STUDY.seeds[0])
    VARIANTS[run.params.name, run.method] = variant
    RUNS = str(run.folder.parents[1])
for (name, _), variant in list(VARIANTS.items()):  # what all methods share is made with the params of any of them
    VARIANTS.setdefault((name, "dpo"), variant.model_copy(update={"method": "dpo"}))
EVALUATIONS = [
    str(STUDY.run(variant, seed).step("evaluation").record_file)
    for seed in STUDY.seeds
    for variant in STUDY.variants
]
REGRET_NOTEBOOK = f"{RUNS}/notebooks/06_regret_bounds.ipynb"
FIGURES_DIR = STUDY.root / config.get("figures", "figures")
LAB_NOTEBOOK = f"{RUNS}/notebooks/09_lab.ipynb"
LAB_PICTURES = [f"{FIGURES_DIR}/lab/{name}.png" for name in ("arms", "influence", "maps", "label_curve")]
LAB_TABLES = [f"{FIGURES_DIR}/lab/{name}" for name in ("arms.csv", "S1.csv", "S2.csv", "S3.csv", "predictions.md")]
FIGURES = f"{FIGURES_DIR}/studies/{STUDY.name}" if "study" in config else f"{FIGURES_DIR}/{STUDY.name}"
for folder in (RUNS, FIGURES):
    if "{" in folder or "}" in folder:
        raise ValueError(f"{folder}: Snakemake reads braces in a path as a wildcard. Rename the folder or params file.")
DRAWN = {
    "study": config.get("study"),
    "n_seeds": config.get("n_seeds"),
    "params_file": STUDY.params,
    "seeds": STUDY.seeds,
    "methods": [variant.method for variant in STUDY.variants],
    "overrides": STUDY.variants[0].overrides,
    "figures_dir": str(FIGURES_DIR),
}


wildcard_constraints:
    name=r"[^/]+",
    seed=r"\d+",
    round=r"\d+",
    annotation=r"[^/]+",
    method=r"[^/]+",


def variant_of(w):
    """Any variant that makes the artefact: by its method, or for a shared first round by how it is annotated."""
    if "annotation" not in w.keys():
        return VARIANTS[w.name, w.get("method", "dpo")]
    of_name = [variant for (name, _), variant in VARIANTS.items() if name == w.name and variant.method != "dpo"]
    return next(v for v in of_name if STUDY.run(v, int(w.seed)).params.annotation.name == w.annotation)


def step(name, w):
    round = 1 if "annotation" in w.keys() else int(w.round) if "round" in w.keys() else None
    return STUDY.run(variant_of(w), int(w.seed)).step(name, round)


def source(notebook):
    return Path(workflow.basedir, "notebooks", f"{notebook}.ipynb")


def made_by(name):
    """What a step is made from besides its inputs: its params, its data file and its notebook's code."""

    def sources(w):
        made = step(name, w)
        data = {"data": sha256_of(made.data_file)} if made.data_file else {}
        return json.dumps([made.params | data, code_of(source(STEPS[name].notebook))], sort_keys=True)

    return sources


def needs(name):
    return lambda w: [before.record_file for before in step(name, w).inputs]


def papermill(name):
    """The command that executes a step's notebook; the executed copy stays in the run, also when it fails."""

    def command(w, output):
        made, variant = step(name, w), variant_of(w)
        values = {"params_file": STUDY.params_of(variant), "overrides": variant.overrides, "seed": made.run.seed}
        values |= {"overwrite": True}  # the graph knows what is up to date
        values |= {} if name == "seed_dpo" else {"method": made.run.method}
        values |= {} if made.round is None else {"round": made.round}
        return hand_in(execute(made.notebook, executed_notebook(made), values), [made.record_file], output)

    return command


def hand_in(command, files, output):
    """Where a storage provider stands between the graph and the files (Kubernetes), give it its copies of them."""
    pairs = [(str(file), str(copy)) for file, copy in zip(files, output, strict=True) if Path(file) != Path(copy)]
    copies = [shlex.join(["cp", file, copy]) for file, copy in pairs]
    return " && ".join([command, *copies])


def execute(notebook, executed, values):
    executed.parent.mkdir(parents=True, exist_ok=True)
    runner = ["python", Path(workflow.basedir, "sgpo_lib", "runs", "warm.py"), "papermill"]
    command = [*runner, "--no-request-save-on-cell-execute", source(notebook), executed, "-y", json.dumps(values)]
    return shlex.join(map(str, command))


rule all:
    default_target: True
    input:
        EVALUATIONS,  # named although the figures follow from them: those come with the repository, runs do not
        f"{FIGURES}/summary.md",
        [] if "study" in config else REGRET_NOTEBOOK,


rule seed_dpo:
    input: needs("seed_dpo")
    output: f"{RUNS}/{{name}}/seed-{{seed}}/dpo/seed_dpo.json"
    params: made_by=made_by("seed_dpo"), run=papermill("seed_dpo")
    threads: THREADS
    message: "01 seed DPO ({wildcards.name}, seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule first_annotation:
    input: needs("annotation")
    output: f"{RUNS}/{{name}}/seed-{{seed}}/dpo/round-1-{{annotation}}/annotation.json"
    params: made_by=made_by("annotation"), run=papermill("annotation")
    threads: THREADS
    message: "02 annotation, round 1 ({wildcards.name}, {wildcards.annotation}, seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule annotation:
    input: needs("annotation")
    output: f"{RUNS}/{{name}}/seed-{{seed}}/{{method}}/round-{{round}}/annotation.json"
    params: made_by=made_by("annotation"), run=papermill("annotation")
    threads: THREADS
    message: "02 annotation, round {wildcards.round} ({wildcards.name}, {wildcards.method}, seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule follower:
    input: needs("follower")
    output: f"{RUNS}/{{name}}/seed-{{seed}}/{{method}}/round-{{round}}/follower.json"
    params: made_by=made_by("follower"), run=papermill("follower")
    threads: THREADS
    message: "03 DRO reweighting, round {wildcards.round} ({wildcards.name}, {wildcards.method}, seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule leader:
    input: needs("leader")
    output: f"{RUNS}/{{name}}/seed-{{seed}}/{{method}}/round-{{round}}/leader.json"
    params: made_by=made_by("leader"), run=papermill("leader")
    threads: THREADS
    message: "04 weighted training, round {wildcards.round} ({wildcards.name}, {wildcards.method}, seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule evaluation:
    input: needs("evaluation")
    output: f"{RUNS}/{{name}}/seed-{{seed}}/{{method}}/evaluation/evaluation.json"
    params: made_by=made_by("evaluation"), run=papermill("evaluation")
    threads: THREADS
    message: "05 evaluation ({wildcards.name}, {wildcards.method}, seed {wildcards.seed})"
    shell: "OMP_NUM_THREADS={threads} {params.run}"


rule figures:
    input: EVALUATIONS
    output: f"{FIGURES}/summary.md"
    params:
        run=lambda w, output: hand_in(
            execute("07_paper_figures", Path(RUNS, "notebooks", f"07_paper_figures-{STUDY.name}.ipynb"), DRAWN),
            [f"{FIGURES}/summary.md"],
            output,
        ),
        made_by=json.dumps([STUDY.model_dump(), str(FIGURES_DIR), code_of(source("07_paper_figures"))], sort_keys=True),
    message: "07 figures"
    shell: "{params.run}"


rule regret:
    output: REGRET_NOTEBOOK, f"{FIGURES_DIR}/regret_constants.md"
    params:
        run=lambda w, output: hand_in(
            execute("06_regret_bounds", Path(REGRET_NOTEBOOK), {"figures_dir": str(FIGURES_DIR)}),
            [REGRET_NOTEBOOK, f"{FIGURES_DIR}/regret_constants.md"],
            output,
        ),
        made_by=json.dumps([str(FIGURES_DIR), code_of(source("06_regret_bounds"))]),
    message: "06 regret bounds"
    shell: "{params.run}"


rule lab:  # on request only (make lab-figures): it takes minutes and no run needs it
    output: LAB_NOTEBOOK, LAB_PICTURES, LAB_TABLES
    params:
        run=lambda w, output: hand_in(
            execute("09_lab", Path(LAB_NOTEBOOK), {"figures_dir": str(FIGURES_DIR)}),
            [LAB_NOTEBOOK, *LAB_PICTURES, *LAB_TABLES],
            output,
        ),
        made_by=json.dumps([str(FIGURES_DIR), code_of(source("09_lab"))]),
    message: "09 lab"
    shell: "{params.run}"
