# Further tests: bad input, fuzzing, sanitizers, other machines, coverage. Each target builds in a
# separate folder below build/ by calling this Makefile again, and ends with a line of counts.

.PHONY: test-bad-input fuzz fuzz-targets test-asan test-tsan test-valgrind test-orders \
        test-contract test-sanitizer test-aarch64 test-matrix coverage
AGAIN := $(MAKE) --no-print-directory -s
CLANG ?= clang
# A sanitizer's runtime is in the program alone, so a shared object leaves its names open. OpenMP's
# goes into the program, too: the sanitizers do not work with a runtime that is loaded later by a
# stage.
OPEN  := LDFLAGS='-Wl,-z,undefs -Wl,--no-as-needed -fopenmp'
# Where the command finds its files if it is not build/nsa. Waiting threads sleep, because an
# instrumented program waits long.
FIND  := NSA_VECTORS=tests/vectors NSA_SHARE=apps/demo OMP_WAIT_POLICY=passive
PLAIN_STAGES := $(filter-out $(notdir $(patsubst %/,%,$(dir $(wildcard stages/*/*.cu)))),$(STAGES))
EVERY := $(BUILD)/nsa $(PLAIN_STAGES:%=$(BUILD)/stages/%.so)

# --------------------------------------------------------------------- bad input

BAD_STAGES := 90_nothing 91_null 92_abi 93_empty 94_elsewhere 95_open 96_device

# shared objects that are not valid stages; WRONG is the index in the list
$(BUILD)/bad_stages/%.so: tests/bad_stage.c $(BUILD)/libnsa.so
	@mkdir -p $(@D)
	$(Q)$(CC) $(BASE) $(CFLAGS) $(LDFLAGS) -Istages -DWRONG=$$(($(patsubst 9%,%,$(firstword \
	    $(subst _, ,$*))))) -shared $< -o $@ -L$(BUILD) -lnsa -Wl,-rpath,'$$ORIGIN/..'

.PHONY: bad-stages
bad-stages: $(BAD_STAGES:%=$(BUILD)/bad_stages/%.so) ##@part

TRIED := $(EVERY) $(BUILD)/nsa-bench $(BUILD)/judge $(BUILD)/corners bad-stages
test-bad-input: $(TRIED) ##@test bad files and options give one line
	$(BUILD)/corners
	$(FIND) NSA=$(BUILD)/nsa BAD_STAGES=$(BUILD)/bad_stages sh tests/bad_input.sh

$(BUILD)/corners: $(call object,tests/corners.c tests/corners_tensors.c) $(BUILD)/libnsa.so
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa $(RPATH)

# ----------------------------------------------------------------------- reading

.PHONY: test-diff
test-diff: ##@test make diff prints each file of two stages once; sizes of steps
	MAKE='$(AGAIN)' sh tests/diff.sh

# ------------------------------------------------------------------------ Python

# A Python that has NumPy: the first in PATH, else the one of the distribution.
PYTHON ?= $(firstword $(foreach p,python3 /usr/bin/python3,$(shell \
    $p -c 'import numpy' 2>/dev/null && echo $p)))

.PHONY: test-python
test-python: all ##@test apps/python/nsa.py on NumPy arrays, and that it fits the headers
	@python='$(PYTHON)'; if [ -z "$$python" ]; then \
	    echo "test-python: SKIP: no python3 here has NumPy (package python3-numpy)"; exit 0; fi; \
	cd tests/python && CC='$(CC)' PYTHONDONTWRITEBYTECODE=1 NSA_LIB='$(abspath $(BUILD))/libnsa.so' \
	    $$python -m unittest

# ----------------------------------------------------------------------- fuzzing

# The leak detector of GCC up to 13 and LLVM up to 16 mistakes a thread-local block of a shared
# library that lies 16 bytes into a page for one with the header that glibc had before 2.25, follows
# a wrong pointer, and dies ("Tracer caught signal 11") where nothing leaks. With this off, memory
# that only such a block points to counts as a leak; ours hold no pointers.
LEAKS := detect_leaks=1:intercept_tls_get_addr=0

# Seconds for each target. A crash is kept in build/fuzz/found; replay it with the line it prints.
SECONDS_EACH ?= 60
FUZZ_TARGETS := npy config case $(PLAIN_STAGES:%=contract_%)
FUZZ_FLAGS   := -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all \
                -Wno-pass-failed
FUZZ_BUILD   := BUILD=build/fuzz CC='$(CLANG)' OPT=-O1 \
                CFLAGS='-fsanitize=fuzzer-no-link $(FUZZ_FLAGS)' $(OPEN)
FUZZ_WRAP    := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc
FUZZ_MAIN    ?= -fsanitize=fuzzer,address,undefined
FUZZ_PARTS   := $(addprefix tests/fuzz/,contract.c contract_inputs.c contract_memory.c)
FUZZ_SHARED  := $(COMMON) $(IO) $(addprefix tests/harness/,case.c edges.c tensor.c)

$(BUILD)/fuzz_%: $(call object,tests/fuzz/fuzz_%.c $(FUZZ_SHARED)) $(FUZZ_EXTRA)
	$(Q)$(CC) $(CFLAGS) $^ -o $@ $(FUZZ_MAIN) $(CJSON_LIBS) -ldl -lm -pthread
# A stage's objects, compiled with its own flags because its shared object asked for them first.
define contract_rule
$(BUILD)/fuzz_contract_$(1): $(call object,$(FUZZ_PARTS) $(COMMON)) $(FUZZ_EXTRA) \
        $(BUILD)/stages/$(1).so
	$$(Q)$$(CC) $$(CFLAGS) $(FUZZ_WRAP) $$(filter %.o,$$^) \
	    $(call object,$(wildcard stages/$(1)/*.c)) -o $$@ $$(FUZZ_MAIN) \
	    $(if $(findstring fopenmp,$(shell cat stages/$(1)/stage.mk 2>/dev/null)),-fopenmp) \
	    -ldl -lm -pthread
endef
$(foreach s,$(PLAIN_STAGES),$(eval $(call contract_rule,$(s))))

fuzz-targets: $(FUZZ_TARGETS:%=$(BUILD)/fuzz_%) ##@part

fuzz: ##@test libFuzzer on .npy, config.json, case strings and the contract: SECONDS_EACH=60
	$(AGAIN) $(FUZZ_BUILD) fuzz-targets
	OMP_WAIT_POLICY=passive ASAN_OPTIONS="$(LEAKS):$$ASAN_OPTIONS" SECONDS_EACH=$(SECONDS_EACH) \
	    sh tests/fuzz.sh build/fuzz $(FUZZ_TARGETS)

# -------------------------------------------------------------------- sanitizers

# Each runs `nsa check` in one process, then shows on copies of the tree with a planted fault
# (tests/faults) that it can fail.
CHECK       ?= --quick
ASAN_FLAGS  := -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all \
               -fno-omit-frame-pointer -Wno-pass-failed
ASAN_BUILD  := CC='$(CLANG)' OPT=-O1 CFLAGS='$(ASAN_FLAGS)' $(OPEN)
# The harness catches signals itself; handle_*=2 keeps the sanitizer's report.
ASAN_SEES   := LSAN_OPTIONS=suppressions=$(CURDIR)/tests/lsan.supp:print_suppressions=0 \
               ASAN_OPTIONS=handle_segv=2:handle_sigbus=2:handle_sigfpe=2:handle_sigill=2:$(LEAKS) \
               UBSAN_OPTIONS=print_stacktrace=1
# OpenMP's own runtime is not instrumented; archer tells the sanitizer what it orders. It asks for
# ignore_noninstrumented_modules=1, which would also hide races in snprintf or memcpy.
TSAN_FLAGS  := -fsanitize=thread -Wno-pass-failed
TSAN_BUILD  := CC='$(CLANG)' OPT=-O2 CFLAGS='$(TSAN_FLAGS)' $(OPEN)
TSAN_SEES   := TSAN_OPTIONS=halt_on_error=1:exitcode=66:suppressions=$(CURDIR)/tests/tsan.supp
VALGRIND    := valgrind -q --error-exitcode=99 --leak-check=full --show-leak-kinds=definite \
               --errors-for-leak-kinds=definite --suppressions=$(CURDIR)/tests/valgrind.supp
VALGRIND_BUILD := CFLAGS=-DNSA_VALGRIND MARCH=x86-64
# valgrind is forty times slower: only these shapes. They are longer than 64 tokens, to leave out
# the thousands of runs of central differences.
VALGRIND_CASES ?= T=66,phi=mlp,hidden=5 T=70,phi=gated seqs=15+0+55

$(BUILD)/threads: $(call object,tests/threads.c $(IO) $(HARNESS)) $(BUILD)/libnsa.so
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa $(RPATH) \
	    $(CJSON_LIBS) -lm -pthread

.PHONY: checkable
checkable: $(EVERY) $(BUILD)/threads $(BUILD)/corners ##@part

test-asan: ##@test nsa check under address and undefined-behaviour sanitizers: CHECK=--quick
	$(AGAIN) BUILD=build/asan $(ASAN_BUILD) checkable
	$(FIND) $(ASAN_SEES) build/asan/nsa check $(CHECK)
	$(FIND) $(ASAN_SEES) build/asan/threads
	$(FIND) $(ASAN_SEES) build/asan/corners --no-fences
	MAKE='$(AGAIN)' $(FIND) $(ASAN_SEES) sh tests/teeth.sh asan build/asan $(ASAN_BUILD)

test-tsan: ##@test nsa check and two contexts in two threads under the thread sanitizer
	$(AGAIN) BUILD=build/tsan $(TSAN_BUILD) checkable
	$(FIND) $(TSAN_SEES) build/tsan/nsa check $(CHECK)
	$(FIND) $(TSAN_SEES) build/tsan/threads
	MAKE='$(AGAIN)' $(FIND) $(TSAN_SEES) sh tests/teeth.sh tsan build/tsan $(TSAN_BUILD)

test-valgrind: ##@test nsa check on a few shapes under valgrind: VALGRIND_CASES='...'
	$(AGAIN) BUILD=build/valgrind $(VALGRIND_BUILD) checkable
	set -e; for text in $(VALGRIND_CASES); do \
	    $(FIND) $(VALGRIND) build/valgrind/nsa check --case "$$text"; done
	MAKE='$(AGAIN)' $(FIND) VALGRIND='$(VALGRIND)' \
	    sh tests/teeth.sh valgrind build/valgrind $(VALGRIND_BUILD)

.PHONY: cuda-checkable
cuda-checkable: $(BUILD)/nsa $(addprefix $(BUILD)/stages/,00_dense.so $(CUDA_STAGES:%=%.so)) ##@part

# nvcc may contract a*b+c to an fma; the simulator's build does not. Here it does: equal scores must
# still give equal bits, and large scores keep their digits.
CONTRACT_BUILD := BUILD=build/contract CUDA=sim \
                  SIMT_UNROLL='-funroll-loops -ffp-contract=fast -march=native'
CONTRACT_CASES ?= T=70,data=low,scale=0.7 T=70,data=high,scale=7 T=140,data=ties \
                  T=66,data=large,phi=mlp,hidden=5

test-contract: ##@test the CUDA stages simulated, with multiply-adds contracted as by nvcc
	$(AGAIN) $(CONTRACT_BUILD) cuda-checkable
	set -e; for stage in $(CUDA_STAGES); do for text in $(CONTRACT_CASES); do \
	    for property in forward backward decode; do \
	    echo "=== $$property $$text"; \
	    $(FIND) build/contract/nsa check --stage $$stage --property $$property --case "$$text"; \
	done; done; done

# The CUDA stages on the simulator, in every order of threads; built separately if there is a GPU.
ORDERS_BUILD := $(if $(filter sim,$(CUDA)),$(BUILD),build/sim)

test-orders: ##@test the CUDA stages in the simulator's three orders of threads
	$(AGAIN) BUILD=$(ORDERS_BUILD) CUDA=sim cuda-checkable
	$(FIND) BUILD=$(ORDERS_BUILD) JOBS=$(JOBS) STAGES='$(CUDA_STAGES)' sh tests/orders.sh
	MAKE='$(AGAIN)' $(FIND) JOBS=$(JOBS) TARGET=cuda-checkable \
	    sh tests/teeth.sh orders $(ORDERS_BUILD) CUDA=sim

# NVIDIA's compute-sanitizer on the CUDA stages, where there is a GPU: every property, on the small
# cases of tests/sanitizer.sh or on SANITIZER_CASES='PROPERTY:CASE ...'.
COMPUTE_SANITIZER ?= compute-sanitizer
SANITIZER_TOOLS   ?= memcheck racecheck initcheck synccheck
SANITIZER_CASES   ?=

test-sanitizer: ##@test on a GPU: the CUDA stages under compute-sanitizer's four tools
ifneq ($(CUDA),gpu)
	@echo "test-sanitizer: no GPU here; the simulator is checked by test-simt" >&2; exit 1
else
	$(AGAIN) BUILD=$(BUILD) cuda-checkable
	$(FIND) BUILD=$(BUILD) JOBS=$(JOBS) STAGES='$(CUDA_STAGES)' TOOLS='$(SANITIZER_TOOLS)' \
	    COMPUTE_SANITIZER='$(COMPUTE_SANITIZER)' sh tests/sanitizer.sh $(SANITIZER_CASES)
	MAKE='$(AGAIN)' $(FIND) COMPUTE_SANITIZER='$(COMPUTE_SANITIZER)' TARGET=cuda-checkable \
	    sh tests/teeth.sh gpu $(BUILD) CUDA=gpu
endif

# ---------------------------------------------------------------- other machines

AARCH64      := aarch64-linux-gnu
AARCH64_ROOT := build/aarch64/root
AARCH64_LIB  := $(AARCH64_ROOT)/usr/lib/$(AARCH64)
QEMU         := qemu-aarch64 -L /usr/$(AARCH64) -E LD_LIBRARY_PATH=$(AARCH64_LIB)
AARCH64_STAGES ?= $(STAGES)

.PHONY: test-install
test-install: all ##@install make install into a folder, and what is there works on its own
	CC='$(CC)' MAKE='$(MAKE)' sh tests/install.sh

.PHONY: test-distros
test-distros: ##@install as root: both commands of README, docs and lint on a bare Debian 12 and 13
	sh tests/distros.sh $(RELEASES)

# The flags of stage 02 and -march=native are not set here: the Makefile asks the compiler.
test-aarch64: ##@test every stage and the demo, built for aarch64 and run in qemu
	sh tests/setup-quality.sh --aarch64
	$(AGAIN) -j$(JOBS) BUILD=build/aarch64 CC=$(AARCH64)-gcc CXX=$(AARCH64)-g++ CUDA=sim \
	    STAGES='$(AARCH64_STAGES)' CJSON_CFLAGS=-I$(AARCH64_ROOT)/usr/include \
	    CJSON_LIBS=$(AARCH64_LIB)/libcjson.so.1 checkable cuda-checkable
	$(FIND) $(QEMU) build/aarch64/nsa list
	rm -rf build/aarch64/out build/aarch64/demo
	head -c 2100 apps/demo/text.txt >build/aarch64/text.txt
	$(FIND) $(QEMU) build/aarch64/nsa demo --stage 02 --time 5 \
	    -o build/aarch64/demo build/aarch64/text.txt
	$(FIND) JOBS=$(JOBS) NSA='$(QEMU) build/aarch64/nsa' sh tests/aarch64.sh $(AARCH64_STAGES)
	$(FIND) $(QEMU) build/aarch64/nsa run -s 01 -i tests/vectors/packed -o build/aarch64/out

# compiler, optimisation and machine, a triple each; the short form has every value of each once
MATRIX_SHORT := gcc:-O0:x86-64 gcc:-O3:native clang:-O0:native clang:-O3:x86-64
MATRIX_FULL  := \
    $(foreach c,gcc clang,$(foreach o,-O0 -O3,$(foreach m,x86-64 native,$(c):$(o):$(m))))
MATRIX       ?= $(MATRIX_SHORT)
MATRIX_CHECK ?= --quick

test-matrix: ##@test gcc and clang, -O0 and -O3: MATRIX='gcc:-O2:native ...', or MATRIX=full
	@set -e; passed=0; for row in $(if $(filter full,$(MATRIX)),$(MATRIX_FULL),$(MATRIX)); do \
	    cc=$${row%%:*}; march=$${row##*:}; opt=$${row#*:}; opt=$${opt%:*}; \
	    build=build/matrix/$$cc$$opt-$$march; \
	    $(AGAIN) BUILD=$$build CC=$$cc OPT=$$opt MARCH=$$march \
	        CFLAGS="-march=$$march -Wno-pass-failed" checkable >/dev/null; \
	    echo "matrix: $$cc $$opt -march=$$march"; \
	    $(FIND) $$build/nsa check $(MATRIX_CHECK); passed=$$((passed + 1)); done; \
	echo "matrix: $$passed passed, 0 failed"

# ---------------------------------------------------------------------- coverage

COVERED := 00_dense 01_naive_nsa

coverage: ##@faults lines of stages 00, 01 and common that no test reaches, each with its reason
	$(AGAIN) BUILD=build/coverage OPT=-O0 CFLAGS=--coverage STAGES='$(COVERED)' FUZZ_MAIN= \
	    FUZZ_EXTRA=build/coverage/obj/tests/fuzz/replay.o checkable \
	    $(BAD_STAGES:%=build/coverage/bad_stages/%.so) $(COVERED:%=build/coverage/fuzz_contract_%)
	$(FIND) CHECK='$(CHECK)' sh tests/coverage.sh build/coverage
