# What people and CI run here. The logic is in tools/ and tests/; each target is one command.
UV := tools/uv.sh
RUN := $(UV) run --quiet
# A file to a worker: its tests share what is slow to make.
TEST := $(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder
# Where it is set, every import compiles its modules anew: two to three times slower.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo demo-down test test-all test-newest bench drill replay lint audit

help: ## Say what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: ## Generate late-departures into demo/ and ship it: a production service answers
	@$(RUN) --only-group render tools/demo.py up

demo-down: ## Stop the service of `make demo`; the folder stays
	@$(RUN) --only-group render tools/demo.py down

test: ## Test the template: answers, lint, budget, a shipped project, its workflows, seeded faults
	@$(TEST) -m "not exhaustive"

test-all: ## Every test, the long ones too
	@$(TEST)

test-newest: ## Test a generated project with the newest versions of all it depends on
	@$(RUN) --only-group render tools/demo.py newest --folder demo/newest

bench: ## Measure a generated project against its bars (minutes; wants a quiet machine)
	@$(RUN) python -m tests.bench

drill: ## Let a model live its whole life here, while clients ask all the time (minutes): a table and a page
	@$(RUN) python -m tests.drill

replay: ## Live through 2013 month by month: ask, label, watch, retrain (minutes; demo/replay)
	@$(RUN) python -m tests.replay

lint: ## Format and types of the template's own code
	@$(RUN) ruff format --check
	@$(RUN) ruff check
	@$(RUN) mypy
	@$(RUN) shellcheck tools/uv.sh .ci/run

# One that has no fix yet, and that we can live with: ACCEPTED += --ignore-vuln ID # why
ACCEPTED =

audit: ## Known vulnerabilities in the template's tools, in the versions that its bounds give
	@$(UV) export --quiet --all-groups --no-emit-project --output-file .bench/audit.txt
	@$(UV) tool run 'pip-audit==2.*' --vulnerability-service osv --disable-pip \
	  --progress-spinner off $(ACCEPTED) --requirement .bench/audit.txt
