# The program nsa-bench, which `nsa bench` starts; the Makefile includes this at its end.

RUN         ?= cpu
BENCH_ARGS  ?= --pass all --budget 100
FIGURES     ?= ladder
BENCH_OPT   ?= -O3 $(call march,$(CC)) -fno-math-errno -fno-trapping-math -ffp-contract=fast
BENCH       := $(wildcard apps/bench/*.c)
LINTED      += $(BENCH)
C_FILES     += $(BENCH)
# The baseline is always built for this processor: a slow baseline would flatter every stage.
DENSE_FLAGS := -O3 $(MARCH_FLAG) -fno-math-errno -fno-trapping-math -ffp-contract=fast -fopenmp-simd
# What a run file records; warnings and what any file has are left out.
COMMON_FLAGS := $(strip $(filter-out -W% -g -D% -I% -fvisibility% -fPIC,$(BASE) $(CFLAGS)))

all: $(BUILD)/nsa-bench
$(BUILD)/nsa-bench: $(call object,$(BENCH) apps/commands.c $(IO) $(HARNESS)) $(BUILD)/libnsa.so
	@echo "  LD  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa $(RPATH) $(CJSON_LIBS) \
	    -ldl -lm -pthread

$(call object,$(BENCH)): apps/bench/bench.mk
$(BUILD)/obj/apps/bench/dense.o: override CFLAGS += $(DENSE_FLAGS) -Wno-pass-failed
# OPENBLAS if it is not libopenblas.so.0: without it the sgemm ceiling and the baseline say SKIP.
$(BUILD)/obj/apps/bench/machine.o: override CFLAGS += \
    $(if $(OPENBLAS),-DBENCH_OPENBLAS='"$(OPENBLAS)"') -DBENCH_FLAGS='"$(COMMON_FLAGS)"' \
    -DBENCH_DENSE_FLAGS='"$(strip $(DENSE_FLAGS))"'

# The GPU's ceilings: a shared object beside the program, which loads it at run time.
ifeq ($(CUDA),gpu)
GPU_PART := $(BUILD)/libnsa_gpu.so
all: $(GPU_PART)
endif

$(BUILD)/libnsa_gpu.so: apps/bench/gpu.cu apps/bench/bench.h apps/bench/bench.mk $(CUDA_STAMP)
	@mkdir -p $(@D)
	@echo "  CU  $@"
	$(Q)$(NVCC) $(NVCC_BASE) -Iapps $(NVCC_ARCHS) -shared -cudart static $< -o $@ -ldl

# The stage's extra flags, in a file beside it: a prerequisite inherits the stage's STAGE_CFLAGS.
$(STAGES:%=$(BUILD)/stages/%.so): $(BUILD)/stages/%.so: | $(BUILD)/stages/%.flags
$(STAGES:%=$(BUILD)/stages/%.flags): $(BUILD)/stages/%.flags: Makefile $(wildcard stages/*/stage.mk)
	@mkdir -p $(@D)
	@echo '$(strip $(filter-out -W%,$(STAGE_CFLAGS)))' >$@

.PHONY: bench tables figures check-tables install-bench

install: install-bench
install-bench: $(BUILD)/nsa-bench $(GPU_PART) ##@part
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib
	install -m 755 $(BUILD)/nsa-bench $(DESTDIR)$(PREFIX)/bin
	$(if $(GPU_PART),install -m 755 $(GPU_PART) $(DESTDIR)$(PREFIX)/lib)

bench: ## check and time every stage: notes/runs/cpu.json; BENCH_ARGS="--seq 1k,2k", RUN=cpu
	@mkdir -p notes/runs
	$(MAKE) --no-print-directory -s BUILD=$(BUILD)/bench OPT='$(BENCH_OPT)' all
	./$(BUILD)/bench/nsa bench $(BENCH_ARGS) --json notes/runs/$(RUN).json

tables: $(BUILD)/nsa-bench ##@measure rewrite the tables of README and pages from notes/runs
	NSA_BENCH=./$(BUILD)/nsa-bench sh apps/bench/tables.sh

check-tables: $(BUILD)/nsa-bench ##@measure fail if a table differs from its run file, or a ratio is wrong
	NSA_BENCH=./$(BUILD)/nsa-bench sh tests/ratios.sh
	NSA_BENCH=./$(BUILD)/nsa-bench sh apps/bench/tables.sh --check

figures: $(BUILD)/nsa-bench ##@measure draw the runs FIGURES="cpu ..." with gnuplot: docs/figures
	@set -e; for run in $(FIGURES); do for figure in time speedup; do \
	    svg=docs/figures/bench_$${run}_forward_$$figure.svg; \
	    ./$(BUILD)/nsa-bench --plot-data notes/runs/$$run.json --what $$figure >$(BUILD)/points; \
	    gnuplot -e "points='$(BUILD)/points'; figure='$$figure'; run='notes/runs/$$run.json'" \
	        apps/bench/plot.gp >$(BUILD)/plot.svg; \
	    cp $(BUILD)/plot.svg $$svg; echo "figures: $$svg"; done; done
