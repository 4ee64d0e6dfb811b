# SPDX-License-Identifier: GPL-2.0
"""The test runs: make check, check-debug, check-full, patches-check."""

import os
import random
import re
import subprocess
import sys
import time
from functools import partial

from . import common, guest, ktap, litmus, report, selftests, source, vmatests
from .common import TOP, Failure, Stage, say
from .kernel import Kernel, Module
from .ktap import Result

# The tests of a patched guest, in order; taint looks back on all of them.
GUEST_TESTS = ("boot", "kunit", "sysctl", "hook", "lifetime", "judge", "inside", "who",
               "mixed", "taint")
# The tests of a guest that loads the module before all else, so that each program is lazy.
LAZY_TESTS = ("boot", "rmap", "states", "features", "cost", "stress", "fail", "leaks", "taint")
# What only a debug kernel can be asked, and what only another one can: KASAN keeps
# freed objects in its quarantine, so that what cost counts means nothing there.
DEBUG_TESTS = ("fail", "leaks")
RELEASE_TESTS = ("cost",)
# What changes settings of the whole machine (NUMA balancing, swap, memory that is offline) has a
# lazy guest of its own.
OWN_GUEST = ("features",)
# What is to leave reports on the console, by the kernel that it needs: a guest for itself. So many
# warnings, from where.
REPORTING = {
    "impossible": ("release", 2, r"\S*rust/vma\.rs:\d+ at .*\[anon_vma_lazy\]"),
    "wiped": ("debug", 1, r"mm/vma\.h:\d+ at "),
}
# What takes another kernel than `make check` has, or another module; by the kernel that is checked.
REFUSING = {"refused": "release", "mismatch": "debug"}
# What the tour of the debug kernel leaves to `make check VARIANT=debug`, which takes longer: single
# features, and the longest storm; the states one by one, which rmap comes by; what looks at
# messages and at who may ask; failing allocations but for an operation of each kind. kmemleak takes
# half of a debug kernel's time: it has a guest of its own, with what is most likely to leak.
TOUR = {
    "boot": [], "kunit": [], "lifetime": [], "inside": [], "mixed": [], "rmap": [], "stress": [],
    "hook": ["-V:off", "-T:root_is_charged_to_the_cgroup"],
    "fail": [f"fail.{case}" for case in (
        "fork_twice.each_allocation", "move_half.each_allocation", "split.each_allocation",
        "fork_below.each_allocation", "unmap_the_middle.while_pages_move")] +
            ["global.munmap_that_fails_behind_its_marks"],
    "features": [f"features.{case}" for case in (
        "uffd_move_in_a_family", "a_mapping_without_anonymous_pages", "failure_of_a_shared_page",
        "ksm_pages_made_of_shared_ones", "storm_of_mremap", "storm_of_ksm", "storm_of_munmap",
        "storm_of_huge_pages")],
}
TOUR_LEAKS = [f"fail.{operation}.each_of_the_module" for operation in
              ("first_fault", "fork_twice", "move_half", "split")]
# A debug kernel under TCG is that much slower.
TIMEOUTS = {"release": 900, "debug": 5400}
# What hangs in the tour must not take CI's time.
TOUR_TIMEOUT = 1800
# Loads and unloads of the lifetime test: one takes seconds on a debug kernel.
CYCLES = {"release": 100, "debug": 8}
TOUR_CYCLES = 2
# Quiet points of the stress test, at which the oracle looks.
ROUNDS = {"release": 15, "debug": 5, "kcsan": 5}
TOUR_ROUNDS = 2
# While pages move, fork and so on fail at each allocation, but in so many rounds: all of them in
# one take ten minutes. check-full asks for that.
STRIDE = 8
# What takes as many minutes as SOAK= says.
SOAKING = ("stress", "mixed")
# What the host tests take from the environment.
HOST_SETTINGS = ("SEED", "PROPTEST_CASES", "LOOM_MAX_PREEMPTIONS")


def wanted(names):
    """
    {program: its cases, or none for all} of names such as rmap and rmap/rmap.one_process; a case
    may be one of the harness's filters: rmap/-T:huge_pages leaves one out.
    """
    found = {}
    for name in names:
        program, _, case = name.removeprefix("lazy/").partition("/")
        cases = found.setdefault(program, [])
        if case:
            cases.append(case)
    return found


def tests_option(tests):
    """avl.tests= for {program: cases}."""
    return "avl.tests=" + ",".join("/".join(filter(None, (program, "+".join(cases))))
                                   for program, cases in tests.items())


def asked_for():
    """{test: cases} of TESTS=."""
    return wanted(common.setting("TESTS").replace(",", " ").split())


def selected():
    """For each kind of guest {test: cases} of TESTS=, or all of them."""
    asked = asked_for()
    known = list(dict.fromkeys((*GUEST_TESTS, *LAZY_TESTS, *REPORTING, *REFUSING)))
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise Failure(f"TESTS={' '.join(unknown)}: no such test; there are {', '.join(known)}")
    if not asked:
        return wanted(GUEST_TESTS), wanted(LAZY_TESTS)
    return ({name: asked[name] for name in GUEST_TESTS if name in asked},
            # What both kinds of guest have is run in the first.
            {name: asked[name] for name in LAZY_TESTS if name in asked and
             name not in GUEST_TESTS})


def host_tests(toolchain):
    """The shared logic under cargo test: one result for each test, and what they have counted."""
    log = common.log_path("host-tests")
    log.write_text("")
    try:
        # The toolchain may clear the environment: hand on what prolongs or repeats a run.
        env = {name: os.environ[name] for name in HOST_SETTINGS if os.environ.get(name)}
        toolchain.run(["cargo", "test", "--locked", "--manifest-path",
                       TOP / "tests/host/Cargo.toml", "--", "--show-output"], log, "host tests",
                      env={**env, "CARGO_TARGET_DIR": TOP / "build/host"})
        failure = None
    except Failure as error:
        failure = error
    text = log.read_text(errors="replace")
    results = []
    for name, verdict in re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (\w+)", text, re.M):
        status = {"ok": "passed", "ignored": "skipped"}.get(verdict, "failed")
        results.append(Result(f"host/{name}", status, "" if status == "passed" else str(log)))
    figures = re.findall(r"^figures: (.*)", text, re.M)
    for line in figures:
        say(f"host: {line}")
    warnings = re.findall(r"^warning: .*", text, re.M)
    if warnings:
        results.append(Result("host/no-warnings", "failed", warnings[0]))
    if failure and all(r.status != "failed" for r in results):
        results.append(Result("host/cargo", "failed", str(failure)))
    if not results:
        results.append(Result("host/cargo", "failed", f"no test ran; log: {log}"))
    return results, "\n".join(f"* {line}" for line in figures)


def harness_tests():
    """The harness's own unit tests: what it must refuse and what it must notice."""
    # They set what they look at themselves; where sources and tools come from stays.
    own = set(common.SELECTING + common.EFFORT + common.OTHERS) - \
        {"KERNEL", "KERNEL_TARBALL", "AVL_CACHE"} | \
        {"ARCH", "KDIR", "O", "MO", "MAKEFLAGS", "MFLAGS", "V", "JOBS", "STAGES", "BENCH",
         "AVL_STAGE"}
    env = {name: value for name, value in os.environ.items() if name not in own}
    common.need_tool("git", "git")
    result = subprocess.run([sys.executable, "-B", "-m", "unittest", "discover", "-b", "-v", "-s",
                             str(TOP / "tests/harness")], cwd=TOP, check=False, env=env,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    text = result.stdout.decode(errors="replace")
    log = common.log_path("harness-tests")
    log.write_text(text)
    results = []
    for name, verdict in re.findall(r"^(\w+) \(.*?\)(?:\n.*?)? \.\.\. (\w+)", text, re.M):
        status = {"ok": "passed", "skipped": "skipped"}.get(verdict, "failed")
        results.append(Result(f"harness/{name}", status, "" if status == "passed" else str(log)))
    if not results or (result.returncode and all(r.status != "failed" for r in results)):
        results.append(Result("harness/unittest", "failed", f"exit {result.returncode}; {log}"))
    return results


class Bench:
    """What a guest is made of: kernel, module, programs, initramfs."""

    def __init__(self, toolchain, arch, variant="release", upto=None, module=True, extra=()):
        log = common.log_path(f"guest-{arch}")
        self.kernel = Kernel(toolchain, arch, variant, upto, extra).build()
        self.module = None
        if module:
            name = "module" if variant == "release" else f"module-{variant}"
            output = TOP / "build" / arch / name if variant != "release" else None
            self.module = Module(toolchain, arch, self.kernel.build_dir, output,
                                 samples=True).build()
        self.programs = guest.compile_programs(toolchain, arch, self.kernel.source, log)
        modules = [self.module.file, self.module.sample] if self.module else []
        self.initrd = guest.initramfs(toolchain, arch, self.kernel, modules, self.programs, log)


# What code that may panic calls: core::panicking, and what unwrap() and slices have behind them.
PANICS = re.compile(r"R_\w+.*(?:panicking|(?:unwrap|expect)_failed|slice_\w*_fail|"
                    r"len_mismatch_fail)")


def panics(text):
    """The functions that can panic, but for KUnit cases, in what llvm-objdump -dr prints."""
    function, found = "", []
    for line in text.splitlines():
        header = re.match(r"[0-9a-f]+ <(.*)>:$", line)
        if header:
            function = header.group(1)
        elif PANICS.search(line) and "::tests::" not in function:
            found.append(function)
    return sorted(set(found))


def no_panics(toolchain, module):
    """The module has no way to panic: no overflow or bounds check, no unwrap()."""
    suffix = toolchain.llvm if toolchain.llvm.startswith("-") else ""
    text = toolchain.output([f"llvm-objdump{suffix}", "-dr", "-C", "--no-show-raw-insn",
                             module.file]) or ""
    found = panics(text)
    if "hooks::fork>" not in text:
        found = ["llvm-objdump found no code"]
    return Result("module/no-panics", "failed" if found else "passed", ", ".join(found))


def guest_options(mode, variant, tests, limit, tour=False):
    """
    What the kernel command line says to a guest of that kind: {test: cases}, seconds for one,
    whether it is the tour, in which there is no time for all.
    """
    options = f"{tests_option(tests)} avl.limit={limit}"
    if "lifetime" in tests and variant in CYCLES:
        options += f" avl.cycles={TOUR_CYCLES if tour else CYCLES[variant]}"
    # SLUB's checks of each object, on top of KASAN's, take a sixth of the time of a debug kernel.
    all_checks = variant == "debug" and (not tour or "leaks" in tests)
    slab = ["-"] if variant == "debug" and not all_checks else []
    if mode == "lazy":
        # Sanity checks keep free objects out of per-CPU stocks, so that counts are exact. A cache
        # that is named has the checks that are named with it, and no others.
        slab.append(f"{'FZPU' if all_checks else 'F'},anon_vma*,vm_area_struct")
    if slab:
        options += f" slab_debug={';'.join(slab)}"
    rounds = TOUR_ROUNDS if tour else ROUNDS[variant]
    options += f" avl.rounds={common.number('ROUNDS', rounds)}"
    # Not for the guest to choose: what it prints may not come through.
    options += f" avl.seed={common.number('SEED', random.SystemRandom().randrange(1, 1 << 31))}"
    for name in ("GENERATIONS", "SOAK"):
        if common.setting(name):
            options += f" avl.{name.lower()}={common.number(name, 0)}"
    if mode == "lazy":
        if "leaks" in tests:
            options += " kmemleak=on"
        if "fail" in tests:
            # A case that is asked for by name, as mutants do, is to notice what it can.
            named = not tour and any(not case.startswith("-") for case in tests["fail"])
            stride = common.number("STRIDE", 1 if named else STRIDE)
            options += f" avl.stride={stride}"
    return options


def time_limit(tests, default):
    """guest.time_limit() for a guest that has these tests."""
    return guest.time_limit(default, any(name in tests for name in SOAKING))


def guest_check(guests, bench, mode, tests, name=None, tour=False):
    """
    The tests of a patched guest of one kind, 'check' or 'lazy': {test: cases} or names. Logs go by
    the `name`, the kind if there is none. `tour` as for guest_options().
    """
    variant = bench.kernel.variant
    tests = tests if isinstance(tests, dict) else wanted(tests)
    limit = time_limit(tests, TOUR_TIMEOUT if tour else TIMEOUTS[variant])
    run = guests.run(f"{name or mode}-{variant}", bench.kernel, bench.initrd, mode,
                     guest_options(mode, variant, tests, limit, tour), limit)
    results = guest.judge(run, tuple(tests), bench.kernel.source)
    if any(r.status == "failed" for r in results):
        run.show_end()
    if mode == "lazy":
        results = [Result(f"lazy/{r.name}", r.status, r.reason, r.evidence) for r in results]
    return results


def harness_guests(guests, bench):
    """A guest that panics, one that hangs: both have to count as failures."""
    results = []
    for mode, wanted, timeout in (("panic", "Kernel panic", 60), ("hang", "was stopped after", 30)):
        name = f"must-fail-{mode}"
        # Not for the user to change: one of them is to run into it.
        run = guests.run(name, bench.kernel, bench.initrd, mode, "", timeout)
        judged = guest.judge(run, ("before", "after"), bench.kernel.source)
        seen = [r for r in judged if r.status == "failed" and wanted in r.reason] or \
            [line for line in guest.badness(run.console) if wanted in line]
        booted = "1.." in run.verdict
        missing = [r for r in judged if r.name == "after" and r.status == "failed"]
        ok = booted and seen and missing and any(r.status == "failed" for r in judged)
        results.append(Result(f"harness/{name}", "passed" if ok else "failed",
                              "" if ok else f"not noticed: {[vars(r) for r in judged]}"))
    return results


def reporting(guests, bench, name):
    """A test that makes the kernel warn, so often and from where REPORTING says, and goes on."""
    _, times, where = REPORTING[name]
    run = guests.run(name, bench.kernel, bench.initrd, "check", f"avl.tests={name}",
                     guest.time_limit(300))
    results = guest.judge(run, (name,), bench.kernel.source)
    # Its console and its taint are as they should be here, and are looked at below.
    results = [r for r in results if not r.name.startswith("guest ")]
    wanted_line = re.compile(f"WARNING: {where}|Call [Tt]race:")
    bad = guest.badness(run.console)
    other = [line for line in bad if not wanted_line.search(line)]
    warnings = sum("WARNING:" in line for line in bad)
    ended = "avl: end of guest" in run.console and not run.status
    why = "" if ended and warnings == times and not other else \
        f"ended: {ended}, {warnings} warnings, others: {other[:3]}; {run.directory}/console.log"
    results.append(Result(f"guest {name}", "failed" if why else "passed", why))
    if any(r.status == "failed" for r in results):
        run.show_end()
    return results


def refusal(toolchain, guests, arch, bench, variant, cases=()):
    """The module on a kernel without the patches."""
    kernel = Kernel(toolchain, arch, variant).build()
    tests = ("refused",)
    run = guests.run(f"refused-{variant}", kernel, bench.initrd, "check",
                     tests_option({"refused": cases}), guest.time_limit(120),
                     guest.Machine(nodes=1 if variant == "plain" else 2))
    results = guest.judge(run, tests, kernel.source)
    if any(r.status == "failed" for r in results):
        run.show_end()
    return [Result(f"unpatched/{r.name}", r.status, r.reason, r.evidence) for r in results]


def other_configuration(toolchain, guests, arch, bench, cases=()):
    """The module of the release kernel on the debug kernel."""
    other = Bench(toolchain, arch, "release")
    run = guests.run("other-configuration", bench.kernel, other.initrd, "check",
                     tests_option({"mismatch": cases}), guest.time_limit(300))
    results = guest.judge(run, ("mismatch",), bench.kernel.source)
    if any(r.status == "failed" for r in results):
        run.show_end()
    return results


def guests_of(tests, lazy_tests):
    """
    What is run in which kind of guest: (what it is, kind, tests, name of its logs). What changes
    settings of the whole machine has a guest of its own.
    """
    own = {name: cases for name, cases in lazy_tests.items() if name in OWN_GUEST}
    others = {name: cases for name, cases in lazy_tests.items() if name not in OWN_GUEST}
    return [run for run in (("", "check", tests, None),
                            (", all lazy", "lazy", others, None),
                            (f", {', '.join(own)}", "lazy", own and {**own, "taint": []},
                             "features")) if run[2]]


def guest_checks(guests, bench, runs, tour=False):
    """
    guest_check() for each of `runs` as guests_of() returns them, the results in their order. Guests
    of a debug kernel keep one CPU busy most of the time: two at once.
    """
    def run(what, *args):
        with Stage(f"guest tests{what}, {bench.kernel.arch} {bench.kernel.variant}"):
            return guest_check(guests, bench, *args, tour=tour)

    calls = [partial(run, *args) for args in runs]
    if bench.kernel.variant != "debug":
        return [result for call in calls for result in call()]
    # Before there are several.
    guests.accel(bench.kernel, bench.initrd)
    return [result for judged in guests.side_by_side(calls) for result in judged]


def check(toolchain, arch):
    """make check: everything that is quick once the kernels are built."""
    guests = guest.Guests(toolchain, arch)
    variant = common.setting("VARIANT", "release")
    if variant not in TIMEOUTS:
        raise Failure(f"VARIANT={variant} cannot be checked: use {' or '.join(TIMEOUTS)}")
    tests, lazy_tests = selected()
    wrong = RELEASE_TESTS if variant == "debug" else DEBUG_TESTS
    asked = asked_for()
    wrong += tuple(name for name, (needed, *_) in REPORTING.items() if needed != variant)
    wrong += tuple(name for name, needed in REFUSING.items() if needed != variant)
    if set(asked) & set(wrong):
        raise Failure(f"TESTS={common.setting('TESTS')}: {', '.join(wrong)} cannot be run on the "
                      f"{variant} kernel")
    lazy_tests = {name: cases for name, cases in lazy_tests.items() if name not in wrong}
    # Refused before anything is built.
    time_limit({**tests, **lazy_tests}, TIMEOUTS[variant])
    # The last stage boots an unpatched kernel.
    if variant == "release" and (not asked or "refused" in asked):
        source.need_plain()
    results, extra = [], {}
    with Stage("kernel source"):
        source.pristine()
    # These have nothing to do with a kernel: once, in make check.
    if not common.setting("TESTS") and variant == "release":
        with Stage("host tests"):
            judged, extra["What the host tests explored"] = host_tests(toolchain)
            results += judged
        with Stage("harness tests"):
            results += harness_tests()
    with Stage(f"kernel and module, {arch} {variant}"):
        bench = Bench(toolchain, arch, variant)
    if not common.setting("TESTS") and variant == "release":
        results.append(no_panics(toolchain, bench.module))
        with Stage("tools/testing/vma"):
            results += vmatests.run(toolchain, bench.kernel.source)
    results += guest_checks(guests, bench, guests_of(tests, lazy_tests))
    for name, (needed, *_) in REPORTING.items():
        if needed == variant and (name in asked or not asked):
            with Stage(f"{name}, which makes the kernel warn"):
                results += reporting(guests, bench, name)
    if not common.setting("TESTS") and variant == "release":
        compared, table = selftests.stage(toolchain, arch,
                                          (("lazy off", bench, "selftests-off"),
                                           ("lazy on", bench, "selftests-on")), "short")
        results += compared
        extra["mm selftests that differ"] = table
        with Stage("guests that must fail"):
            results += harness_guests(guests, bench)
    if variant == "release" and (not asked or "refused" in asked):
        with Stage(f"unpatched kernel, {arch}"):
            results += refusal(toolchain, guests, arch, bench, "plain", asked.get("refused", ()))
    if variant == "debug" and (not asked or "mismatch" in asked):
        with Stage("module of another configuration"):
            results += other_configuration(toolchain, guests, arch, bench,
                                           asked.get("mismatch", ()))
    return finish("check" if variant == "release" else f"check-{variant}-all", results, arch,
                  extra)


def check_debug(toolchain, arch):
    """make check-debug: a tour of the debug kernel, in guests side by side."""
    if common.setting("TESTS"):
        raise Failure("check-debug runs tests of its own choice: for these use make check "
                      f"VARIANT=debug TESTS=\"{common.setting('TESTS')}\"")
    guests = guest.Guests(toolchain, arch)
    with Stage(f"kernel and module, {arch} debug"):
        bench = Bench(toolchain, arch, "debug")

    def chosen(*names):
        return {**{name: TOUR[name] for name in names}, "taint": []}

    # The longest first; none of them needs what another one has done.
    runs = ((", failures, storms", "lazy", chosen("boot", "fail", "stress", "features"), "fail"),
            (", all lazy", "lazy", chosen("boot", "rmap"), None),
            ("", "check", chosen("boot", "kunit", "hook", "lifetime", "inside", "mixed"), None),
            (", kmemleak", "lazy", {"fail": TOUR_LEAKS, "leaks": [], "taint": []}, "leaks"))
    results = guest_checks(guests, bench, runs, tour=True)
    return finish("check-debug", results, arch)


def finish(target, results, arch, extra=None, raw=None):
    """Show what has run and how long it took, keep that for the report; the number of failures."""
    Stage.show()
    failures = ktap.report(results, arch)
    report.save(target, arch, ktap.settle(results, arch), Stage.times, extra, raw)
    return failures


def smoke(toolchain, arch):
    """Boot, load the module, take first faults: the quick look at an architecture."""
    guests = guest.Guests(toolchain, arch)
    with Stage(f"kernel and module, {arch}"):
        bench = Bench(toolchain, arch)
    with Stage(f"smoke test, {arch}"):
        results = guest_check(guests, bench, "check", ("boot", "hook", "taint"))
        results += guest_check(guests, bench, "lazy", ("rmap", "cost", "taint"))
    return finish("smoke", results, arch)


# What each step of patches-check is asked: no module is needed for these, and the oracle is built
# into each of the kernels. Of each kind of change to VMAs and folios there is one.
STEP_TESTS = ("boot", *(f"rmap/rmap.{case}" for case in (
    "three_generations", "parents_exit_first", "split_and_merge", "move_away_and_home",
    "move_after_fork_on_either_side", "several_vmas_moved_at_once", "private_file_stack_and_brk",
    "grown_stack_is_told_to_perf", "fork_and_exec", "swap_out_and_in_across_forks", "huge_pages",
    "migration_of_exclusive_and_shared_pages", "ksm_across_forks", "soft_and_hard_memory_failure",
    "idle_pages_and_pagemap", "all_locks_of_an_mm",
    "all_locks_of_a_process_with_lazy_vmas_only", "munmap_against_migration",
    "exit_against_migration")), "taint")


def compiler_warnings(text):
    """Those of the log of a build. What make itself warns of (a jobserver) is not the patch's."""
    return re.findall(r"^(?!make\b).*warning:.*$", text, re.M)


def patches_check(toolchain, arch):
    """
    Each patch of the series, on top of those before it: builds without a warning, boots, and the
    oracle finds nothing without the module; with the last one the module works.

    In the trees of the full series, so that each step builds what its patch changes; the last
    one leaves them as `make kernel` would.
    """
    guests = guest.Guests(toolchain, arch)
    results = []
    patches = source.series()
    steps = common.setting("STEPS").replace(",", " ").split()
    unknown = set(steps) - {str(number) for number in range(1, len(patches) + 1)}
    if unknown:
        raise Failure(f"STEPS={' '.join(sorted(unknown))}: the series has patches 1 to "
                      f"{len(patches)}")
    for number, patch in enumerate(patches, 1):
        if steps and str(number) not in steps:
            continue
        name = f"patch-{number:04}"
        with Stage(f"{patch.name[:38]}"):
            last = number == len(patches)
            try:
                bench = Bench(toolchain, arch, "release", upto=number, module=last)
            except Failure as error:
                results.append(Result(f"{name}/builds", "failed", str(error)))
                break
            results.append(Result(f"{name}/builds", "passed"))
            log = common.log_path(f"kernel-{arch}-release")
            text = log.read_text(errors="replace") if log.exists() else ""
            warnings = compiler_warnings(text)
            results.append(Result(f"{name}/no-warnings", "failed" if warnings else "passed",
                                  warnings[0] if warnings else ""))
            judged = guest_check(guests, bench, "check", STEP_TESTS, name)
            if last:
                judged += guest_check(guests, bench, "check", ("boot", "hook", "taint"),
                                      f"{name}-module")
                judged += guest_check(guests, bench, "lazy", ("rmap", "taint"), f"{name}-lazy")
            results += [Result(f"{name}/{r.name}", r.status, r.reason, r.evidence) for r in judged]
    return finish("patches-check", results, arch)


# Minutes of the stress test in check-full.
SOAK = 30
# The stages of check-full: a name, and the make command line.
FULL = (
    ("lint", ["lint"]),
    ("litmus", ["litmus"]),
    ("check-x86_64", ["check", "ARCH=x86_64"]),
    ("check-arm64", ["check", "ARCH=arm64"]),
    ("debug-x86_64", ["check", "VARIANT=debug", "STRIDE=1", "TIMEOUT=7200", "ARCH=x86_64"]),
    ("selftests-x86_64", ["check-selftests", "ARCH=x86_64"]),
    ("kcsan-x86_64", ["check-kcsan", "ARCH=x86_64"]),
    ("stressors-x86_64", ["stressors", "ARCH=x86_64"]),
    ("coverage-x86_64", ["coverage", "ARCH=x86_64"]),
    ("mutants-x86_64", ["mutants", "ARCH=x86_64"]),
    ("unpatched-x86_64", ["check-unpatched", "ARCH=x86_64"]),
    ("patches-check-x86_64", ["patches-check", "ARCH=x86_64"]),
    ("soak-x86_64", ["check", "TESTS=stress", "ARCH=x86_64"]),
    ("generations-x86_64", ["check", "TESTS=cost", "GENERATIONS=100000", "TIMEOUT=3600",
                            "ARCH=x86_64"]),
)


def check_selftests(toolchain, arch):
    """make check-selftests: unpatched, patched with lazy mode off, on."""
    base = Bench(toolchain, arch, "base", module=False)
    patched = Bench(toolchain, arch)
    results, table = selftests.stage(toolchain, arch, (("unpatched", base, "selftests"),
                                                       ("lazy off", patched, "selftests-off"),
                                                       ("lazy on", patched, "selftests-on")),
                                     common.setting("SELFTESTS"))
    return finish("check-selftests", results, arch, {"mm selftests that differ": table})


def check_litmus(_, arch):
    """make litmus: the kernel's memory model is the same for both architectures."""
    with Stage("litmus tests"):
        results = litmus.run()
    return finish("litmus", results, arch)


def unpatched(toolchain, arch):
    """The module on an unpatched kernel of the very configuration of the patched one."""
    # The oracle and its tests have to hold without any of this, too: not patched, switched off.
    asked, known = asked_for(), ("refused", "rmap", "states", "features", "stress")
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise Failure(f"TESTS={' '.join(unknown)}: check-unpatched has {', '.join(known)}")
    asked = asked or wanted(known)
    tests = {name: asked[name] for name in known[1:] if name in asked}
    guests = guest.Guests(toolchain, arch)
    patched = Bench(toolchain, arch)
    results = []
    if "refused" in asked:
        results += refusal(toolchain, guests, arch, patched, "base", asked["refused"])
    for name, bench, mode in (("unpatched", Bench(toolchain, arch, "base", module=False), "check"),
                              ("off", patched, "off")):
        if not tests:
            break
        with Stage(f"oracle, {arch}, {name}"):
            limit = time_limit(tests, TIMEOUTS["release"])
            run = guests.run(name, bench.kernel, bench.initrd, mode,
                             guest_options(mode, "release", tests, limit), limit)
        judged = guest.judge(run, tuple(tests), bench.kernel.source)
        if any(r.status == "failed" for r in judged):
            run.show_end()
        results += [Result(f"{name}/{r.name}", r.status, r.reason, r.evidence) for r in judged]
    return finish("check-unpatched", results, arch)


# What looks at documents, too: lint, and the harness's own tests.
READ_DOCUMENTS = ("lint", "check")


def stage_environment(name):
    """
    The environment of a stage, which is a stage whole: what narrows a run down is not handed on,
    but for how much the tests do. Its name keeps its record and its guests apart from others'.
    """
    own = {*common.SELECTING, "VARIANT", "TIMEOUT", "ARCH", "SOAK", "STRIDE", "STAGES", "JUDGE"}
    return {**{name: value for name, value in os.environ.items() if name not in own},
            "AVL_STAGE": "full-" + re.sub("-(x86_64|arm64)$", "", name)}


def stage_key(name, target, env, keys):
    """
    What a stage that has passed depends on: the tree, the settings that reach it, and its command
    line. `keys` keeps the first two. None if that cannot be known.
    """
    documents = name.split("-")[0] in READ_DOCUMENTS
    if documents not in keys:
        keys[documents] = common.tree_key(documents, env)
    return keys[documents] and common.digest(keys[documents], *target)


def check_full():
    """
    Every stage, or those of STAGES=, one after the other. What passed on this very tree, with the
    same settings, is not repeated, nor is what does not read documents if nothing else has changed.
    """
    stages = common.setting("STAGES").replace(",", " ").split()
    unknown = sorted(set(stages) - {name for name, _ in FULL})
    if unknown:
        raise Failure(f"STAGES={' '.join(unknown)}: no such stage; there are "
                      f"{', '.join(name for name, _ in FULL)}")
    done_dir = TOP / "build" / "full"
    done_dir.mkdir(parents=True, exist_ok=True)
    failed, left_out, rows = [], [], []
    keys = {}
    for name, target in FULL:
        if stages and name not in stages:
            continue
        if name.startswith("soak"):
            target = [*target, f"SOAK={common.number('SOAK', SOAK)}"]
        why = litmus.missing() if name == "litmus" else None
        if why:
            say(f"{name}: not run: {why}")
            rows.append((name, f"NOT RUN: {why}"))
            left_out.append(name)
            continue
        env = stage_environment(name)
        key = stage_key(name, target, env, keys)
        stamp = done_dir / name
        if key and stamp.exists() and stamp.read_text().startswith(key):
            rows.append((name, stamp.read_text().split("\n", 1)[1].strip()))
            say(f"{name}: passed before on this tree")
            continue
        stamp.unlink(missing_ok=True)
        started = time.monotonic()
        log = common.log_path(f"full-{name}")
        say(f"{name}: running; log: {log}")
        with open(log, "wb") as out:
            status = subprocess.run(["make", "-C", str(TOP), *target], env=env, check=False,
                                    stdin=subprocess.DEVNULL, stdout=out,
                                    stderr=subprocess.STDOUT).returncode
        lines = [line for line in common.tail(log, 40) if not line.startswith("make")]
        counts = [line for line in lines if re.search(r"\d+ passed", line)]
        last = (counts or lines or [""])[-1].strip()
        last += "".join(f"; {line.strip()}" for line in lines if line.startswith(guest.NOTE))
        seconds = time.monotonic() - started
        verdict = f"{'FAILED' if status else 'passed'} in {seconds:.0f} s: {last}"
        say(f"{name}: {verdict}")
        rows.append((name, verdict))
        if status:
            failed.append(name)
        elif key:
            stamp.write_text(f"{key}\n{verdict}\n")
    for name, verdict in rows:
        print(f"  {name:<24} {verdict}")
    print(f"{len(rows) - len(failed) - len(left_out)} passed, {len(failed)} failed, "
          f"{len(left_out)} skipped")
    return len(failed)
