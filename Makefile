# make demo    trains an agent on GridLife with SB3 alone and as shipped, and shows which one stays alive
# make test    runs the tests
# make docs    builds the documentation in docs/_build (Python 3.11 or newer)
# Each first makes .venv and installs the package there, with the versions in constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

export OMP_NUM_THREADS ?= 1

.PHONY: demo test docs install

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

test: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps simglucose
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

DOCS ?= docs/_build

docs: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet --jobs auto docs $(DOCS)

RUNS := logs/demo-$(shell date +%Y%m%d-%H%M%S)
TRAIN := $(BIN)/python train.py --algo ppo --env GridLife-v0 --seed 1 --eval-freq -1 --verbose 0 --progress

demo: install
	$(TRAIN) -f $(RUNS)/without -params "vec_env_wrapper:[]" "policy:'MultiInputPolicy'" \
		"policy_kwargs:dict(net_arch=[256, 256], activation_fn=nn.ReLU)"
	$(TRAIN) -f $(RUNS)/with
	$(BIN)/python -m persist_sb3.report $(RUNS)/with/ppo/GridLife-v0_1 $(RUNS)/without/ppo/GridLife-v0_1 \
		--labels persist-sb3 "task reward only" --stochastic --output $(RUNS)/report
