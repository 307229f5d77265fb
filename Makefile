PYTHON ?= python3
INSTALLED := .venv/.installed

.PHONY: demo test test-all lint venv

demo: $(INSTALLED)
	.venv/bin/nni-bayes-nas run examples/configs/demo-digits.yaml --output runs/demo

# Two processes of a thread each: networks of tests are too small for more threads.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 .venv/bin/pytest -m "not slow" -n 2 --dist worksteal --durations 15

# Pipelines of a real manager have the machine for themselves: they start processes of their own.
test-all: test
	OMP_NUM_THREADS=1 .venv/bin/pytest -m "slow and not nni" -n 2 --dist worksteal --durations 15
	.venv/bin/pytest -m "slow and nni"

lint: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy -p nni_bayes_nas

venv: $(INSTALLED)

# uv installs torch and the CUDA wheels in seconds where pip alone takes minutes. The stamp is touched last: an
# installation that was broken off is done again.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	test -x .venv/bin/uv || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip install --python .venv/bin/python -c constraints.txt -e '.[dev]'
	touch $@
