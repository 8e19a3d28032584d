# The steps of this stage: every file with the same flags, those of the stage (stage.mk names this
# program beside the stage, so STAGE_CFLAGS are the stage's).
#   make steps STAGE=02 T=4096 CHAIN=attend
# A copy of the stage has another name, and the same steps: no name stands here.
HERE  := $(patsubst stages/%/steps/steps.mk,%,$(lastword $(MAKEFILE_LIST)))
STEPS := stages/$(HERE)/steps
# A chain is a folder that holds numbered steps; main.c runs all that are found.
MOVES   := $(sort $(wildcard $(STEPS)/*/[0-9]*_*.c))
FOLDERS := $(sort $(dir $(MOVES)))

# {"attend", "1_relaid", lines changed from the step before}, for each step
$(BUILD)/steps/$(HERE)_moves.h: $(MOVES) $(STEPS)/steps.mk
	@mkdir -p $(@D)
	$(Q)before=; for step in $(filter %.c,$^); do changed=0; \
	    [ "$${before%/*}" != "$${step%/*}" ] || changed=$$(diff -a $$before $$step | grep -c '^[<>]'); \
	    chain=$${step%/*}; echo "{\"$${chain##*/}\", \"$$(basename $$step .c)\", $$changed},"; \
	    before=$$step; done >$@

$(BUILD)/steps/$(HERE): STEPS_CHAINS := $(foreach f,$(FOLDERS),CHAIN($(notdir $(f:/=))))
$(BUILD)/steps/$(HERE): $(wildcard $(addsuffix *.c,$(STEPS)/ $(FOLDERS))) \
    $(wildcard $(addsuffix *.h,$(STEPS)/ $(FOLDERS)) $(STEPS)/*.mk stages/$(HERE)/*.mk) \
    $(BUILD)/steps/$(HERE)_moves.h stages/$(HERE)/tile.c stages/$(HERE)/tile.h \
    tests/harness/random.h Makefile
	@echo "  CC  $@"
	$(if $(STAGE_CFLAGS),,$(error stages/$(@F)/stage.mk gives $@ no STAGE_CFLAGS))
	$(Q)$(CC) $(BASE) $(STAGE_CFLAGS) $(CFLAGS) -DSTEPS_FLAGS='"$(strip $(STAGE_CFLAGS) $(CFLAGS))"' \
	    -DCHAINS='$(STEPS_CHAINS)' -DMOVES='"$(@F)_moves.h"' $(INCLUDES) -Istages/$(@F) \
	    -I$(BUILD)/steps $(LDFLAGS) $(filter %.c,$^) -o $@ -lm
