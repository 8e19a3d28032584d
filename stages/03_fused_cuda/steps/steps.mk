# The steps of this stage, by the rules that all CUDA stages have. A copy of the stage has another
# name, and the same steps: no name stands here.
$(eval $(call cuda_steps_rules,$(patsubst stages/%/steps/steps.mk,%,$(lastword $(MAKEFILE_LIST)))))
