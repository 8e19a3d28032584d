# Stage 02 is about what a compiler makes of a good layout. None of these is fast-math: errno and traps are
# not looked at, a*b+c may be one instruction, and loops marked `omp simd` may be vectors.
# For some processors gcc takes multiply-adds apart again where they form a chain, and only there: then
# equal keys in two tiles would get scores that differ in the last bit. avoid-fma-max-bits=0: nowhere.
# Both flags are gcc's, and not for every processor.
TAKEN_02 := $(if $(findstring clang,$(CC)),-Wno-pass-failed,$(call taken,$(CC),\
    -mprefer-vector-width=512 --param=avoid-fma-max-bits=0))
# The folder's name, which a copy of this stage has another of.
HERE := $(notdir $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST)))))
$(BUILD)/stages/$(HERE).so $(BUILD)/steps/$(HERE): STAGE_CFLAGS := -O3 $(MARCH_FLAG) -fno-math-errno \
    -fno-trapping-math -ffp-contract=fast -fopenmp -Wno-psabi -Wno-unknown-pragmas \
    $(TAKEN_02)
$(BUILD)/stages/$(HERE).so: STAGE_LIBS := -fopenmp
