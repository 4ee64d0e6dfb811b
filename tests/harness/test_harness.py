# SPDX-License-Identifier: GPL-2.0
"""What the harness has to notice in a guest, and what it has to refuse from its user."""

import contextlib
import fnmatch
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "scripts"))

from avl import (bench, check, cli, common, coverage, facts, guest, kernel, ktap,  # noqa: E402
                 litmus, memory, mutants, races, report, selftests, source, stressors, toolchain,
                 userland, vmatests, workload)

GOOD = """KTAP version 1
1..2
    TAP version 13
    1..2
    # Starting 2 tests from 1 test cases.
    ok 1 global.one
    ok 2 global.two
ok 1 first
    KTAP version 1
    1..1
    ok 1 single
ok 2 second
"""


def kernel_tree():
    """A kernel source for the KTAP parser; the cached one."""
    return source.pristine()[0]


class Verdicts(unittest.TestCase):
    def parse(self, text, planned=("first", "second")):
        results = ktap.parse(text, planned, kernel_tree())
        return {result.name: result.status for result in results}

    def test_all_passed(self):
        self.assertEqual(self.parse(GOOD), {"first/global.one": "passed",
                                            "first/global.two": "passed",
                                            "second/single": "passed"})

    def test_no_plan(self):
        self.assertEqual(self.parse("")["plan"], "failed")
        self.assertEqual(self.parse("ok 1 first\nok 2 second\n")["plan"], "failed")

    def test_missing_test(self):
        broken_off = GOOD.split("ok 1 first")[0]
        self.assertEqual(self.parse(broken_off)["second"], "failed")
        self.assertIn("failed", self.parse(broken_off).values())

    def test_missing_subtest(self):
        short = GOOD.replace("    ok 2 global.two\n", "")
        self.assertIn("failed", self.parse(short).values())

    def test_failed_subtest(self):
        bad = GOOD.replace("    ok 2 global.two", "    not ok 2 global.two") \
            .replace("ok 1 first", "not ok 1 first # exit 1")
        self.assertEqual(self.parse(bad)["first/global.two"], "failed")

    def test_exit_status_counts(self):
        bad = GOOD.replace("ok 1 first", "not ok 1 first # exit 139")
        self.assertEqual(self.parse(bad)["first"], "failed")

    def test_unplanned_test(self):
        self.assertEqual(self.parse(GOOD, ("first",))["second"], "failed")

    def test_empty_test(self):
        empty = "KTAP version 1\n1..1\n    KTAP version 1\n    1..0\nok 1 first\n"
        self.assertIn("failed", self.parse(empty, ("first",)).values())

    def test_unlisted_skip_is_a_failure(self):
        results = [ktap.Result("some/test", "skipped", "no swap")]
        with mock.patch.object(ktap, "expected_skips", return_value={}):
            self.assertEqual(ktap.settle(results, "x86_64")[0].status, "failed")
        with mock.patch.object(ktap, "expected_skips", return_value={"some/test": "why"}):
            settled = ktap.settle(results, "x86_64")[0]
        self.assertEqual((settled.status, settled.reason), ("skipped", "why"))

    def test_nothing_ran_is_a_failure(self):
        with mock.patch("builtins.print"):
            self.assertTrue(ktap.report([], "x86_64"))

    def test_verdict_without_results(self):
        self.assertEqual(self.parse("KTAP version 1\n1..1\nok 1 first\n", ("first",)),
                         {"first": "failed"})

    def test_plan_of_another_length(self):
        self.assertEqual(self.parse(GOOD.replace("1..2\n    TAP", "1..3\n    TAP"))["plan"],
                         "failed")


class Console(unittest.TestCase):
    BAD = ("WARNING: CPU: 1 PID: 77 at mm/rmap.c:12 foo+0x1", "BUG: KASAN: use-after-free in x",
           "kernel BUG at mm/vma.c:1!", "Oops: general protection fault", "Kernel panic - not",
           "BUG: Bad rss-counter state mm:1 type:MM_ANONPAGES val:2", "rcu: INFO: rcu_preempt "
           "detected stalls on CPUs/tasks:", "INFO: task sh:12 blocked for more than 120 seconds",
           "BUG: sleeping function called from invalid context at mm/x.c:1",
           "WARNING: possible circular locking dependency detected", "BUG: KCSAN: data-race in a",
           "UBSAN: shift-out-of-bounds in", "kmemleak: 3 new suspected memory leaks",
           "list_del corruption. prev->next", "BUG anon_vma (Tainted: G O): Objects remaining on",
           "WARNING: suspicious RCU usage", "page_table_check: bad", "Call trace:",
           "mm/pgtable-generic.c:50: bad pmd 00000000", "get_swap_device: Bad swap file entry 1",
           "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-... }")
    GOOD = ("Linux version 7.3.4", "anon_vma_lazy: unregistered after 3 first anonymous faults",
            "kasan: KernelAddressSanitizer initialized (generic)",
            "kfence: initialized - using 2 MB",
            "anon_vma_lazy: loading out-of-tree module taints kernel.",
            "anon_vma_lazy: struct mm_struct is 1 bytes in the module, 2 in this kernel: rebuild")

    def test_bad_lines(self):
        for line in self.BAD:
            self.assertEqual(guest.badness(f"a\n{line}\nb"), [line], line)

    def test_good_lines(self):
        self.assertEqual(guest.badness("\n".join(self.GOOD)), [])

    def test_faults_of_a_run(self):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            (directory / "console.log").write_text("booting\navl: end of guest\n")
            self.assertEqual(guest.Run(directory, 0, 1, False).faults(), [])
            self.assertTrue(guest.Run(directory, 1, 1, False).faults())
            self.assertTrue(guest.Run(directory, None, 1, True).faults())
            text = "booting\navl: tainted {}\navl: end of guest\n"
            (directory / "console.log").write_text(text.format(4096 + 262144))
            self.assertEqual(guest.Run(directory, 0, 1, False).faults(), [])
            (directory / "console.log").write_text(text.format(4096 + 512))
            self.assertIn("taint", guest.Run(directory, 0, 1, False).faults()[0])
            for left, gone, found in (
                    ("roots 0, lazy 0, linked 0, chains 3, anon_vmas -1, kasan 0", True, []),
                    ("roots 0, lazy 0, linked 0, chains 500, anon_vmas 9, kasan 1", True, []),
                    ("roots 0, lazy 0, linked 0, chains 500, anon_vmas 9, kasan 0", True,
                     ["chains 500", "anon_vmas 9"]),
                    ("roots 2, lazy 0, linked 1, chains 0, anon_vmas 0, kasan 0", False,
                     ["roots 2", "linked 1", "could not be unloaded"])):
                (directory / "console.log").write_text(
                    f"avl: left: {left}\n{'avl: unloaded' if gone else ''}\navl: end of guest\n")
                faults = guest.Run(directory, 0, 1, False).faults()
                self.assertEqual(len(faults), len(found), faults)
                for wanted, fault in zip(found, faults):
                    self.assertIn(wanted, fault)
            # Who should say it and does not has a fault, once it has come that far.
            for mode in guest.LOADED:
                for text, wanted in (("avl: end of guest\n", "what is left at the end"),
                                     ("", "died")):
                    (directory / "console.log").write_text(
                        "avl: oracle: folios 1 migration 0 mismatch 0\n" + text)
                    faults = guest.Run(directory, 0, 1, False, mode).faults()
                    self.assertEqual(len(faults), 1, faults)
                    self.assertIn(wanted, faults[0])
            for answer, found in (("folios 5 mappings 5 migration 0 mismatch 0", []),
                                  ("folios 5 mappings 5 migration 1 mismatch 0", ["migration 1"]),
                                  ("folios 5 mappings 5 migration 0 mismatch 2", ["mismatch 2"]),
                                  ("cat: no such file", ["no such file"]), (None, ["not asked"])):
                line = f"avl: oracle: {answer}\n" if answer else ""
                (directory / "console.log").write_text(f"{line}avl: end of guest\n")
                faults = guest.Run(directory, 0, 1, False, "selftests").faults()
                self.assertEqual(len(faults), len(found), faults)
                for wanted, fault in zip(found, faults):
                    self.assertIn(wanted, fault)
            (directory / "console.log").write_text("booting\n")
            self.assertIn("died", guest.Run(directory, 0, 1, False).faults()[0])


class Ends(unittest.TestCase):
    """What guests say at their end, and what the harness waits to hear."""

    def test_the_same_kinds_of_guests(self):
        init = (TOP / "scripts/guest/init").read_text()
        modes = re.findall(r"(?m)^(\w[\w-]*)\)$", init)
        finish = init[init.index("finish() {"):init.index("gauge() {")]
        for step, kinds in (("look", guest.LOOKED_AT), ("unload", guest.LOADED)):
            patterns = re.search(rf"(?m)^\t(.*)\)\s[^;]*?{step}\b", finish)[1].split(" | ")
            self.assertEqual({mode for mode in modes for pattern in patterns
                              if fnmatch.fnmatchcase(mode, pattern)}, set(kinds))
        for mode in guest.LOADED:
            self.assertRegex(init, rf"(?m)^{mode}\)\n(\t.*\n)*?\tcount\n", mode)
        self.assertEqual(set(re.findall(r"-le (\d+) \]", init)), {str(guest.LEFT_OBJECTS)})


class Configuration(unittest.TestCase):
    def test_options(self):
        text = "CONFIG_A=y\n# CONFIG_B is not set\n# a remark\nCONFIG_C=\"x y\"\n"
        self.assertEqual(kernel.options(text), {"CONFIG_A": "y", "CONFIG_B": "n",
                                                "CONFIG_C": '"x y"'})

    def test_every_requested_option_has_a_name(self):
        for file in list((TOP / "scripts/config").glob("*.config")) + [TOP / ".config.fragment"]:
            for line in file.read_text().splitlines():
                self.assertTrue(not line or line.startswith("# ") or line == "#" or
                                kernel.OPTION.match(line), f"{file.name}: {line}")


class Emulator(unittest.TestCase):
    def cpu(self, variant, accel="tcg"):
        built = mock.Mock(variant=variant, image="bzImage")
        argv = guest.qemu_command("x86_64", built, "initrd", "check", accel, "run")
        return argv[argv.index("-cpu") + 1]

    def test_kernels_with_kasan_have_four_levels(self):
        """Else an interrupt within identify_cpu() is reported, once in ten or more boots."""
        for file in (TOP / "scripts/config").glob("*.config"):
            if "CONFIG_KASAN=y" in file.read_text().splitlines():
                self.assertIn(file.stem, guest.FOUR_LEVELS)
        for variant in guest.FOUR_LEVELS:
            self.assertEqual(self.cpu(variant), "max,la57=off")
            self.assertEqual(self.cpu(variant, "kvm"), "host,la57=off")
        self.assertEqual(self.cpu("release"), "max")

    def test_one_abort_of_its_own_before_the_first_program_is_excused(self):
        kernel_messages = "[    0.9] PCI: Using E820 reservations\n"
        for status, console, excused in (
                (134, kernel_messages, True), (-6, kernel_messages, True), (134, "", True),
                (134, kernel_messages + "[    1.2] Run /init as init process\n", False),
                (134, kernel_messages + "[    1.0] WARNING: mm/rmap.c:1\n", False),
                (1, kernel_messages, False), (139, kernel_messages, False),
                (0, kernel_messages, False), (None, kernel_messages, False)):
            with tempfile.TemporaryDirectory() as name, \
                    mock.patch.object(guest.Guests, "aborts", []), \
                    mock.patch.dict(common.noted, QEMU="some"), \
                    mock.patch.object(guest.Guests, "accel", return_value="tcg"), \
                    mock.patch.object(guest, "run_directory",
                                      side_effect=lambda _, part, name=name: Path(name) / part), \
                    mock.patch.object(guest, "say"):
                directory = Path(name) / "it"

                def start(*_, directory=directory, console=console, status=status):
                    directory.mkdir()
                    (directory / "console.log").write_text(console)
                    (directory / "qemu.log").write_text("assertion failed\n")
                    return guest.Run(directory, status, 1, status is None)

                with mock.patch.object(guest.Guests, "_start", side_effect=start) as started:
                    run = guest.Guests(None, "x86_64").run("it", None, None, "check", "", 9)
                self.assertEqual(started.call_count, 2 if excused else 1)
                self.assertEqual(len(guest.Guests.aborts), 1 if excused else 0)
                # The second time it is a failure.
                self.assertTrue(run.faults())
                if excused:
                    self.assertIn("assertion failed", guest.Guests.aborts[0])
                    self.assertIn("assertion failed", run.faults()[0])
                    self.assertEqual((Path(name) / "it-aborted/console.log").read_text(), console)

    def test_guests_of_x86_have_no_pci_where_several_cpus_run(self):
        for arch, variant, machine, without in (
                ("x86_64", "release", guest.Machine(), True),
                ("x86_64", "debug", guest.Machine(), False),
                ("x86_64", "release", guest.Machine(counted=1), False),
                ("x86_64", "release", guest.Machine(cpus=1), False),
                ("arm64", "release", guest.Machine(), False)):
            built = mock.Mock(variant=variant, image="bzImage")
            argv = guest.qemu_command(arch, built, "initrd", "check", "tcg", "run", "", machine)
            for option in ("pci=off", "avl.port=ttyS1"):
                self.assertEqual(option in argv[argv.index("-append") + 1].split(), without)
            # Exactly one way for verdicts, and only a PCI device where there is PCI.
            self.assertEqual(argv.count("file:run/verdict.log"), int(without))
            self.assertEqual(any("virtserialport" in arg for arg in argv), not without)
            self.assertEqual(any("pci" in arg for arg in argv if "console=" not in arg),
                             not without)


class Warnings(unittest.TestCase):
    def test_those_of_the_compiler(self):
        text = ("make[4]: warning: jobserver unavailable: using -j1.\n"
                "  CC      mm/rmap.o\nmm/rmap.c:1:2: warning: unused variable 'x'\n")
        self.assertEqual(check.compiler_warnings(text),
                         ["mm/rmap.c:1:2: warning: unused variable 'x'"])


class Trees(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.tree = Path(self.directory.name) / "linux"
        base = kernel_tree()
        # As much of a kernel tree as the patches touch.
        for name in source.touched_files(source.series()) | {"Makefile"}:
            if (base / name).exists():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(base / name, self.tree / name)

    def apply(self):
        with mock.patch.dict(os.environ, KSRC=str(self.tree)):
            source.apply_for_user()

    def test_apply_to_plain_tree_and_again(self):
        self.assertEqual(source.state_of(self.tree), "plain")
        self.apply()
        self.assertEqual(source.state_of(self.tree), "patched")
        self.apply()
        self.assertEqual(source.state_of(self.tree), "patched")
        self.assertEqual(list(self.tree.glob(".avl-*")), [])

    def test_interrupted_apply_is_undone_and_repeated(self):
        before = {f: f.read_bytes() for f in self.tree.rglob("*") if f.is_file()}
        with mock.patch.object(source, "discard", side_effect=KeyboardInterrupt), \
                self.assertRaises(KeyboardInterrupt):
            self.apply()
        (self.tree / "mm/rmap.c").unlink()
        source.restore(self.tree)
        self.assertEqual({f: f.read_bytes() for f in self.tree.rglob("*") if f.is_file()}, before)
        self.apply()
        self.assertEqual(source.state_of(self.tree), "patched")

    def test_apply_to_git_tree_as_commits(self):
        git = ["git", "-C", str(self.tree), "-c", "user.name=t", "-c", "user.email=t@t.example"]
        for argv in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "base"]):
            subprocess.run(git + argv, check=True, stdout=subprocess.DEVNULL)
        with mock.patch.dict(os.environ, GIT_COMMITTER_NAME="t", GIT_COMMITTER_EMAIL="t@t.example"):
            self.apply()
        log = common.output(git + ["log", "--oneline"])
        self.assertEqual(len(log.splitlines()), 1 + len(source.series()))

    def test_dirty_git_tree_is_refused(self):
        git = ["git", "-C", str(self.tree), "-c", "user.name=t", "-c", "user.email=t@t.example"]
        for argv in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "base"]):
            subprocess.run(git + argv, check=True, stdout=subprocess.DEVNULL)
        with open(self.tree / "Makefile", "a", encoding="utf-8") as file:
            file.write("# mine\n")
        with self.assertRaisesRegex(common.Failure, "uncommitted changes"):
            self.apply()

    def test_a_tree_of_another_version_is_refused_as_such(self):
        makefile = self.tree / "Makefile"
        makefile.write_text(re.sub(r"(?m)^PATCHLEVEL = 3$", "PATCHLEVEL = 2",
                                   makefile.read_text()))
        (self.tree / "mm/rmap.c").unlink()
        with mock.patch.dict(os.environ, KSRC=str(self.tree)), \
                self.assertRaisesRegex(common.Failure, r"is Linux 7\.2"):
            check.check(None, "x86_64")

    def test_check_refuses_a_patched_tree_at_once(self):
        self.apply()
        with mock.patch.dict(os.environ, KSRC=str(self.tree)), \
                mock.patch.object(check, "host_tests", side_effect=AssertionError), \
                mock.patch.object(check, "Bench", side_effect=AssertionError), \
                self.assertRaisesRegex(common.Failure, "is patched"):
            check.check(None, "x86_64")

    def test_differently_patched_tree_is_refused(self):
        self.apply()
        header = self.tree / "include/linux/anon_vma_lazy.h"
        header.write_text(header.read_text().replace("prepare", "prepare_other"))
        with self.assertRaisesRegex(common.Failure, "another version of this series"):
            source.state_of(self.tree)

    def test_conflicting_tree_is_left_alone(self):
        rmap = self.tree / "mm/rmap.c"
        rmap.write_text(rmap.read_text().replace("might_sleep();", "might_sleep( );"))
        before = {f: f.read_bytes() for f in self.tree.rglob("*") if f.is_file()}
        with self.assertRaisesRegex(common.Failure, "does not apply"):
            self.apply()
        self.assertEqual({f: f.read_bytes() for f in self.tree.rglob("*") if f.is_file()}, before)

    def test_kernel_that_cannot_be_selected(self):
        for value, wanted in (("7.2", "vma_start_anon_pgoff"), ("6.12.1", "vma_start_anon_pgoff"),
                              ("latest", "is not a version"), ("7", "is not a version"),
                              ("7.3.4x", "is not a version")):
            with mock.patch.dict(os.environ, KERNEL=value):
                with self.assertRaisesRegex(common.Failure, wanted):
                    source.check_settings()

    def test_kernel_that_is_another_than_the_tree(self):
        version = source.tree_version(self.tree)
        for value in (version, "7.3", ""):
            with mock.patch.dict(os.environ, KERNEL=value):
                self.assertEqual(source.check_version(self.tree), version)
        for value in (f"{version}9", "7.4"):
            with mock.patch.dict(os.environ, KERNEL=value):
                with self.assertRaisesRegex(common.Failure, f"not KERNEL={value}"):
                    source.check_version(self.tree)

    def test_wrong_version_is_refused(self):
        makefile = self.tree / "Makefile"
        makefile.write_text(makefile.read_text().replace("PATCHLEVEL = 3", "PATCHLEVEL = 2"))
        with self.assertRaisesRegex(common.Failure, "needs 7.3.y"):
            self.apply()

    def test_sync_rewrites_only_what_differs(self):
        base = kernel_tree()
        source.sync(base, self.tree, source.series())
        patched = {f: f.stat().st_mtime_ns for f in self.tree.rglob("*") if f.is_file()}
        source.sync(base, self.tree, source.series())
        for file, when in patched.items():
            if file.name != source.TOUCHED:
                self.assertEqual(file.stat().st_mtime_ns, when, file)
        source.sync(base, self.tree, source.series(0))
        for name in source.touched_files(source.series()):
            self.assertEqual((self.tree / name).exists(), (base / name).exists(), name)
            if (base / name).exists():
                self.assertEqual((self.tree / name).read_bytes(), (base / name).read_bytes())


class Wholeness(unittest.TestCase):
    def test_an_interrupted_step_leaves_no_final_name(self):
        with tempfile.TemporaryDirectory() as name:
            final = Path(name) / "tree"
            with self.assertRaises(KeyboardInterrupt):
                with common.made_whole(final) as partial:
                    (partial / "half").write_text("x")
                    raise KeyboardInterrupt
            self.assertFalse(final.exists())
            with mock.patch("builtins.print"), common.made_whole(final) as partial:
                self.assertEqual(list(partial.iterdir()), [])
            self.assertTrue(final.is_dir())

    def test_no_space(self):
        with self.assertRaisesRegex(common.Failure, "make room"):
            common.need_space("/", 10**9, "a test")

    def test_digest_keeps_parts_apart(self):
        self.assertNotEqual(common.digest("ab", "c"), common.digest("a", "bc"))


class Facts(unittest.TestCase):
    """make facts: what holds in the tree that the series is for, and what does not elsewhere."""

    def test_all_hold_in_the_packaged_source(self):
        missing = [name for name, holds, *_ in facts.examine(kernel_tree()) if not holds]
        self.assertEqual(missing, [])

    def test_none_holds_in_an_empty_tree(self):
        with tempfile.TemporaryDirectory() as name:
            self.assertFalse(any(holds for _, holds, *_ in facts.examine(Path(name))))

    def test_the_order_counts(self):
        with tempfile.TemporaryDirectory() as name:
            tree = Path(name)
            (tree / "mm").mkdir()
            text = (kernel_tree() / "mm/mmap.c").read_text()
            swapped = text.replace("copy_page_range(tmp, mpnt)", "x()").replace(
                "anon_vma_fork(tmp, mpnt)", "copy_page_range(tmp, mpnt), anon_vma_fork(tmp, mpnt)")
            for wanted, source_text in ((True, text), (False, swapped)):
                (tree / "mm/mmap.c").write_text(source_text)
                seen = {name: holds for name, holds, *_ in facts.examine(tree)}
                self.assertEqual(seen["fork-order"], wanted)

    def test_a_comment_is_no_fact(self):
        with tempfile.TemporaryDirectory() as name:
            tree = Path(name)
            (tree / "mm").mkdir()
            (tree / "mm/mremap.c").write_text(
                "static int move_ptes(int a)\n{\n\t/* if (pmc->need_rmap_locks) "
                "take_rmap_locks( */\n}\n")
            self.assertFalse(dict(r[:2] for r in facts.examine(tree))["mremap-may-lock"])

    def test_the_document_names_each(self):
        text = (TOP / "Documentation/porting.rst").read_text()
        for name, _, _ in facts.FACTS:
            if not name.startswith("rust-"):
                self.assertIn(name, text)


class Selection(unittest.TestCase):
    """Tests by name, as a user types them."""

    def test_programs_and_cases(self):
        tests = check.wanted(["rmap/rmap.a", "cost", "lazy/rmap/rmap.b"])
        self.assertEqual(tests, {"rmap": ["rmap.a", "rmap.b"], "cost": []})
        self.assertEqual(check.tests_option(tests), "avl.tests=rmap/rmap.a+rmap.b,cost")

    def test_what_only_some_guests_are_told(self):
        def options(tests, tour=False):
            return check.guest_options("lazy", "debug", check.wanted(tests), 1, tour).split()

        self.assertIn("kmemleak=on", options(["fail", "leaks"]))
        self.assertNotIn("kmemleak=on", options(["fail"]))
        with mock.patch.dict(os.environ):
            os.environ.pop("STRIDE", None)
            os.environ.pop("TESTS", None)
            self.assertIn("slab_debug=-;F,anon_vma*,vm_area_struct", options(["fail"], True))
            self.assertIn("slab_debug=FZPU,anon_vma*,vm_area_struct",
                          options(["fail", "leaks"], True))
            self.assertIn("slab_debug=FZPU,anon_vma*,vm_area_struct", options(["fail"]))
            one = ["fail/fail.split.while_pages_move"]
            self.assertIn("avl.stride=1", options(one))
            self.assertIn(f"avl.stride={check.STRIDE}", options(one, True))
            self.assertIn(f"avl.rounds={check.TOUR_ROUNDS}", options(one, True))
            self.assertIn(f"avl.stride={check.STRIDE}", options(["fail/-T:each_of_the_module"]))
            # Another one each time, and known even of a guest that says nothing.
            os.environ.pop("SEED", None)
            seeds = {word for _ in range(3) for word in options(["stress"]) if "avl.seed=" in word}
            self.assertGreater(len(seeds), 1)
            os.environ["SEED"] = "7"
            self.assertIn("avl.seed=7", options(["stress"]))

    def test_seconds_for_a_guest(self):
        for settings, tests, wanted in (({}, ["rmap"], 900), ({"TIMEOUT": "60"}, ["rmap"], 60),
                                        ({"SOAK": "30"}, ["rmap"], 900),
                                        ({"SOAK": "30"}, ["rmap", "stress"], 2700),
                                        ({"SOAK": "30", "TIMEOUT": "2000"}, ["mixed"], 2000),
                                        ({"SOAK": "30", "TIMEOUT": "600"}, ["rmap"], 600)):
            with mock.patch.dict(os.environ, settings, clear=True):
                self.assertEqual(check.time_limit(check.wanted(tests), 900), wanted, settings)
        for seconds in ("600", "1800"):
            with mock.patch.dict(os.environ, {"SOAK": "30", "TIMEOUT": seconds}), \
                    self.assertRaisesRegex(common.Failure, "before its SOAK=30 is over"):
                check.time_limit({"stress": []}, 900)

    def test_only_one_place_decides_that(self):
        for file in (TOP / "scripts/avl").glob("*.py"):
            asked = re.findall(r'(?:number|setting)\("TIMEOUT"', file.read_text())
            self.assertEqual(len(asked), file.name == "guest.py", file.name)

    def test_mutant_without_a_test(self):
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "module-x.patch"
            for header in ("Wrong: a\nWhy: b\n", "Wrong: a\nWhy: b\nCaught-by: lazy rmap\n",
                           "Wrong: a\nWhy: b\nCaught-by: host a/b\n"):
                file.write_text(f"{header}\n--- a/rust/x.rs\n+++ b/rust/x.rs\n")
                with self.assertRaises(common.Failure):
                    mutants.Mutant(file)
            file.write_text("Wrong: a\nWhy: b\nCaught-by: lazy rmap/rmap.c\n\n--- a/x\n+++ b/x\n")
            mutant = mutants.Mutant(file)
            self.assertEqual((mutant.mode, mutant.test, mutant.in_kernel, mutant.variant),
                             ("lazy", "rmap/rmap.c", False, "release"))
            self.assertIsNone(mutant.seen_as)
            file.write_text(f"Seen-as: (Oops\n{file.read_text()}")
            with self.assertRaisesRegex(common.Failure, "is no regular expression"):
                mutants.Mutant(file)

    def test_each_mutant_has_a_header(self):
        for file in mutants.DIRECTORY.glob("*.patch"):
            mutants.Mutant(file)

    def test_each_named_case_exists(self):
        """What mutants and patches-check name would fail in the guest, for the wrong reason."""
        named = [m.test for m in map(mutants.Mutant, mutants.DIRECTORY.glob("*.patch"))
                 if m.mode != "host"]
        tour = [f"{program}/{case}" for program, cases in
                (*check.TOUR.items(), ("fail", check.TOUR_LEAKS)) for case in cases
                if not case.startswith("-")]
        for program, cases in check.wanted([*named, *check.STEP_TESTS, *tour]).items():
            file = common.TOP / "tests/guest" / f"{program}.c"
            text = file.read_text() if cases else ""
            for case in cases:
                group, *_, name = case.split(".")
                self.assertRegex(text, rf"TEST\({name}\)" if group == "global" else
                                 rf"TEST_F(_TIMEOUT)?\({group}, {name}\b", case)

    def applies(self, file, tree):
        with open(file, "rb") as text:
            result = subprocess.run(["patch", "-p1", "-f", "-F0", "--dry-run"], stdin=text,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tree,
                                    check=False)
        self.assertEqual((file.name, result.returncode), (file.name, 0), result.stdout)

    def test_each_mutant_applies(self):
        for file in mutants.DIRECTORY.glob("module-*.patch"):
            self.applies(file, common.TOP)
        base = source.pristine()[0]
        files = list(mutants.DIRECTORY.glob("kernel-*.patch"))
        with tempfile.TemporaryDirectory() as scratch:
            for name in source.touched_files(files):
                if (base / name).exists():
                    (Path(scratch) / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(base / name, Path(scratch) / name)
            failed, text = source.apply_to_copy(base, source.wanted_patches(), Path(scratch))
            self.assertIsNone(failed, text)
            for file in files:
                self.applies(file, scratch)

    def test_what_a_run_depends_on(self):
        with tempfile.TemporaryDirectory() as scratch, \
                mock.patch.object(common, "TOP", Path(scratch)):
            top = Path(scratch)
            subprocess.run(["git", "init", "-q", scratch], check=True)
            (top / "Documentation").mkdir()
            for name in ("README.md", "Documentation/design.rst", "code.c"):
                (top / name).write_text("1\n")
            keys = []
            for name in ("README.md", "Documentation/design.rst", "code.c"):
                keys.append((common.tree_key(), common.tree_key(documents=False)))
                (top / name).write_text("2\n")
            keys.append((common.tree_key(), common.tree_key(documents=False)))
            but = [common.tree_key(without=top / name) for name in ("code.c", "README.md")]
            (top / "code.c").write_text("3\n")
            but += [common.tree_key(without=top / name) for name in ("code.c", "README.md")]
            self.assertEqual([but[0] == but[2], but[1] == but[3]], [True, False])
            settings = [common.tree_key(env={name: "1"}) for name in
                        common.EFFORT + common.OTHERS if name != "KSRC"]
            self.assertIsNone(common.tree_key(env={"KSRC": "/tree"}))
            self.assertEqual(common.tree_key(env={name: "1" for name in common.SELECTING}),
                             common.tree_key(env={}))
        every, code = zip(*keys)
        self.assertEqual(len(set(every)), 4)
        self.assertEqual(len(set(code[:3])), 1)
        self.assertNotEqual(code[2], code[3])
        self.assertEqual(len({*settings, common.tree_key(env={})}), len(settings) + 1)

    def test_what_a_stage_depends_on(self):
        """What is handed on counts; so does what the stage itself is told."""
        def key(name="soak-x86_64", target=("check",), **settings):
            with mock.patch.dict(os.environ, settings):
                return check.stage_key(name, target, check.stage_environment(name), {})

        with mock.patch.object(common, "tree_key", lambda documents, env: common.digest(
                str(documents), *sorted(f"{k}={v}" for k, v in env.items()))):
            for name in ("ROUNDS", "PROPTEST_CASES", "GENERATIONS", "SEED",
                         "LOOM_MAX_PREEMPTIONS"):
                self.assertNotEqual(key(), key(**{name: "7"}), name)
            for name in (*common.SELECTING, "SOAK", "STRIDE", "TIMEOUT", "VARIANT", "STAGES"):
                self.assertEqual(key(), key(**{name: "7"}), name)
            self.assertNotEqual(key(target=("check", "SOAK=30")), key(target=("check", "SOAK=1")))
            self.assertNotEqual(key("check-x86_64"), key("mutants-x86_64"))
        with mock.patch.object(common, "tree_key", return_value=None):
            self.assertIsNone(key())

    def test_stages_do_not_replace_each_others_records(self):
        names = set()
        for stage, _ in check.FULL:
            env = check.stage_environment(stage)
            arch = stage.rpartition("-")[2]
            with mock.patch.dict(os.environ, env, clear=True):
                names.add((report.record_name("check"), arch))
                names.add((str(guest.run_directory("any", "lazy-release")), arch))
        self.assertEqual(len(names), 2 * len(check.FULL))
        self.assertNotIn("check", [name for name, _ in names])

    def test_a_part_is_kept_apart(self):
        with mock.patch.dict(os.environ, clear=True), tempfile.TemporaryDirectory() as top, \
                mock.patch.object(report, "RESULTS", Path(top)):
            whole = guest.run_directory("x86_64", "lazy-release")
            report.save("check", "x86_64", [], [])
            for name in common.SELECTING + common.EFFORT:
                with mock.patch.dict(os.environ, {name: "rmap"}):
                    part = guest.run_directory("x86_64", "lazy-release")
                    report.save("check", "x86_64", [], [])
                self.assertNotEqual(part, whole)
                # No run removes a directory that another one is in.
                self.assertNotIn(whole, part.parents)
            self.assertEqual(sorted(file.name for file in Path(top).iterdir()),
                             ["check-some-x86_64.json", "check-x86_64.json"])
            for bad in ("../x", "a b", "."):
                with mock.patch.dict(os.environ, AVL_STAGE=bad), \
                        self.assertRaisesRegex(common.Failure, "is not a name"):
                    common.part()

    def test_each_variable_is_of_a_kind(self):
        """A setting that is no kind of these would be in no stamp, and not unset by CI."""
        kinds = common.SELECTING + common.EFFORT + common.OTHERS
        self.assertEqual(len(kinds), len(set(kinds)))
        # The targets' own; where things are built; of other targets; without a say in the outcome.
        rest = ("ARCH KDIR O MO STAGES JUDGE BENCH INSTALL_MOD_PATH INSTALL_MOD_DIR JOBS V "
                "MIRROR").split()
        exported = re.findall(r"(?m)^export (.*)", (TOP / "Makefile").read_text())
        self.assertEqual(sorted(" ".join(exported).split()), sorted((*kinds, *rest)))
        unset = " ".join(re.findall(r"(?m)^unset (.*)", (TOP / ".ci/run").read_text())).split()
        self.assertEqual(set(common.SELECTING + common.EFFORT) - set(unset), set())
        # Of the others these change nothing of what is tested.
        self.assertEqual(set(common.OTHERS) - set(unset), {"LLVM", "TOOLCHAIN", "ACCEL",
                                                           "AVL_CACHE", "HERD7"})

    def test_what_shows_a_mutant(self):
        def run(timed_out, begun):
            return mock.Mock(timed_out=timed_out, seconds=300.0, directory="d", console=(
                f"avl: test rmap\n[    3.8] avl: case {'one' if begun else 'one_process'}\nBUG\n"))

        def result(name, reason, *evidence):
            return ktap.Result(name, "failed" if reason else "passed", reason, evidence)

        def ask(*results, seen_as=None, hangs=False, timed_out=False, begun=True):
            mutant = mock.Mock(test="rmap/rmap.one", hangs=hangs,
                               seen_as=seen_as and re.compile(seen_as))
            return mutants.noticed(mutant, run(timed_out, begun), results)

        report_of_kernel = result("guest x", "2 bad lines on the console, the first: WARNING: "
                                  "mm/x.c:1 at f", "anon_vma_lazy: a root is in use", "WARNING: ")
        late = [result("rmap", "missing: the guest did not get that far"),
                result("guest x", "the guest was stopped after 300 s (TIMEOUT)")]
        self.assertEqual(ask(result("rmap/rmap.one", "")),
                         (None, "not noticed by rmap/rmap.one"))
        self.assertEqual(ask(result("guest x", "a line"), result("rmap/rmap.one", "2 pairs")),
                         ("rmap/rmap.one: 2 pairs", ""))
        # The assertion, where there is one.
        line = "# tests/guest/rmap.c:5:one:Expected a (1) == b (2)"
        self.assertEqual(ask(result("rmap/rmap.one", "failure", "#  RUN", line))[0],
                         f"rmap/rmap.one: {line[2:]}")
        # What else may go wrong is not the test's merit, whatever it is.
        for others in ([report_of_kernel], [result("rmap/rmap.two", "2 pairs")],
                       [late[0], result("guest x", "the guest died before its end")], late):
            caught, why = ask(result("rmap/rmap.one", ""), *others)
            self.assertIsNone(caught)
            self.assertIn(f"not caught by its test: {others[-1].name}: {others[-1].reason[:20]}",
                          why)
        # Unless the header says that it looks like this: a reason, a name, a line of the console.
        for pattern in ("WARNING: mm/x", "guest x: 2 bad", "a root is in"):
            caught, why = ask(report_of_kernel, seen_as=pattern)
            self.assertEqual((caught, why), (f"guest x: {pattern}", ""))
        self.assertIsNone(ask(report_of_kernel, *late, seen_as="Kernel panic")[0])
        self.assertIsNone(ask(result("rmap/rmap.one", ""), seen_as=".")[0])
        # A guest without an end shows something only if that is what to expect.
        self.assertIn("was stopped", ask(*late, hangs=True, timed_out=True)[0])
        self.assertIsNone(ask(*late, timed_out=True)[0])
        # Nor does one that has not got as far as this case, whatever it says.
        self.assertIsNone(ask(*late, hangs=True, timed_out=True, begun=False)[0])
        self.assertIsNone(ask(report_of_kernel, seen_as="WARNING: mm/x", begun=False)[0])
        self.assertTrue(mutants.has_begun("hook/hook.x", "avl: test hook\n"))
        self.assertFalse(mutants.has_begun("hook/hook.x", "avl: test hook_2\n"))
        self.assertIsNone(ask(report_of_kernel, hangs=True)[0])

    def test_a_test_that_fails_without_a_fault_certifies_none(self):
        mutant = mock.Mock(variant="release", mode="lazy", test="rmap/rmap.one", in_kernel=False,
                           wrong="w")
        mutant.name = "module-x"
        for status in ("passed", "failed"):
            with tempfile.TemporaryDirectory() as scratch, \
                    contextlib.redirect_stdout(io.StringIO()), \
                    mock.patch.multiple(mutants, TOP=Path(scratch), Mutant=lambda _: mutant,
                                        DIRECTORY=mock.Mock(glob=lambda _: ["x"]),
                                        baseline=lambda *_, status=status: [
                                            ktap.Result("no-mutant/x", status)],
                                        one=lambda *_: ("rmap: 2 pairs", "")), \
                    mock.patch.multiple(check, Bench=mock.Mock(), finish=mock.Mock()), \
                    mock.patch.object(guest, "Guests"), \
                    mock.patch.object(common, "tree_key", return_value="this"):
                (Path(scratch) / "build").mkdir()
                mutants.mutants(None, "x86_64")
                self.assertEqual(mutants.Verdicts("x86_64").find("module-x"),
                                 "rmap: 2 pairs" if status == "passed" else None)

    def test_mutants_caught_before(self):
        with tempfile.TemporaryDirectory() as scratch, \
                mock.patch.object(mutants, "TOP", Path(scratch)), \
                mock.patch.object(common, "tree_key", return_value="this"):
            kept = mutants.Verdicts("x86_64")
            for name, caught in (("caught", "rmap: 2 pairs"), ("survived", None),
                                 ("survives-now", "by chance")):
                kept.keep(name, caught)
            kept.keep("survives-now", None)
            found = [kept.find(name) for name in ("caught", "survived", "survives-now", "new")]
            self.assertEqual(found, ["rmap: 2 pairs", None, None, None])
            self.assertIsNone(mutants.Verdicts("arm64").find("caught"))
            with mock.patch.dict(os.environ, MUTANTS="caught"):
                self.assertIsNone(kept.find("caught"))
            with mock.patch.object(common, "tree_key", return_value="another"):
                self.assertIsNone(mutants.Verdicts("x86_64").find("caught"))

    def test_guests_side_by_side(self):
        guests = guest.Guests(None, "x86_64")
        self.assertEqual(guests.side_by_side([lambda: 1, lambda: 2, lambda: 3]), [1, 2, 3])

        def runs_until_stopped():
            end = time.monotonic() + 20
            while not guests._stopping and time.monotonic() < end:
                time.sleep(0.01)
            stopped.append(guests._stopping)

        def fails():
            raise common.Failure("no guest")

        stopped = []
        with mock.patch.object(os, "cpu_count", return_value=2), \
                self.assertRaisesRegex(common.Failure, "no guest"):
            guests.side_by_side([runs_until_stopped, fails])
        self.assertEqual(stopped, [True])


class Selftests(unittest.TestCase):
    """The kernel's mm selftests: what is read of them, and what differs."""

    TEXT = """## begin rmap
TAP version 13
1..3
ok 1 rmap.a
not ok 2 - rmap.b at 0x7f001000
ok 3 rmap.c # SKIP no nodes
# Totals: pass:1
## end rmap 1 12
## begin cow
ok 1 same
ok 2 same
ok 3 # SKIP no room
## end cow 124 240
"""

    def test_parse(self):
        self.assertEqual(selftests.parse(self.TEXT), {
            "rmap": {"rmap.a": "ok", "rmap.b at N": "not ok", "rmap.c": "SKIP",
                     "exit": "not ok (1)"},
            "cow": {"same": "ok", "same (2)": "ok", "no room": "SKIP",
                    "exit": "TIMEOUT"}})

    def test_reasons(self):
        self.assertEqual(selftests.reasons(self.TEXT), {"rmap/rmap.c": "no nodes",
                                                        "cow/no room": "no room"})

    def compare(self, *runs, again=None, known=(), differences=()):
        """compare() of two runs, and with lists of its own."""
        with mock.patch.object(selftests, "alike", lambda: known), \
                mock.patch.object(selftests, "expected", lambda: differences):
            return selftests.compare(dict(zip(("base", "lazy on"), runs)), "x86_64", again,
                                     {"p/t": "its words"})

    def test_what_is_alike_and_says_nothing(self):
        """Skipped or failing everywhere counts as passed nowhere, and only if it is listed."""
        for outcome, known, wanted in (
                ("ok", "SKIP", "passed"), ("XFAIL", "SKIP", "passed"),
                ("SKIP", "SKIP", "skipped"), ("not ok", "not ok", "fails on all"),
                ("not ok (1)", "not ok (1)", "fails on all"), ("SKIP", "not ok", "failed"),
                ("not ok", "SKIP", "failed"), ("not ok (1)", "not ok", "failed"),
                # With the list or without: no other kernel is held against these.
                ("TIMEOUT", "SKIP", "failed")):
            run = {"p": {"t": outcome}}
            for arch, pattern, listed in (("x86_64", "p/*", True), ("all", "p/t", True),
                                          ("arm64", "p/t", False), ("all", "q/*", False)):
                (result,), rows = self.compare(run, run, known=[(arch, pattern, known, "why")])
                fails = not listed and outcome in ("SKIP", "not ok", "not ok (1)")
                self.assertEqual(result.status, "failed" if fails else wanted, (outcome, pattern))
                self.assertEqual(bool(rows), result.status == "failed")
                # Another run would say the same.
                self.assertEqual(selftests.differing(rows)[0], [])
                if result.status == "failed" and outcome != "TIMEOUT":
                    self.assertIn("(its words) on base, too, and not in tests/expected-selftests",
                                  result.reason)

    def test_nothing_to_compare_with(self):
        differences = [("all", "lazy on", "p/*", was, "ok", "why")
                       for was in ("missing", "TIMEOUT")]
        for base in ({"p": {"t": "TIMEOUT"}}, {"p": {}}, {}):
            (result,), rows = self.compare(base, {"p": {"t": "ok"}}, differences=differences)
            self.assertIn("nothing to compare with", result.reason)
            self.assertEqual((result.status, rows[0][5]), ("failed", "NOT COMPARED"))
        # The other way around it is a difference as any other.
        (result,), rows = self.compare({"p": {"t": "ok"}}, {"p": {}})
        self.assertEqual((result.status, rows[0][5]), ("failed", "NOT EXPECTED"))

    def test_what_the_summary_counts(self):
        outcomes = {"a": ("ok", "ok"), "b": ("SKIP", "SKIP"), "c": ("not ok", "not ok"),
                    "d": ("ok", "not ok"), "e": ("ok", "SKIP"), "f": ("SKIP", "SKIP"),
                    "g": ("TIMEOUT", "ok")}
        runs = [{"p": {test: both[n] for test, both in outcomes.items()}} for n in (0, 1)]
        compared, rows = self.compare(
            *runs, known=[("all", "p/b", "SKIP", "why"), ("all", "p/c", "not ok", "why")],
            differences=[("all", "lazy on", "p/d", "ok", "not ok", "why")])
        self.assertEqual([int(n) for n in re.findall(r"\d+", selftests.counted(compared, rows))],
                         [7, 1, 1, 1, 1, 1, 1, 1])
        with mock.patch("builtins.print") as printed:
            self.assertEqual(ktap.report(compared, "x86_64"), 3)
        self.assertEqual([call.args[0] for call in printed.call_args_list][-2:],
                         ["1 fail with the series and without, and are known to",
                          "2 passed, 3 failed, 1 skipped"])

    def test_a_list_says_a_reason_once(self):
        results = [ktap.Result(f"t{n}", status, reason, listed=True) for n, (status, reason) in
                   enumerate((("skipped", "x"), ("skipped", "y"), ("skipped", "x")))]
        self.assertEqual(ktap.listed(results), ["SKIPPED t0 and 1 more: x", "SKIPPED t1: y"])
        self.assertEqual(ktap.settle(results, "x86_64"), results)

    def test_what_is_alike_can_be_read(self):
        labels = {label for label, *_ in selftests.LIST}
        for arch, pattern, _, reason in selftests.alike():
            self.assertIn(arch, ("x86_64", "arm64", "all"))
            self.assertIn(pattern.split("/")[0], labels)
            self.assertTrue(reason)
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "list"
            for bad in ("all p/t: ok :: why", "all p/t: SKIP", "p/t: SKIP :: why"):
                file.write_text(f"# good\nall p/t: SKIP :: why\n{bad}\n")
                with mock.patch.object(selftests, "ALIKE", file), \
                        self.assertRaisesRegex(common.Failure, "list:3: needs ARCH LABEL/TEST"):
                    selftests.alike()

    def test_who_runs_a_test(self):
        commands = {label: command for label, command, _ in selftests.LIST}
        self.assertEqual(selftests.listed_line(("cow", "cow")), f"cow {selftests.LIMIT} ./cow\n")
        self.assertEqual(selftests.listed_line(("uffd-unit-tests@2", "uffd-unit-tests")),
                         f"uffd-unit-tests@2 {selftests.LIMITS['uffd-unit-tests']} "
                         "./uffd-unit-tests\n")
        for label in selftests.NOBODY:
            # One word for the shell of su.
            self.assertNotIn(" ", commands[label])
            self.assertRegex(selftests.listed_line((f"{label}@1", commands[label])),
                             rf" su .* nobody -c \./{label}\n$")

    def test_a_difference_fails(self):
        base = selftests.parse(self.TEXT.replace("## end cow 124", "## end cow 0"))
        known = [("all", pattern, outcome, "why") for pattern, outcome in (
            ("rmap/rmap.b*", "not ok"), ("*/*", "SKIP"), ("rmap/exit", "not ok (1)"))]
        same, rows = self.compare(base, base, known=known)
        self.assertEqual(([r.status for r in same], rows), (
            ["passed", "fails on all", "skipped", "fails on all", "passed", "passed", "skipped",
             "passed"], []))
        for old, new in (("ok 1 rmap.a", "not ok 1 rmap.a"),
                         ("ok 1 rmap.a", "ok 1 rmap.a # SKIP x"),
                         ("ok 1 rmap.a\n", ""), ("## end rmap 1", "## end rmap 0")):
            other = selftests.parse(self.TEXT.replace("## end cow 124", "## end cow 0")
                                    .replace(old, new, 1))
            results, rows = self.compare(base, other, known=known)
            # Where one is missing the plan does not hold, either.
            self.assertEqual([r.status for r in results].count("failed"), 1 if new else 2, new)
            self.assertEqual(len(rows), 1 if new else 2)
        # A program that did not run at all.
        results, _ = self.compare(base, {"cow": base["cow"]}, known=known)
        self.assertEqual([r.status for r in results].count("failed"), 4)

    def test_expected_differences_can_be_read(self):
        for arch, _, _, was, now, reason in selftests.expected():
            self.assertIn(arch, ("x86_64", "arm64", "all"))
            self.assertNotEqual(was, now)
            self.assertNotIn(was, ("TIMEOUT", "missing"))
            self.assertTrue(reason)

    def test_only_the_expected_difference_is_excused(self):
        known = [("all", "lazy on", "rmap/*", "ok", "not ok", "why")]
        was = {"rmap": {"a": "ok"}}
        with mock.patch.object(selftests, "expected", lambda: known):
            for variant, now, wanted in (("lazy on", "not ok", "passed"),
                                         ("lazy on", "SKIP", "failed"),
                                         ("lazy off", "not ok", "failed")):
                results, _ = selftests.compare({"base": was, variant: {"rmap": {"a": now}}},
                                               "x86_64")
                self.assertEqual([r.status for r in results], [wanted], (variant, now))

    def test_more_runs_excuse_nothing(self):
        """They tell the reader whether a test has two outcomes."""
        runs = {"base": {"ksm": {"a": "ok"}}, "on": {"ksm": {"a": "not ok"}}}
        _, rows = selftests.compare(runs, "x86_64")
        self.assertEqual(rows[0][5], "NOT EXPECTED")
        self.assertEqual(selftests.differing(rows), (["ksm"], {"base", "on"}))

        def outcomes(*statuses):
            return selftests.outcomes({f"ksm@{n}": {"a": status}
                                       for n, status in enumerate(statuses)})

        again = {"base": outcomes("ok", "not ok"), "on": outcomes("not ok", "ok", "ok")}
        (result,), rows = selftests.compare(runs, "x86_64", again)
        self.assertEqual((result.status, rows[0][5]), (
            "failed", "NOT EXPECTED: so 1 of 2 times more on base, so 1 of 3 times more on on"))
        # A run that lacks it counts, too.
        self.assertEqual(selftests.outcomes({"p@1": {"a": "ok", "plan": "not ok"}, "p@2": {},
                                             "q@1": {"a": "ok"}}),
                         {"p/a": ["ok", "missing"], "p/plan": ["not ok", "ok"], "q/a": ["ok"]})
        self.assertIn(" 1 differ,", selftests.counted([result], rows))

    def test_a_plan_has_to_hold(self):
        short = self.TEXT.replace("ok 3 rmap.c # SKIP no nodes\n", "")
        self.assertEqual(selftests.parse(short)["rmap"]["plan"], "not ok")
        self.assertEqual(selftests.reasons(short)["rmap/plan"], "2 of 3 have a verdict")
        # Also if it is as short on all kernels.
        results, _ = self.compare(*[{"rmap": selftests.parse(short)["rmap"]}] * 2,
                                  known=[("all", "rmap/[!p]*", outcome, "why")
                                         for outcome in ("not ok", "not ok (1)")])
        self.assertEqual([r.name for r in results if r.status == "failed"], ["lazy on/rmap/plan"])

    def test_what_is_listed_and_not_seen(self):
        known = [("all", "p/a", "SKIP", "why"), ("all", "p/b", "SKIP", "why")]
        differences = [("all", "lazy on", "p/c", "ok", "not ok", "why"),
                       ("all", "lazy on", "p/d", "ok", "not ok", "why"),
                       ("all", "lazy off", "p/c", "ok", "not ok", "why")]
        base = {"p": {"a": "SKIP", "c": "ok", "d": "ok"}}
        runs = {"base": base, "lazy off": base,
                "lazy on": {"p": {"a": "SKIP", "c": "not ok", "d": "ok"}}}
        with mock.patch.object(selftests, "alike", lambda: known), \
                mock.patch.object(selftests, "expected", lambda: differences):
            for whole, wanted in ((True, ["list/p/b", "list/p/c", "list/p/d"]), (False, [])):
                results, rows = selftests.compare(runs, "x86_64", whole=whole)
                self.assertEqual([r.name for r in results if r.status == "failed"], wanted)
            self.assertTrue(selftests.counted(results, rows).startswith("6 results compared, 3 "))

    def test_counts_are_no_part_of_a_name(self):
        line = "ok 1 transact_test Extra pages {} (0.4%), extra thread faults {}.\n"
        first, second = (selftests.parse(f"## begin p\n{line.format(*numbers)}## end p 0 1\n")
                         for numbers in ((112, 494), (7, 4094)))
        self.assertEqual(first, second)


class Report(unittest.TestCase):
    """The page of what was tried."""

    def test_failures_stand_out(self):
        record = {"target": "check", "arch": "x86_64", "commit": "c", "when": "w",
                  "narrowed": {"TESTS": "a,b"}, "settings": {"SEED": "7"},
                  "stages": [["a", 3], ["b", 4]], "extra": {"T": "| x |"},
                  "results": [["one", "passed", ""], ["two", "failed", "<why>"]]}
        text = report.page([record])
        self.assertIn("| check | x86_64 | w | 1 | 1 | 0 | 0 | 7 | TESTS=a,b | SEED=7 |", text)
        self.assertIn("* check x86_64: two: <why>", text)
        self.assertIn("&lt;why&gt;", report.to_html(text))
        html = report.to_html(text)
        self.assertEqual(html.count("<table>"), html.count("</table>"))

    def test_what_it_was_made_with(self):
        runs = [{"target": target, "arch": "x86_64", "versions": {"QEMU": "10.0", "rustc": rustc}}
                for target, rustc in (("check", "1.85"), ("bench", "1.86"))]
        text = "\n".join(report.versions([*runs, {"target": "old", "arch": "x86_64"}]))
        self.assertIn("| QEMU | 10.0 | check x86_64, bench x86_64 |", text)
        self.assertIn("| rustc | 1.86 | bench x86_64 |", text)
        with mock.patch.dict(common.noted, clear=True), tempfile.TemporaryDirectory() as top, \
                mock.patch.object(report, "RESULTS", Path(top)):
            common.note("QEMU", "10.0\n")
            common.note("clang", None)
            report.save("check", "x86_64", [], [])
            (file,) = Path(top).iterdir()
            self.assertEqual(json.loads(file.read_text())["versions"],
                             {"QEMU": "10.0", "clang": "unknown"})

    def test_module_info(self):
        data = b"\x7fELF\0license=GPL\0srcversion=AB12\0vermagic=7.3.4 SMP preempt \0version=1\0x"
        self.assertEqual(kernel.module_info(data),
                         "version 1, srcversion AB12, vermagic 7.3.4 SMP preempt")
        self.assertEqual(kernel.module_info(b""), "")

    def test_all_that_is_excused_is_shown(self):
        text = report.excuses()
        for file in (TOP / "tests").glob("expected-*"):
            self.assertIn(file.name, [name for name, _ in report.LISTS])
            for line in file.read_text().splitlines():
                if line and not line.startswith("#"):
                    words = line.replace(" :: ", " ").split()
                    self.assertTrue(any(row.replace("|", " ").split() == words for row in text),
                                    line)

    def test_what_never_happened_stands_out(self):
        with tempfile.TemporaryDirectory() as top:
            run = Path(top) / "build/x86_64/run"
            # Those of a part count, too; those with a fault on purpose do not.
            for name in ("lazy-release", "full-soak/lazy-release", "mutant-x",
                         "full-mutants/mutant-x"):
                (run / name).mkdir(parents=True)
                (run / name / "console.log").write_text(
                    "avl: counter walk 5\navl: counter roots 3\n")
            with mock.patch.object(report, "events",
                                   lambda: {"walk": "w", "refused": "r", "walk_skip": "s"}), \
                    mock.patch.object(report, "TOP", Path(top)):
                text = "\n".join(report.transitions())
        self.assertIn("| walk | w | 10 |", text)
        self.assertIn("| refused | r | 0, as it must be |", text)
        self.assertIn("| walk_skip | s | 0: NO TEST DID |", text)

    def test_what_the_oracle_saw(self):
        """In each of the forms in which programs of the guest say so."""
        with tempfile.TemporaryDirectory() as top:
            run = Path(top) / "build/x86_64/run/full-soak/lazy-release"
            run.mkdir(parents=True)
            (run / "verdict.log").write_text(
                "# x:oracle: 189 folios, 534 mappings, 0 large\n"
                "# oracle: 10 folios, 20 mappings in 5 looks, 1 missed\n"
                "# y:the oracle saw 1000 folios, 7 large, 8 of KSM, 3000 mappings in 15 looks\n")
            with mock.patch.object(report, "TOP", Path(top)):
                self.assertEqual(report.oracle_figures(), (21, 1199, 3554))
        text = (TOP / "tests/guest/stress.c").read_text()
        self.assertIn('"the oracle saw %lu folios, %lu large, %lu of KSM, %lu mappings in %lu '
                      'looks"', text)

    def test_a_stage_that_was_left_out_is_named(self):
        record = {"target": "check", "arch": "x86_64", "commit": "c", "when": "w", "stages": [],
                  "results": [], "extra": {}}
        with mock.patch.object(litmus, "missing", lambda: "there is no herd7"):
            self.assertIn("Not run: litmus tests: there is no herd7\n", report.page([record]))
            self.assertNotIn("Not run", report.page([{**record, "target": "full-litmus"}]))

    def test_each_event_is_known(self):
        self.assertIn("walk_skip", report.events())


class Litmus(unittest.TestCase):
    """What herd7 has said, and who says that there is none."""

    def test_parse(self):
        text = ("TAP version 13\n1..3\nok 1 a: Never\n# Test b\n# Observation b Sometimes 1 2\n"
                "not ok 2 b: not Never\n1 passed, 1 failed\n")
        a, b, c = litmus.parse(text, ["a", "b", "c"])
        self.assertEqual((a.name, a.status, a.evidence), ("litmus/a", "passed", ()))
        self.assertEqual((b.status, b.reason), ("failed", "not Never"))
        self.assertIn("# Observation b Sometimes 1 2", b.evidence)
        self.assertEqual((c.name, c.status), ("litmus/c", "failed"))

    def test_without_herd7(self):
        with mock.patch.dict(os.environ, HERD7="/nonexistent/herd7 -show all"):
            self.assertEqual(litmus.missing(), "HERD7=/nonexistent/herd7 is no program")
            self.assertRaisesRegex(common.Failure, "is no program", litmus.run)
        with mock.patch.dict(os.environ, HERD7="", PATH="/nonexistent"):
            self.assertIn("herdtools7", litmus.missing())
        with mock.patch.dict(os.environ, HERD7=f"{sys.executable} -B"):
            self.assertIsNone(litmus.missing())

    def test_check_full_goes_on_without(self):
        with tempfile.TemporaryDirectory() as top, mock.patch.object(check, "TOP", Path(top)), \
                mock.patch.dict(os.environ, HERD7="/nonexistent/herd7", STAGES="litmus"), \
                mock.patch.object(subprocess, "run", side_effect=AssertionError), \
                mock.patch("builtins.print") as printed:
            self.assertEqual(check.check_full(), 0)
        lines = [call.args[0] for call in printed.call_args_list]
        self.assertEqual(lines[-1], "0 passed, 0 failed, 1 skipped")
        self.assertRegex(lines[-2], "litmus +NOT RUN: HERD7=/nonexistent/herd7 is no program")


class Races(unittest.TestCase):
    """Reports of the race detector."""

    RULE = "[    1.0] " + "=" * 66

    def text(self, module):
        return "\n".join(("[    1.0] before", self.RULE,
                          "[    1.0] BUG: KCSAN: data-race in walk_it / zap", "[    1.0]",
                          "[    1.0] write to 0xffff888000000000 of 8 bytes by task 7 on cpu 1:",
                          f"[    1.0]  zap+0x10/0x20{module}", "[    1.0]  exit+0x1/0x2",
                          "[    1.0]", "[    1.0] read to 0xffff888000000000 of 8 bytes by task 8",
                          "[    1.0]  walk_it+0x1/0x2", self.RULE, "[    1.0] after",
                          self.RULE, "[    1.0] BUG: KCSAN: data-race in lonely+0x1/0x2",
                          "[    1.0]", "[    1.0]  lonely+0x1/0x2"))

    def judged(self, text, known, added=()):
        found, rest = races.split(text)
        self.assertEqual([line.split("] ")[1] for line in rest.splitlines()], ["before", "after"])
        results, _ = races.judge("guest", found, set(added), [races.Line(*line) for line in known])
        return {r.name.split("race: ")[1]: r.status for r in results}

    def test_reports_are_told_apart_and_listed_ones_pass(self):
        self.assertEqual(self.judged(self.text(""), [("zap / walk_*", "why")]),
                         {"walk_it / zap": "passed", "lonely / unknown": "failed"})

    def test_nothing_excuses_a_race_of_ours(self):
        known = [("* / *", "why"), ("walk_it / zap", "why", "exit")]
        self.assertEqual(self.judged(self.text(" [anon_vma_lazy]"), known)["walk_it / zap"],
                         "failed")
        self.assertEqual(self.judged(self.text(""), known, ["walk_it"])["walk_it / zap"], "failed")
        self.assertEqual(self.judged(self.text(""), known)["walk_it / zap"], "passed")

    # A walk of the module looks a VMA up: its mangled name, as it was seen.
    NEXT = "_RNvMNtCsbNDa5Veb6zw_9lazy_main4walkNtB2_4Walk4next"

    def below(self, reader, writer=("mas_wmb_replace", "mmap_region"), end=("", "Reported by it"),
              title=None, kind="data-race", what="read (marked)", wrote="write",
              where="to 0xff110000414dea00 of 8 bytes by task 39"):
        """A report. A frame is a function, or a function and its module as the kernel prints it."""
        def frames(names):
            return [re.sub(r"^([\w.]+)( \[|$)", r" \1+0x1/0x2\2", name) for name in names]
        title = title or " / ".join(sorted(names[0].split()[0] for names in (reader, writer)))
        return races.Race([f"BUG: KCSAN: {kind} in {title}", "",
                           f"{wrote} {where}0 on cpu 2:", *frames(writer), "",
                           f"{what} {where}1 on cpu 3:", *frames(reader), *end])

    ADDED = ("anon_rmap_next", "free_dead_roots")

    def status(self, race, *known):
        (result,), rows = races.judge("guest", race if isinstance(race, list) else [race],
                                      set(self.ADDED), [races.Line(*line) for line in known])
        self.assertEqual(rows[0][2] == "why", result.status == "passed")
        self.assertEqual(bool(result.evidence), result.status == "failed")
        return result.status

    def test_what_the_module_called_is_excused_by_the_line_of_its_caller_alone(self):
        walk = ["mtree_load", f"{self.NEXT} [anon_vma_lazy]", "rmap_walk_anon"]
        later = ("  |", f"  +-> reordered to: {self.NEXT}+0x1/0x2 [anon_vma_lazy]", "",
                 "Reported by it")
        pair, path = "mas_wmb_replace / mtree_load", "lazy_main::walk::Walk::next"
        line = (pair, "why", path)
        below, status = self.below, self.status

        self.assertEqual(status(below(walk), line), "passed")
        # A function of the series, by its own name; deeper in Linux; both stacks; a whole system
        # call that an interrupt has met.
        self.assertEqual(status(below(["mtree_load", "anon_rmap_next"]),
                                (pair, "why", "anon_rmap_next")), "passed")
        deeper = ["mtree_load", "mt_find", *walk[1:]]
        self.assertEqual(status(below(deeper), line), "passed")
        self.assertEqual(status(below(walk, ["mas_wmb_replace", *walk[1:]]), line), "passed")
        self.assertEqual(status(below(walk, ["mas_wmb_replace", "asm_exc_page_fault"]), line),
                         "passed")
        for what, race, known in (
                ("no line", below(walk), []),
                ("a line of Linux's own", below(walk), [("* / *", "why"), (pair, "why")]),
                ("another caller", below(walk), [(pair, "why", "lazy_main::walk::Walk::nex")]),
                ("another pair", below(walk), [("mas_walk / mtree_load", "why", path)]),
                ("a pattern", below(walk), [("mas_wmb_replace / *", "why", path)]),
                ("a nearer one", below(["mtree_load", "anon_rmap_next", *walk[1:]]), [line]),
                ("a nearer module", below(["mtree_load", "who_read [rmap_who]", *walk[1:]]),
                 [line]),
                ("a nearer one, cloned",
                 below(["mtree_load", "free_dead_roots.specialized.1", *walk[1:]]), [line]),
                ("a nearer one, spoilt",
                 below(["mtree_load", "ok 3 - x[  441.5]  anon_rmap_next+0x1/0x2", *walk[1:]]),
                 [line]),
                ("another caller on the other stack",
                 below(walk, ["mas_wmb_replace", "anon_rmap_next"]), [line]),
                ("not ours", below(["mtree_load", "find_vma"]), [line]),
                ("KCSAN put it off", below(walk, end=later), [line]),
                ("it says so there", below(walk, what="read (reordered)"), [line]),
                ("a rule was broken", below(walk, kind="assert: race"), [line]),
                ("an interrupt", below(["mtree_load", "asm_common_interrupt", *walk[1:]]), [line]),
                ("too long", below([*walk, *["more"] * 60]), [line]),
                ("no name", below([*walk, " 0xffffffffc0000000"]), [line]),
                ("cut off", below(walk, end=()), [line]),
                ("another title", below(walk, title="mas_walk / mtree_load"),
                 [line, ("mas_walk / mtree_load", "why", path)])):
            with self.subTest(what):
                self.assertEqual(status(race, *known), "failed")
        # One that is not explained is enough.
        self.assertEqual(status([below(walk), below(["mtree_load", "anon_rmap_next"])], line),
                         "failed")
        bare = [text for text in below(walk).lines
                if "mas_wmb_replace+" not in text and "mmap_region" not in text]
        self.assertEqual(status(races.Race(bare), line), "failed")
        half = [text.replace("mas_wmb_replace / ", "") for text in bare
                if not text.startswith("write")]
        self.assertEqual(status(races.Race(half), ("mtree_load / unknown", "why", path)), "failed")

    def test_nothing_of_ours_hides_from_the_lines_of_linux(self):
        known = ("* / *", "why")
        self.assertEqual(self.status(self.below(["mas_walk", "find_vma"]), known), "passed")
        for reader in (["mas_walk", "free_dead_roots.part.0"], ["free_dead_roots.cold"],
                       ["mas_walk", "ok 3 - x[  441.5]  anon_rmap_next+0x1/0x2"],
                       ["mas_walk", "ok 3 - x[  441.5]  f+0x1/0x2 [anon_vma_lazy]"]):
            with self.subTest(reader):
                self.assertEqual(self.status(self.below(reader), known), "failed")
        # All that the guest lived to print.
        title = races.Race(["BUG: KCSAN: data-race in free_dead_roots / mas_walk"])
        self.assertEqual(self.status(title, known), "failed")
        long = self.below(["mas_walk", *["more"] * 60])
        self.assertEqual(self.status(long, known), "failed")
        self.assertEqual(self.status(self.below(["mas_walk", *["more"] * 40], ["a"] * 40), known),
                         "passed")
        broken = self.below(["mas_walk"], kind="assert: race")
        self.assertEqual(self.status(broken, known), "failed")

    def test_who_looks_for_the_head_of_a_page(self):
        """A line at compound_head: this reader, marked, and any plain writer, of that word."""
        def status(pair="copy_page_range / a,shrink_folio_list", reader="copy_page_range",
                   writer="shrink_folio_list", word="0xffd40000001a1c88 of 8", **how):
            if "value" in how:
                how["end"] = ("", f"value changed: {how.pop('value')}", "", "Reported by it")
            race = self.below([reader, "dup_mmap"], [writer, "shrink_lruvec"],
                              where=f"to {word} bytes by task 39", **how)
            return self.status(race, (pair, "why", "", "compound_head"))

        later = ("  |", "  +-> reordered to: shrink_folio_list+0x1/0x2", "", "Reported by it")
        for what, options in (
                ("as seen", {}), ("a list", {"wrote": "read-write"}),
                ("put off", {"wrote": "read-write (reordered)", "end": later}),
                ("first of the alphabet", {"writer": "a"}),
                ("a value", {"value": "0x10 -> 0xdead000000000100"}),
                ("one of some", {"pair": "a,copy_page_range,b / shrink_folio_list"}),
                ("four levels", {"word": "0xffffea00001a1cc8 of 8"})):
            with self.subTest(what):
                self.assertEqual(status(**options), "passed")
        for what, options in (
                ("not marked", {"what": "read"}), ("put off", {"what": "read (marked, reordered)"}),
                ("a marked write", {"wrote": "write (marked)"}),
                ("two reads", {"wrote": "read (marked)"}), ("two writes", {"what": "read-write"}),
                ("another reader", {"reader": "mas_walk"}),
                ("it writes", {"pair": "shrink_folio_list / *"}),
                ("another writer", {"writer": "compaction_alloc"}),
                ("a pattern", {"pair": "copy_page_range / *"}),
                ("a pattern of readers", {"pair": "copy_* / shrink_folio_list"}),
                ("of ours", {"reader": "free_dead_roots",
                             "pair": "free_dead_roots / shrink_folio_list"}),
                ("a tail now", {"value": "0x10 -> 0x11"}),
                ("a tail before", {"value": "0x11 -> 0x10"}),
                ("flags", {"word": "0xffd40000001a1c80 of 8"}),
                ("mapping", {"word": "0xffd40000001a1c98 of 8"}),
                ("another word", {"word": "0xffd40000001a1ca8 of 8"}),
                ("a half of it", {"word": "0xffd40000001a1c88 of 4"}),
                ("not a page", {"word": "0xff110000001a1c88 of 8"}),
                ("cut off", {"end": ()})):
            with self.subTest(what):
                self.assertEqual(status(**options), "failed")

    def test_what_one_of_ours_did_itself_is_never_excused(self):
        """Nor what was done on its behalf, by a line of any kind."""
        caller = f"{self.NEXT} [anon_vma_lazy]"
        for access in (caller, "avl_hook [anon_vma_lazy]", "who_read [rmap_who]",
                       "mas_find [another]", "anon_rmap_next", "free_dead_roots",
                       "free_dead_roots.part.0", "rust_helper_smp_mb",
                       "_RNvNtCsb5MLIFMWygY_6kernel4sync4load", "memcpy", "__memset", "rb_next",
                       "__rb_insert_augmented", "__list_del_entry_valid_or_report", "bcmp",
                       "anon_rmap_tree_insert", "__put_anon_vma", "sized_strscpy", "xas_store",
                       "__call_rcu_common", "kmem_cache_free", "down_read", "may_expand_vm"):
            name = access.split()[0]
            for race in (self.below([access, caller, "rmap_walk_anon"]),
                         self.below(["mtree_load", caller], [access, "mmap_region"])):
                known = [(race.title, "why", path)
                         for path in ("", "lazy_main::walk::Walk::next", name, "mmap_region")]
                with self.subTest(access):
                    self.assertIn(name, race.accesses)
                    self.assertEqual(self.status(race, *known), "failed")

    def test_a_function_of_the_series_stays_its_own_in_the_maple_tree(self):
        """By its name it would be of the maple tree."""
        race = self.below(["mas_added", f"{self.NEXT} [anon_vma_lazy]"])
        path = "lazy_main::walk::Walk::next"
        for added, status in (((), "passed"), (("mas_added",), "failed")):
            with mock.patch.object(self, "ADDED", added):
                self.assertEqual(self.status(race, (race.title, "why", path)), status)

    def test_a_path_is_of_one_symbol(self):
        path = "lazy_main::walk::Walk::next"
        self.assertTrue(races.is_called(self.NEXT, path))
        self.assertTrue(races.is_called(self.NEXT.replace("vM", "vMs0_"), path))
        hook = "_RNvNtCsbN_9lazy_main5hooks4walk"
        self.assertTrue(races.is_called(hook, "lazy_main::hooks::walk"))
        self.assertTrue(races.is_called("anon_rmap_next", "anon_rmap_next"))
        for symbol in (self.NEXT + "0", self.NEXT + "5inner", self.NEXT.replace("4next", "14next"),
                       self.NEXT.replace("4walk", "14walk"), self.NEXT.replace("4walk", "4talk"),
                       self.NEXT.replace("9lazy_main", "4core"), self.NEXT.replace("vM", "CvM"),
                       self.NEXT.replace("4Walk", "7my4Walk"), "next", "walk::Walk::next",
                       "_RNvXs_NtCsX_9lazy_main4walkNtB4_4WalkNtNtNtCs_4core4iter8iterator8Iterator"
                       "4next", "_RNvNvMNtCsb_9lazy_main4walkNtB2_4Walk5visit4next"):
            with self.subTest(symbol):
                self.assertFalse(races.is_called(symbol, path))

    def test_lines_with_a_caller_name_both_functions_in_full(self):
        def read(line):
            with tempfile.NamedTemporaryFile("w", suffix="-races") as file, \
                    mock.patch.object(races, "EXPECTED", Path(file.name)):
                file.write(f"# A comment.\n\n{line}\n")
                file.flush()
                return races.expected({"mas_added"})

        self.assertEqual(read("a / b :: why"), [("a / b", "why", "", "")])
        self.assertEqual(read("b* / unknown :: why not"), [("b* / unknown", "why not", "", "")])
        self.assertEqual(read("mas_a / mt_b.x from walk::Walk::next :: why"),
                         [("mas_a / mt_b.x", "why", "walk::Walk::next", "")])
        self.assertEqual(read("a,b.x / c at compound_head :: why"),
                         [("a,b.x / c", "why", "", "compound_head")])
        for pair in ("a / *", "* / a", "a, / b", "a / b?", "a,b* / c"):
            with self.subTest(pair), self.assertRaisesRegex(common.Failure, ":3: with a place"):
                read(f"{pair} at compound_head :: why")
        for line in ("a / b", "a :: why", "a / b from :: why", "a / b ::", "a / b c d :: why",
                     "a / b at here :: why", "a / b from c d :: why"):
            with self.subTest(line), self.assertRaisesRegex(common.Failure, ":3: needs FUNCTION"):
                read(line)
        for other in ("ma_a", "mt_*", "mt_b?", "unknown", "mas_added", "memcpy", "rust_helper_x"):
            pair = f"mas_a / {other}"
            with self.subTest(pair), self.assertRaisesRegex(common.Failure, ":3: with a caller"):
                read(f"{pair} from walk::Walk::next :: why")

    def test_only_the_rule_above_a_report_goes_with_it(self):
        """A line of the test may have become one with it, or stand there alone."""
        for above in ("[    1.0] other", "not ok 5 - x" + self.RULE):
            found, rest = races.split("\n".join((above, *self.text("").splitlines()[2:])))
            self.assertEqual(rest.splitlines()[0], above)
            self.assertEqual(len(found), 2)

    def test_the_last_run_is_judged_once_more(self):
        """By another list alone: nothing else may have changed. What failed beside still does."""
        found, _ = races.split(self.text(""))
        died = ktap.Result("boot", "failed", "died", ("a", "b"))
        seen = [("guest", [died], [race.lines for race in found])]
        tree = ["this"]
        with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
            for what, name, value in (
                    (report, "RESULTS", Path(scratch)), (races, "added_functions", lambda: set()),
                    (races.guest, "Guests", mock.Mock()), (races.check, "Bench", mock.Mock()),
                    (races, "guests_of", lambda *_: seen),
                    (races, "instrumented", lambda *_: ktap.Result("module", "passed")),
                    (common.Stage, "times", []), (races, "key", lambda: tree[0])):
                stack.enter_context(mock.patch.object(what, name, value))

            def outcome(listed, again=True, **settings):
                known = [races.Line(pattern, "why") for pattern in listed]
                said = io.StringIO()
                settings["JUDGE"] = "last" if again else ""
                with mock.patch.object(races, "expected", lambda _: known), \
                        mock.patch.dict(os.environ, settings), \
                        contextlib.redirect_stdout(said):
                    count = races.races(None, "x86_64")
                    record = json.loads(report.record_file("check-kcsan", "x86_64").read_text())
                found = {name: status for name, status, _ in record["results"]}
                self.assertEqual(count, list(found.values()).count("failed"))
                return found, record, said.getvalue()

            def changing(*_):
                tree[0] = "other"
                return seen

            with self.assertRaisesRegex(common.Failure, "no run to its end yet: make check-kcsan"):
                outcome([])
            failed = {"module": "passed", "boot": "failed", "guest/race: walk_it / zap": "failed",
                      "guest/race: lonely / unknown": "failed"}
            now, first, said = outcome([], again=False)
            self.assertEqual(now, failed)
            self.assertIn("    | b", said)
            now, record, said = outcome([])
            self.assertEqual(now, failed)
            self.assertIn("    | b", said)
            self.assertIn(f"the run of {first['when']}", said)
            now, record, _ = outcome(["zap / walk_it", "lonely / unknown"])
            self.assertEqual(now, {name: "failed" if name == "boot" else "passed"
                                   for name in failed})
            self.assertEqual([record[name] for name in ("when", "commit", "versions", "raw")],
                             [first[name] for name in ("when", "commit", "versions", "raw")])
            # A run that is narrowed, or a stage, has a record of its own.
            outcome([], again=False, ROUNDS="1")
            outcome([], again=False, AVL_STAGE="full-kcsan")
            self.assertEqual(outcome([])[1]["when"], first["when"])
            self.assertEqual(len(list(Path(scratch).iterdir())), 3)
            tree[0] = "that"
            with self.assertRaisesRegex(common.Failure, "has changed since"):
                outcome([])
            with mock.patch.object(races, "guests_of", changing):
                self.assertIn("will not do", outcome([], again=False)[2])
            for text in ("{", "{}", '{"raw": null}'):
                report.record_file("check-kcsan", "x86_64").write_text(text)
                with self.assertRaisesRegex(common.Failure, "not of a run that can be judged"):
                    outcome([])
            with mock.patch.dict(os.environ, {"JUDGE": "first"}), \
                    self.assertRaisesRegex(common.Failure, "JUDGE=first: check-kcsan takes last"):
                races.races(None, "x86_64")

    def test_what_the_last_run_is_judged_by(self):
        """All of the tree but the list of races and documents."""
        with mock.patch.object(common, "tree_key") as tree_key:
            races.key()
            tree_key.assert_called_once_with(documents=False, without=races.EXPECTED)
            tree_key.side_effect = FileNotFoundError
            self.assertIsNone(races.key())

    def test_the_list_can_be_read_and_excuses_nothing_of_the_series(self):
        added = races.added_functions()
        self.assertIn("anon_rmap_next", added)
        known = races.expected(added)
        # One of each kind, as it was met.
        for race in (self.below(["mtree_load", f"{self.NEXT} [anon_vma_lazy]", "rmap_walk_anon"]),
                     self.below(["mas_walk", "lock_vma_under_rcu"]),
                     self.below(["copy_page_range"], ["shrink_active_list"], wrote="read-write",
                                where="to 0xffd40000001a1c88 of 8 bytes by task 39")):
            self.assertTrue(race.reason(added, known), race.title)
        for line in known:
            self.assertTrue(line.reason)
            self.assertNotIn("anon_vma_lazy", line.pair)
            self.assertFalse(set(re.split(" / |,", line.pair)) & added)


class Panics(unittest.TestCase):
    """Code of the module that can panic is found; that of its KUnit cases may."""

    CODE = """
0000000000000a20 <{function}>:
     a20:       callq   0xa25 <{function}+0x5>
                0000000000000a21:  R_X86_64_PLT32       core::{panic}-0x4
0000000000000b00 <lazy_main::hooks::clone>:
     b00:       retq
"""

    def test_a_function_that_panics_is_named(self):
        for panic in ("panicking::panic_bounds_check", "option::unwrap_failed",
                      "result::unwrap_failed", "slice::index::slice_index_fail"):
            code = self.CODE.format(function="lazy_main::hooks::fork", panic=panic)
            self.assertEqual(check.panics(code), ["lazy_main::hooks::fork"], panic)

    def test_a_unit_test_may(self):
        code = self.CODE.format(function="a::tests::kunit_rust_wrapper",
                                panic="panicking::panic_bounds_check")
        self.assertEqual(check.panics(code), [])


class Programs(unittest.TestCase):
    """What other programs say of themselves."""

    def test_vma_tests(self):
        text = "Test a passed\nAssert FAILED at x.c:1:test_b(): y is FALSE.\nTest b FAILED\n"
        end = "2 tests run, 1 passed, 1 failed.\n"
        self.assertEqual([(r.name, r.status) for r in vmatests.parse(text + end)],
                         [("vma/a", "passed"), ("vma/b", "failed")])
        self.assertEqual([r.name for r in vmatests.parse(text)][-1], "vma/end")
        self.assertEqual(vmatests.parse(text + end.replace("2", "3"))[-1].name, "vma/count")
        self.assertEqual(vmatests.parse("0 tests run, 0 passed, 0 failed.\n")[-1].status, "failed")
        # All have passed, but.
        end = "Test a passed\n{}1 tests run, 1 passed, 0 failed.\n{}"
        self.assertEqual([r.status for r in vmatests.parse(end.format("", ""))], ["passed"])
        for first, last in (("mm/vma.c:1:2: runtime error: signed integer overflow\n", ""),
                            ("", "==7==ERROR: LeakSanitizer: detected memory leaks\n")):
            self.assertEqual([(r.name, r.status) for r in vmatests.parse(end.format(first, last))],
                             [("vma/a", "passed"), ("vma/sanitizers", "failed")])

    def test_vma_tests_that_end_badly(self):
        text = "Test a passed\n1 tests run, 1 passed, 0 failed.\n"
        with tempfile.TemporaryDirectory() as scratch:
            tree = Path(scratch)
            for name in (*vmatests.COPIED, *vmatests.LINKED):
                (tree / "src" / name).mkdir(parents=True)
            (tree / "src/tools/testing/vma/shared.h").write_text(vmatests.FAILED)
            (tree / "libs/usr/lib/x-linux-gnu").mkdir(parents=True)
            log = tree / "log"

            def run(argv, *_):
                log.write_text(text if len(argv) == 1 else "")
                if len(argv) == 1:
                    raise common.Failure("tools/testing/vma failed (exit 1)")

            with mock.patch.object(vmatests, "TOP", tree), \
                    mock.patch.object(vmatests, "unpacked", lambda *_: tree / "libs"), \
                    mock.patch.object(common, "log_path", lambda _: log), \
                    contextlib.redirect_stdout(io.StringIO()):
                results = vmatests.run(mock.Mock(run=run), tree / "src")
        self.assertEqual([(r.name, r.status) for r in results],
                         [("vma/a", "passed"), ("vma/exit", "failed")])

    def test_stressors(self):
        self.assertIn("trinity", [row[0] for row in stressors.commands()])
        for name, limit, command in stressors.commands():
            self.assertNotRegex(name + command, "[\"'$\n]")
            self.assertGreater(limit, stressors.SECONDS)
        with mock.patch.dict(os.environ, {"STRESSORS": "rmap nosuch"}):
            self.assertRaisesRegex(common.Failure, "nosuch", stressors.commands)

    def test_coverage(self):
        places = [100, 108, 120]
        counts = coverage.counted("avl: cover 5 3\navl: cover 5 4\navl: cover 9 1\n", 80, places)
        self.assertEqual(counts, {100: 7, 108: 0, 120: 0})
        at = {100: ("hooks::walk", "rust/hooks.rs", 3), 108: ("next", "rust/walk.rs", 5)}
        text, hooks = coverage.summary(counts, at)
        self.assertEqual((hooks["walk"], hooks["fork"]), (7, 0))
        self.assertTrue(any(line.startswith("* rust/walk.rs:5:") for line in text))
        self.assertFalse(any(line.startswith("* rust/hooks.rs:3:") for line in text))


class Refusals(unittest.TestCase):
    """Bad input through the Makefile: one line that says what to do, a non-zero exit."""

    def make(self, *arguments, **env):
        base = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS")}
        result = subprocess.run(["make", "-C", str(TOP), *arguments], env={**base, **env},
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, check=False, timeout=120)
        lines = [line for line in result.stderr.decode().splitlines()
                 if not line.startswith("make")]
        return result.returncode, lines

    def refused(self, pattern, *arguments, **env):
        status, lines = self.make(*arguments, **env)
        self.assertNotEqual(status, 0)
        self.assertEqual(len(lines), 1, lines)
        self.assertRegex(lines[0], pattern)

    def test_help_names_every_target(self):
        result = subprocess.run(["make", "-C", str(TOP), "help"], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        for target in cli.COMMANDS:
            self.assertRegex(result.stdout.decode(), rf"(?m)^  (?:.*, )?{target}\b")
        for name in re.findall(r"(?m)^export (.*)", (TOP / "Makefile").read_text()):
            for variable in name.split():
                self.assertRegex(result.stdout.decode(),
                                 rf"(?m)^  (?:.*, )?{variable}\b|\({variable}", variable)

    def test_a_test_of_another_kernel(self):
        self.refused("cannot be run on the release kernel", "check", "TESTS=fail")
        self.refused("cannot be run on the release kernel", "check", "TESTS=mismatch")
        self.refused("cannot be run on the debug kernel", "check", "VARIANT=debug",
                     "TESTS=refused")
        self.refused("TESTS=boot: check-unpatched has refused, rmap, ", "check-unpatched",
                     "TESTS=boot")

    def test_a_limit_that_ends_a_soak(self):
        self.refused("TIMEOUT=600 ends a guest before its SOAK=30 is over", "check",
                     "TESTS=stress", "SOAK=30", "TIMEOUT=600")

    def test_a_tour_of_some_tests(self):
        self.refused("make check VARIANT=debug TESTS=", "check-debug", "TESTS=rmap")

    def test_litmus_without_herd7(self):
        self.refused("HERD7=/nonexistent is no program", "litmus", "HERD7=/nonexistent")

    def test_a_step_that_is_no_patch(self):
        self.refused("the series has patches 1 to", "patches-check", "STEPS=0")

    def test_unknown_stage(self):
        self.refused("no such stage", "check-full", "STAGES=none")

    def test_unknown_mutant(self):
        self.refused("no such file in tests/mutants", "mutants", "MUTANTS=none")

    def test_unknown_target(self):
        self.refused("make help", "frobnicate")

    def test_unknown_arch(self):
        self.refused("use ARCH=x86_64 or ARCH=arm64", "check", "ARCH=mips")

    def test_kdir_that_is_none(self):
        self.refused("not a kernel build directory", "KDIR=/tmp")

    def test_kdir_without_the_patches(self):
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / ".config").write_text("CONFIG_RUST=y\n")
            self.refused("lacks the patches.*patches-apply", f"KDIR={name}")

    def test_kdir_without_rust(self):
        with tempfile.TemporaryDirectory() as name:
            tree = Path(name)
            (tree / "include/linux").mkdir(parents=True)
            (tree / "include/linux/anon_vma_lazy.h").touch()
            (tree / "Makefile").write_text("VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\n")
            (tree / ".config").write_text("CONFIG_MODULES=y\nCONFIG_ANON_VMA_LAZY=y\n")
            self.refused("configured without CONFIG_RUST", f"KDIR={name}")

    def test_ksrc_that_is_none(self):
        self.refused("not a kernel source tree", "patches-apply", "KSRC=/tmp")

    def test_facts_of_no_kernel(self):
        self.refused("not a kernel source tree", "facts", "KSRC=/tmp")

    def test_patches_apply_without_ksrc(self):
        self.refused("needs KSRC=", "patches-apply")

    def test_missing_tarball(self):
        self.refused("does not exist", "kernel", "KERNEL_TARBALL=/nonexistent.tar.xz")

    def test_bad_numbers(self):
        self.refused("not a positive number", "kernel", "JOBS=many")

    def test_unknown_tests(self):
        self.refused("no such test", "check", "TESTS=nothing")

    def test_unknown_variant(self):
        self.refused("VARIANT=odd", "kernel", "VARIANT=odd")
        self.refused("BENCH=odd", "bench", "BENCH=odd")

    def test_unknown_toolchain(self):
        self.refused("TOOLCHAIN=odd", "kernel", "TOOLCHAIN=odd")

    def test_cache_inside_the_tree(self):
        self.refused("inside the source tree", "kernel", f"AVL_CACHE={TOP}/cache")

    def test_cache_that_holds_other_things(self):
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "mine").touch()
            (TOP / "build").mkdir(exist_ok=True)
            for target in ("kernel", "distclean"):
                self.refused("holds other things", target, f"AVL_CACHE={name}")
            self.assertTrue((Path(name) / "mine").exists())
            self.assertTrue((TOP / "build").exists(), "distclean removed build/ and then refused")

    def test_o_that_holds_other_things(self):
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / ".config").write_text("mine")
            built = kernel.Kernel(mock.Mock(), "x86_64")
            built.build_dir = Path(name)
            with self.assertRaisesRegex(common.Failure, "was not made here"):
                built._claim_build_dir()
            self.assertEqual((Path(name) / ".config").read_text(), "mine")

    def test_cache_that_cannot_be_made(self):
        self.refused("cannot make the cache", "kernel", "AVL_CACHE=/proc/avl")


class Network(unittest.TestCase):
    def test_no_network(self):
        with tempfile.TemporaryDirectory() as name:
            # Port 9 of this machine: nobody answers, at once.
            with mock.patch.dict(os.environ, MIRROR="http://127.0.0.1:9/debian", http_proxy=""):
                apt = toolchain.Apt(Path(name) / "apt", ["trixie"])
                with mock.patch("sys.stderr"), \
                        self.assertRaisesRegex(common.Failure, "check the network|failed"):
                    apt.update(Path(name) / "log")


class Memory(unittest.TestCase):
    def figures(self):
        """What two guests sent: with lazy roots a load has one of them, and no anon_vma."""
        guests = {"off": ("before-vmas anon_vma 10 100\nbefore-vmas vm_area_struct 20 200\n"
                          "vmas anon_vma 510 100\nvmas vm_area_struct 520 200\n"),
                  "on": ("before-vmas anon_vma 2 100\nbefore-vmas anon_vma_lazy_root 8 150\n"
                         "before-vmas vm_area_struct 20 200\nvmas anon_vma 2 100\n"
                         "vmas anon_vma_lazy_root 9 150\nvmas vm_area_struct 521 200\n")}
        return memory.figures([record for variant, text in guests.items() for record in
                               memory.records([line.split() for line in text.splitlines()],
                                              {"variant": variant})])

    def test_growth(self):
        added = self.figures()["vmas"]
        self.assertEqual(added["anon_vma"], {"off": (500, 50000), "on": (0, 0)})
        self.assertEqual(added["anon_vma_lazy_root"]["on"], (1, 150))
        self.assertEqual(added["sum"], {"off": (500, 50000), "on": (1, 150)})
        self.assertEqual(memory.ratio(added, "sum", "on", "off"), 0.003)

    def test_tables(self):
        found = self.figures()
        shown = "\n".join(workload.table(found))
        self.assertRegex(shown, r"anon_vma +500 +0 +500\n")
        self.assertRegex(shown, r"50000 +150 +49850 +\(99.7 %\)")
        rows = "\n".join(memory.table(found, {"off": "off", "on": "on"}))
        # One VMA more is one too many.
        self.assertRegex(rows, r"vm_area_struct \| 500 \| 501 \| 1.002 \| \*\*missed\*\* \(1.0\)")


class Speed(unittest.TestCase):
    def table(self, on):
        rows = [{"name": "fork_call", "parameter": 500, "variant": variant, "value": value}
                for variant, values in {"unpatched": (99, 100, 104), "no-module": (100,) * 3,
                                        "off": (102,) * 3, "on": (on,) * 3}.items()
                for value in values]
        return "\n".join(bench.speed_table(bench.medians(rows)))

    def test_ratios_and_targets(self):
        self.assertRegex(self.table(80), r"\| 100 \| 5.0 % \| 1.000 \| 1.020 ! \| 0.800 \| 0.0 % "
                                         r"\| met \(0.8\) \|")
        self.assertRegex(self.table(81), r"\*\*missed\*\* \(0.8\)")

    def test_selection(self):
        with mock.patch.dict(os.environ, BENCH="speed/fork, memory"):
            self.assertEqual(bench.selection(), {"speed": ["fork"], "memory": []})
        for wrong in ("odd", "speed/odd", "memory/fork"):
            with mock.patch.dict(os.environ, BENCH=wrong), \
                    self.assertRaisesRegex(common.Failure, f"BENCH={wrong} is unknown"):
                bench.selection()

    def test_programs_are_the_ones_that_can_be_selected(self):
        text = (TOP / "tests/bench/speed.c").read_text()
        self.assertEqual(tuple(re.findall(r'\{ "(\w+)", bench_', text)), bench.SPEED)


class Userland(unittest.TestCase):
    def test_archive(self):
        """Directories come before what is in them; a second archive adds to the first."""
        with tempfile.TemporaryDirectory() as name:
            with open(Path(name) / "one", "w+b") as file:
                archive = userland.Archive(file)
                archive.parents("debian/usr/bin/x")
                archive.add("debian/usr/bin/x", 0o100755, b"content", 7, 8)
                archive.end()
            joined = userland.joined([Path(name) / "one"] * 2, Path(name) / "both")
            data = joined.read_bytes()
            self.assertEqual(len(data) % 512, 0)
            self.assertEqual(data[:len(data) // 2], data[len(data) // 2:])
            places = [data.index(f"{path}\0".encode()) for path in
                      ("debian", "debian/usr", "debian/usr/bin", "debian/usr/bin/x", "TRAILER!!!")]
            self.assertEqual(places, sorted(places))
            self.assertEqual(int(data[places[3] - 110 + 22:][:8], 16), 7)

    def test_places(self):
        self.assertEqual(userland.place("./bin/sh"), "debian/usr/bin/sh")
        self.assertEqual(userland.place("./etc/x/"), "debian/etc/x")
        self.assertIsNone(userland.place("./usr/share/doc/x"))
        self.assertIsNone(userland.place("./"))


if __name__ == "__main__":
    unittest.main()
