# The README's two commands, and what a developer runs. Needs nothing but python3 with venv and pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow versions oldest newest check every-cpu proofs lint readme site notebook release clean

# Trains and cross-validates on the synthetic corpus, then asks the first fold's checkpoint about an unseen voice.
demo: .venv/installed
	$(BIN)/python train.py --output_dir runs/demo
	$(BIN)/python demo.py runs/demo

# Two workers run the tests: each with a thread, unless it is said otherwise.
test slow check: export OMP_NUM_THREADS ?= 1

test: .venv/installed
	$(BIN)/python -m pytest

# What takes ten seconds or so each: clean processes, kills, whole recipes. With `make test`, what CI runs.
slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# In less than a minute: lint, and the tests of what trains nothing: pure functions, data, configuration, the house.
check: lint
	$(BIN)/python -m pytest --durations=0 --durations-min=5 $(patsubst %,tests/test_%.py,$(CHECKED))

CHECKED := losses configuration recipe house folds sampling data emobox public_corpora evaluation compare

# The whole suite six times, as other CPUs would run it; about half an hour.
every-cpu: .venv/installed
	.ci/every-cpu

# Kills the demo again and again; about half an hour.
proofs: .venv/installed
	$(BIN)/python -m pytest -m proof -n 0

# Checkpoints on five versions of transformers, fast tests on the oldest and the newest that the package supports.
versions: .venv/installed
	$(BIN)/python tests/versions.py

# The whole suite on the oldest or newest versions; the last line goes to results/.
oldest newest: .venv/installed
	$(BIN)/python tests/versions.py --suite $@

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Puts the numbers of results/, README's picture and the docstrings of public names into README and docs.
readme: .venv/installed
	$(BIN)/python -m lascl.studies.joint_space draw results/within-each/one_model/seed-42/fold-1 docs/_static/joint-space.svg
	$(BIN)/python -m lascl.studies.readme README.md docs/*.md

# The pages of docs/ as a site, in build/site.
site: .venv/installed
	$(BIN)/python -m sphinx --fail-on-warning --quiet docs build/site

# Runs the notebook anew, and keeps its pictures.
notebook: .venv/installed
	$(BIN)/python tests/notebook.py examples/tour.ipynb examples/tour.ipynb

# Wheel and source distribution into dist/, each installed in an environment of its own and tried; a version that is not
# the same everywhere is refused.
release: .venv/installed
	$(BIN)/python tests/release.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# torch first and by itself: where a CPU build is at hand, a plain requirement might fetch the CUDA one instead.
.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	touch $@
