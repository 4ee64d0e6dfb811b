# SPDX-License-Identifier: GPL-2.0
"""Guests: their programs and initramfs, the QEMU command, one run, what to make of it."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

from . import common, ktap
from .common import TOP, Failure, say
from .toolchain import QEMU

CPUS = 4
MEMORY_MB = 2048


class Machine(NamedTuple):
    """What a guest runs on."""
    cpus: int = CPUS
    memory: int = MEMORY_MB
    nodes: int = 2
    # The clock counts instructions (one is a nanosecond), from this seed on all is determined.
    counted: int = 0
    # The host CPU that it runs on, for wall time.
    pinned: int = -1
    # More arguments, for an emulator only.
    emulated: tuple = ()


# An out-of-tree module, and in-kernel tests.
EXPECTED_TAINT = 1 << 12 | 1 << 18
# Kernels with KASAN get a CPU without 5-level page tables: identify_cpu() clears the feature bits
# and reads them again, and KASAN tells by LA57 where the direct map begins. An interrupt in
# between has an access to the direct map, or to its stack, reported as wild.
FOUR_LEVELS = ("debug",)
# Kernels whose guests have PCI in any case: ACPI fails a hundred times at boot without, and whether
# kmemleak has something to say of that was not tried.
WITH_PCI = ("debug",)
CONSOLE = {"x86_64": "ttyS0", "arm64": "ttyAMA0"}
# A kernel that has anything of this on its console has a defect. On top of what
# rcutorture's console-badness.sh looks for.
BADNESS = re.compile(
    r"WARNING:|\bBUG\b|Oops|Kernel panic|Call [Tt]race:|Bad page|Bad rss-counter|Bad pagetable|"
    r"bad page|non-zero pgtables_bytes|unable to handle|general protection fault|"
    r"Internal error:|Unhandled fault|detected stalls|self-detected stall|kthread starved|"
    r"Writer stall state|blocked for more than|possible (?:circular|recursive|irq) lock|"
    r"inconsistent lock state|held lock freed|sleeping function called|scheduling while atomic|"
    r"suspicious RCU|KASAN|KCSAN|UBSAN|KFENCE|kmemleak: \d+ new|memory leak|refcount_t:|"
    r"list_(?:add|del) corruption|ODEBUG|page_table_check|Objects remaining|"
    r"\bbad p[4mugt]+[de]\b|Bad swap|non-static key|detected expedited stalls|"
    r"VM_WARN|VM_BUG|!!!|\?\?\? |rust_kernel: .*panicked|lockdep.*turn(?:ed|ing) off")
# Lines that match the above and are none: start-up messages of the checkers themselves.
HARMLESS = re.compile(
    r"KernelAddressSanitizer initialized|kfence: initialized|"
    r"kcsan: (?:enabled|selftest|strict|non)|"
    r"KASAN: shadow|Lock dependency validator|\bBUG_ON\b.*enabled|kmemleak: Kernel memory leak")


def badness(text):
    """The lines of a console that must not be there."""
    return [line for line in text.splitlines()
            if BADNESS.search(line) and not HARMLESS.search(line)]


def compile_programs(toolchain, arch, source_tree, log):
    """The guest tests and the workload, static. Returns the directory."""
    out = TOP / "build" / arch / "guest"
    out.mkdir(parents=True, exist_ok=True)
    selftests = source_tree / "tools/testing/selftests"
    for file in sorted((TOP / "tests/guest").glob("*.c")) + sorted((TOP / "samples").glob("*.c")):
        toolchain.run([toolchain.gcc(arch), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror",
                       "-Wno-unused-parameter", "-Wno-sign-compare",
                       "-Wno-missing-field-initializers", "-static", "-pthread",
                       f"-I{selftests}", f"-isystem{selftests.parent.parent}/include/uapi",
                       "-o", out / file.stem, file.relative_to(TOP)], log,
                      f"compiling {file.name}", cwd=TOP)
    return out


def kunit_suites():
    """The suites that the module's sources define."""
    names = set()
    for file in (TOP / "rust").rglob("*.rs"):
        names |= set(re.findall(r"kunit_tests\((\w+)\)", file.read_text()))
    if not names:
        raise Failure("found no KUnit suite in rust/: the pattern in kunit_suites() is out of date")
    return sorted(names)


def initramfs(toolchain, arch, kernel, modules, programs, log, more=(), kind=""):
    """
    An initramfs with these modules, made by the kernel's gen_init_cpio. Returns the file. `more`
    are rows for that, and `kind` tells such an image from the usual one.
    """
    out = TOP / "build" / arch / "-".join(filter(None, ("initramfs", kernel.variant, kind)))
    out.mkdir(parents=True, exist_ok=True)
    (out / "kunit-suites").write_text("\n".join(kunit_suites()) + "\n")
    busybox = toolchain.busybox(arch)
    shutil.copyfile(busybox, out / "busybox")
    rows = ["dir /dev 755 0 0", "nod /dev/console 600 0 0 c 5 1", "nod /dev/null 666 0 0 c 1 3",
            "dir /bin 755 0 0", "dir /tmp 1777 0 0", "dir /avl 755 0 0", "dir /avl/tests 755 0 0",
            "dir /proc 555 0 0", "dir /sys 555 0 0",
            f"file /bin/busybox {out}/busybox 755 0 0",
            f"file /init {TOP}/scripts/guest/init 755 0 0",
            f"file /avl/kunit-suites {out}/kunit-suites 644 0 0"]
    for module in modules:
        rows.append(f"file /avl/{module.name} {module} 644 0 0")
    rows.append(f"file /avl/run-tests {TOP}/scripts/guest/run-tests 755 0 0")
    for test in sorted((TOP / "tests/guest").iterdir()):
        if test.suffix == ".c":
            rows.append(f"file /avl/tests/{test.stem} {programs}/{test.stem} 755 0 0")
        elif not test.suffix:
            rows.append(f"file /avl/tests/{test.name} {test} 755 0 0")
    for sample in sorted((TOP / "samples").glob("*.c")):
        rows.append(f"file /avl/{sample.stem} {programs}/{sample.stem} 755 0 0")
    rows += more
    if any(" " in str(p) for p in (TOP, out, *modules, programs)):
        raise Failure(f"the path {TOP} has a blank in it, which gen_init_cpio cannot take")
    (out / "list").write_text("\n".join(rows) + "\n")
    image = out / "initramfs.cpio"
    toolchain.run(["sh", "-c", '"$1" "$2" > "$3"', "sh", kernel.build_dir / "usr/gen_init_cpio",
                   out / "list", image], log, "making the initramfs")
    return image


def qemu_command(arch, kernel, initrd, mode, accel, directory, options="", machine=Machine(),
                 interactive=False):
    """The QEMU command line as a list."""
    cpus, memory, nodes, counted, pinned, emulated = machine
    append = [f"console={CONSOLE[arch]}", "panic=-1", "oops=panic", "slab_nomerge",
              f"avl.mode={mode}", options]
    # x86 without ACPI has no other way out; -no-reboot makes a reset the end.
    argv = [QEMU[arch], "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-smp", f"{cpus},sockets=2,cores={cpus // 2}" if cpus > 1 else "1", "-m", f"{memory}M"]
    if counted:
        argv += ["-icount", "shift=0,sleep=off", "-seed", str(counted),
                 "-rtc", "base=2026-01-01,clock=vm"]
        append += ["norandmaps", "nokaslr"]
    if arch == "x86_64":
        cpu = "max" if accel == "tcg" else "host"
        if kernel.variant in FOUR_LEVELS:
            cpu += ",la57=off"
        argv += ["-M", f"q35,accel={accel}", "-cpu", cpu]
        # A TSC that is taken for unstable leaves the guest with the HPET, whose emulation is slow.
        append += ["reboot=t", "tsc=reliable"]
    else:
        argv += ["-M", f"virt,accel={accel},gic-version=3",
                 "-cpu", "max,pauth-impdef=on" if accel == "tcg" else "host"]
    if nodes == 2:
        # The second one may have memory only.
        half = (cpus + 1) // 2
        for node, its in enumerate((f",cpus=0-{half - 1}",
                                    f",cpus={half}-{cpus - 1}" if cpus > 1 else "")):
            argv += ["-object", f"memory-backend-ram,id=ram{node},size={memory // 2}M",
                     "-numa", f"node,nodeid={node},memdev=ram{node}{its}"]
    argv += ["-kernel", str(kernel.image), "-initrd", str(initrd)]
    # Verdicts on a line of their own. QEMU 10.0 was seen to abort twice, in msix_table_mmio_write()
    # and where it said nothing that was kept, while one emulated CPU looked for PCI devices and the
    # others did something else. The cause is inferred: sizing a BAR moves what an access of
    # another CPU refers to. x86_64 has a serial line, which needs no PCI; without that ACPI
    # complains in some hundred lines. Where one CPU runs at a time nothing of the kind can be,
    # and a line that is sent by interrupts would be measured.
    without_pci = arch == "x86_64" and cpus > 1 and not counted and \
        kernel.variant not in WITH_PCI
    if without_pci:
        append += ["pci=off", "avl.port=ttyS1"]
    if interactive:
        argv += ["-serial", "mon:stdio"]
    else:
        argv += ["-serial", f"file:{directory}/console.log"]
        if without_pci:
            argv += ["-serial", f"file:{directory}/verdict.log"]
        else:
            argv += ["-device", "virtio-serial-pci,vectors=0",
                     "-chardev", f"file,id=verdict,path={directory}/verdict.log",
                     "-device", "virtserialport,chardev=verdict,name=avl.verdict"]
    argv += ["-append", " ".join(filter(None, append))]
    argv += emulated
    return ["taskset", "-c", str(pinned), *argv] if pinned >= 0 else argv


# Objects of anon_vma_chain and anon_vma that the shell that is PID 1 may have more than at first.
LEFT_OBJECTS = 8
# How a line of the results begins that is neither good nor bad.
NOTE = "  NOTE "
# Kinds of guests, as scripts/guest/init has them: with the module from the first program to the
# last, after which it is unloaded, and its guest says what is left;
LOADED = ("lazy", "selftests-off", "selftests-on", "stressors")
# and with a last look of the oracle, as their programs do not ask it.
LOOKED_AT = ("selftests", "selftests-off", "selftests-on", "stressors")
# Sanity checks keep free objects out of per-CPU stocks, so that counts are exact.
EXACT_COUNTS = "slab_debug=F,anon_vma*,vm_area_struct"


class Run:
    """One guest that ran to its end, or did not."""

    def __init__(self, directory, status, seconds, timed_out, mode=""):
        self.mode = mode
        self.directory = directory
        self.status = status
        self.seconds = seconds
        self.timed_out = timed_out
        self.console = self._text("console.log")
        self.verdict = self._text("verdict.log")

    def _text(self, name):
        try:
            return (self.directory / name).read_text(errors="replace").replace("\r", "")
        except OSError:
            return ""

    def evidence(self):
        """What the console says from its first bad line on; else how it ends."""
        lines = self.console.splitlines()
        bad = badness(self.console)
        first = lines.index(bad[0]) if bad else max(len(lines) - 10, 0)
        return tuple(lines[max(first - 5, 0):first + 40])

    def faults(self):
        """What is wrong with the guest itself, whatever its tests say."""
        found = []
        if self.timed_out:
            found.append(f"the guest was stopped after {self.seconds:.0f} s (TIMEOUT)")
        elif self.status:
            found.append(": ".join([f"QEMU ended with status {self.status}",
                                    *self.said_by_qemu()]))
        if not self.timed_out and not self._ended():
            found.append("the guest died before its end")
        taint = re.findall(r"avl: tainted (\d+)", self.console)
        if taint and int(taint[-1]) & ~EXPECTED_TAINT:
            found.append(f"unexpected taint: {taint[-1]}")
        found += self._oracle() + self._left()
        bad = badness(self.console)
        if bad:
            found.append(f"{len(bad)} bad lines on the console, the first: {bad[0].strip()}")
        return found

    def emulator_aborted(self):
        """
        Whether it is QEMU that gave up (SIGABRT: an assertion of its own), before the guest has run
        a program and with nothing on its console that the kernel would have to answer for.
        """
        return self.status in (-signal.SIGABRT, 128 + signal.SIGABRT) and \
            not self.timed_out and "Run /init" not in self.console and not badness(self.console)

    def said_by_qemu(self):
        """Its last line, or none."""
        return common.tail(self.directory / "qemu.log", 1)

    def _ended(self):
        return "avl: end of guest" in self.console

    def _oracle(self):
        """What the oracle says when all programs have come to their end."""
        answer = re.search(r"avl: oracle: (.*)", self.console)
        if not answer:
            asked = self._ended() and self.mode in LOOKED_AT
            return ["the oracle was not asked at the end"] if asked else []
        right = re.search(r"\bmigration 0 mismatch 0$", answer[1])
        return [] if right else [f"the oracle at the end: {answer[1]}"]

    def _left(self):
        """What a guest with the module loaded all the time has left of it at its end."""
        left = re.search(r"avl: left: (.*)", self.console)
        if not left:
            asked = self._ended() and self.mode in LOADED
            return ["what is left at the end is not known: the module was not there to be unloaded"
                    ] if asked else []
        counts = {name: int(value) for name, value in re.findall(r"(\w+) (-?\d+)", left[1])}
        if counts.pop("kasan", 0):
            del counts["chains"], counts["anon_vmas"]
        found = [f"left at the end: {name} {value}" for name, value in counts.items()
                 if value > (LEFT_OBJECTS if name in ("chains", "anon_vmas") else 0)]
        if "avl: unloaded" not in self.console:
            found.append("the module could not be unloaded at the end")
        return found

    def show_end(self, lines=25):
        print(f"    last lines of the console ({self.directory}/console.log):")
        for line in self.console.splitlines()[-lines:]:
            print(f"    | {line}")


def time_limit(default, soaks=False):
    """
    Seconds for a guest: TIMEOUT=, or `default` and, if it `soaks`, the minutes of SOAK= on top. No
    other place decides this.
    """
    soak = 60 * common.number("SOAK", 0) if soaks and common.setting("SOAK") else 0
    limit = common.number("TIMEOUT", default + soak)
    if limit <= soak:
        raise Failure(f"TIMEOUT={limit} ends a guest before its SOAK={soak // 60} is over: give it "
                      f"more than {soak} (seconds), or leave it out")
    return limit


def run_directory(arch, name):
    """Where the logs of a guest are; those of a part of a target are apart."""
    return TOP / "build" / arch / "run" / common.part() / name


class Guests:
    """Boots guests of one architecture."""

    # What is said of those that QEMU aborted and that were started again, for the results.
    aborts = []

    @classmethod
    def show_aborts(cls):
        """At the end of each command, whether it has results or not."""
        for abort in cls.aborts:
            print(NOTE + abort)

    def __init__(self, toolchain, arch):
        self.toolchain = toolchain
        self.arch = arch
        self._accel = None
        self._stopping = False

    def accel(self, kernel, initrd):
        """TCG, or KVM where a guest has been seen to boot in it."""
        if self._accel:
            return self._accel
        choice = common.setting("ACCEL", "auto")
        if choice not in ("auto", "tcg", "kvm"):
            raise Failure(f"ACCEL={choice} is unknown: use auto, tcg or kvm")
        possible = os.access("/dev/kvm", os.R_OK | os.W_OK) and \
            common.arch() == common.ARCH_NAMES.get(os.uname().machine)
        if choice == "kvm" and not possible:
            raise Failure("ACCEL=kvm, but /dev/kvm cannot be used for this architecture")
        self._accel = "tcg"
        if choice != "tcg" and possible:
            run = self._start("probe-kvm", kernel, initrd, "probe", "kvm", 10, quiet=True)
            if "avl: alive" in run.console:
                self._accel = "kvm"
            elif choice == "kvm":
                raise Failure("ACCEL=kvm, but a guest was not seen to boot in it within 10 s")
            else:
                say("KVM: /dev/kvm exists, but no guest was seen to boot in it: using TCG")
        return self._accel

    def run(self, name, kernel, initrd, mode, options, timeout, machine=Machine()):
        """Boot one guest and wait for its end, at most so many seconds: see time_limit()."""
        accel = "tcg" if machine.counted or machine.emulated else self.accel(kernel, initrd)
        if "QEMU" not in common.noted:
            version = self.toolchain.output([QEMU[self.arch], "--version"]) or ""
            common.note("QEMU", version.split("\n")[0])
            common.note("accelerator", accel)
        kept = run_directory(self.arch, f"{name}-aborted")
        shutil.rmtree(kept, ignore_errors=True)
        run = self._start(name, kernel, initrd, mode, accel, timeout, options, machine)
        if not run.emulator_aborted():
            return run
        # Once: CI lost a whole run to such an end, which says nothing of the kernel. It is
        # shown with the results, and its logs stay.
        what = ": ".join([f"guest {name}: QEMU aborted before the first program and was started "
                          f"again ({kept})", *run.said_by_qemu()])
        run.directory.rename(kept)
        say(what)
        self.aborts.append(what)
        common.note("guests that QEMU aborted at boot", str(len(self.aborts)))
        return self._start(name, kernel, initrd, mode, accel, timeout, options, machine)

    def side_by_side(self, calls):
        """
        Make these calls, each of which runs a guest, at the same time, one for each CPU (a guest
        most often keeps one busy), in half of the memory. What they return, in order. The
        first that raises ends all guests.
        """
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        workers = min(os.cpu_count() or 1, memory // (2 * MEMORY_MB), len(calls))
        with ThreadPoolExecutor(max(1, workers)) as pool:
            pending = [pool.submit(call) for call in calls]
            try:
                # In their order a failure would wait for all guests before it.
                for call in wait(pending, return_when=FIRST_EXCEPTION).done:
                    call.result()
                return [call.result() for call in pending]
            except BaseException:
                self._stopping = True
                for call in pending:
                    call.cancel()
                raise

    def _start(self, name, kernel, initrd, mode, accel, timeout, options="", machine=Machine(),
               quiet=False):
        kernel.verify()
        directory = run_directory(self.arch, name)
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        argv = qemu_command(self.arch, kernel, initrd, mode, accel, directory, options,
                            machine)
        (directory / "command").write_text(shlex.join(argv) + "\n")
        if not quiet:
            say(f"guest {name}: {accel}, at most {timeout} s; console: {directory}/console.log\n"
                f"    {shlex.join(argv)}")
        started = time.monotonic()
        timed_out = False
        with open(directory / "qemu.log", "wb") as out:
            process = subprocess.Popen(self.toolchain.wrap(argv, TOP), stdin=subprocess.DEVNULL,
                                       stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                note = 30
                while True:
                    try:
                        status = process.wait(timeout=0.2)
                        break
                    except subprocess.TimeoutExpired:
                        elapsed = time.monotonic() - started
                        if self._stopping:
                            raise Failure(f"guest {name}: stopped with the others") from None
                        if elapsed > timeout:
                            timed_out = True
                            common.stop_group(process)
                            status = None
                            break
                        if elapsed > note and not quiet:
                            note += 30
                            last = (common.tail(directory / "verdict.log", 1) or ["booting"])[0]
                            say(f"  guest {name}: {elapsed:.0f} s, {last.strip()[:70]}")
            except BaseException:
                common.stop_group(process)
                raise
        if status and not quiet:
            for line in common.tail(directory / "qemu.log", 5):
                print(f"    qemu: {line}")
        return Run(directory, status, time.monotonic() - started, timed_out, mode)

    def shell(self, kernel, initrd):
        """An interactive shell in a guest with the module loaded."""
        accel = self.accel(kernel, initrd)
        argv = qemu_command(self.arch, kernel, initrd, "shell", accel, None, interactive=True)
        print(shlex.join(argv), flush=True)
        return self.toolchain.interactive(argv, TOP)


def judge(run, planned, source_tree):
    """Turn a check run into results: every planned test has to be there."""
    results = ktap.parse(run.verdict, planned, source_tree)
    faults = run.faults()
    for fault in faults:
        # Once is enough, where the run's log is all that is left of it.
        evidence = run.evidence() if fault is faults[-1] else ()
        results.append(ktap.Result(f"guest {run.directory.name}", "failed", fault, evidence))
    if not faults:
        results.append(ktap.Result(f"guest {run.directory.name}", "passed"))
    return results
