# make repro: the environment, then every figure and table.  make test: the environment, then all tests.
# make export: the pruned network for use elsewhere.  make tables: the tables in README.md and docs/, and their figures.
# PROFILE=full chooses a profile of params.yaml, DATA=folder other images (then without DVC).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
EXPORTS := .venv/.ready-for-export
TESTED := .venv/.ready-for-tests
# Most modules are never imported: compiling them all would take longer than compiling some later, and keeping that.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/pip install --no-compile --quiet --progress-bar on --disable-pip-version-check --constraint requirements.lock
CHOICE := $(if $(PROFILE),--profile '$(PROFILE)') $(if $(DATA),--data '$(DATA)')
CHOICE := $(strip $(CHOICE))
# No telemetry; tools of the environment come first.
export DVC_NO_ANALYTICS := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

# What is started ends with its make, however that ends (lrp_core/study/runs/processes.py).
export LRP_STARTED_BY
repro notebooks: LRP_STARTED_BY := $(shell echo $$PPID)

.PHONY: repro test lab export notebooks bench zoo docs tables clean

repro: $(READY)
	$(if $(DATA),python -m lrp_core.study.runs.pipeline $(CHOICE),dvc repro $(if $(PROFILE),'results/$(PROFILE)/tables'))
	@python -m lrp_core.study.show.report $(CHOICE)

test: $(TESTED)
	ruff check .
	ruff format --check .
	lint-imports --no-cache --no-logo
	pytest --nbval-lax tests notebooks

export: $(EXPORTS)
	python -m lrp_core.study.show.export $(CHOICE) $(OPTIONS)

lab: $(READY)
	jupyter lab notebooks

notebooks: $(READY)
	python -m lrp_core.study.runs.pipeline --in-place

bench: $(TESTED)
	python benchmarks/relevance.py
	python benchmarks/cost.py
	python benchmarks/heads.py
	python benchmarks/evaluations.py
	python benchmarks/monitored.py
	python benchmarks/corrupted.py

zoo: $(TESTED)
	python benchmarks/zoo.py
	python -m lrp_core.study.show.markdown_tables

tables: $(READY)
	python -m lrp_core.study.show.real_size
	python -m lrp_core.study.show.markdown_tables

docs: $(TESTED)
	griffe2md lrp_core --output docs/api.md
	sed -E -i.bak -e 's/\[([^][]+)\]\(#[^)]+\)/\1/g' -e 's/:(class|data|func|meth|mod):`/`/g' docs/api.md && rm docs/api.md.bak

clean:
	rm -rf .venv data/zoo data/small data/default data/quick data/full data/own data/finished_runs data/criteria data/paper

# A half-made environment has no .ready and is made anew.
$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed, this is {sys.version}")'
	$(PYTHON) -m venv --clear .venv
	$(INSTALL) --editable '.[study]'
	touch $@

$(EXPORTS): $(READY)
	$(INSTALL) --editable '.[study,export]'
	touch $@

$(TESTED): $(READY)
	$(INSTALL) --editable '.[test]'
	touch $@
