# The program nsa-train, which `nsa train` starts; the Makefile includes this at its end.

TRAIN     := $(wildcard apps/train/*.c)
TRAIN_LIB := $(filter-out apps/train/train_main.c,$(TRAIN))
LINTED    += $(TRAIN) $(wildcard tests/train/*.c)
C_FILES   += $(TRAIN) $(wildcard tests/train/*.c)
# The layers' loops are plain sums over channels: vectors help, and so do multiply-adds.
TRAIN_FLAGS := -O3 $(MARCH_FLAG) -fno-math-errno -fno-trapping-math -ffp-contract=fast \
    $(if $(OPENBLAS),-DTRAIN_OPENBLAS='"$(OPENBLAS)"')

all: $(BUILD)/nsa-train
$(call object,$(TRAIN)): apps/train/train.mk
$(call object,$(TRAIN)): override CFLAGS += $(TRAIN_FLAGS)
$(BUILD)/nsa-train: $(call object,$(TRAIN) apps/commands.c $(IO)) $(BUILD)/libnsa.so
	@echo "  LD  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa $(RPATH) $(CJSON_LIBS) \
	    -ldl -lm -pthread

# The same trainer in float64, on stage 00: its gradients against central differences.
TRAIN64 := $(patsubst %.c,$(BUILD)/train64/%.o,$(TRAIN_LIB) $(wildcard tests/train/*.c))
$(BUILD)/train64/%.o: %.c $(HEADERS) apps/train/train.mk Makefile
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(BASE) $(CFLAGS) -DTRAIN_DOUBLE $(INCLUDES) -c $< -o $@
$(BUILD)/train-gradients: $(TRAIN64) $(call object,apps/commands.c $(IO)) $(BUILD)/libnsa.so
	@echo "  LD  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(filter %.o,$^) -o $@ -L$(BUILD) -lnsa $(RPATH) $(CJSON_LIBS) \
	    -ldl -lm -pthread

.PHONY: train test-train install-train
TRAIN_ARGS ?=
train: $(BUILD)/nsa $(BUILD)/nsa-train $(BUILD)/stages/02_blocked.so ##@read train a small model with NSA: TRAIN_ARGS=--all for the other attentions
	./$(BUILD)/nsa train $(TRAIN_ARGS)

test-train: $(BUILD)/train-gradients $(BUILD)/nsa $(BUILD)/nsa-train $(BUILD)/stages/00_dense.so $(BUILD)/stages/02_blocked.so ##@test the trainer: gradients, a hundred steps, resuming, bad files
	./$(BUILD)/train-gradients
	NSA=./$(BUILD)/nsa sh tests/train/train.sh

install: install-train
install-train: $(BUILD)/nsa-train ##@part
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BUILD)/nsa-train $(DESTDIR)$(PREFIX)/bin
