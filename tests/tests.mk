# Judging the judge: each patch of tests/mutants breaks one sentence of the specification in a copy
# of a stage, and the property that it names has to notice.

.PHONY: test-mutants
MUTANTS ?=

test-mutants: $(BUILD)/nsa ## break the stages on purpose: each property must catch its mutants
	BUILD='$(BUILD)' CC='$(CC)' OPT='$(OPT)' CFLAGS='$(CFLAGS)' LDFLAGS='$(LDFLAGS)' \
	    sh tests/mutants.sh $(MUTANTS)
