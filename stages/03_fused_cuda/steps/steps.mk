# The steps of stage 03, compiled like the stage (stage.mk names this program beside it): for a GPU,
# or with the simulator, which checks them and times nothing.
#   make steps STAGE=03 T=4096 CHAIN=attend
STEPS_03 := stages/03_fused_cuda/steps
# A chain is a folder that holds numbered steps; main.cu runs all that are found.
MOVES_03 := $(sort $(wildcard $(STEPS_03)/*/[0-9]*_*.cu))
STEPS_03_MAIN := $(BUILD)/obj/$(CUDA)/$(STEPS_03)/main.o
STEPS_03_OBJECTS := $(patsubst %.cu,$(BUILD)/obj/$(CUDA)/%.o,$(wildcard \
                        $(STEPS_03)/*.cu $(STEPS_03)/*/*.cu))

# CHAIN(attend), for each chain; MOVE("attend", "1_block_row", lines changed from the step before), for
# each step
$(BUILD)/steps/03_moves.h: $(MOVES_03) $(STEPS_03)/steps.mk
	@mkdir -p $(@D)
	$(Q)before=; for step in $(MOVES_03); do changed=0; \
	    chain=$${step%/*}; chain=$${chain##*/}; \
	    if [ "$${before%/*}" = "$${step%/*}" ]; then \
	        changed=$$(diff -a $$before $$step | grep -c '^[<>]'); else echo "CHAIN($$chain)"; fi; \
	    echo "MOVE(\"$$chain\", \"$$(basename $$step .cu)\", $$changed)"; \
	    before=$$step; done >$@

$(STEPS_03_MAIN): $(STEPS_03)/main.cu $(BUILD)/steps/03_moves.h $(CUDA_HEADERS) $(HEADERS) \
    Makefile tests/simt/simt.mk stages/03_fused_cuda/stage.mk
	@mkdir -p $(@D)
	@echo "  CU  $@"
	$(Q)$(cu_$(CUDA)) -Istages/03_fused_cuda -I$(BUILD)/steps -c $< -o $@

steps_ld_sim = $(CXX) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa \
               -Wl,-rpath,'$$ORIGIN/..' $(SIMT_LIBS)
steps_ld_gpu = $(NVCC) -cudart static $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa \
               -Xlinker -rpath,'$$ORIGIN/..'

$(BUILD)/steps/03_fused_cuda: $(STEPS_03_OBJECTS) $(if $(filter sim,$(CUDA)),$(simt_objects)) \
    $(BUILD)/libnsa.so $(CUDA_STAMP) stages/03_fused_cuda/steps/steps.mk
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(steps_ld_$(CUDA))
