# The measuring instrument. The Makefile includes this after APPS, CFLAGS and CJSON_LIBS are set.
#
#   make bench         check and time every stage: notes/runs/$(RUN).json
#   make tables        rewrite the tables between markers from the run files
#   make figures       draw the run files: docs/figures/bench_*.svg
#   make check-tables  fail if a table differs from its run file

RUN         ?= cpu
BENCH_ARGS  ?= --pass all --budget 200
RUNS        := $(wildcard notes/runs/*.json)
APPS        += $(wildcard apps/bench/*.c)

# OpenBLAS is the ceiling and the dense baseline. Without it both say SKIP, and all else is timed.
BLAS_CFLAGS := $(if $(shell pkg-config --libs openblas 2>/dev/null),$\
               -DNSA_WITH_OPENBLAS $(shell pkg-config --cflags openblas))
BENCH_LIBS  := $(shell pkg-config --libs openblas 2>/dev/null) -pthread

# The baseline alone is built for this processor: a slow yardstick would flatter every stage.
DENSE_FLAGS := -O3 -march=native -fno-math-errno -fno-trapping-math -ffp-contract=fast
STAGE_FLAGS := $(shell sed -n 's/.*STAGE_CFLAGS *[:+]*= *//p' stages/[0-9][0-9]_*/stage.mk 2>/dev/null)

$(BUILD)/obj/apps/bench/blas.o: override CFLAGS += $(BLAS_CFLAGS)
$(BUILD)/obj/apps/bench/dense.o: override CFLAGS += $(DENSE_FLAGS)
$(BUILD)/obj/apps/bench/machine.o: override CFLAGS += \
    -DBENCH_FLAGS='"$(strip $(filter-out -W% -g -D% -f%isibility% -fPIC,$(BASE) $(CFLAGS)))"' \
    -DBENCH_OWN_FLAGS='"$(BENCH_OWN_FLAGS)"'

.PHONY: bench tables figures check-tables

bench: all ## check and time every stage: notes/runs/$(RUN).json (BENCH_ARGS="--seq 1k,2k")
	@mkdir -p notes/runs
	./$(BUILD)/nsa bench $(BENCH_ARGS) --json notes/runs/$(RUN).json

tables: $(BUILD)/nsa ## rewrite the tables of README and pages from notes/runs
	NSA=./$(BUILD)/nsa sh apps/bench/tables.sh

check-tables: $(BUILD)/nsa ## fail if a table differs from its run file
	NSA=./$(BUILD)/nsa sh apps/bench/tables.sh --check

figures: $(BUILD)/nsa ## draw notes/runs/*.json with gnuplot: docs/figures/bench_*.svg
	NSA=./$(BUILD)/nsa sh apps/bench/figures.sh $(RUNS)
