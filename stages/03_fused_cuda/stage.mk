# Numbers below 2^-126 count as zero: exp2f() is then one instruction, and probabilities that small
# add nothing to a sum that is at least 1.
$(BUILD)/stages/03_fused_cuda.so $(BUILD)/steps/03_fused_cuda: STAGE_NVFLAGS := -ftz=true
