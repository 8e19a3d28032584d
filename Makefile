# Native Sparse Attention in stages. `make help` says what there is to make.
#
#   build/libnsa.so          the contract: stages/common
#   build/stages/NN_name.so  each folder stages/NN_name
#   build/nsa                the command: apps, and the harness of tests/harness
#   build/judge              the same harness under Criterion: tests/judge.c

CC      ?= cc
PREFIX  ?= /usr/local
STAGE   ?=
REPORT  ?=
A       ?= 00
B       ?= 01
BUILD   ?= build

# One set of flags for every stage, so that times compare. -std=c11 keeps FMA contraction off and
# nothing here enables fast-math; a stage that needs more says so in its own stage.mk.
OPT     ?= -O2
WARN    := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes -Werror
CFLAGS  ?=
BASE    := -std=c11 -D_GNU_SOURCE -g $(OPT) $(WARN) -fPIC -fvisibility=hidden -ffp-contract=off
LDFLAGS ?=
CJSON_CFLAGS := $(shell pkg-config --cflags libcjson 2>/dev/null)
CJSON_LIBS   := $(shell pkg-config --libs libcjson 2>/dev/null || echo -lcjson)

STAGES   := $(sort $(notdir $(patsubst %/,%,$(wildcard stages/[0-9][0-9]_*/))))
COMMON   := $(wildcard stages/common/*.c)
HARNESS  := $(wildcard tests/harness/*.c)
APPS     := $(wildcard apps/*.c apps/demo/*.c)
IO       := $(wildcard apps/io/*.c)
HEADERS  := $(wildcard stages/*.h stages/*/*.h tests/*/*.h apps/*.h apps/*/*.h)
INCLUDES := -Istages -Iapps -Itests

object = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
RPATH  := -Wl,-rpath,'$$ORIGIN' -Wl,-rpath,'$$ORIGIN/../lib'

.PHONY: all help demo test test-all lint docs diff similar format install clean
.DEFAULT_GOAL := all

all: $(BUILD)/nsa $(STAGES:%=$(BUILD)/stages/%.so) similar ## build the command and every stage

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: STAGE=NN_name  REPORT=file.tap|file.xml  A=00 B=01  CC=clang  OPT=-O3  PREFIX=DIR"

# ---------------------------------------------------------------- building

$(BUILD)/obj/stages/common/%.o: stages/common/%.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -Istages -c $< -o $@

$(BUILD)/libnsa.so: $(call object,$(COMMON))
	$(CC) -shared -Wl,-z,defs $(CFLAGS) $(LDFLAGS) $^ -o $@ -ldl -lm

# A stage: its folder's C files, hidden symbols, one shared object. stage.mk may add STAGE_CFLAGS
# and STAGE_LIBS, for itself alone.
define stage_rules
$(BUILD)/obj/stages/$(1)/%.o: stages/$(1)/%.c $$(HEADERS) Makefile $$(wildcard stages/$(1)/stage.mk)
	@mkdir -p $$(@D)
	$$(CC) $$(BASE) $$(STAGE_CFLAGS) $$(CFLAGS) -Istages -Istages/$(1) -c $$< -o $$@
$(BUILD)/stages/$(1).so: $$(call object,$$(wildcard stages/$(1)/*.c)) $(BUILD)/libnsa.so
	@mkdir -p $$(@D)
	$$(CC) -shared -Wl,-z,defs $$(CFLAGS) $$(LDFLAGS) $$(filter %.o,$$^) -o $$@ -L$(BUILD) -lnsa \
	    -Wl,-rpath,'$$$$ORIGIN/..' -Wl,-rpath,'$$$$ORIGIN/../..' $$(STAGE_LIBS) -lm
$(BUILD)/stages/$(1).so: STAGE_CFLAGS :=
$(BUILD)/stages/$(1).so: STAGE_LIBS :=
endef
$(foreach s,$(STAGES),$(eval $(call stage_rules,$(s))))
-include $(wildcard stages/[0-9][0-9]_*/stage.mk)

$(BUILD)/obj/tests/%.o: tests/%.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(INCLUDES) $(CJSON_CFLAGS) -c $< -o $@

$(BUILD)/obj/apps/%.o: apps/%.c $(HEADERS) Makefile
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(INCLUDES) $(CJSON_CFLAGS) -DNSA_PREFIX='"$(PREFIX)"' -c $< -o $@

$(BUILD)/nsa: $(call object,$(APPS) $(IO) $(HARNESS)) $(BUILD)/libnsa.so
	$(CC) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa $(RPATH) $(CJSON_LIBS) -lm

$(BUILD)/judge: $(call object,tests/judge.c $(IO) $(HARNESS)) $(BUILD)/libnsa.so
	$(CC) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa $(RPATH) -lcriterion \
	    $(CJSON_LIBS) -lm
