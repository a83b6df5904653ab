# Every command sets up what it needs in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
QUIET := TF_CPP_MIN_LOG_LEVEL=3
# where it is set every process compiles TensorFlow anew, two thirds of the time that importing it takes
unexport PYTHONDONTWRITEBYTECODE
# uv installs in a minute what takes pip four; where it cannot, pip does. It does not read pip's settings, so it is told
UV := UV_CACHE_DIR=$(CURDIR)/build/uv $(if $(PIP_FIND_LINKS),UV_FIND_LINKS='$(PIP_FIND_LINKS)') \
	$(if $(PIP_INDEX_URL),UV_DEFAULT_INDEX='$(PIP_INDEX_URL)') $(BIN)/uv pip install --quiet
INSTALL = $(UV) --python .venv --editable '.[$(EXTRAS)]' || $(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
# two processes, whatever the cores: each takes up to 3 GiB; tests of a file share what takes long to make. More threads
# in each would wait for one another: PyTorch's take four times as long
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
BACKENDS := jax torch  # beside TensorFlow, the default
OTHER_BACKENDS := tests/test_keras.py tests/training/test_two_lines.py tests/training/test_finish.py tests/training/test_cells.py \
	tests/training/test_ordinary_keras.py tests/training/test_what_fit_meets.py tests/training/test_delegation.py tests/training/test_moments.py \
	tests/training/test_trainings_around.py tests/training/test_statistics.py tests/training/test_interrupts.py \
	tests/training/test_wrap.py::test_stateless_apply \
	tests/training/test_wrap.py::test_a_step_that_is_kept_is_not_taken_for_that_of_the_other_phase \
	tests/training/test_wrap.py::test_a_model_that_was_loaded_in_the_second_phase_goes_back_to_the_first \
	tests/training/test_wrap.py::test_steps_follow_an_optimizer_that_is_put_back_to_the_other_phase \
	tests/models/test_structure.py::test_a_float64_model_is_understood_whatever_it_is_computed_in \
	tests/models/test_tangent.py::test_products_are_finite_differences_on_every_backend \
	tests/models/test_gated_layers.py::test_a_gated_head_is_trained_certified_and_saved_on_every_backend \
	tests/features tests/heads tests/solvers tests/losses tests/finishing

.NOTPARALLEL:  # as two would install into one .venv
.PHONY: quickstart test coverage test-backends test-oldest lint types docs clean

quickstart: .venv/examples
	$(QUIET) $(BIN)/python examples/quickstart.py

# JAX compiles with few optimizations here, and equal programs once; what users compile, test-backends does
JAX_QUICK := JAX_DISABLE_MOST_OPTIMIZATIONS=1 JAX_COMPILATION_CACHE_DIR=$(CURDIR)/build/jax \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=0

test: .venv/test
	$(QUIET) $(PYTEST)
	for backend in $(BACKENDS); do $(QUIET) KERAS_BACKEND=$$backend $(JAX_QUICK) $(PYTEST) $(OTHER_BACKENDS) || exit; done

# the tests of TensorFlow, and which lines of the package none of them reaches
coverage: .venv/test
	$(QUIET) $(PYTEST) --cov --cov-report=term

# all tests on the other backends, about half an hour each; what is skipped says why
test-backends: .venv/test
	for backend in $(BACKENDS); do $(QUIET) KERAS_BACKEND=$$backend $(PYTEST) -rs tests || exit; done

# the oldest packages that pyproject.toml names; they deprecate each other
test-oldest: .venv/pip
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear build/oldest
	$(UV) --python build/oldest --resolution lowest-direct --editable '.[test,jax,torch]'
	for backend in tensorflow $(BACKENDS); do $(QUIET) KERAS_BACKEND=$$backend $(JAX_QUICK) OMP_NUM_THREADS=1 \
		build/oldest/bin/python -m pytest -W ignore::DeprecationWarning $(OTHER_BACKENDS) || exit; done

lint: .venv/lint .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/test
	$(BIN)/pyright

docs: .venv/docs
	$(QUIET) $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --builder html docs build/docs
	@echo build/docs/index.html

# of Python 3.14 TensorFlow before 2.22 has no wheels
.venv/pip:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), f"Python 3.11 to 3.13 is needed: {sys.version}"'
	$(PYTHON) -m venv .venv
	-$(BIN)/python -m pip install --quiet uv
	touch $@

.venv/examples: EXTRAS := examples
.venv/examples: .venv/pip pyproject.toml
	$(INSTALL)
	touch $@

.venv/test: EXTRAS := test,backends
.venv/test: .venv/pip pyproject.toml
	$(INSTALL)
	touch $@

.venv/lint: EXTRAS := lint
.venv/lint: .venv/pip pyproject.toml
	$(INSTALL)
	touch $@

.venv/docs: EXTRAS := docs
.venv/docs: .venv/pip pyproject.toml
	$(INSTALL)
	touch $@

clean:
	rm -rf .venv build dist
