# The steps of stage 02: every file with the same flags, those of the stage (stage.mk names this
# program beside the stage, so STAGE_CFLAGS are the stage's). `make steps STAGE=02 T=4096`.
STEPS_02 := stages/02_blocked/steps
# a chain is a folder that holds numbered steps
CHAINS_02 := $(sort $(dir $(wildcard $(STEPS_02)/*/[0-9]*_*.c)))

$(BUILD)/steps/02_blocked: $(wildcard $(addsuffix *.c,$(STEPS_02)/ $(CHAINS_02))) \
    $(wildcard $(addsuffix *.h,$(STEPS_02)/ $(CHAINS_02)) $(STEPS_02)/*.mk stages/02_blocked/*.mk) \
    stages/02_blocked/tile.c stages/02_blocked/tile.h tests/harness/random.h Makefile
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(if $(STAGE_CFLAGS),,$(error stages/02_blocked/stage.mk gives $@ no STAGE_CFLAGS))
	$(Q)$(CC) $(BASE) $(STAGE_CFLAGS) $(CFLAGS) -DSTEPS_FLAGS='"$(strip $(STAGE_CFLAGS) $(CFLAGS))"' \
	    $(INCLUDES) -Istages/02_blocked $(LDFLAGS) $(filter %.c,$^) -o $@ -lm

# What decode's blocks from far memory leave of a copy's bandwidth: `make far G=16`.
$(BUILD)/steps/02_far: $(STEPS_02)/far/far.c stages/02_blocked/tile.c stages/02_blocked/tile.h \
    stages/02_blocked/stage.mk $(STEPS_02)/steps.mk tests/harness/random.h Makefile
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(if $(STAGE_CFLAGS),,$(error stages/02_blocked/stage.mk gives $@ no STAGE_CFLAGS))
	$(Q)$(CC) $(BASE) $(STAGE_CFLAGS) $(CFLAGS) $(INCLUDES) -Istages/02_blocked $(LDFLAGS) \
	    $(filter %.c,$^) -o $@ -lm

.PHONY: far
far: $(BUILD)/steps/02_far ## decode's ceiling: bytes alone, products alone, both together; G=16 heads
	$(abspath $<) $(G)

test-steps: $(BUILD)/steps/02_far # built and checked there, too; its recipe runs it
