# Native Sparse Attention in stages. `make help` lists the targets; the comments ## behind them are
# what it prints (docs/help.awk).
#
#   build/libnsa.so          the contract: stages/common
#   build/stages/NN_name.so  each folder stages/NN_name
#   build/nsa                the command: apps, and the harness of tests/harness
#   build/nsa-bench          what `nsa bench` starts: apps/bench
#   build/judge              the same harness under Criterion: tests/judge.c

CC      ?= cc
PREFIX  ?= /usr/local
STAGE   ?=
REPORT  ?=
A       ?= 00
B       ?= 01
BUILD   ?= build
Q       := $(if $(V),,@)

# One set of flags for every stage, so that times compare. -std=c11 keeps FMA contraction off and
# nothing here enables fast-math; a stage that needs more says so in its own stage.mk.
OPT     ?= -O2
WARN    := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Werror
CFLAGS  ?=
BASE    := -std=c11 -D_GNU_SOURCE -g -ffp-contract=off $(OPT) $(WARN) -fPIC -fvisibility=hidden
LDFLAGS ?=
CJSON_CFLAGS := $(shell pkg-config --cflags libcjson 2>/dev/null)
CJSON_LIBS   := $(shell pkg-config --libs libcjson 2>/dev/null || echo -lcjson)

STAGES   := $(sort $(notdir $(patsubst %/,%,$(wildcard stages/[0-9][0-9]_*/))))
COMMON   := $(wildcard stages/common/*.c)
HARNESS  := $(wildcard tests/harness/*.c)
APPS     := $(wildcard apps/*.c apps/demo/*.c)
IO       := $(wildcard apps/io/*.c)
HEADERS  := $(wildcard stages/*.h stages/*/*.h tests/*.h tests/harness/*.h tests/fuzz/*.h apps/*.h apps/*/*.h)
INCLUDES := -Istages -Iapps -Itests

# $(call taken,COMPILER,FLAGS): those flags that the compiler accepts. Some flags exist only for one
# kind of processor, and are an error for others.
taken = $(strip $(foreach f,$(2),$(shell $(1) -Werror $f -x c -S /dev/null -o /dev/null 2>/dev/null && echo '$f')))
# $(call march,COMPILER): the flag for the processor; a cross compiler has no "native".
MARCH ?= native
march = $(if $(filter native,$(MARCH)),$(call taken,$(1),-march=native),$(MARCH:%=-march=%))
MARCH_FLAG := $(call march,$(CC))

object = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
RPATH  := -Wl,-rpath,'$$ORIGIN' -Wl,-rpath,'$$ORIGIN/../lib'

.PHONY: all help help-all check-help demo test test-all lint docs man diff similar steps test-steps \
        step-sizes format install clean examples check-examples \
        readme check-readme
.DEFAULT_GOAL := all

all: $(BUILD)/nsa $(STAGES:%=$(BUILD)/stages/%.so) say-cuda similar ## build the command and every stage

help: ##@read the targets for every reader, and the variables
	@awk -v show=help -f docs/help.awk $(MAKEFILE_LIST)
	@echo "  make help-all           every other target"
	@echo "  Variables: STAGE=NN_name  A=00 B=01  REPORT=file.tap|file.xml  CUDA=gpu|sim"
	@echo "             CC=clang  OPT=-O3  PREFIX=DIR  V=1 shows each command"

help-all: ##@read every other target, by groups
	@awk -v show=all -f docs/help.awk $(MAKEFILE_LIST)

check-help: ##@maintain fail if a target is in no list, or a group of help-all is empty
	@sh tests/help.sh $(MAKEFILE_LIST)

# ---------------------------------------------------------------- building

$(BUILD)/obj/stages/common/%.o: stages/common/%.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(BASE) $(CFLAGS) -Istages -c $< -o $@

$(BUILD)/libnsa.so: $(call object,$(COMMON))
	@echo "  LD  $@"
	$(Q)$(CC) -shared -Wl,-z,defs $(CFLAGS) $(LDFLAGS) $^ -o $@ -ldl -lm

# A stage: its folder's C files, hidden symbols, one shared object. stage.mk may add STAGE_CFLAGS
# and STAGE_LIBS, for itself alone; for .cu files STAGE_NVFLAGS and STAGE_SIMFLAGS.
define stage_rules
$(BUILD)/obj/stages/$(1)/%.o: stages/$(1)/%.c $$(HEADERS) Makefile $$(wildcard stages/$(1)/stage.mk)
	@mkdir -p $$(@D)
	@echo "  CC  $$@"
	$$(Q)$$(CC) $$(BASE) $$(STAGE_CFLAGS) $$(CFLAGS) -Istages -Istages/$(1) -c $$< -o $$@
$(BUILD)/stages/$(1).so: STAGE_CFLAGS :=
$(BUILD)/stages/$(1).so: STAGE_LIBS :=
endef
# its shared object, unless it has CUDA files: those are built by tests/simt/simt.mk
define stage_link
$(BUILD)/stages/$(1).so: $$(call object,$$(wildcard stages/$(1)/*.c)) $(BUILD)/libnsa.so
	@mkdir -p $$(@D)
	@echo "  LD  $$@"
	$$(Q)$$(CC) -shared -Wl,-z,defs $$(CFLAGS) $$(LDFLAGS) $$(filter %.o,$$^) -o $$@ -L$(BUILD) -lnsa \
	    -Wl,-rpath,'$$$$ORIGIN/..' -Wl,-rpath,'$$$$ORIGIN/../..' $$(STAGE_LIBS) -lm
endef
include tests/simt/simt.mk
$(foreach s,$(STAGES),$(eval $(call stage_rules,$(s))))
$(foreach s,$(filter-out $(CUDA_STAGES),$(STAGES)),$(eval $(call stage_link,$(s))))
include stages/common/steps/cuda.mk
-include $(wildcard stages/[0-9][0-9]_*/stage.mk) \
         $(wildcard stages/[0-9][0-9]_*/steps/steps.mk)

$(BUILD)/obj/tests/%.o: tests/%.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(BASE) $(CFLAGS) $(INCLUDES) $(CJSON_CFLAGS) -c $< -o $@

$(BUILD)/obj/apps/%.o: apps/%.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(BASE) $(CFLAGS) $(INCLUDES) $(CJSON_CFLAGS) -DNSA_PREFIX='"$(PREFIX)"' -c $< -o $@

$(BUILD)/nsa: $(call object,$(APPS) $(IO) $(HARNESS)) $(BUILD)/libnsa.so
	@echo "  LD  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa $(RPATH) $(CJSON_LIBS) -lm -pthread

$(BUILD)/judge: $(call object,tests/judge.c tests/records.c tests/records_report.c tests/allocations.c $(IO) $(HARNESS)) $(BUILD)/libnsa.so
	@echo "  LD  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa $(RPATH) -lcriterion \
	    $(CJSON_LIBS) -lm -pthread

# ------------------------------------------------------------------- tests

JUDGE = NSA_JUDGE_REPORT='$(REPORT)' ./$(BUILD)/judge

test: $(BUILD)/judge $(BUILD)/nsa $(STAGES:%=$(BUILD)/stages/%.so) ## the quick cases; STAGE=NN_name judges one stage on all
ifeq ($(STAGE),)
	NSA_JUDGE_QUICK=1 $(JUDGE)
else
	NSA_JUDGE_STAGE=$(STAGE) $(JUDGE)
endif

test-all: $(BUILD)/judge $(BUILD)/nsa $(STAGES:%=$(BUILD)/stages/%.so) ## every stage on every property and case
	$(JUDGE)

demo: all ## run every stage on a real text, draw nsa-demo/block_map.svg
	./$(BUILD)/nsa demo

# ----------------------------------------------------------------- reading

diff: ## two stages or two steps: A=00 B=01, A=02/attend/3 B=02/attend/4; README=1
	@sh stages/diff.sh $(if $(filter-out 0,$(README)),--readme) '$(A)' '$(B)'

# The moves of a stage one by one, in its folder steps, whose steps.mk builds $(BUILD)/steps/NN_name.
STEPPED  := $(patsubst stages/%/steps/steps.mk,%,$(wildcard stages/[0-9][0-9]_*/steps/steps.mk))
STEPS_OF := $(firstword $(filter $(or $(STAGE),02)%,$(STEPPED)))
# In the simulator threads run in three orders.
STEPS_ORDERS = $(if $(and $(filter sim,$(CUDA)),$(filter $(1),$(CUDA_STAGES))),forward reverse random:1,-)

steps: $(STEPS_OF:%=$(BUILD)/steps/%) ## the steps within a stage, checked and timed: STAGE=02, 03 or 04, T=2048, CHAIN=attend
	$(if $(STEPS_OF),,@echo "steps: stage $(STAGE) has none; $(STEPPED) have" >&2; exit 1)
	$(if $(STEPS_OF),$(abspath $<) $(T) $(CHAIN))

test-steps: step-sizes $(STEPPED:%=$(BUILD)/steps/%) ##@test the steps of all stages: small moves, and each agrees with the first
	@set -e; for run in $(foreach s,$(STEPPED),$(foreach o,$(call STEPS_ORDERS,$(s)),$(foreach T,1 201,$(s)/$(o)/$(T)))); do \
	    of=$${run%%/*}; order=$${run#*/}; order=$${order%/*}; echo "=== $$run"; \
	    NSA_SIMT_ORDER=$${order#-} $(abspath $(BUILD))/steps/$$of $${run##*/}; done

# A step is read at once, a move as one diff.
STEP_LINES := 150
MOVE_LINES := 100
step-sizes: ##@read the steps of all stages: lines of a step, changed lines of a move
	@set -e; $(foreach s,$(STEPPED),sh tests/step_sizes.sh $(s) $(STEP_LINES) $(MOVE_LINES);)

# The excerpts of docs/specification.md, between its markers.
examples: $(BUILD)/nsa $(BUILD)/stages/00_dense.so ##@maintain rewrite what docs/specification.md shows of stage 00's output
	NSA=./$(BUILD)/nsa sh docs/examples/excerpts.sh

check-examples: $(BUILD)/nsa $(BUILD)/stages/00_dense.so ##@maintain fail if docs/specification.md differs from what stage 00 prints
	NSA=./$(BUILD)/nsa sh docs/examples/excerpts.sh --check

readme: all ##@maintain rewrite what README.md shows of a demo, of the tests and of the run files
	NSA=./$(BUILD)/nsa NSA_BENCH=./$(BUILD)/nsa-bench TEST_LOG=$(BUILD)/test-all.log sh docs/readme.sh

check-readme: all ##@maintain fail if README.md shows something else; after `make test-all`
	NSA=./$(BUILD)/nsa NSA_BENCH=./$(BUILD)/nsa-bench TEST_LOG=$(BUILD)/test-all.log \
	    sh docs/readme.sh --check

# How much of a stage stands already in the one before it.
similar: ##@read how much of each stage stands already in the one before it
	@sh stages/similar.sh $(STAGES)

clean: ##@maintain remove build/
	rm -rf $(BUILD)

# ----------------------------------------------------------- docs, lint, install

STEPS_FILES := $(foreach e,c h cu,$(wildcard stages/*/steps/*.$e stages/*/steps/*/*.$e))
LINTED   := $(COMMON) $(wildcard stages/[0-9][0-9]_*/*.c) $(APPS) $(IO) $(HARNESS) \
            $(wildcard tests/*.c) $(wildcard docs/examples/*.c)
C_FILES  := $(LINTED) $(HEADERS) $(CUDA_FILES) $(CUDA_HEADERS) $(SIMT_FILES) $(SIMT_TESTS) $(STEPS_FILES)
SCRIPTS  := setup.sh .ci/run $(wildcard docs/*.sh docs/*.awk docs/*/*.sh stages/*.sh tests/*.sh tests/*/*.sh tests/*.mk)
CLANG_TIDY   ?= clang-tidy
JOBS         ?= $(shell nproc 2>/dev/null || echo 1)

# clang-tidy needs each file's own include path: a stage includes its own folder. It sees C alone.
lint: check-help ##@maintain check formatting, clang-tidy, and the limits on lines and files
	@format=$$(sh tests/clang_format.sh) && $$format --dry-run -Werror $(C_FILES)
	@awk 'length > 100 {printf "%s:%d: %d columns, 100 at most\n", FILENAME, FNR, length; bad = 1} \
	    FNR > 400 && !long[FILENAME]++ {printf "%s: more than 400 lines\n", FILENAME; bad = 1} \
	    END {exit bad}' $(C_FILES) $(SCRIPTS) docs/examples/*.py apps/python/*.py tests/python/*.py
	@printf '%s\n' $(LINTED) | xargs -P $(JOBS) -I{} sh -c '$(CLANG_TIDY) --quiet {} -- -std=c11 \
	    -D_GNU_SOURCE $(INCLUDES) $(CJSON_CFLAGS) -I$$(dirname {}) -DNSA_PREFIX=\"/\" 2>/dev/null \
	    || { echo "clang-tidy: {}"; exit 1; }'
	@echo "lint: $(words $(C_FILES)) files are clean"

format: ##@maintain clang-format 14 on every C file
	@format=$$(sh tests/clang_format.sh) && $$format -i $(C_FILES)

# The docs work without a network: the parts of MathJax that SVG output loads are copied beside
# them. Without libjs-mathjax formulas stay as TeX source; without the style, plain Doxygen.
MATHJAX ?= /usr/share/javascript/mathjax
AWESOME ?= $(wildcard /usr/share/doxygen-awesome-css/doxygen-awesome.css)
MATHJAX_PARTS := MathJax.js extensions jax/element jax/input/TeX jax/output/SVG/config.js \
                 jax/output/SVG/jax.js jax/output/SVG/autoload jax/output/SVG/fonts/TeX

# Pages that docs/check_pages.sh looks at.
PAGES := CONTRIBUTING.md README.md $(wildcard docs/*.md) $(wildcard stages/*/README.md) \
         $(wildcard notes/*.md notes/log/*.md)

docs: ## build/docs/html/index.html; a public name without a comment is an error
	@rm -rf $(BUILD)/docs && mkdir -p $(BUILD)/docs/html/mathjax $(BUILD)/docs-src
	sh docs/check_pages.sh $(PAGES)
	sh tests/trust_tables.sh >$(BUILD)/docs-src/trust_tables.md
	DOCS_OUT=$(BUILD)/docs DOCS_STYLE=$(AWESOME) \
	    DOCS_DOT=$$(command -v dot >/dev/null && echo YES || echo NO) doxygen docs/Doxyfile
	@if [ -d $(MATHJAX) ]; then \
	    (cd $(MATHJAX) && tar -chf - $(MATHJAX_PARTS)) | tar -xf - -C $(BUILD)/docs/html/mathjax; \
	else echo "docs: no $(MATHJAX): formulas stay as TeX source"; fi
	sh docs/check_html.sh $(BUILD)/docs/html
	@echo "docs: $(BUILD)/docs/html/index.html"

man: all ##@maintain manual pages of the command and its subcommands, from what --help prints
	@sh docs/man.sh $(BUILD)/nsa $(BUILD)/man

install: all ##@install into PREFIX: bin/nsa, bin/nsa-bench, libnsa.so, the stages, headers, nsa.pc, man
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/nsa/stages \
	    $(DESTDIR)$(PREFIX)/include/nsa/common
	install -m 755 $(BUILD)/nsa $(DESTDIR)$(PREFIX)/bin/nsa
	install -m 755 $(BUILD)/libnsa.so $(DESTDIR)$(PREFIX)/lib/libnsa.so
	install -m 755 $(STAGES:%=$(BUILD)/stages/%.so) $(DESTDIR)$(PREFIX)/lib/nsa/stages
	install -m 644 stages/nsa.h stages/nsa_stage.h stages/nsa_device.h stages/nsa_find.h $(DESTDIR)$(PREFIX)/include/nsa
	install -m 644 $(addprefix stages/common/,pool.h tensors.h counts.h timer.h cpu_stage.h) \
	    $(DESTDIR)$(PREFIX)/include/nsa/common
	install -d $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/share/nsa/python
	install -m 644 apps/python/nsa.py $(DESTDIR)$(PREFIX)/share/nsa/python
	cp -R tests/vectors apps/demo/text.txt $(DESTDIR)$(PREFIX)/share/nsa
	@if command -v help2man >/dev/null; then sh docs/man.sh $(BUILD)/nsa $(DESTDIR)$(PREFIX)/share/man/man1; \
	else echo "install: no help2man, so no manual pages"; fi
	sed 's,@PREFIX@,$(abspath $(PREFIX)),' stages/nsa.pc.in >$(DESTDIR)$(PREFIX)/lib/pkgconfig/nsa.pc

-include tests/tests.mk tests/quality.mk apps/bench/bench.mk apps/train/train.mk
