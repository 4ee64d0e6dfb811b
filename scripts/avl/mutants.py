# SPDX-License-Identifier: GPL-2.0
"""make mutants: deliberate faults in the module and in the series, each to be caught by a test."""

import re
import shutil
import subprocess

from . import check, common, guest, ktap
from .common import TOP, Failure, say
from .kernel import Module
from .ktap import Result

DIRECTORY = TOP / "tests/mutants"
# A fault may well make a test hang: its guest is given no more than this.
TIMEOUTS = {"release": 300, "debug": 900}


class Mutant:
    """
    A patch with a header: what is wrong (Wrong:), why that matters (Why:), and who has to notice
    (Caught-by: kind of guest and PROGRAM/CASE; or host and the name of a test there). A test that
    passes, or has no time for a verdict, does not notice: Seen-as: is a pattern for what the
    kernel says then, or the end of the guest; Hangs: says why a guest that does not end is how
    one sees it. Both count only once that very case has begun.
    """

    def __init__(self, file):
        self.file = file
        self.name = file.stem
        header, _, body = file.read_text().partition("\n--- ")
        fields = dict(re.findall(r"^([A-Z][a-z-]+): (.*)$", header, re.M))
        if not body or not {"Wrong", "Why", "Caught-by"} <= set(fields):
            raise Failure(f"{file.name}: needs Wrong:, Why:, Caught-by: and a diff")
        self.wrong = fields["Wrong"]
        self.variant = fields.get("Variant", "release")
        self.hangs = "Hangs" in fields
        try:
            self.seen_as = re.compile(fields["Seen-as"]) if "Seen-as" in fields else None
        except re.error as error:
            raise Failure(f"{file.name}: Seen-as: is no regular expression: {error}") from error
        caught = fields["Caught-by"].split()
        if caught[0] not in ("check", "lazy", "host") or len(caught) != 2 or \
                ("/" in caught[1]) == (caught[0] == "host"):
            raise Failure(f"{file.name}: Caught-by: needs 'check|lazy PROGRAM/CASE' or 'host TEST'")
        self.mode, self.test = caught
        self.in_kernel = self.name.startswith("kernel-")


def mutated_copy(mutant):
    """The sources of the module with the fault in them."""
    tree = TOP / "build" / "mutants" / "source"
    if tree.exists():
        shutil.rmtree(tree)
    tree.mkdir(parents=True)
    parts = ("Kbuild", "include", "rust", "samples/rmap_who", "tests/host")
    names = (common.output(["git", "-C", str(TOP), "ls-files", "-co", "--exclude-standard",
                            *parts]) or "").split("\n")
    for name in filter(None, names):
        if (TOP / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(TOP / name, tree / name)
    with open(mutant.file, "rb") as text:
        result = subprocess.run(["patch", "-p1", "-s", "-f", "-F0", "--no-backup-if-mismatch"],
                                stdin=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                cwd=tree, check=False)
    if result.returncode:
        raise Failure(f"{mutant.file.name} does not apply any more: "
                      f"{result.stdout.decode(errors='replace').splitlines()[0]}")
    return tree


def caught_on_host(toolchain, mutant, tree):
    """Run the one host test on the mutated sources; as noticed()."""
    log = common.log_path(f"mutant-{mutant.name}")
    log.write_text("")
    try:
        toolchain.run(["cargo", "test", "--locked", "--manifest-path",
                       tree / "tests/host/Cargo.toml", mutant.test], log, mutant.name,
                      env={"CARGO_TARGET_DIR": TOP / "build/mutants/host"})
    except Failure:
        text = log.read_text(errors="replace")
        failed = [name for name in re.findall(r"^test (\S+) \.\.\. FAILED", text, re.M)
                  if name.endswith(mutant.test)]
        if failed:
            return f"{failed[0]} fails", ""
        raise Failure(f"{mutant.name}: the host test {mutant.test} did not run; log: {log}") \
            from None
    return None, f"not noticed by {mutant.test}"


def caught_in_guest(guests, mutant, kernel, initrd):
    """Boot a guest with the fault and run the one test; as noticed()."""
    tests = check.wanted([mutant.test])
    limit = check.time_limit(tests, TIMEOUTS[mutant.variant])
    run = guests.run(f"mutant-{mutant.name}", kernel, initrd, mutant.mode,
                     check.guest_options(mutant.mode, mutant.variant, tests, limit), limit)
    results = guest.judge(run, tuple(tests), kernel.source)
    return noticed(mutant, run, results)


def noticed(mutant, run, results):
    """
    What of these results is the fault's doing, or None; and why the fault is not caught, if it is
    not. Its own test has to fail. Whatever else goes wrong counts only if the header says so.
    """
    def shown(result):
        return f"{result.name}: {result.reason}"[:110]

    failed = [r for r in results if r.status == "failed"]
    for result in failed:
        if result.name == mutant.test:
            # The assertion says more than the parser's word for "not ok".
            why = next((line.strip("# ") for line in result.evidence
                        if re.search(r":Expected |: Test terminated ", line)), result.reason)
            return f"{result.name}: {why}"[:160], ""
    # A guest that was slow to boot, or died of something else before, shows nothing.
    begun = has_begun(mutant.test, run.console)
    for result in failed if mutant.seen_as and begun else ():
        for text in (f"{result.name}: {result.reason}", *result.evidence):
            found = mutant.seen_as.search(text)
            if found:
                return f"{result.name}: {found.group().strip()}"[:110], ""
    if run.timed_out and mutant.hangs and begun:
        return f"the guest was stopped after {run.seconds:.0f} s", ""
    if not failed:
        return None, f"not noticed by {mutant.test}"
    # What a test that has no verdict is missing for comes after it.
    first = next((r for r in failed if not r.reason.startswith("missing")), failed[0])
    return None, f"not caught by its test: {shown(first)}; console: {run.directory}/console.log"


def has_begun(test, console):
    """Whether the console says that PROGRAM/CASE has begun; of some programs only the former."""
    program, _, case = test.partition("/")
    file = TOP / f"tests/guest/{program}.c"
    name = case.rpartition(".")[2] if file.exists() and "avl_case(" in file.read_text() else ""
    what = f"case {name}" if name else f"test {program}"
    return bool(re.search(rf"avl: {re.escape(what)}$", console, re.M))


def baseline(guests, bench, mutants, variant):
    """All tests that are to notice something, without a fault: they have to pass."""
    results = []
    for mode in ("check", "lazy"):
        names = [m.test for m in mutants if m.mode == mode and m.variant == variant]
        tests = check.wanted(dict.fromkeys(names))
        if not tests:
            continue
        limit = check.time_limit(tests, check.TIMEOUTS[variant])
        run = guests.run(f"no-mutant-{mode}-{variant}", bench.kernel, bench.initrd, mode,
                         check.guest_options(mode, variant, tests, limit), limit)
        judged = guest.judge(run, tuple(tests), bench.kernel.source)
        if any(r.status == "failed" for r in judged):
            run.show_end()
        results += [Result(f"no-mutant/{mode}/{r.name}", r.status, r.reason, r.evidence)
                    for r in judged]
        # One that is not there would fail with each mutant.
        results += [Result(f"no-mutant/{mode}/{name}", "failed", "there is no such test")
                    for name in names if all(r.name != name for r in judged)]
    return results


class Verdicts:
    """
    What was caught on this very tree. A run of all mutants takes hours: it goes on where the last
    one was ended. One that is asked for by name is tried again.
    """

    def __init__(self, arch):
        self._directory = TOP / "build/mutants/caught" / arch
        self._key = common.tree_key(documents=False)

    def find(self, name):
        """How `name` was caught, or None."""
        file = self._directory / name
        if not self._key or common.setting("MUTANTS") or not file.exists():
            return None
        key, _, caught = file.read_text().partition("\n")
        return caught if key == self._key else None

    def keep(self, name, caught):
        """`name` was caught, or not (None)."""
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._directory / name
        if caught and self._key:
            file.write_text(f"{self._key}\n{caught}")
        else:
            file.unlink(missing_ok=True)


def mutants(toolchain, arch):
    """Each fault has to be noticed by the test that its header names."""
    chosen = [Mutant(file) for file in sorted(DIRECTORY.glob("*.patch"))]
    names = common.setting("MUTANTS").replace(",", " ").split()
    unknown = sorted(set(names) - {m.name for m in chosen})
    if unknown:
        raise Failure(f"MUTANTS={' '.join(unknown)}: no such file in tests/mutants")
    chosen = [m for m in chosen if not names or m.name in names]
    common.need_tool("patch", "patch")
    guests = guest.Guests(toolchain, arch)
    verdicts = Verdicts(arch)
    before = {m.name: verdicts.find(m.name) for m in chosen}
    rows = [(m.name, m.wrong, before[m.name]) for m in chosen if before[m.name]]
    if rows:
        say(f"{len(rows)} of {len(chosen)} were caught on this tree before: they are not repeated")
    results = [Result(f"mutant/{name}", "passed") for name, *_ in rows]
    for variant in TIMEOUTS:
        of_variant = [m for m in chosen if m.variant == variant and not before[m.name]]
        if not of_variant:
            continue
        with check.Stage(f"without a fault, {variant}"):
            bench = check.Bench(toolchain, arch, variant)
            unharmed = baseline(guests, bench, of_variant, variant)
            results += unharmed
        # What fails without a fault says nothing of one: not to be relied on next time.
        sound = all(r.status != "failed" for r in ktap.settle(unharmed, arch))
        # Those in the kernel last: they leave it to be built again.
        for mutant in sorted(of_variant, key=lambda m: (m.in_kernel, m.name)):
            with check.Stage(mutant.name):
                say(f"{mutant.name}: {mutant.wrong}")
                # One that does not build shows nothing; the others can still be asked.
                try:
                    caught, reason = one(toolchain, arch, guests, bench, mutant)
                    verdict = f"caught, {caught}" if caught else f"SURVIVED: {reason}"
                except Failure as error:
                    caught, verdict, reason = None, f"NOT TRIED: {error}", str(error)
            say(f"{mutant.name}: {verdict}")
            verdicts.keep(mutant.name, caught if sound else None)
            rows.append((mutant.name, mutant.wrong, caught or verdict))
            results.append(Result(f"mutant/{mutant.name}", "passed" if caught else "failed",
                                  reason))
    table = ["| mutant | what is wrong | noticed by |", "|---|---|---|"]
    table += [f"| {name} | {wrong} | {caught} |" for name, wrong, caught in sorted(rows)]
    (TOP / "build" / "mutants.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))
    caught = sum(r.status == "passed" for r in results if r.name.startswith("mutant/"))
    print(f"{caught} of {len(rows)} mutants were caught; "
          f"table: {TOP}/build/mutants.md")
    return check.finish("mutants", results, arch, {"Mutants": "\n".join(table)})


def one(toolchain, arch, guests, bench, mutant):
    """Build one mutant and ask its test; as noticed()."""
    if mutant.in_kernel:
        mutated = check.Bench(toolchain, arch, mutant.variant, extra=(mutant.file,))
        return caught_in_guest(guests, mutant, mutated.kernel, mutated.initrd)
    tree = mutated_copy(mutant)
    if mutant.mode == "host":
        return caught_on_host(toolchain, mutant, tree)
    output = TOP / "build" / "mutants" / f"module-{mutant.variant}"
    module = Module(toolchain, arch, bench.kernel.build_dir, output, top=tree, samples=True)
    module.build(may_warn=True)
    log = common.log_path(f"guest-{arch}")
    initrd = guest.initramfs(toolchain, arch, bench.kernel, [module.file, module.sample],
                             bench.programs, log)
    return caught_in_guest(guests, mutant, bench.kernel, initrd)
