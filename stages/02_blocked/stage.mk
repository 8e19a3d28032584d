# Stage 02 is about what a compiler makes of a good layout. None of these is fast-math: errno and traps are
# not looked at, a*b+c may be one instruction, and loops marked `omp simd` may be vectors.
# For some processors gcc takes multiply-adds apart again where they form a chain, and only there: then
# equal keys in two tiles would get scores that differ in the last bit. avoid-fma-max-bits=0: nowhere.
MARCH ?= native
$(BUILD)/stages/02_blocked.so $(BUILD)/steps/02_blocked $(BUILD)/steps/02_far: STAGE_CFLAGS := -O3 $(if $(MARCH),-march=$(MARCH)) -fno-math-errno \
    -fno-trapping-math -ffp-contract=fast -fopenmp -Wno-psabi -Wno-unknown-pragmas \
    $(if $(findstring clang,$(CC)),-Wno-pass-failed,-mprefer-vector-width=512 --param=avoid-fma-max-bits=0)
$(BUILD)/stages/02_blocked.so: STAGE_LIBS := -fopenmp
