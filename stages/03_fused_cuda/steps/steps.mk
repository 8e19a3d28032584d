# The steps of stage 03, compiled like the stage (stage.mk names this program beside it): for a GPU,
# or with the simulator, which checks them and times nothing. `make steps STAGE=03 T=4096`.
STEPS_03 := $(patsubst %.cu,$(BUILD)/obj/$(CUDA)/%.o,$(wildcard \
                stages/03_fused_cuda/steps/*.cu stages/03_fused_cuda/steps/*/*.cu))
# Three of its moves change more lines than a move should; none may change more than they do.
MOVE_LINES_03_fused_cuda := 137
steps_ld_sim = $(CXX) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa \
               -Wl,-rpath,'$$ORIGIN/..' $(SIMT_LIBS)
steps_ld_gpu = $(NVCC) -cudart static $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa \
               -Xlinker -rpath,'$$ORIGIN/..'

$(BUILD)/steps/03_fused_cuda: $(STEPS_03) $(if $(filter sim,$(CUDA)),$(simt_objects)) \
    $(BUILD)/libnsa.so $(CUDA_STAMP) stages/03_fused_cuda/steps/steps.mk
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(steps_ld_$(CUDA))
