# Numbers below 2^-126 count as zero: exp2f() is then one instruction, and probabilities that small
# add nothing to a sum that is at least 1.
$(BUILD)/stages/04_tensor_cores.so $(BUILD)/steps/04_tensor_cores: STAGE_NVFLAGS := -ftz=true
