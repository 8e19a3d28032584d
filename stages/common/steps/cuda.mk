# The steps of a CUDA stage, compiled like the stage (its stage.mk names this program beside it): for
# a GPU, or with the simulator, which checks them and times nothing. main.cu and inputs.cu stand here
# for all such stages, and are compiled for each.
#   make steps STAGE=03 T=4096 CHAIN=attend
#
# A chain is a folder of the stage's folder steps that holds numbered steps; main.cu runs all that
# are found: CHAIN(attend), for each chain; MOVE("attend", "1_block_row", lines changed from the step
# before), for each step.
define cuda_steps_rules
MOVES_$(1) := $$(sort $$(wildcard stages/$(1)/steps/*/[0-9]*_*.cu))
STEPS_OBJECTS_$(1) := $$(patsubst %.cu,$(BUILD)/obj/$(CUDA)/%.o,$$(wildcard \
                          stages/$(1)/steps/*.cu stages/$(1)/steps/*/*.cu))
STEPS_COMMON_$(1) := $$(patsubst %,$(BUILD)/obj/$(CUDA)/stages/$(1)/steps/%.o,main inputs)

$(BUILD)/steps/$(1)_moves.h: $$(MOVES_$(1)) stages/$(1)/steps/steps.mk stages/common/steps/cuda.mk
	@mkdir -p $$(@D)
	$$(Q)before=; for step in $$(MOVES_$(1)); do changed=0; \
	    chain=$$$${step%/*}; chain=$$$${chain##*/}; \
	    if [ "$$$${before%/*}" = "$$$${step%/*}" ]; then \
	        changed=$$$$(diff -a $$$$before $$$$step | grep -c '^[<>]'); \
	    else echo "CHAIN($$$$chain)"; fi; \
	    echo "MOVE(\"$$$$chain\", \"$$$$(basename $$$$step .cu)\", $$$$changed)"; \
	    before=$$$$step; done >$$@

$$(STEPS_COMMON_$(1)): $(BUILD)/obj/$(CUDA)/stages/$(1)/steps/%.o: stages/common/steps/%.cu \
    $(BUILD)/steps/$(1)_moves.h $$(CUDA_HEADERS) $$(HEADERS) Makefile tests/simt/simt.mk \
    stages/common/steps/cuda.mk $$(wildcard stages/$(1)/stage.mk)
	@mkdir -p $$(@D)
	@echo "  CU  $$@"
	$$(Q)$$(cu_$(CUDA)) -Istages/$(1) -Istages/$(1)/steps -I$(BUILD)/steps \
	    -DMOVES='"$(1)_moves.h"' -c $$< -o $$@

$(BUILD)/steps/$(1): $$(STEPS_OBJECTS_$(1)) $$(STEPS_COMMON_$(1)) \
    $(if $(filter sim,$(CUDA)),$$(simt_objects)) \
    $(BUILD)/libnsa.so $(CUDA_STAMP) stages/$(1)/steps/steps.mk stages/common/steps/cuda.mk
	@mkdir -p $$(@D)
	@echo "  LD  $$@"
	$$(Q)$$(steps_ld_$(CUDA))
endef

steps_ld_sim = $(CXX) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa \
               -Wl,-rpath,'$$ORIGIN/..' $(SIMT_LIBS)
steps_ld_gpu = $(NVCC) -cudart static $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa \
               -Xlinker -rpath,'$$ORIGIN/..'
