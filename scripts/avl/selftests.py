# SPDX-License-Identifier: GPL-2.0
"""The kernel's own mm selftests, on kernels with and without lazy roots, compared test by test."""

import fnmatch
import re

from . import common, guest
from .common import TOP, Failure, say
from .ktap import FAILS_ON_ALL, Result
from .toolchain import DEB_ARCH, unpacked

EXPECTED = TOP / "tests/expected-differences"
ALIKE = TOP / "tests/expected-selftests"
# A label, the command in tools/testing/selftests/mm, whether it is on the short list. As in
# run_vmtests.sh, for what meets an anonymous folio; uffd-stress with less memory and fewer rounds.
LIST = (
    ("rmap", "rmap", True),
    ("merge", "merge", True),
    ("cow", "cow", False),
    ("migration", "migration", False),
    ("mremap_test", "mremap_test", False),
    ("mremap_dontunmap", "mremap_dontunmap", True),
    ("ksm_functional_tests", "ksm_functional_tests", True),
    ("ksm_merge", "ksm_tests -M -p 10", False),
    ("ksm_unmerge", "ksm_tests -U", False),
    ("ksm_zero", "ksm_tests -Z -p 10 -z 0", False),
    ("ksm_zero_shared", "ksm_tests -Z -p 10 -z 1", False),
    ("ksm_numa_across", "ksm_tests -N -m 1", False),
    ("ksm_numa_apart", "ksm_tests -N -m 0", False),
    ("khugepaged", "khugepaged all:anon", False),
    ("khugepaged_shmem", "khugepaged all:shmem", False),
    ("split_huge_page_test", "split_huge_page_test", False),
    ("folio_split_race_test", "folio_split_race_test", False),
    ("transhuge-stress", "transhuge-stress -d 20", False),
    ("uffd-unit-tests", "uffd-unit-tests", False),
    ("uffd-stress-anon", "uffd-stress anon 20 4", False),
    ("uffd-stress-shmem-private", "uffd-stress shmem-private 20 4", False),
    ("uffd-stress-hugetlb-private", "uffd-stress hugetlb-private 64 4", False),
    ("uffd-wp-mremap", "uffd-wp-mremap", False),
    ("madv_populate", "madv_populate", True),
    ("guard-regions", "guard-regions", True),
    ("process_madv", "process_madv", True),
    ("memory-failure", "memory-failure", False),
    ("mkdirty", "mkdirty", True),
    ("pagemap_ioctl", "pagemap_ioctl", False),
    ("soft-dirty", "soft-dirty", False),
    ("compaction_test", "compaction_test", False),
    ("mlock-random-test", "mlock-random-test", False),
    ("mlock2-tests", "mlock2-tests", False),
    ("mrelease_test", "mrelease_test", False),
    ("map_populate", "map_populate", False),
    ("map_fixed_noreplace", "map_fixed_noreplace", False),
    ("droppable", "droppable", False),
    ("mseal_test", "mseal_test", False),
    ("on-fault-limit", "on-fault-limit", False),
    ("prctl_thp_disable", "prctl_thp_disable", False),
    ("gup_longterm", "gup_longterm", False),
    ("hugetlb-mmap", "hugetlb-mmap", False),
    ("hugetlb-mremap", "hugetlb-mremap", False),
    ("hugetlb-madvise", "hugetlb-madvise", False),
    ("hugetlb-shm", "hugetlb-shm", False),
    ("hugetlb_dio", "hugetlb_dio", False),
    ("hugetlb_fault_after_madv", "hugetlb_fault_after_madv", False),
    ("hugetlb_madv_vs_map", "hugetlb_madv_vs_map", False),
    ("hugetlb-soft-offline", "hugetlb-soft-offline", False),
)
# x86_64 has it alone.
ONLY = {"soft-dirty": "x86_64"}
LIBRARIES = {"migration": ["-lnuma"], "rmap": ["-lnuma"], "ksm_tests": ["-lnuma"],
             "mlock-random-test": ["-lcap"]}
SOURCES = {"uffd-stress": ["uffd-common.c"], "uffd-unit-tests": ["uffd-common.c"],
           "uffd-wp-mremap": ["uffd-common.c"]}
# What says nothing of a kernel if it is the same on all of them.
NOTHING = r"SKIP|not ok(?: \(\d+\))?"
STATUS = rf"ok|{NOTHING}|XFAIL|TIMEOUT|missing"
# What is replaced in a program's source: {old: new}.
EDITS = {
    # Less of the same: an emulator is not done in its time.
    "folio_split_race_test": {"#define NUM_ITERATIONS 100": "#define NUM_ITERATIONS 20"},
    "hugetlb_fault_after_madv": {"int max = 10000;": "int max = 2000;"},
    # It leaves memory to khugepaged when it has seen what it waited for: pages that it makes
    # small again after that, for the next look, may be a huge one once more when it looks. Shared
    # memory is mapped as a huge page by the next fault only, which this would keep it from.
    "khugepaged": {"\treturn timeout == -1;":
                   "\tif (ops == &__anon_ops)\n\t\tmadvise(p, len, MADV_NOHUGEPAGE);\n"
                   "\treturn timeout == -1;"},
    # It counts the pages that became the zero page in two scans. ksmd gives up a page that NUMA
    # balancing marks between two of its steps. Balancing leaves a task with a memory policy alone.
    "ksm_functional_tests": {"\tksft_set_plan(tests);":
                             "\tksft_set_plan(tests);\n"
                             "\tsyscall(__NR_set_mempolicy, 4 /* MPOL_LOCAL */, NULL, 0);"},
    # It looks for room for what it moves, and not for what is to lie below. The heap of a static
    # program may be there.
    "mremap_test": {"while (!is_remap_region_valid(addr, c.region_size) &&":
                    "while (!is_remap_region_valid(addr - c.dest_preamble_size,\n"
                    "\t\t\tc.region_size + c.dest_preamble_size) &&"},
    # It counts ends of scans, the first of which may be that of one that had passed these pages
    # before; ksmd does not rest there (sleep_millisecs is 0). And a smart scan leaves pages out by
    # their age: two of different ages may not be in any scan together.
    "ksm_tests": {"cur_scan < init_scan + scan_count": "cur_scan < init_scan + scan_count + 1",
                  'if (ksm_write_sysfs(KSM_FP("run"), 2) ||':
                  'if (ksm_write_sysfs(KSM_FP("smart_scan"), 0) ||\n'
                  '\t    ksm_write_sysfs(KSM_FP("run"), 2) ||'},
}
# Seconds for one program under TCG, and for all of them in a guest. On a busy machine they need
# several times as long as on a quiet one.
LIMIT = 480
LIMITS = {"uffd-unit-tests": 1800}
GUEST_LIMIT = 7200
# A test that differs is run so often again, on both kernels. That excuses nothing: it tells the
# reader whether it is one that has two outcomes, which is to be mended in EDITS, or listed.
AGAIN = 8
# Not again: one of these takes so long that eight would take hours.
LONG = tuple(LIMITS)
# To be run by a user without rights, as run_vmtests.sh does: it looks at a limit that root has not.
NOBODY = ("on-fault-limit",)
AS_NOBODY = "su -s /bin/sh nobody -c "


def chosen(arch, asked):
    """[(label, command)] of these names, of the short list ("short"), or all."""
    names = asked.replace(",", " ").split()
    if names == ["short"]:
        names = [label for label, _, is_short in LIST if is_short]
    unknown = sorted(set(names) - {label for label, _, _ in LIST})
    if unknown:
        raise Failure(f"SELFTESTS={' '.join(unknown)}: no such test; there are "
                      f"{', '.join(label for label, _, _ in LIST)}")
    return [(label, command) for label, command, _ in LIST
            if ONLY.get(label, arch) == arch and (not names or label in names)]


def libraries(arch):
    """Static libnuma and libcap of that architecture, from Debian."""
    return unpacked("selftest-libraries", ("libnuma-dev", "libcap-dev"), DEB_ARCH[arch])


def build(toolchain, kernel, arch, tests):
    """Compile the programs from the kernel's source, static. Returns the directory."""
    out = TOP / "build" / arch / "selftests"
    out.mkdir(parents=True, exist_ok=True)
    log = common.log_path(f"selftests-{arch}")
    log.write_text("")
    # What check_config.sh would have found: no liburing.
    (out / "local_config.h_gen").write_text("")
    toolchain.run(kernel.make("headers"), log, "the kernel's headers", env=kernel.environment())
    source = kernel.source / "tools/testing/selftests/mm"
    libs = libraries(arch)
    triple = next((libs / "usr/lib").glob("*-linux-gnu"))
    programs = sorted({command.split()[0] for _, command in tests})
    say(f"compiling {len(programs)} selftests for {arch}; log: {log}")
    for program in programs:
        target = out / program
        main = source / f"{program}.c"
        if program in EDITS:
            edited = main.read_text()
            for old, new in EDITS[program].items():
                if old not in edited:
                    raise Failure(f"{main} is not what it was: EDITS is out of date")
                edited = edited.replace(old, new)
            main = out / main.name
            if not main.exists() or main.read_text() != edited:
                main.write_text(edited)
        if target.exists() and target.stat().st_mtime > main.stat().st_mtime:
            continue
        # By its name alone: some make files that are called by __FILE__.
        sources = [main if program in EDITS else main.name, "vm_util.c", "hugepage_settings.c",
                   *SOURCES.get(program, [])]
        toolchain.run([toolchain.gcc(arch), "-O2", "-static", "-no-pie", "-U_FORTIFY_SOURCE",
                       "-D_GNU_SOURCE=", "-pthread", f"-I{out}", f"-I{kernel.source}",
                       f"-I{source}", f"-I{kernel.source}/tools/testing/selftests",
                       "-isystem", f"{kernel.build_dir}/usr/include",
                       "-isystem", f"{kernel.source}/tools/include/uapi",
                       "-isystem", f"{libs}/usr/include",
                       *sources, "-o", target, f"-L{triple}", *LIBRARIES.get(program, []),
                       "-lrt", "-lm"],
                      log, f"compiling {program}", cwd=source)
    return out


def listed_line(test):
    """What run-selftests reads of a (label, command); LABEL@2 is a second run of LABEL."""
    label, command = test
    name = label.split("@")[0]
    return f"{label} {LIMITS.get(name, LIMIT)} {AS_NOBODY if name in NOBODY else ''}./{command}\n"


def initramfs(toolchain, kernel, arch, bench, directory, tests):
    """The initramfs of the tests, with these programs besides."""
    log = common.log_path(f"selftests-{arch}")
    (directory / "list").write_text("".join(map(listed_line, tests)))
    (directory / "passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    rows = ["dir /etc 755 0 0", f"file /etc/passwd {directory}/passwd 644 0 0",
            f"file /avl/run-selftests {TOP}/scripts/guest/run-selftests 755 0 0",
            "dir /avl/selftests 755 0 0",
            f"file /avl/selftests/list {directory}/list 644 0 0"]
    rows += [f"file /avl/selftests/{program} {directory}/{program} 755 0 0"
             for program in sorted({command.split()[0] for _, command in tests})]
    modules = [bench.module.file] if bench.module else []
    return guest.initramfs(toolchain, arch, kernel, modules, bench.programs, log, rows,
                           "selftests")


def verdicts(text):
    """
    (label, test, status, the test's own reason) of what run-selftests sent; the program's own end
    is 'exit'. A plan that does not hold is a result, too: 'plan'.
    """
    label, names, plan = None, [], None
    for line in text.splitlines():
        begin = re.match(r"^## begin (\S+)$", line)
        end = re.match(r"^## end (\S+) (\d+) (\d+)$", line)
        if begin:
            label, names, plan = begin.group(1), [], None
        elif end:
            if plan not in (None, len(names)):
                yield end.group(1), "plan", "not ok", f"{len(names)} of {plan} have a verdict"
            status = int(end.group(2))
            other = "TIMEOUT" if status in (124, 137) else f"not ok ({status})"
            yield end.group(1), "exit", {0: "ok", 4: "SKIP"}.get(status, other), ""
            label = None
        elif label:
            verdict = re.match(r"^(ok|not ok) \d+(?: -)?\s*(.*?)(?:\s*# (SKIP|XFAIL)\b\s*(.*))?$",
                               line.strip())
            planned = re.match(r"^1\.\.(\d+)", line)
            if planned:
                plan = int(planned.group(1))
            if not verdict:
                continue
            # Some have no name, but a reason. What differs from run to run is no part of it.
            name = verdict.group(2) or verdict.group(4) or "test"
            name = re.sub(r"0x[0-9a-f]+|\b\d{5,}\b|\d+\.\d+|(?<=Extra pages )\d+|"
                          r"(?<=extra thread faults )\d+", "N", name)
            if name in names:
                name = f"{name} ({sum(n.startswith(name) for n in names) + 1})"
            names.append(name)
            yield label, name, verdict.group(3) or verdict.group(1), verdict.group(4) or ""


def parse(text):
    """{label: {test: status}} of that; a program that has begun has an entry."""
    found = {label: {} for label in re.findall(r"(?m)^## begin (\S+)$", text)}
    for label, name, status, _ in verdicts(text):
        found.setdefault(label, {})[name] = status
    return found


def reasons(text):
    """{LABEL/TEST: why it was skipped, by its own words}."""
    return {f"{label}/{name}": why for label, name, _, why in verdicts(text) if why}


def lines_of(file):
    """(number, line) of those of a committed list that say something."""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line


def expected():
    """[(arch, variant, pattern, was, now, reason)] of the committed list of differences."""
    rows = []
    for number, line in lines_of(EXPECTED):
        fields = re.match(rf"^(\S+) (lazy on|lazy off) (.+?): ({STATUS}) -> ({STATUS}) :: (.+)$",
                          line)
        if not fields:
            raise Failure(f"{EXPECTED.name}:{number}: needs ARCH lazy on|lazy off LABEL/TEST: "
                          "WAS -> IS :: REASON")
        rows.append(fields.groups())
    return rows


def alike():
    """[(arch, pattern, outcome, reason)] of the committed list of what says nothing."""
    rows = []
    for number, line in lines_of(ALIKE):
        fields = re.match(rf"^(\S+) (.+?): ({NOTHING}) :: (.+)$", line)
        if not fields:
            raise Failure(f"{ALIKE.name}:{number}: needs ARCH LABEL/TEST: SKIP or not ok :: REASON")
        rows.append(fields.groups())
    return rows


def absent(test):
    """What it is if a test has no result: a plan that holds has none."""
    return "ok" if test == "plan" else "missing"


def more_runs(again, base, other, name, now):
    """What more runs, {variant: {test: [status]}}, say of a test that differs, in words."""
    seen = {variant: again.get(variant, {}).get(name, ()) for variant in (base, other)}
    return ": " + ", ".join(f"so {outcomes.count(now)} of {len(outcomes)} times more on {variant}"
                            for variant, outcomes in seen.items()) if any(seen.values()) else ""


class Comparison:
    """One kernel held against another one, by the committed lists."""

    def __init__(self, arch, base, other, again, said):
        self.base, self.other, self.again, self.said = base, other, again, said
        self.expected = [row[2:] for row in expected() if row[0] in (arch, "all") and
                         row[1] == other]
        self.alike = [row[1:] for row in alike() if row[0] in (arch, "all")]
        # The lines of either list that excuse nothing, so far.
        self.idle = {*self.expected}, {*self.alike}

    def judge(self, name, was, now):
        """
        The result of one test, and what the table says of it, if anything: that begins with words
        in capitals for what fails.
        """
        where = f"{self.other}/{name}"
        if was in ("TIMEOUT", "missing"):
            why = "that limit is too short" if was == "TIMEOUT" else "or its name is never the same"
            return Result(where, "failed", f"{was} on {self.base}, {now} on {self.other}: nothing "
                                           f"to compare with; {why}"), "NOT COMPARED"
        if was == now:
            return self._same(name, where, now)
        for row in self.expected:
            pattern, before, after, reason = row
            if (before, after) == (was, now) and fnmatch.fnmatchcase(name, pattern):
                self.idle[0].discard(row)
                return Result(where, "passed"), f"expected: {reason}"
        more = more_runs(self.again, self.base, self.other, name, now)
        return Result(where, "failed", f"{was} on {self.base}, {now} on {self.other}{more}"), \
            f"NOT EXPECTED{more}"

    def _same(self, name, where, outcome):
        """What both skip, or fail, has to be on the list."""
        if not re.fullmatch(NOTHING, outcome):
            return Result(where, "passed"), None
        for row in self.alike:
            pattern, known, reason = row
            if known == outcome and fnmatch.fnmatchcase(name, pattern):
                self.idle[1].discard(row)
                return Result(where, "skipped" if outcome == "SKIP" else FAILS_ON_ALL, reason,
                              listed=True), None
        words = f" ({self.said[name]})" if self.said.get(name) else ""
        return Result(where, "failed", f"{outcome}{words} on {self.base}, too, and not in "
                                       f"tests/{ALIKE.name}"), f"NOT LISTED{words}"


def compare(runs, arch, again=None, said=None, whole=False):
    """
    Results of comparing {variant: {label: {test: status}}}: the first variant is what the others
    have to equal, test by test. `again` is what more runs have said, see outcomes(); `said` are
    reasons(). Also returns the rows of a table of what differs, or says nothing and is not known
    to; and, if `whole`, a failure for each line of the lists that has excused nothing.
    """
    base, *others = runs
    results, rows, idle = [], [], []
    for other in others:
        comparison = Comparison(arch, base, other, again or {}, said or {})
        for label in dict.fromkeys([*runs[base], *runs[other]]):
            before, after = (runs[variant].get(label, {}) for variant in (base, other))
            for test in dict.fromkeys([*before, *after]):
                was, now = (tests.get(test, absent(test)) for tests in (before, after))
                result, why = comparison.judge(f"{label}/{test}", was, now)
                results.append(result)
                if why:
                    rows.append((f"{label}/{test}", base, was, other, now, why))
        idle.append(comparison.idle)
    if whole:
        # Those of differences are for one variant each, the others for all of them.
        differences, others = zip(*idle)
        stale = set.union(*differences) | set.intersection(*others)
        results += [Result(f"list/{row[0]}", "failed", f"{' -> '.join(row[1:-1])} is on the list, "
                           "and was not seen: remove it, or find out why") for row in sorted(stale)]
    return results, rows


def run_variant(guests, bench, image, name, mode, labels):
    """
    One guest with all the programs. Returns the results of its tests, their reasons(), and what is
    wrong.
    """
    run = guests.run(f"selftests-{name.replace(' ', '-')}", bench.kernel, image, mode,
                     # Some write to what they may not, by way of /proc/self/mem; some map at fixed
                     # addresses, where the heap of a static program may be: it is put anywhere in
                     # the gigabyte behind the program.
                     "proc_mem.force_override=always hugepages=16 norandmaps "
                     f"{guest.EXACT_COUNTS}",
                     guest.time_limit(GUEST_LIMIT))
    found = parse(run.verdict)
    # A selftest may provoke what counts as bad in ours: memory failure, for one.
    faults = [fault for fault in run.faults() if "bad lines" not in fault]
    bad = [line for line in guest.badness(run.console)
           if not re.search(r"Memory failure|hwpoison|MCE|Huh VM_FAULT", line)]
    if bad:
        faults.append(f"{len(bad)} bad lines on the console, the first: {bad[0].strip()}")
    faults += [f"{label} has no end" for label in labels if "exit" not in found.get(label, {})]
    if faults:
        run.show_end()
    return found, reasons(run.verdict), [
        Result(f"selftests/{name}", "failed" if faults else "passed", "; ".join(faults),
               run.evidence() if faults else ())]


def differing(rows):
    """The programs of which something differs and is not expected, and on which variants."""
    names = [row for row in rows if row[5].startswith("NOT EXPECTED")]
    labels = {row[0].split("/")[0] for row in names} - set(LONG)
    return sorted(labels), {name for row in names for name in (row[1], row[3])}


def outcomes(found):
    """
    {test: [status]} of programs that ran several times, as LABEL@1, LABEL@2 and so on: one of each
    run, also where it is missing.
    """
    runs, every = {}, {}
    for label, tests in found.items():
        runs.setdefault(label.split("@")[0], []).append(tests)
    for label, several in runs.items():
        for test in dict.fromkeys(test for tests in several for test in tests):
            every[f"{label}/{test}"] = [tests.get(test, absent(test)) for tests in several]
    return every


def run_again(guests, variants, image_of, tests, rows):
    """Run what differs again, on the variants concerned. {variant: outcomes()}, results."""
    labels, concerned = differing(rows)
    again, results = {}, []
    if not labels:
        return again, results
    repeated = [(f"{label}@{n}", command) for n in range(1, AGAIN + 1)
                for label, command in tests if label in labels]
    for name, bench, mode in variants:
        if name not in concerned:
            continue
        with common.Stage(f"mm selftests that differ, {guests.arch}, {name}"):
            say(f"{AGAIN} times again: {', '.join(labels)}")
            found, _, own = run_variant(guests, bench, image_of(bench, repeated),
                                        f"again-{name}", mode, [label for label, _ in repeated])
        again[name] = outcomes(found)
        results += own
    return again, results


def counted(compared, rows):
    """One line: what became of all that was compared."""
    def beginning(word):
        return sum(row[5].startswith(word) for row in rows)

    compared = [r for r in compared if not r.name.startswith("list/")]
    skipped, failing = (sum(r.status == status for r in compared)
                        for status in ("skipped", FAILS_ON_ALL))
    same = len(compared) - len(rows) - skipped - failing
    return (f"{len(compared)} results compared, {same} the same, {skipped} skipped and {failing} "
            f"failing on all kernels, {beginning('expected')} differ as expected, "
            f"{beginning('NOT EXPECTED')} differ, "
            f"{beginning('NOT LISTED')} say nothing and are not listed, "
            f"{beginning('NOT COMPARED')} have no outcome to compare with")


def stage(toolchain, arch, variants, asked):
    """
    The tests in one guest for each of `variants`: (name, bench, mode), the first of which is what
    the others are held against. `asked` are names of tests, see chosen(). Returns the results, and
    a line that counts with a table of what differs.
    """
    tests = chosen(arch, asked)
    if not tests:
        return [], ""
    guests = guest.Guests(toolchain, arch)
    directory = build(toolchain, variants[0][1].kernel, arch, tests)
    runs, results, said = {}, [], {}

    def image_of(bench, tests):
        return initramfs(toolchain, bench.kernel, arch, bench, directory, tests)

    for name, bench, mode in variants:
        image = image_of(bench, tests)
        with common.Stage(f"mm selftests, {arch}, {name}"):
            runs[name], words, own = run_variant(guests, bench, image, name, mode,
                                                 [label for label, _ in tests])
        said.update(words)
        results += own
        count = sum(len(found) for found in runs[name].values())
        say(f"{name}: {count} results of {len(tests)} programs")
    # All of the list, to their ends: else what was not seen says nothing.
    whole = not asked and len(variants) == 3 and all(
        "exit" in found.get(label, ()) for found in runs.values() for label, _ in tests)
    compared, rows = compare(runs, arch, said=said, whole=whole)
    again, own = run_again(guests, variants, image_of, tests, rows)
    results += own
    if again:
        compared, rows = compare(runs, arch, again, said, whole)
    table = ["| test | on | is | on | is | |", "|---|---|---|---|---|---|"]
    table += [f"| {' | '.join(row)} |" for row in rows]
    file = TOP / "build" / f"selftests-{'short-' if asked == 'short' else ''}{arch}.md"
    file.write_text("\n".join(table) + "\n")
    print("\n".join(table[2:]))
    total = counted(compared, rows)
    print(f"mm selftests, {arch}: {total}; table: {file}")
    return results + compared, "\n".join([f"{total}.", "", *table])
