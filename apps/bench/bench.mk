# Benchmarks; the Makefile includes this at its end.
#
#   make bench         check and time every stage: notes/runs/$(RUN).json; built for this processor,
#                      every stage with the same flags, in a separate folder
#   make tables        rewrite the tables between markers from the run files
#   make figures       draw the run files: docs/figures/bench_*.svg
#   make check-tables  fail if a table differs from its run file, or ratios are computed wrongly
#   make test-peers    `nsa bench --peers` with stub programs

RUN         ?= cpu
BENCH_ARGS  ?= --pass all --budget 100
FIGURES     ?= cpu cpu_backward
BENCH_OPT   ?= -O3 $(call march,$(CC)) -fno-math-errno -fno-trapping-math -ffp-contract=fast
BENCH       := $(wildcard apps/bench/*.c)
LINTED      += $(BENCH)
C_FILES     += $(BENCH)

# OpenBLAS is the sgemm ceiling and the dense baseline. The command is not linked with it: a bench
# loads it by this name. Without it (BLAS=no, not installed, or a cross build, which names its own
# libraries) both say SKIP, and everything else is timed.
BLAS        ?= $(if $(filter command,$(firstword $(origin CJSON_LIBS))),no,$\
               $(if $(shell pkg-config --libs openblas 2>/dev/null),yes,no))
ifeq ($(BLAS),yes)
OPENBLAS    ?= libopenblas.so.0
BLAS_CFLAGS := -DNSA_WITH_OPENBLAS -DNSA_OPENBLAS='"$(OPENBLAS)"' $(shell pkg-config --cflags openblas)
endif

# The GPU's ceilings: a shared object beside the command, which loads it at run time. So the command
# itself needs no CUDA.
ifeq ($(CUDA),gpu)
GPU_PART := $(BUILD)/libnsa_gpu.so
all: $(GPU_PART)
install: install-gpu
endif

$(BUILD)/libnsa_gpu.so: apps/bench/gpu.cu apps/bench/gpu.h apps/bench/bench.h apps/bench/bench.mk \
    $(CUDA_STAMP)
	@mkdir -p $(@D)
	@echo "  CU  $@"
	$(Q)$(NVCC) $(NVCC_BASE) -Iapps $(NVCC_ARCHS) -shared -cudart static $< -o $@ -ldl

.PHONY: install-gpu
install-gpu: $(GPU_PART) ##@part
	install -d $(DESTDIR)$(PREFIX)/lib
	install -m 755 $< $(DESTDIR)$(PREFIX)/lib/libnsa_gpu.so

# The baseline is always built for this processor: a slow baseline would flatter every stage.
DENSE_FLAGS := -O3 $(MARCH_FLAG) -fno-math-errno -fno-trapping-math \
               -ffp-contract=fast
# What a run file records; warnings and what any file has are left out.
COMMON_FLAGS := $(strip $(filter-out -W% -g -D% -fvisibility% -fPIC,$(BASE) $(CFLAGS)))

$(BUILD)/nsa: $(call object,$(BENCH))
$(BUILD)/nsa: override CJSON_LIBS += -ldl
$(BUILD)/obj/apps/bench/blas.o: override CFLAGS += $(BLAS_CFLAGS)
$(BUILD)/obj/apps/bench/dense.o: override CFLAGS += $(DENSE_FLAGS)
$(BUILD)/obj/apps/bench/machine.o: override CFLAGS += -DBENCH_FLAGS='"$(COMMON_FLAGS)"' \
    -DBENCH_DENSE_FLAGS='"$(strip $(DENSE_FLAGS))"'
$(call object,$(BENCH)): apps/bench/bench.mk

# The stage's extra flags, in a file beside it: a prerequisite inherits the stage's STAGE_CFLAGS.
$(STAGES:%=$(BUILD)/stages/%.so): $(BUILD)/stages/%.so: | $(BUILD)/stages/%.flags
$(STAGES:%=$(BUILD)/stages/%.flags): $(BUILD)/stages/%.flags: Makefile $(wildcard stages/*/stage.mk)
	@mkdir -p $(@D)
	@echo '$(strip $(filter-out -W%,$(STAGE_CFLAGS)))' >$@

.PHONY: bench tables figures check-tables test-peers

test-peers: $(BUILD)/nsa $(STAGES:%=$(BUILD)/stages/%.so) ##@test `nsa bench --peers` with stub programs that answer well and badly
	NSA=./$(BUILD)/nsa sh tests/peers.sh

bench: ## check and time every stage: notes/runs/cpu.json; BENCH_ARGS="--seq 1k,2k", RUN=cpu
	@mkdir -p notes/runs
	$(MAKE) --no-print-directory -s BUILD=$(BUILD)/bench OPT='$(BENCH_OPT)' all
	./$(BUILD)/bench/nsa bench $(BENCH_ARGS) --json notes/runs/$(RUN).json

tables: $(BUILD)/nsa ##@measure rewrite the tables of README and pages from notes/runs
	NSA=./$(BUILD)/nsa sh apps/bench/tables.sh

check-tables: $(BUILD)/nsa ##@measure fail if a table differs from its run file, or ratios are computed wrongly
	NSA=./$(BUILD)/nsa sh tests/ratios.sh
	NSA=./$(BUILD)/nsa sh apps/bench/tables.sh --check

figures: $(BUILD)/nsa ##@measure draw the runs FIGURES="cpu ..." with gnuplot: docs/figures/bench_*.svg
	NSA=./$(BUILD)/nsa sh apps/bench/figures.sh $(FIGURES:%=notes/runs/%.json)
