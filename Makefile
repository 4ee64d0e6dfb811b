# SPDX-License-Identifier: GPL-2.0
#
# What people type. The kernel's build system reads Kbuild instead, and the work
# is done by scripts/avl.py: see `make help`.

# Hand these on, as given on the command line or in the environment.
export KDIR KERNEL KSRC KERNEL_TARBALL O MO ARCH LLVM V ACCEL TIMEOUT JOBS TOOLCHAIN VARIANT
export TESTS SEED ROUNDS GENERATIONS SOAK STRIDE STEPS MUTANTS SELFTESTS STRESSORS PROPTEST_CASES
export STAGES JUDGE BENCH LOOM_MAX_PREEMPTIONS HERD7 MIRROR AVL_CACHE INSTALL_MOD_PATH INSTALL_MOD_DIR

# The commands call make themselves, with their own -j.
MAKEFLAGS += --no-print-directory
AVL := @env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL python3 -B "$(CURDIR)/scripts/avl.py"

TARGETS := kernel kernel-built modules modules_install run qemu check check-debug \
	check-unpatched check-selftests check-kcsan stressors coverage litmus check-full smoke \
	samples facts \
	patches-apply patches-check mutants bench report rustfmt \
	rustfmtcheck clippy checkpatch lint \
	rust-analyzer rustdoc clean distclean

.PHONY: all help python3 $(TARGETS)
.NOTPARALLEL:

all: modules

python3:
	@command -v python3 >/dev/null || \
		{ echo "python3 is missing: apt-get install python3" >&2; exit 2; }

$(TARGETS): python3
	$(AVL) $@

help:
	@echo 'anon_vma_lazy: a kernel patch series and a Rust module. Nothing needs to be'
	@echo 'installed first but make, python3, git, patch and xz; the rest is fetched.'
	@echo
	@echo 'Start here:'
	@echo '  run             - build all, boot the patched kernel in QEMU, show what lazy mode saves'
	@echo '  check           - run the tests; ends with "N passed, N failed, N skipped"'
	@echo
	@echo 'Build:'
	@echo '  all, modules    - anon_vma_lazy.ko against KDIR, or the kernel of "make kernel" (default)'
	@echo '  kernel          - fetch, patch, configure and build the test kernel'
	@echo '  kernel-built    - is that kernel there, and up to date? (exit status)'
	@echo '  modules_install - install the module (INSTALL_MOD_PATH, INSTALL_MOD_DIR)'
	@echo '  clean           - remove build/; the cache stays'
	@echo '  distclean       - clean, and remove kernels, sources and tools from the cache'
	@echo
	@echo 'Try it:'
	@echo '  qemu            - an interactive shell in a guest, module loaded'
	@echo '  samples         - user-space samples, and a module that uses this one'
	@echo '  facts           - does KSRC=... have what the series stands on? (porting)'
	@echo '  patches-apply   - put the series onto your own tree: KSRC=... (git: as commits)'
	@echo
	@echo 'Test:'
	@echo '  smoke           - boot, load, take first faults'
	@echo '  check-debug     - a tour of a kernel with KASAN, lockdep...; check VARIANT=debug has all'
	@echo '  check-kcsan     - guest tests on a kernel that looks for data races'
	@echo '  stressors       - stress-ng and trinity in a Debian userland, all lazy'
	@echo '  check-unpatched - an unpatched kernel refuses the module; the oracle holds there, and lazy off'
	@echo '  check-selftests - the kernel'"'"'s mm selftests: unpatched, lazy off, lazy on, compared'
	@echo '  patches-check   - each patch on top of the ones before: builds, passes the tests of its stage'
	@echo '  mutants         - faults put into module and series on purpose: each must be caught'
	@echo '  coverage        - which edges of the module the guest tests run, line by line'
	@echo '  litmus          - orders that the kernel'"'"'s memory model judges; needs herd7'
	@echo '  report          - one page (Markdown, HTML) of what the last runs have found'
	@echo '  check-full      - lint, check on both architectures, the rest on x86_64; goes on'
	@echo '                    where it was stopped'
	@echo
	@echo 'Measure:'
	@echo '  bench           - instructions and memory: unpatched, no module, lazy off, lazy on'
	@echo
	@echo 'Code:'
	@echo '  lint            - rustfmtcheck, clippy, checkpatch, shellcheck, pyflakes, SPDX lines'
	@echo '  rustfmt, rustfmtcheck, clippy, checkpatch'
	@echo '  rust-analyzer   - rust-project.json for the editor'
	@echo '  rustdoc         - documentation of the module, private items included'
	@echo
	@echo 'Variables:                                                          default'
	@echo '  ARCH            x86_64 or arm64                                   this machine'
	@echo '  KDIR            kernel build directory for the module             of make kernel'
	@echo '  KERNEL          7.3, or one of its versions, such as 7.3.4         7.3, the newest'
	@echo '  KSRC            kernel source tree, 7.3.y, instead of the package -'
	@echo '  KERNEL_TARBALL  source tarball instead of the package             -'
	@echo '  O               where the kernel is built                         in AVL_CACHE'
	@echo '  MO              where the module is built                         build/ARCH/module'
	@echo '  VARIANT         kernel: release, debug, kcsan, bench, base...     release'
	@echo '  TESTS           guest tests of make check, by name                all'
	@echo '  SEED            of stress and host tests; of bench and stressors  random; 1'
	@echo '  PROPTEST_CASES  sequences of operations in the host model         10000'
	@echo '  LOOM_MAX_PREEMPTIONS   of the protocol on the host                by scenario'
	@echo '  HERD7           herd7 and its options, for the litmus tests       of PATH'
	@echo '  ROUNDS          quiet points of the stress test                   15, debug 5'
	@echo '  STRIDE          pages move: each STRIDE-th allocation of a round fails    8; check-full 1'
	@echo '  SOAK            minutes of the stress test                        none; check-full 30'
	@echo '  GENERATIONS     of fork and exit in the cost test                 4000'
	@echo '  SELFTESTS       mm selftests, by name                             all'
	@echo '  STRESSORS       outside stressors, by name                        all'
	@echo '  STEPS           patches of patches-check, by number               all'
	@echo '  JUDGE           last: check-kcsan judges its last run once more   -'
	@echo '  STAGES          of check-full, by name                            all'
	@echo '  MUTANTS         faults of make mutants, by name                   all'
	@echo '  BENCH           benchmarks of make bench: speed, speed/fork...    all'
	@echo '  LLVM            as in the kernel: 1, -19, /path/                  of the toolchain'
	@echo '  TOOLCHAIN       auto, host, tree (packages unpacked in the cache) auto'
	@echo '  ACCEL           auto (KVM if a guest boots in it), tcg, kvm       auto'
	@echo '  TIMEOUT         seconds for a guest                               by test'
	@echo '  JOBS            parallel jobs                                     all CPUs'
	@echo '  V               1: commands of the kernel build in the logs       -'
	@echo '  AVL_CACHE       toolchain, sources, kernels (15 GB)               ~/.cache/anon-vma-lazy'
	@echo '  MIRROR          Debian mirror                                     of the host'"'"'s apt'

# An unknown target gets one line, not make's two.
%:
	@echo "unknown target '$@': make help lists them" >&2; exit 2
