# The steps of stage 02: every file with the same flags, those of the stage (stage.mk names this
# program beside the stage, so STAGE_CFLAGS are the stage's).
#   make steps STAGE=02 T=4096 CHAIN=attend
STEPS_02 := stages/02_blocked/steps
# A chain is a folder that holds numbered steps; main.c runs all that are found.
MOVES_02 := $(sort $(wildcard $(STEPS_02)/*/[0-9]*_*.c))
FOLDERS_02 := $(sort $(dir $(MOVES_02)))
CHAINS_02 := $(foreach f,$(FOLDERS_02),CHAIN($(notdir $(f:/=))))

# {"attend", "1_relaid", lines changed from the step before}, for each step
$(BUILD)/steps/02_moves.h: $(MOVES_02) $(STEPS_02)/steps.mk
	@mkdir -p $(@D)
	$(Q)before=; for step in $(MOVES_02); do changed=0; \
	    [ "$${before%/*}" != "$${step%/*}" ] || changed=$$(diff -a $$before $$step | grep -c '^[<>]'); \
	    chain=$${step%/*}; echo "{\"$${chain##*/}\", \"$$(basename $$step .c)\", $$changed},"; \
	    before=$$step; done >$@

$(BUILD)/steps/02_blocked: $(wildcard $(addsuffix *.c,$(STEPS_02)/ $(FOLDERS_02))) \
    $(wildcard $(addsuffix *.h,$(STEPS_02)/ $(FOLDERS_02)) $(STEPS_02)/*.mk stages/02_blocked/*.mk) \
    $(BUILD)/steps/02_moves.h stages/02_blocked/tile.c stages/02_blocked/tile.h \
    tests/harness/random.h Makefile
	@echo "  CC  $@"
	$(if $(STAGE_CFLAGS),,$(error stages/02_blocked/stage.mk gives $@ no STAGE_CFLAGS))
	$(Q)$(CC) $(BASE) $(STAGE_CFLAGS) $(CFLAGS) -DSTEPS_FLAGS='"$(strip $(STAGE_CFLAGS) $(CFLAGS))"' \
	    -DCHAINS='$(CHAINS_02)' $(INCLUDES) -Istages/02_blocked -I$(BUILD)/steps $(LDFLAGS) \
	    $(filter %.c,$^) -o $@ -lm
