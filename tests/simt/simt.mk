# CUDA stages: where they run, and how their .cu files are compiled.
#
#   CUDA=gpu  nvcc, for a GPU
#   CUDA=sim  the C++ compiler and the simulator of tests/simt, for any CPU
#
# Without a choice it is gpu where nvcc is found and nvidia-smi lists a GPU, else sim. The objects
# of the two lie apart, and a stamp rebuilds the shared objects after a switch. See docs/simulator.md.

# make's own default for CXX is not a choice: take the one that belongs to CC
ifeq ($(origin CXX),default)
CXX := $(if $(findstring clang,$(CC)),$(subst clang,clang++,$(CC)),g++)
endif
NVCC ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU ')
ifeq ($(origin CUDA),command line)
ifeq ($(filter gpu sim,$(CUDA)),)
$(error CUDA=$(CUDA): gpu or sim)
endif
endif
ifneq ($(filter gpu sim,$(CUDA)),)
CUDA_WHY := CUDA=$(CUDA)
else
CUDA := $(if $(and $(NVCC),$(filter-out 0,$(GPUS))),gpu,sim)
CUDA_WHY := $(if $(filter gpu,$(CUDA)),$(GPUS) found,no $(if $(filter-out 0,$(GPUS)),nvcc,GPU) found)
endif

CUDA_FILES  := $(wildcard stages/[0-9][0-9]_*/*.cu)
CUDA_STAGES := $(sort $(notdir $(patsubst %/,%,$(dir $(CUDA_FILES)))))
CUDA_STAMP  := $(BUILD)/obj/cuda.$(CUDA)
SIMT_FILES  := $(wildcard tests/simt/*.cpp)
SIMT_TESTS  := $(wildcard tests/simt/test/*.cu)
CUDA_HEADERS := $(wildcard stages/*/*.cuh stages/*/steps/*.cuh stages/*/steps/*/*.cuh \
                    tests/simt/*.h tests/simt/test/*.cuh)

# For the simulator. -fsanitize=alignment makes a misaligned access call the simulator, which
# reports it. Optimised without debug checks of the C++ library: a kernel is a fiber of 400 KiB.
# Vectors are read from arrays of another type, which nvcc allows: -fno-strict-aliasing. Functions
# that differ only in types and lines would be one, and a report name the wrong ones: -fno-ipa-icf.
# SIMT_UNROLL: loops over a lane's registers, which nvcc unrolls by #pragma: kernels run a fifth
# faster, and take half as long again to compile.
SIMT_UNROLL ?= -funroll-loops
SIMT_BASE := -std=c++17 -D_GNU_SOURCE -DNSA_SIMT -g -ffp-contract=off -fPIC -fvisibility=hidden \
             -fno-exceptions -fno-rtti -Wall -Wextra -Wshadow -Werror -Istages -Itests
SIMT_CU   := $(SIMT_UNROLL) -Wno-unknown-pragmas -fno-strict-aliasing -fsanitize=alignment \
             -fno-sanitize-recover=alignment \
             $(if $(findstring clang,$(CXX)),-Wno-pass-failed -Wno-unused-function,-fno-ipa-icf)
SIMT_MARCH := $(call march,$(CXX))
SIMT_LIBS := -pthread -ldl -lm
simt_objects = $(patsubst %.cpp,$(BUILD)/obj/%.o,$(SIMT_FILES))

# For a GPU: its own architecture where there is one, else every one that CUDA 13 still knows.
CUDA_ARCHS ?= $(or $(sort $(subst .,,$(shell nvidia-smi --query-gpu=compute_cap \
                  --format=csv,noheader 2>/dev/null | grep '^[0-9.]*$$'))),75 80 86 89 90)
NVCC_BASE := -std=c++17 -O3 -lineinfo -Istages -Itests \
             -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unused-parameter
NVCC_ARCHS = $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
             -gencode arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS))

# What compiles one .cu file, and what links a CUDA stage. STAGE_SIMFLAGS and STAGE_NVFLAGS are a
# stage.mk's to set.
cu_sim = $(CXX) -x c++ $(SIMT_BASE) $(OPT) $(SIMT_CU) $(SIMT_MARCH) $(STAGE_SIMFLAGS) $(CFLAGS)
cu_gpu = $(NVCC) $(NVCC_BASE) $(NVCC_ARCHS) $(STAGE_NVFLAGS)
ld_sim = $(CXX) -shared -Wl,-z,defs -Wl,--version-script=tests/simt/stage.map $(CFLAGS) $(LDFLAGS)
ld_gpu = $(NVCC) -shared -cudart static -Xlinker -z,defs,--exclude-libs=ALL
RPATH_STAGE_sim := -Wl,-rpath,'$$ORIGIN/..' -Wl,-rpath,'$$ORIGIN/../..'
RPATH_STAGE_gpu := -Xlinker -rpath,'$$ORIGIN/..' -Xlinker -rpath,'$$ORIGIN/../..'
LIBS_sim := $(SIMT_LIBS)
LIBS_gpu := -lm

$(CUDA_STAMP):
	@mkdir -p $(@D)
	@rm -f $(BUILD)/obj/cuda.*
	@touch $@

$(BUILD)/obj/tests/simt/%.o: tests/simt/%.cpp $(CUDA_HEADERS) $(HEADERS) Makefile tests/simt/simt.mk
	@mkdir -p $(@D)
	@echo "  CXX $@"
	$(Q)$(CXX) $(SIMT_BASE) -U_FORTIFY_SOURCE $(or $(OPT),-O2) $(SIMT_MARCH) $(CFLAGS) -c $< -o $@

# A stage with .cu files: those, its .c files, and the simulator where it is asked for. The first
# rule also compiles what stands in its folder steps, which is no part of the stage.
define cuda_stage_rules
$(BUILD)/obj/$(CUDA)/stages/$(1)/%.o: stages/$(1)/%.cu $$(CUDA_HEADERS) $$(HEADERS) Makefile \
    tests/simt/simt.mk $$(wildcard stages/$(1)/stage.mk)
	@mkdir -p $$(@D)
	@echo "  CU  $$@"
	$$(Q)$$(cu_$(CUDA)) -Istages/$(1) -c $$< -o $$@
$(BUILD)/stages/$(1).so: $$(patsubst %.cu,$(BUILD)/obj/$(CUDA)/%.o,$$(wildcard stages/$(1)/*.cu)) \
    $$(call object,$$(wildcard stages/$(1)/*.c)) $(if $(filter sim,$(CUDA)),$$(simt_objects)) \
    $(BUILD)/libnsa.so $(CUDA_STAMP)
	@mkdir -p $$(@D)
	@echo "  LD  $$@"
	$$(Q)$$(ld_$(CUDA)) $$(filter %.o,$$^) -o $$@ -L$(BUILD) -lnsa $$(RPATH_STAGE_$(CUDA)) \
	    $$(STAGE_LIBS) $$(LIBS_$(CUDA))
$(BUILD)/stages/$(1).so: STAGE_SIMFLAGS :=
$(BUILD)/stages/$(1).so: STAGE_NVFLAGS :=
endef
$(foreach s,$(CUDA_STAGES),$(eval $(call cuda_stage_rules,$(s))))

.PHONY: say-cuda
say-cuda: ##@part
	$(if $(CUDA_STAGES),@echo "CUDA stages: $(if $(filter gpu,$(CUDA)),GPU,simulator) ($(CUDA_WHY))",@:)

# ------------------------------------------------------------ the simulator's own tests

SIMT_TEST_SIM = $(patsubst %.cu,$(BUILD)/obj/sim/%.o,$(SIMT_TESTS))
SIMT_TEST_GPU = $(patsubst %.cu,$(BUILD)/obj/gpu/%.o,$(SIMT_TESTS))
.PHONY: test-simt test-simt-asan test-simt-valgrind simt-nvcc

$(BUILD)/obj/sim/tests/simt/test/%.o: tests/simt/test/%.cu $(CUDA_HEADERS) $(HEADERS) tests/simt/simt.mk
	@mkdir -p $(@D)
	@echo "  CU  $@"
	$(Q)$(cu_sim) -c $< -o $@

$(BUILD)/obj/gpu/tests/simt/test/%.o: tests/simt/test/%.cu $(CUDA_HEADERS) $(HEADERS) tests/simt/simt.mk
	@mkdir -p $(@D)
	@echo "  CU  $@"
	$(Q)$(cu_gpu) -c $< -o $@

$(BUILD)/simt-test: $(SIMT_TEST_SIM) $(simt_objects) $(BUILD)/libnsa.so
	@echo "  LD  $@"
	$(Q)$(CXX) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa $(RPATH) $(SIMT_LIBS)

$(BUILD)/simt-test-gpu: $(SIMT_TEST_GPU) $(BUILD)/libnsa.so
	@echo "  LD  $@"
	$(Q)$(NVCC) -cudart static $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa -Xlinker -rpath,'$$ORIGIN'

test-simt: $(BUILD)/simt-test ##@test the CUDA simulator: kernels that are right, and wrong ones that it must report
	./$(BUILD)/simt-test

simt-nvcc: $(BUILD)/simt-test-gpu ##@test the same kernels compiled by nvcc: build/simt-test-gpu, for a machine with a GPU

test-simt-asan: ##@test test-simt under address and undefined-behaviour sanitizers
	$(MAKE) --no-print-directory -s BUILD=build/simt-asan OPT=-O1 MARCH= \
	    CFLAGS='-fsanitize=address -fno-omit-frame-pointer' build/simt-asan/simt-test
	ASAN_OPTIONS=$(LEAKS) ./build/simt-asan/simt-test

test-simt-valgrind: ##@test test-simt under valgrind
	$(MAKE) --no-print-directory -s BUILD=build/simt-valgrind MARCH= CFLAGS=-DNSA_VALGRIND \
	    build/simt-valgrind/simt-test
	valgrind -q --child-silent-after-fork=yes --error-exitcode=99 ./build/simt-valgrind/simt-test
