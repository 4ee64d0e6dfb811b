# SPDX-License-Identifier: GPL-2.0
"""make check-kcsan: guest tests on a kernel that looks for data races, and what it reports."""

import dataclasses
import fnmatch
import json
import re
import typing

from . import check, common, guest, ktap, report, source
from .common import TOP, Failure, say
from .ktap import Result

EXPECTED = TOP / "tests/expected-races"
# The kinds of guests and their tests: what is run on the kernel with the series, and on
# the one without. A race needs time; the tests that only look at messages do not find any.
PATCHED = (("check", "kcsan-lifetime", ("hook", "lifetime", "taint")),
           ("lazy", "kcsan-rmap", ("rmap", "states", "stress", "taint")),
           ("lazy", "kcsan-features", ("features", "taint")))
UNPATCHED = (("check", "kcsan-base-rmap", ("rmap", "states", "stress")),
             ("check", "kcsan-base-features", ("features",)))
# Seconds for a guest: several times as slow as without.
LIMIT = 2700
STAMP = re.compile(r"^\[ *\d+\.\d+\](?:\[[^]]*\])? ?", re.M)
TITLE = re.compile(r"^BUG: KCSAN: ([\w: -]+?) in (\S+)(?: / (\S+))?")
FRAME = re.compile(r"^ +(?:\+-> reordered to: )?([\w.$]+)\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[(\w+)\])?$")
RULE = "=" * 66
# "write (marked) to 0xff11000000e39908 of 8 bytes by task 7 on cpu 1:" is above each stack.
ACCESS = re.compile(r"^(?:race at unknown origin, with )?(?P<what>[a-z -]+?(?: \([a-z, ]+\))?) to "
                    r"(?P<address>0x[0-9a-f]+) of (?P<size>\d+) bytes by ")
# "value changed: 0xff110000408b06c1 -> 0xff110000414dea00", if it did.
CHANGED = re.compile(r"(?:^value changed:|->) (0x[0-9a-f]+)")
MODULES = ("anon_vma_lazy", "rmap_who")
# A line of the list: FUNCTION / FUNCTION [from CALLER | at compound_head] :: REASON.
LINE = re.compile(r"^(?P<pair>\S+ / \S+?)(?: +(?P<how>from|at) (?P<name>\S+))? +:: "
                  r"(?P<reason>\S.*)$")
# page->compound_head, 8 bytes into any 64 of the memory map. That begins there on x86_64, with five
# levels of page tables and with four, unless CONFIG_RANDOMIZE_MEMORY is set, which it is not.
COMPOUND_HEAD = re.compile(r"0xff(?:d40000|ffea00)[0-9a-f]{6}[048c]8$")
# Both sides of a race that a line with a caller can excuse: the maple tree, which alone keeps what
# these work on (the module has no tree of its own). What works on its caller's data, memcpy(),
# rb_next(), the slab allocator, call_rcu(), is never to be here: that access is its caller's.
KEEPERS = re.compile(r"(ma|mas|mat|mt|mte|mtree)_\w+(\.[\w.]+)?$")
# Whoever is below one of these was interrupted, and has called nothing.
INTERRUPT = re.compile(r"asm_|sysvec_|el1[ht]?_|common_interrupt|call_on_irq_stack|handle_softirqs")
# NUM_STACK_ENTRIES of kernel/kcsan/report.c is 64, less its own: a longer one may have no end.
LONGEST = 56


class Line(typing.NamedTuple):
    """
    A line of the list. With neither caller nor place it is for what has none of ours on a stack.

    caller: whose call of Linux it is about, of ours.
    place: "compound_head" if one of the first functions ("a,b") has to have read that, and one
        of the second to have written it.
    """
    pair: str
    reason: str
    caller: str = ""
    place: str = ""


class Race:
    """One report: the functions that made the accesses, and all that is on their stacks."""

    def __init__(self, lines):
        kind, *accesses = TITLE.match(lines[0]).groups()
        self.lines = lines
        self.kind = kind
        # "a+0x1/0x2 [module]" where only one of them is known.
        self.accesses = tuple(sorted(name.split("+")[0] for name in accesses if name))
        # [(what is said of an access, its frames)]; whether each line of that was understood.
        self.stacks, self.clear = [], True
        inside = False
        for line in lines:
            access, frame = ACCESS.match(line), FRAME.match(line)
            if access:
                self.stacks.append((access.groupdict(), []))
                inside = True
            elif not line.strip():
                inside = False
            elif inside and frame:
                self.stacks[-1][1].append(frame.groups())
            elif inside and line != "  |":
                self.clear = False

    @property
    def title(self):
        return " / ".join(self.accesses) if len(self.accesses) > 1 else \
            f"{self.accesses[0]} / unknown"

    def is_ours(self, added):
        """Whether the module, or a function that the series adds, is on a stack."""
        if any(is_own(name, "", added) for name in self.accesses):
            return True
        # All names, whatever another line of the console did to that of a frame.
        text = "\n".join(self.lines)
        return any(f"[{module}]" in text for module in MODULES) or \
            any(is_own(name, "", added) for name in re.findall(r"([\w.$]+)\+0x", text))

    def is_cut(self):
        """Whether a stack is as long as KCSAN keeps one."""
        return any(len(frames) > LONGEST for _, frames in self.stacks)

    def is_whole(self):
        """Whether both accesses and their stacks are there, and understood."""
        # The end of a report is the line of its CPU: what the guest's death cut off is no proof.
        return self.clear and len(self.stacks) == 2 and \
            any(line.startswith("Reported by") for line in self.lines) and \
            all(frames for _, frames in self.stacks) and \
            tuple(sorted(frames[0][0] for _, frames in self.stacks)) == self.accesses

    def is_of_compound_head(self, pair):
        """
        Whether one of the first functions of a pair looks for the head of a page, and one of the
        second moves that to another list, by page->lru: the same word, and no tail's after it.
        """
        if not self.is_whole() or not all(
                head["size"] == "8" and COMPOUND_HEAD.match(head["address"])
                for head, _ in self.stacks):
            return False
        # Bit 0 is set in a tail, and in nothing that is on a list.
        values = [int(value, 16) for line in self.lines for value in CHANGED.findall(line)]
        if any(value & 1 for value in values):
            return False
        # What KCSAN has put off is as good a write: the reader needs no order with it.
        did = {head["what"].replace(" (reordered)", ""): frames[0][0]
               for head, frames in self.stacks}
        readers, writers = (names.split(",") for names in pair.split(" / "))
        return did.get("read (marked)") in readers and \
            (did.get("write") or did.get("read-write")) in writers

    def callers(self, added):
        """
        The functions of ours, one for each stack that has any, that called the function of Linux
        which made the access. Empty if that cannot be said of all of the report: an access is not
        of KEEPERS, KCSAN has put it off until later, an interrupt is between, it is not whole.
        """
        if not self.is_whole() or any("reordered" in line for line in self.lines):
            return []
        callers = []
        for _, ((access, module), *below) in self.stacks:
            if module or is_own(access, module, added) or not KEEPERS.match(access):
                return []
            for name, module in below:
                if is_own(name, module, added):
                    callers.append(name)
                    break
                # Below an interrupt is whom it met; a whole stack of Linux's may have any.
                if INTERRUPT.match(name) and any(is_own(*frame, added) for frame in below):
                    return []
        return callers

    def reason(self, added, known):
        """Why this report is expected, or None."""
        # "assert: race" is a rule that was broken. Below the end of a stack may be anybody.
        if self.kind != "data-race" or self.is_cut():
            return None
        if self.is_ours(added):
            callers = self.callers(added)
            return next((line.reason for line in known
                         if line.caller and callers and line.pair == self.title
                         and all(is_called(name, line.caller) for name in callers)), None)
        # The order of the functions means nothing, unless one is the reader.
        ways = (self.title, " / ".join(reversed(self.title.split(" / "))))
        return next((line.reason for line in known if not line.caller and (
            self.is_of_compound_head(line.pair) if line.place else
            any(fnmatch.fnmatchcase(way, line.pair) for way in ways))), None)


def is_own(name, module, added):
    """Whether a function is the module's, or one that the series adds (name.part.0, too)."""
    return module in MODULES or name.split(".")[0] in added


def is_called(symbol, path):
    """
    Whether a symbol is of this path: C's name, or lazy_main::walk::Walk::next in Rust's mangling
    (v0). Of that only what is needed: a function of a module, a method of a type in the same one.
    """
    parts = "(NtB[0-9A-Za-z]*_)?".join(f"{len(part)}{part}" for part in path.split("::"))
    rust = rf"_RNv(M(s[0-9A-Za-z]*_)?)?(Nt)*Cs[0-9A-Za-z]+_{parts}"
    return symbol == path or bool(re.fullmatch(rust, symbol))


def split(text):
    """The reports on a console, and the console without them."""
    races, rest, block = [], [], None
    for line in text.splitlines():
        plain = STAMP.sub("", line)
        if block is None and TITLE.match(plain):
            block = [plain]
            # The line above it.
            if rest and STAMP.sub("", rest[-1]).startswith(RULE):
                rest.pop()
        elif block is not None and plain.startswith(RULE):
            races.append(Race(block))
            block = None
        elif block is not None:
            block.append(plain)
        else:
            rest.append(line)
    if block:
        # The guest ended in the middle of it.
        races.append(Race(block))
    return races, "\n".join(rest)


def added_functions():
    """The functions that the series adds to the kernel."""
    names = set()
    for patch in source.series():
        file = ""
        for line in patch.read_text().splitlines():
            if line.startswith("+++ "):
                file = line
            elif file.endswith((".c", ".h")):
                found = re.match(r"^\+(?:[a-z_]\w*[ *]+)+(\w+)\([^;]*$", line)
                if found:
                    names.add(found.group(1))
    if not names:
        raise Failure("found no function in the series: the pattern in added_functions() is "
                      "out of date")
    return names


def expected(added=()):
    """The committed list, as Lines. See there for what they mean."""
    rows = []
    for number, text in enumerate(EXPECTED.read_text().splitlines(), 1):
        if not text.strip() or text.startswith("#"):
            continue
        fields = LINE.match(text)
        if not fields or fields["how"] == "at" and fields["name"] != "compound_head":
            raise Failure(f"{EXPECTED.name}:{number}: needs FUNCTION / FUNCTION [from CALLER | at "
                          "compound_head] :: REASON")
        line = Line(fields["pair"], fields["reason"],
                    fields["name"] if fields["how"] == "from" else "",
                    fields["name"] if fields["how"] == "at" else "")
        names = line.pair.split(" / ")
        if line.caller and (names != sorted(names) or not all(map(KEEPERS.match, names)) or
                            any(is_own(name, "", added) for name in names)):
            raise Failure(f"{EXPECTED.name}:{number}: with a caller, both functions have to be of "
                          "the maple tree, by their whole names, in the order of the alphabet")
        if line.place and not all(re.fullmatch(r"[\w.]+(,[\w.]+)*", name) for name in names):
            raise Failure(f"{EXPECTED.name}:{number}: with a place, each function has to be named "
                          "whole: READER,READER / WRITER,WRITER")
        rows.append(line)
    return rows


def judge(name, races, added, known):
    """One result for each pair of functions; also the rows of a table."""
    results, rows = [], []
    for title in sorted({race.title for race in races}):
        reasons = [(race, race.reason(added, known)) for race in races if race.title == title]
        # One report that nothing explains is enough; one of ours first.
        bad = sorted((race for race, reason in reasons if not reason),
                     key=lambda race: not race.is_ours(added))
        why = "" if not bad else "names the module or the series" if bad[0].is_ours(added) else \
            "not in tests/expected-races"
        results.append(Result(f"{name}/race: {title}", "failed" if bad else "passed", why,
                              tuple(bad[0].lines[:60]) if bad else ()))
        rows.append((title, len(reasons), f"NOT EXPECTED: {why}" if bad else
                     "; ".join(dict.fromkeys(reason for _, reason in reasons))))
    return results, rows


def watched(console):
    """What the detector says of itself at the end of a guest: {counter: value}."""
    return {name: int(value)
            for name, value in re.findall(r"^avl: kcsan (\w+): (\d+)$", console, re.M)}


def instrumented(toolchain, bench):
    """The module's Rust code has to call the detector, or nothing is looked at."""
    symbols = toolchain.output([f"llvm-nm{toolchain.llvm if toolchain.llvm != '1' else ''}",
                                bench.module.output / "rust/lazy_main.o"]) or ""
    kinds = sorted(set(re.findall(r"U __tsan_(?:unaligned_|volatile_)?(read|write|read_write)\d",
                                  symbols)))
    return Result("kcsan/the module's Rust code is instrumented",
                  "passed" if kinds == ["read", "read_write", "write"] or
                  kinds == ["read", "write"] else "failed",
                  f"calls for {', '.join(kinds) or 'nothing'}")


def guests_of(guests, bench, plan):
    """
    Run the guests of a plan: [(name, what else was wrong or right in it, reports)]. These are the
    lines of each.
    """
    seen = []
    for mode, name, tests in plan:
        with check.Stage(f"{name}, {guests.arch}"):
            variant = bench.kernel.variant
            limit = check.time_limit(tests, LIMIT)
            options = check.guest_options(mode, "kcsan", check.wanted(tests), limit)
            if not bench.module:
                options += f" avl.rounds={check.ROUNDS['kcsan']}"
            run = guests.run(name, bench.kernel, bench.initrd, mode, options, limit)
        races, run.console = split(run.console)
        judged = guest.judge(run, tests, bench.kernel.source)
        if any(r.status == "failed" for r in judged):
            run.show_end()
        counters = watched(run.console)
        ok = counters.get("setup_watchpoints", 0) > 0 and "kcsan: enabled early" in run.console
        results = [Result(f"{variant}/{mode}/{r.name}", r.status, r.reason, r.evidence)
                   for r in judged]
        results.append(Result(f"{name}/the detector was on", "passed" if ok else "failed",
                              "" if ok else "no watchpoints"))
        seen.append((name, results, [race.lines for race in races]))
        say(f"{name}: {counters.get('setup_watchpoints', 0)} watchpoints, {len(races)} reports of "
            f"{len({race.title for race in races})} races")
    return seen


def key():
    """What a run depends on, but for the list of races and documents. None if it is not known."""
    try:
        return common.tree_key(documents=False, without=EXPECTED)
    except OSError:
        return None


def judged(seen, added, known):
    """The results of all guests, and a table of their races."""
    results, table = [], {}
    for name, own, reports in seen:
        of_races, rows = judge(name, [Race(lines) for lines in reports], added, known)
        results += own + of_races
        for title, count, verdict in rows:
            table[title] = (table.get(title, (0,))[0] + count, verdict)
    lines = ["| race | reports | |", "|---|---|---|"]
    lines += [f"| {title} | {count} | {verdict} |" for title, (count, verdict) in
              sorted(table.items())]
    print("\n".join(lines))
    return results, "\n".join(lines)


def judge_again(target, arch, command):
    """JUDGE=last: the guests of the last run, by the list as it is now."""
    file = report.record_file(target, arch)
    try:
        record = json.loads(file.read_text())
        raw = record["raw"]
        if raw["key"] != key():
            raise Failure("JUDGE=last: more than tests/expected-races has changed since the last "
                          f"run, or its settings were others: {command}")
        seen = [(name, [Result(**{**row, "evidence": tuple(row["evidence"])}) for row in own],
                 reports) for name, own, reports in raw["guests"]]
    except FileNotFoundError:
        raise Failure(f"JUDGE=last: there was no run to its end yet: {command}") from None
    except (ValueError, KeyError, TypeError):
        raise Failure(f"JUDGE=last: {file} is not of a run that can be judged again: "
                      f"{command}") from None
    added = added_functions()
    results, table = judged(seen, added, expected(added))
    versions = ", ".join(f"{what} {version}" for what, version in record["versions"].items())
    print(f"  Judged again: the run of {record['when']}, {record['commit']}; {versions}")
    failures = ktap.report(results, arch)
    title = f"Data races, judged again at {report.commit()}"
    report.save_again(record, ktap.settle(results, arch), {title: table})
    return failures


def races(toolchain, arch):
    """make check-kcsan."""
    variant = common.setting("VARIANT", "kcsan")
    if variant not in ("kcsan", "kcsan-base"):
        raise Failure(f"VARIANT={variant}: check-kcsan takes kcsan or kcsan-base, without the "
                      "series")
    patched = variant == "kcsan"
    target = "check-kcsan" if patched else "check-kcsan-base"
    judging = common.setting("JUDGE")
    if judging == "last":
        return judge_again(target, arch,
                           "make check-kcsan" + ("" if patched else " VARIANT=kcsan-base"))
    if judging:
        raise Failure(f"JUDGE={judging}: check-kcsan takes last, which runs nothing and judges the "
                      "last run by the list of races as it is now")
    before = key()
    guests = guest.Guests(toolchain, arch)
    added = added_functions()
    known = expected(added)
    with check.Stage(f"kernel and module, {arch} {variant}"):
        bench = check.Bench(toolchain, arch, variant, module=patched)
    seen = [("module", [instrumented(toolchain, bench)] if patched else [], [])]
    seen += guests_of(guests, bench, PATCHED if patched else UNPATCHED)
    results, table = judged(seen, added, known)
    raw = None
    if before and before == key():
        raw = {"key": before, "guests": [(name, [dataclasses.asdict(r) for r in own], reports)
                                         for name, own, reports in seen]}
    else:
        say("JUDGE=last will not do for this run: files have changed meanwhile, or KSRC= is set")
    return check.finish(target, results, arch, {"Data races": table}, raw)
