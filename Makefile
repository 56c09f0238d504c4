# qmem: `make demo` and `make test` are the two commands that need only a C compiler, make and a Rust toolchain.

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
DESTDIR ?=
CC ?= cc
CFLAGS ?= -O2 -g
CARGO ?= cargo

ROOT := $(CURDIR)
OUT := target/release
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# The archive as cargo leaves it; tools/link makes the libraries of it. A folder of its own, so that no other cargo command
# writes over what `make build` left in target/release.
ARCHIVE := target/static/release/libqmem.a
# The same library as a malloc: its own build, in which a panic aborts.
PRELOAD_ARCHIVE := target/static/preload/libqmem_preload.a
# malloc at the start of a cache line: elsewhere a pair of malloc and free takes 6 % more time (AMD Zen 5).
HOT := -C llvm-args=-align-all-functions=6
LIBS := $(OUT)/libqmem.so.0 $(OUT)/libqmem.a $(OUT)/libqmem_preload.so
QMEM := $(OUT)/qmem
SYSTEM_LIBS := -lgcc_s -lpthread -ldl -lm -lc
HEADERS := include/qmem_types.h include/quantum_memory.h include/qmem.h

.PHONY: help setup build demo test bench bench-paged bench-chunked bench-codec bench-heap bench-programs soak headers lint symbols install clean FORCE
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install the Debian/Ubuntu packages that the other targets need
	@tools/setup

build: $(LIBS) $(QMEM) $(OUT)/pkgconfig/qmem.pc $(OUT)/cmake/qmem-config.cmake ## the libraries, the preload and the command qmem, in target/release

$(ARCHIVE): FORCE
	@$(CARGO) rustc --quiet --release --lib --crate-type staticlib --target-dir target/static

$(PRELOAD_ARCHIVE): FORCE
	@$(CARGO) rustc --quiet --package qmem-preload --profile preload --target-dir target/static -- $(HOT)

$(OUT)/libqmem_preload.so: $(PRELOAD_ARCHIVE) abi/qmem.exports abi/preload.exports $(wildcard preload/*.c) tools/link
	@CC="$(CC)" tools/link $(PRELOAD_ARCHIVE) $@

$(QMEM): FORCE
	@$(CARGO) build --quiet --release --package qmem-cli

$(OUT)/libqmem.%: $(ARCHIVE) abi/qmem.exports abi/defer.c tools/link
	@CC="$(CC)" tools/link $(ARCHIVE) $@

# A template's @WORDS@ filled in: $(call fill,template,output,includedir,libdir)
fill = mkdir -p "$$(dirname "$(2)")" && sed -e 's|@VERSION@|$(VERSION)|g' -e 's|@INCLUDEDIR@|$(3)|g' -e 's|@LIBDIR@|$(4)|g' \
	-e 's|@SYSTEM_LIBS@|$(SYSTEM_LIBS)|g' "$(1)" > "$(2)"

$(OUT)/pkgconfig/qmem.pc: cmake/qmem.pc.in Makefile Cargo.toml
	@$(call fill,$<,$@,$(ROOT)/include,$(ROOT)/$(OUT))

$(OUT)/cmake/qmem-config.cmake: cmake/qmem-config.cmake.in cmake/qmem-config-version.cmake.in Makefile Cargo.toml
	@$(call fill,cmake/qmem-config.cmake.in,$@,$(ROOT)/include,$(ROOT)/$(OUT))
	@$(call fill,cmake/qmem-config-version.cmake.in,$(OUT)/cmake/qmem-config-version.cmake)

# Each examples_c/main_*.c is a program; the other files there are linked into all of them.
EXAMPLE_PARTS := $(filter-out examples_c/main_%,$(wildcard examples_c/*.c))
EXAMPLES := $(patsubst examples_c/main_%.c,$(OUT)/examples_c/%,$(wildcard examples_c/main_*.c))

$(OUT)/examples_c/%: examples_c/main_%.c $(EXAMPLE_PARTS) $(wildcard examples_c/*.h) $(HEADERS) $(LIBS)
	@mkdir -p $(dir $@)
	@$(CC) -std=c11 -O3 -Wall -Wextra -Iinclude -Iexamples_c $< $(EXAMPLE_PARTS) -o $@ \
	  -L$(OUT) -lqmem -Wl,-rpath,$(ROOT)/$(OUT) -lm -lpthread

demo: setup build $(EXAMPLES) ## run a circuit on a state larger than its memory budget
	@if [ -x $(OUT)/examples_c/demo ]; then $(OUT)/examples_c/demo; else echo "demo: examples_c/main_demo.c is missing" >&2; exit 1; fi

test: setup build $(EXAMPLES) ## every test; the last line is the count
	@tools/setup tests || echo "test: without them, the tests that need them are skipped"
	@tools/test

soak: setup build $(EXAMPLES) ## the randomised tests, much longer
	@tools/setup soak || echo "soak: programs that could not be installed are passed over"
	@QMEM_TEST_SECONDS=$${QMEM_TEST_SECONDS:-600} tools/test soak

bench: bench-paged ## every figure that the README quotes, beside its peers
	@benches/monitoring/run

bench-paged: setup build ## paged memory beside the kernel's swap, file mappings and plain huge pages
	@benches/run

bench-heap: setup build ## malloc beside other allocators, which it builds: time, memory, instructions
	@benches/heap/build_peers
	@benches/heap/compare
	@benches/heap/instructions

bench-programs: setup build ## unchanged simulators in less memory than they need: the table, about an hour
	@tools/setup programs || echo "bench-programs: without it, the program that needs it is left out"
	@benches/programs/run

bench-chunked: setup build $(EXAMPLES) ## the example simulator by chunk, beside sweeps over paged and plain memory (5 min)
	@benches/chunked

bench-codec: setup build ## the codecs beside zfp, SZ3, Blosc2 and pco, on states of a simulator
	@benches/codec/run

headers: ## write include/*.h anew from src/ffi
	@$(CARGO) run --quiet --package qmem-headers -- include

symbols: build
	@tools/symbols

lint: symbols ## formatting, clippy, headers and exported symbols as committed
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --quiet --workspace --all-targets -- -D warnings
	@$(CARGO) clippy --quiet --manifest-path fuzz/Cargo.toml --target-dir target -- -D warnings
	@mkdir -p target/headers
	@$(CARGO) run --quiet --package qmem-headers -- target/headers
	@diff -ru --exclude='*.hpp' include target/headers || { echo "lint: include/ is not what src/ffi gives (+): make headers" >&2; exit 1; }

install: build ## libraries, headers, the command, man pages, CMake package, pkg-config file: PREFIX=… DESTDIR=…
	@install -d "$(DESTDIR)$(LIBDIR)/pkgconfig" "$(DESTDIR)$(LIBDIR)/cmake/qmem" "$(DESTDIR)$(INCLUDEDIR)"
	@install -m 755 $(OUT)/libqmem.so.0 "$(DESTDIR)$(LIBDIR)/libqmem.so.$(VERSION)"
	@ln -sf libqmem.so.$(VERSION) "$(DESTDIR)$(LIBDIR)/libqmem.so.0"
	@ln -sf libqmem.so.0 "$(DESTDIR)$(LIBDIR)/libqmem.so"
	@install -m 644 $(OUT)/libqmem.a "$(DESTDIR)$(LIBDIR)/"
	@install -m 755 $(OUT)/libqmem_preload.so "$(DESTDIR)$(LIBDIR)/"
	@install -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(MANDIR)/man1"
	@install -m 755 $(QMEM) "$(DESTDIR)$(BINDIR)/"
	@install -m 644 cli/man/*.1 "$(DESTDIR)$(MANDIR)/man1/"
	@install -m 644 include/*.h include/*.hpp "$(DESTDIR)$(INCLUDEDIR)/"
	@$(call fill,cmake/qmem.pc.in,$(DESTDIR)$(LIBDIR)/pkgconfig/qmem.pc,$(INCLUDEDIR),$(LIBDIR))
	@$(call fill,cmake/qmem-config.cmake.in,$(DESTDIR)$(LIBDIR)/cmake/qmem/qmem-config.cmake,$(INCLUDEDIR),$(LIBDIR))
	@$(call fill,cmake/qmem-config-version.cmake.in,$(DESTDIR)$(LIBDIR)/cmake/qmem/qmem-config-version.cmake)
	@chmod 644 "$(DESTDIR)$(LIBDIR)/pkgconfig/qmem.pc" "$(DESTDIR)$(LIBDIR)"/cmake/qmem/*.cmake

clean: ## remove what was built
	@$(CARGO) clean --quiet

FORCE:
