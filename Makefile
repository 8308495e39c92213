# `make help` lists what there is. Everything runs in .venv, which `make setup` makes and keeps up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-output
DATA ?= ../shared/data
RESULTS := benchmarks/results
MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help setup demo docs test test-quality test-faults soak check check-deploy audit sbom format train bench
.PHONY: bench-scale screenshots clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with everything in it (quick when done)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## Upscale real sample photographs x2 with an embedded Redis and a worker, into demo-output/
	$(BIN)/vdsr upscale examples/photos $(DEMO) --scale 2
	@echo "open $(DEMO)/ to see the pictures"

test: $(READY) ## Run the tests: a real Redis, real workers, a real S3 server
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

test-quality: $(READY) ## Check the published figures on Set5, Set14 and BSD100 (needs ../shared/data)
	$(BIN)/python -m pytest -m quality

test-faults: $(READY) ## Kill workers and Redis, cut connections, and count what it cost (twenty minutes)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "faults or not faults" tests/faults tests/worker/test_formats.py \
		tests/worker/test_signing.py tests/worker/test_training_service.py

soak: $(READY) ## Mixed jobs under random faults for half an hour (MINUTES=30)
	$(BIN)/python tests/faults/soak.py --minutes $(MINUTES)

check: $(READY) check-deploy ## Style, types, layers (ruff, mypy --strict, import-linter) and what check-deploy does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check-deploy: $(READY) ## Dockerfile, compose file and Kubernetes' manifests: linters and schemas
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[deploy]'
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/yamllint --strict docker-compose.yml deploy
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint --failure-threshold warning deploy/Dockerfile; \
		else echo "hadolint: there is no build of it for this machine; the Dockerfile is not linted"; fi
	@mkdir -p build
	@for each in redis overlays/cpu overlays/gpu overlays/train overlays/client overlays/metrics; do \
		$(BIN)/kubectl kustomize deploy/kubernetes/$$each > build/manifests.yaml \
		&& $(BIN)/kubernetes-validate --strict --quiet --no-warn build/manifests.yaml || exit 1; done

audit: $(READY) ## Look for known holes in the packages of constraints.txt (asks PyPI or OSV; REQUIRE=1 must)
	@test -x build/audit/bin/pip-audit || $(PYTHON) -m venv build/audit
	@build/audit/bin/python -m pip install --quiet pip-audit
	$(PYTHON) .ci/audit.py build/audit/bin/pip-audit $(if $(REQUIRE),--require)

sbom: $(READY) ## List what is installed in .venv as CycloneDX, into build/sbom.json, and check the list
	@test -x build/sbom/bin/cyclonedx-py || $(PYTHON) -m venv build/sbom
	@build/sbom/bin/python -m pip install --quiet cyclonedx-bom
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --validate \
		-o build/sbom.json $(BIN)/python
	$(BIN)/python .ci/check_sbom.py build/sbom.json

format: $(READY) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: $(READY) ## Train the weights that ship (hours on a CPU; DATA=folder of image sets), as the model card says
	$(BIN)/vdsr train --local --data $(DATA)/train --run runs/best --set 'scales=[2, 3, 4]' --version 2026.11-muon
	$(BIN)/vdsr train --local --data $(DATA)/train --run runs/best-1.5 --start runs/best/vdsr.safetensors \
		--set steps=2500 --set decay_steps=2400 --set learning_rate=0.0015 --set loss=l2 --set seed=3 --version 2026.11

bench: $(READY) ## Measure engines, codecs, image sizes and jobs (an hour on two cores), into docs/benchmarks.md
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/engine.py --json $(RESULTS)/engine.json
	$(BIN)/python benchmarks/ensemble.py --json $(RESULTS)/ensemble.json
	$(BIN)/python benchmarks/codecs.py --json $(RESULTS)/codecs.json
	$(BIN)/python benchmarks/sizes.py --json $(RESULTS)/sizes.json
	$(BIN)/python benchmarks/pipeline.py photos --json $(RESULTS)/photos.json
	$(BIN)/python benchmarks/pipeline.py thumbnails --json $(RESULTS)/thumbnails.json
	$(BIN)/python benchmarks/page.py

bench-scale: $(READY) ## Measure large jobs, fleets and sharing with a stand-in for the network, into docs/scale.md
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/scale.py --json $(RESULTS)/scale.json
	$(BIN)/python benchmarks/fleet.py scaling --json $(RESULTS)/scaling.json
	$(BIN)/python benchmarks/fleet.py sharing --json $(RESULTS)/sharing.json
	$(BIN)/python benchmarks/page.py

docs: $(READY) ## Build the site of docs/ into build/docs, offline; a warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet -b html docs build/docs
	@echo "open build/docs/index.html"

screenshots: $(READY) ## Take the documentation's pictures again: terminal and report (Chromium), dashboard (Prometheus)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pyte
	$(BIN)/python docs/screenshots.py
	$(BIN)/python docs/dashboard.py

clean: ## Remove what was made here
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
