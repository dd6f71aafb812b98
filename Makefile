# SPDX-License-Identifier: GPL-2.0
# What a person types. The module itself is described in Kbuild; the work is done by the scripts in tools/env.
# Everything made on the way is kept in ~/.cache/lodge (LODGE_CACHE=DIR puts it elsewhere), nothing in the checkout but kvm.ko.

export VENDOR MODULE VMM T KVER KDIR SCALE KERNEL FUZZ_SECONDS
env := tools/env

.PHONY: all help build module run shell test test-long test-host test-ab bench fuzz debug-kernel lint clean

all: help build

help:
	@echo 'Lodge: KVM for Linux, in Rust'
	@echo
	@echo '  make run          boot a stock Debian kernel as a guest of our kvm.ko, in a host VM; VENDOR=amd|intel|amd-bochs, VMM=lodge|qemu'
	@echo '  make shell        a root shell in the AMD host VM, the module loaded'
	@echo '  make module       build kvm.ko; KVER=$$(uname -r) for an installed Debian kernel, KDIR=DIR for a self-built one'
	@echo '  make test         all tests; VENDOR=amd|intel|intel-haswell|amd-bochs|qemu|kvm-ioctls|ledger|refusal|lifecycle for some of the VMs, T=PATTERN for some of the tests'
	@echo '  make test-long    what is worth running for long, with full counts (an hour and more); VENDOR=, T= and SCALE=PERCENT cut it'
	@echo '  make test-host    only the tests that need no VM'
	@echo '  make test-ab      compare with the in-tree KVM, call by call'
	@echo '  make bench        what exits, faults, calls and VMs cost, beside the in-tree KVM'
	@echo '  make fuzz         fuzz the instruction emulator, guided by coverage, for FUZZ_SECONDS (an hour)'
	@echo '  make lint         format, clippy, unsafe code, panics, stack frames, compiler warnings'
	@echo '  make debug-kernel a kernel with KASAN, lockdep, kmemleak and fault injection; KERNEL=debug with module, test, run or shell uses it'
	@echo '  make clean        forget what was built from this checkout; the Debian root and the kernel stay'
	@echo
	@echo '  MODULE=intree with run, shell or test uses the kernel'\''s own KVM instead of ours.'
	@echo

build:
	@$(env)/build.sh

module:
	@$(env)/module.sh

run: build
	@$(env)/run.sh

shell: build
	@$(env)/vm.sh --interactive --module "$(or $(MODULE),ours)" --parts 'programs guest' \
		'echo "lodge, selftests and /guest are here; exit or Ctrl-D powers off, Ctrl-A X kills."; exec sh'

test: build
	@$(env)/test.sh

test-long: build
	@$(env)/test.sh --long

test-host:
	@$(env)/test.sh --host

test-ab: build
	@$(env)/test-ab.sh

bench: build
	@$(env)/bench.sh

fuzz:
	@$(env)/fuzz.sh

debug-kernel:
	@$(env)/debug-kernel.sh

lint:
	@tools/lint/lint.sh

clean:
	@$(env)/clean.sh
