# make demo and make test set up everything they need: an environment in $(VENV), the pinned dependencies, the extension.
# A second call finds it done; a changed C++ file rebuilds that file. pip reads its own PIP_* variables as always.
PYTHON ?= python3
VENV ?= .venv
LOWEST := .venv-lowest
WHEEL_VENV := .venv-wheel
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := CMakeLists.txt $(shell find csrc -path "*cuda*" -prune -o -type f -print)
CUDA_SOURCES := CMakeLists.txt $(shell find csrc -path '*cuda*' -type f) csrc/bindings/tensor.cpp csrc/bindings/tensor.h
CXX_FILES = $$(find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
PACKAGING := pyproject.toml setup.py constraints.txt

# glibc is told to keep what is freed: otherwise page faults, and not kernels, decide the times of large maps.
BENCH := MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_MAX_=0 $(BIN)/python -m pytest benchmarks \
  --benchmark-only --benchmark-quiet --timeout=0

# The sanitized build is a package folder of its own, first on the import path. The runtimes come before everything else,
# libstdc++ with them so that they find what it exports. Memory that nobody wrote is NaN. Reports go to files: pytest and
# tests that start a process would swallow them. Leaks are Python's own business.
SANITIZED := build/sanitized
SANITIZE = env PYTHONPATH=$(SANITIZED) PYTHONSAFEPATH=1 \
  LD_PRELOAD="$$(for l in asan ubsan stdc++; do $${CXX:-c++} -print-file-name=lib$$l.so; done | paste -sd:)" \
  ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255:log_path=$(CURDIR)/$(SANITIZED)/report \
  UBSAN_OPTIONS=print_stacktrace=1:log_path=$(CURDIR)/$(SANITIZED)/report $(BIN)/python

.PHONY: help setup build emulated demo test lint format bench bench-full test-lowest sanitize test-avx512 wheel \
  gpu-static triton-static ptx bounds mutants gpu-test gpu-bench clean

help:
	@echo "make demo         search a network for MNIST, with a report (3 minutes on two cores)"
	@echo "make test         run the tests"
	@echo "make lint         ruff, mypy, clang-format"
	@echo "make bench        the main benchmarks (5 minutes); make bench-full: all of them"
	@echo "make test-lowest  run the tests with the lowest supported torch (downloads several GB)"
	@echo "make sanitize     run the kernels' tests with address and undefined-behaviour checks (5 minutes to compile)"
	@echo "make test-avx512  run the kernels' tests of AVX-512 and AMX on a processor without (minutes to compile)"
	@echo "make wheel        build the wheel, then import and run it in a second environment"
	@echo "make emulated     compile the CUDA kernels for the CPU, as their tests run them"
	@echo "make gpu-static   compile the CUDA kernels with nvcc: registers, spills, occupancy, instructions (no GPU needed)"
	@echo "make triton-static compile the Triton kernels for four architectures: registers, spills, instructions (no GPU)"
	@echo "make ptx          the CUDA kernels' PTX, with a JSON description of the entry points, in build/ptx"
	@echo "make bounds       count what they do, and write docs/cuda-bounds.md: the least time on an A100, H100 and B200"
	@echo "make mutants      break the kernels in many places, and see that their tests notice (hours; resumes)"
	@echo "make gpu-test     run their tests on a GPU;  make gpu-bench: their benchmarks, one table to paste"
	@echo "make build        compile what changed;  make format: format all sources;  make clean: remove what was made"

setup: $(VENV)/.built

# 3 GB: the environment takes 1.6 with a CPU build of torch, and pip unpacks beside it. An interrupted one has no stamp,
# and is gone over again.
$(VENV)/.installed: $(PACKAGING)
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) found. On Debian or Ubuntu: apt-get install" \
	  "python3 python3-venv python3-dev, or name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@mkdir -p $(VENV)
	@$(PYTHON) tools/preflight.py $(VENV) 3
	@echo "setup: $$($(PYTHON) --version) environment in $(VENV), dependencies pinned by constraints.txt (about 2 minutes)"
	@$(PYTHON) -m venv $(VENV)
	@{ $(PIP) install -c constraints.txt setuptools pybind11 cmake ninja && \
	  $(PIP) install -c constraints.txt --no-build-isolation -e '.[demo,test,dev]'; } > $(VENV)/install.log 2>&1 || \
	  { cat $(VENV)/install.log >&2; exit 1; }
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	@echo "setup: compiling the extension"
	@$(BIN)/python setup.py -q build_ext --inplace > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log >&2; exit 1; }
	@touch $@

# The CUDA kernels on the CPU, for their tests.
$(VENV)/.emulated: $(VENV)/.built $(CUDA_SOURCES)
	@echo "setup: compiling the emulated CUDA kernels"
	@SPOS_CUDA=0 SPOS_CUDA_EMULATED=1 $(BIN)/python setup.py -q build_ext --inplace > $(VENV)/emulated.log 2>&1 || \
	  { cat $(VENV)/emulated.log >&2; exit 1; }
	@touch $@

build: $(VENV)/.built

emulated: $(VENV)/.emulated

demo: $(VENV)/.built
	@$(BIN)/spos demo

test: $(VENV)/.emulated
	@$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

# What low-bit operations are compared with, and nothing else needs.
$(VENV)/.peers: $(VENV)/.installed
	@$(PIP) install -c constraints.txt onnxruntime
	@touch $@

bench: $(VENV)/.built $(VENV)/.peers
	@$(BENCH) -m "not full"

bench-full: $(VENV)/.built $(VENV)/.peers
	@$(BENCH)

# What is known of the CUDA kernels without a GPU. The disassembler is a wheel of 6 MB; without it (no network) the
# instructions are not looked at, and that is said. UPDATE=1 writes csrc/cuda/resources.md anew.
$(VENV)/.disassembler: $(VENV)/.installed
	@! command -v $${CUDACXX:-nvcc} > /dev/null || $(PIP) install -c constraints.txt nvidia-cuda-nvdisasm || exit 0; \
	  touch $@

gpu-static: $(VENV)/.disassembler
	@$(BIN)/python tools/gpu/static.py $(if $(UPDATE),--update)

# The Triton kernels, compiled ahead of time by Triton's own compiler. UPDATE=1 writes docs/triton-resources.md anew.
triton-static: $(VENV)/.built
	@$(BIN)/python tools/triton/static.py $(if $(UPDATE),--update)

ptx: $(VENV)/.installed
	@$(BIN)/python tools/gpu/export_ptx.py

bounds: $(VENV)/.emulated
	@$(BIN)/python tools/gpu/bounds.py

mutants: $(VENV)/.emulated
	@$(BIN)/python tools/gpu/mutants.py $(if $(FILES),--files $(FILES)) $(if $(JOBS),--jobs $(JOBS))

# For people with a GPU: the module is compiled for that GPU, and what stands in the way is said first.
gpu-test: $(VENV)/.built
	@$(BIN)/python tools/gpu/device.py test
	@SPOS_CUDA=1 $(BIN)/python setup.py -q build_ext --inplace > $(VENV)/cuda.log 2>&1 || { cat $(VENV)/cuda.log >&2; exit 1; }
	@$(BIN)/python tools/gpu/device_tests.py

gpu-bench: $(VENV)/.built
	@$(BIN)/python tools/gpu/device.py bench
	@SPOS_CUDA=1 $(BIN)/python setup.py -q build_ext --inplace > $(VENV)/cuda.log 2>&1 || { cat $(VENV)/cuda.log >&2; exit 1; }
	@$(BIN)/python benchmarks/gpu

# Its own environment: the lowest torch that pyproject.toml allows, everything else unpinned around it.
test-lowest: $(VENV)/.built
	@mkdir -p $(LOWEST) && $(PYTHON) tools/preflight.py $(LOWEST) 15
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip --disable-pip-version-check -q install 'torch==2.10.*' -e '.[demo,test]'
	@$(LOWEST)/bin/python -m pytest

sanitize: $(VENV)/.installed
	@rm -rf $(SANITIZED)
	@echo "sanitize: compiling"
	@SPOS_SANITIZE=1 $(BIN)/python setup.py -q build --build-lib $(SANITIZED) > $(VENV)/sanitize.log 2>&1 || \
	  { cat $(VENV)/sanitize.log >&2; exit 1; }
	@$(SANITIZE) -c 'import spos_kernels._C as module; print("sanitize: testing", module.__file__)'
	@$(SANITIZE) -m pytest tests/spos_kernels; status=$$?; \
	  if ls $(SANITIZED)/report.* > /dev/null 2>&1; then cat $(SANITIZED)/report.*; exit 1; fi; exit $$status

# The AVX-512 and AMX kernels where the processor has AVX2 only, or no AMX: compiled with twins of the intrinsics
# (csrc/avx512_twins, csrc/core/amx.h), as a package folder of its own that comes first on the import path. Loops that
# the compiler turned into vectors itself are those of AVX2.
TWINS := build/avx512-twins
TWIN_TESTS := tests/avx512_twins tests/spos_kernels --ignore=tests/spos_kernels/cuda --ignore=tests/spos_kernels/triton
test-avx512: $(VENV)/.installed
	@has() { for flag; do grep -qsw "$$flag" /proc/cpuinfo || return 1; done; }; \
	if has avx512f avx512bw avx512dq avx512vl avx512_vnni avx512vbmi avx512_vpopcntdq; then \
	  if has amx_tile amx_int8; then \
	    echo "test-avx512: skipped, this processor has AVX-512 and AMX: make test runs their kernels"; \
	  else $(MAKE) --no-print-directory run-avx512-twins TWIN_TESTS="tests/spos_kernels/test_lowbit_*.py -k amx"; fi; \
	elif ! has avx2 fma; then \
	  echo "test-avx512: skipped, this processor has no AVX2"; \
	else $(MAKE) --no-print-directory run-avx512-twins; fi

.PHONY: run-avx512-twins
run-avx512-twins: TESTED = env PYTHONPATH=$(TWINS) PYTHONSAFEPATH=1 $(BIN)/python
run-avx512-twins:
	@echo "test-avx512: compiling"
	@SPOS_AVX512_TWINS=1 SPOS_CUDA=0 $(BIN)/python setup.py -q build --build-lib $(TWINS) > $(VENV)/avx512-twins.log 2>&1 || \
	  { cat $(VENV)/avx512-twins.log >&2; exit 1; }
	@$(TESTED) -c 'import spos_kernels._C as m; assert m.isa_supported(m.Isa.amx); print("test-avx512: testing", m.__file__)'
	@$(TESTED) -m pytest $(TWIN_TESTS)

# The second environment borrows torch and the other dependencies from the first through a path file, which does not
# bring the first one's editable install along; the wheel itself is installed for real.
wheel: $(VENV)/.built
	@rm -rf dist $(WHEEL_VENV)
	@$(PIP) wheel --no-deps -w dist .
	@$(PYTHON) -m venv $(WHEEL_VENV)
	@$(WHEEL_VENV)/bin/python -m pip --disable-pip-version-check -q install --no-deps dist/*.whl
	@site() { $$1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
	  realpath "$$(site $(VENV))" > "$$(site $(WHEEL_VENV))/dependencies.pth"
	@cd dist && ../$(WHEEL_VENV)/bin/python ../tools/check_wheel.py

clean:
	rm -rf build dist runs benchmark-results *.egg-info spos_kernels/*.so $(VENV)/.built \
	  .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find spos spos_kernels tests benchmarks tools -name __pycache__ -type d -exec rm -rf {} +
