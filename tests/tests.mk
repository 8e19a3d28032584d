# Testing the tests: each patch of tests/mutants breaks one sentence of the specification in a copy
# of a stage, and the property that it names must fail; or it breaks shared code or the harness
# itself, and the test that it names must fail.

.PHONY: test-mutants mutant-matrix
MUTANTS ?=
# A stage with a single fault, in a separate folder with links to the real stages; the command that
# judges it also counts allocations.
.PHONY: test-peers test-liars liars
LIARS := $(BUILD)/liars
LIARS_BESIDE := $(BUILD)/stages/00_dense.so $(BUILD)/stages/01_naive_nsa.so

$(LIARS)/98_lying.so: $(call object,tests/lying_stage.c tests/lying_results.c) $(BUILD)/libnsa.so
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) -shared -Wl,-z,defs $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa \
	    -Wl,-rpath,'$$ORIGIN/..' -ldl -lm

$(BUILD)/nsa_counting: $(BUILD)/nsa $(call object,tests/allocations.c)
	@echo "  LD  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) \
	    $(call object,$(APPS) $(IO) $(HARNESS)) -o $@ \
	    -L$(BUILD) -lnsa $(RPATH) $(CJSON_LIBS) -lm -pthread

LIED_TO := $(BUILD)/nsa_counting $(BUILD)/nsa-bench $(BUILD)/judge
liars: $(LIARS)/98_lying.so $(LIED_TO) $(LIARS_BESIDE) ##@part
	@for stage in $(LIARS_BESIDE:$(BUILD)/%=%); do ln -sf ../$$stage $(LIARS); done

test-peers: all ##@test `nsa bench` with stub programs for --peers, and a stub OpenBLAS
	NSA=./$(BUILD)/nsa sh tests/peers.sh
	NSA=./$(BUILD)/nsa CC='$(CC)' sh tests/rounds.sh

test-liars: liars ##@faults a stage with one fault at a time: each must be caught
	BUILD='$(BUILD)' sh tests/liars.sh

test-mutants: liars $(BUILD)/corners ##@faults faults planted on purpose: each must be caught
	BUILD='$(BUILD)' CC='$(CC)' OPT='$(OPT)' CFLAGS='$(CFLAGS)' LDFLAGS='$(LDFLAGS)' \
	    PART=$(or $(PART),1/1) sh tests/mutants.sh $(MUTANTS)

mutant-matrix: liars $(BUILD)/corners ##@faults which trial catches which: tests/mutants/matrix.txt
	BUILD='$(BUILD)' CC='$(CC)' OPT='$(OPT)' CFLAGS='$(CFLAGS)' LDFLAGS='$(LDFLAGS)' \
	    MATRIX=tests/mutants/matrix.txt LIMIT=600 JOBS=$(JOBS) sh tests/mutants.sh $(MUTANTS)
