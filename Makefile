PARAMS ?= params/smollm2-135m.yaml
SEEDS ?= 0
METHODS ?= ssapo
NAME ?= adversary
COMPARED = $(if $(filter file,$(origin PARAMS)),params/quick.yaml,$(PARAMS))
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
PYTHON ?= python3
TORCH ?= torch==2.13.0
UV := $(shell command -v uv 2>/dev/null)
INSTALL = $(if $(UV),$(UV) pip install --python .venv,.venv/bin/pip install) --quiet --constraint constraints.txt

# Recipes read these from the environment, as make would cut a name at its spaces. A run lies beside its params/.
export PARAMS SEEDS METHODS NAME A B
RUN = run="$$(basename "$$PARAMS" .yaml)"; root="$$(dirname "$$PARAMS")/"; root="$${root%params/}"
# Snakemake with a line that lives; without it: snakemake --cores ..., with the same options.
MAKE_RUN = python -m sgpo_lib.runs.make --cores $(CORES) --rerun-incomplete --nolock --quiet host
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export TOKENIZERS_PARALLELISM = false
export PYTHONWARNINGS = ignore::FutureWarning
# glibc returns every large tensor to the system and has the next one paged in again.
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 100000000000
export MALLOC_TOP_PAD_ = 268435456

.DEFAULT_GOAL := help
.PHONY: help setup plan reproduce study compare figures lab-figures test lab chat site clean

help:  ## show this
	@echo "make reproduce   the whole pipeline, from seed DPO to figures (PARAMS=$(PARAMS) SEEDS=$(SEEDS))"
	@echo "make study       runs of many seeds held against each other (NAME=$(NAME), N_SEEDS=10 for a look; see params/studies/)"
	@echo "make compare     two methods or settings in minutes: A='self-dpo' B='ssapo {follower.radius: 0.3}'"
	@echo "make plan        what a run will need: memory, hours, cost (PARAMS=... GPU=H100-80GB N_GPUS=8 PRICE=...)"
	@echo "make test        linter and tests"
	@echo "make figures     draw figures/ again from the runs there are"
	@echo "make lab-figures simulate the loop a thousand times and draw figures/lab/ (notebook 09; 2 minutes)"
	@echo "make site        the executed notebooks and docs/ as pages that need no kernel and no network"
	@echo "make chat        type a prompt: SFT, seed DPO and each round answer side by side, with their rewards and KL"
	@echo "make lab         JupyterLab on working copies of the notebooks, in lab/; your changes are kept"
	@echo "make setup       only the environment, .venv"
	@echo "make clean       remove .venv and caches; runs/ and figures/ stay"

setup: .venv/.complete  ## create .venv with pinned dependencies

.venv/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with 'make PYTHON=/path/to/python3.11 ...'"; exit 1; }
	$(if $(UV),$(UV) venv --quiet --seed --clear --python $(PYTHON),$(PYTHON) -m venv) .venv
	$(INSTALL) "$(TORCH)"
	$(INSTALL) --editable '.[test]'
	@touch $@

reproduce: .venv/.complete  ## run everything that is not up to date
	@$(MAKE_RUN) --config "params=$$PARAMS" "seeds=$$SEEDS" "methods=$$METHODS"
	@$(RUN); echo; cat "$${root}figures/$$run/summary.md"; echo; \
		echo "executed notebooks  $${root}runs/$$run/seed-*/notebooks/"; \
		echo "summaries           $${root}runs/$$run/seed-*/*/evaluation/summary.json"; \
		echo "figures             $${root}figures/$$run/"; \
		echo "another run's       may lie as far from this one's as README.md says below its table"

study: .venv/.complete  ## run a study, one thread a notebook and as many notebooks as cores
	@$(MAKE_RUN) --keep-going --config "study=params/studies/$$NAME.yaml" threads=1 $(if $(N_SEEDS),n_seeds=$(N_SEEDS))
	@echo; cat "figures/studies/$$NAME/summary.md"; echo
	@echo "figures             figures/studies/$$NAME/"

compare: .venv/.complete  ## hold two of anything against each other: A='self-dpo' B='ssapo {follower.radius: 0.3}'
	@study="$$(python -m sgpo_lib.runs.compare "$$A" "$$B" --params "$(COMPARED)" --seeds "$$SEEDS")" && \
		$(MAKE_RUN) --config "study=$$study" figures=runs/figures && \
		echo && cat "runs/figures/studies/$$(basename "$$study" .yaml)/summary.md"

plan: .venv/.complete  ## tokens, FLOPs, hours, cost and memory of a run, before it costs anything
	@python -m sgpo_lib.plan "$$PARAMS" $(if $(GPU),--gpu $(GPU)) $(if $(N_GPUS),--n-gpus $(N_GPUS)) \
		$(if $(N_GENERATING),--n-generating $(N_GENERATING)) $(if $(PRICE),--price $(PRICE)) \
		$(if $(PROMPT_TOKENS),--prompt-tokens $(PROMPT_TOKENS)) \
		$(if $(RESPONSE_TOKENS),--response-tokens $(RESPONSE_TOKENS)) \
		$(if $(PAIRS_PER_PROMPT),--pairs-per-prompt $(PAIRS_PER_PROMPT))

figures: .venv/.complete  ## regenerate figures/ from the runs there are
	@$(MAKE_RUN) --forcerun figures regret --config "params=$$PARAMS" "seeds=$$SEEDS" "methods=$$METHODS"

lab-figures: .venv/.complete  ## run notebook 09 again: figures/lab/ and its predictions
	@$(MAKE_RUN) lab --forcerun lab

test: .venv/.complete  ## linter and tests
	ruff check
	ruff format --check
	pytest -n 2 --dist loadfile --no-loadscope-reorder

lab: .venv/.complete  ## JupyterLab on working copies of the notebooks, in lab/
	@python -m sgpo_lib.runs.notebooks notebooks lab
	PYTHONSTARTUP="$(CURDIR)/sgpo_lib/runs/startup.py" jupyter lab --ServerApp.root_dir="$(CURDIR)" \
		--LabApp.default_url=/lab/tree/lab

site: .venv/.complete  ## pages of the run (PARAMS, the first of SEEDS and METHODS) and of docs/, in build/site/html
	@python site/build.py --params "$$PARAMS" --seed "$${SEEDS%%,*}" --method "$${METHODS%%,*}"
chat: .venv/.complete  ## ask the policies of a run, side by side (PARAMS, the first of SEEDS and METHODS)
	@python -m sgpo_lib.steps.talk "$$PARAMS" --seed "$${SEEDS%%,*}" --method "$${METHODS%%,*}"

clean:  ## remove what can be made again in minutes
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .snakemake *.egg-info
