# SPDX-License-Identifier: GPL-2.0
"""
make coverage: which edges of the module's Rust code the guest tests run, and how often.

clang makes the object of the module from rustc's bitcode; told so, it puts a call into each edge
of the control flow (rust/coverage.c counts them). Neither the kernel nor rustc has a part in that.
"""

import json
import re

from . import check, common, guest
from .common import TOP, Failure, say
from .kernel import Kernel, Module
from .ktap import Result

# As in make check, but for lifetime and mixed: they unload what counts.
PLAN = (("check", "coverage-check", ("boot", "kunit", "sysctl", "hook", "judge", "inside", "who")),
        ("lazy", "coverage-lazy", ("rmap", "states", "cost", "stress")),
        ("lazy", "coverage-features", ("features",)))
CALLED = "__sanitizer_cov_trace_pc"
# What the kernel calls, and what a walk and a transition are made of: each must have run.
HOOKS = ("prepare", "clone", "fork", "unlink", "unmap", "detach", "free", "walk")


def linked(toolchain, module):
    """
    The module with an address for each section: the file, where its .text begins, and the places
    behind each call in the Rust code.
    """
    file = module.output / "coverage.elf"
    log = common.log_path("coverage")
    suffix = toolchain.llvm if toolchain.llvm.startswith("-") else ""
    toolchain.run([f"ld.lld{suffix}", "--unresolved-symbols=ignore-all", "-o", file, module.file],
                  log, "giving the module addresses")
    symbols = toolchain.output([f"llvm-nm{suffix}", file]) or ""
    base = re.search(rf"^([0-9a-f]+) \w {CALLED}$", symbols, re.M)
    code = toolchain.output([f"llvm-objdump{suffix}", "-d", "--no-show-raw-insn", file]) or ""
    places = set()
    behind = False
    for line in code.splitlines():
        address = re.match(r"^ *([0-9a-f]+):", line)
        if address and behind:
            places.add(int(address.group(1), 16))
        behind = bool(address) and bool(re.search(rf"\b(?:callq?|bl)\b.*<{CALLED}>", line))
    if not base or not places:
        raise Failure(f"{file} has no calls of {CALLED}: is it built with AVL_COVERAGE=y?")
    return file, int(base.group(1), 16), sorted(places)


def counted(console, base, places):
    """{place: how often} of what guests have said."""
    # A place is known by the word that it lies in.
    words = {(place - base) // 4: place for place in places}
    found = dict.fromkeys(places, 0)
    for word, count in re.findall(r"^avl: cover (-?\d+) (\d+)$", console, re.M):
        if int(word) in words:
            found[words[int(word)]] += int(count)
    return found


def where(toolchain, file, places):
    """{place: (function, source file, line)}: the innermost frame that is our own source."""
    suffix = toolchain.llvm if toolchain.llvm.startswith("-") else ""
    # The call itself lies before the place.
    text = toolchain.output([f"llvm-symbolizer{suffix}", f"--obj={file}", "--output-style=JSON",
                             "--relativenames", *[f"{place - 1:#x}" for place in places]]) or "[]"
    found = {}
    for place, answer in zip(places, json.loads(text)):
        frames = answer.get("Symbol", ())
        # Unit tests, which are a part of the module, do not count.
        if any(re.search(r"\btests::|kunit", frame["FunctionName"]) for frame in frames):
            continue
        for frame in frames:
            source = re.search(r"(?:^|/)(rust/(?:pure/)?\w+\.rs)$", frame["FileName"])
            if source and (TOP / source.group(1)).exists():
                function = re.sub(r"\[[0-9a-f]+\]|^<|lazy_main::", "", frame["FunctionName"])
                found[place] = (function, source.group(1), frame["Line"])
                break
    return found


def summary(counts, at):
    """Markdown: hooks, functions, and the lines that no test ran."""
    functions, lines = {}, {}
    for place, (function, source, line) in sorted(at.items()):
        functions.setdefault((source, function), []).append(counts[place])
        lines.setdefault((source, line), []).append(counts[place])
    text = ["| hook | ran |", "|---|---:|"]
    hooks = {name: max((max(c) for (source, function), c in functions.items()
                        if source == "rust/hooks.rs" and function == f"hooks::{name}"), default=0)
             for name in HOOKS}
    text += [f"| {name} | {count or '**0**'} |" for name, count in hooks.items()]
    edges = [count for found in functions.values() for count in found]
    ran = sum(count > 0 for count in edges)
    text += ["", f"{ran} of {len(edges)} edges ran ({100 * ran / max(len(edges), 1):.0f} %), "
             f"{sum(any(c) for c in functions.values())} of {len(functions)} functions, "
             f"{sum(any(c) for c in lines.values())} of {len(lines)} lines with an edge of their "
             "own. Inlined code of the kernel's crates counts for the line that calls it, the unit "
             "tests in the module do not count.", "",
             "| file | function | edges | ran | most often |", "|---|---|---:|---:|---:|"]
    text += [f"| {source} | {function} | {len(found)} | {sum(c > 0 for c in found)} | "
             f"{max(found) or '**0**'} |"
             for (source, function), found in sorted(functions.items())]
    text += ["", "Lines of which no edge ran:", ""]
    cache = {}
    for (source, line), found in sorted(lines.items()):
        if not any(found):
            code = cache.setdefault(source, (TOP / source).read_text().splitlines())
            shown = code[line - 1].strip() if 0 < line <= len(code) else "?"
            text.append(f"* {source}:{line}: {shown}")
    return text, hooks


def coverage(toolchain, arch):
    """make coverage."""
    guests = guest.Guests(toolchain, arch)
    with check.Stage(f"kernel and module, {arch}"):
        kernel = Kernel(toolchain, arch).build()
        module = Module(toolchain, arch, kernel.build_dir, TOP / "build" / arch / "module-coverage",
                        samples=True, more=("AVL_COVERAGE=y",)).build()
        log = common.log_path(f"guest-{arch}")
        programs = guest.compile_programs(toolchain, arch, kernel.source, log)
        initrd = guest.initramfs(toolchain, arch, kernel, [module.file, module.sample], programs,
                                 log, kind="coverage")
        file, base, places = linked(toolchain, module)
    results, console = [], ""
    for mode, name, tests in PLAN:
        with check.Stage(f"{name}, {arch}"):
            limit = check.time_limit(tests, check.TIMEOUTS["release"])
            options = check.guest_options(mode, "release", check.wanted(tests), limit)
            run = guests.run(name, kernel, initrd, mode, options, limit)
        console += run.console
        judged = guest.judge(run, tests, kernel.source)
        if any(r.status == "failed" for r in judged):
            run.show_end()
        results += [Result(f"{name}/{r.name}", r.status, r.reason, r.evidence) for r in judged]
    counts = counted(console, base, places)
    text, hooks = summary(counts, where(toolchain, file, places))
    results += [Result(f"coverage/hook {name} ran", "passed" if count else "failed")
                for name, count in hooks.items()]
    say(next(line for line in text if "edges ran" in line))
    (TOP / "build" / f"coverage-{arch}.md").write_text("\n".join(text) + "\n")
    return check.finish("coverage", results, arch, {"Coverage of the module": "\n".join(text)})
