# SPDX-License-Identifier: GPL-2.0
"""
make bench: what lazy roots save and cost, beside an unpatched kernel of the same configuration.

Four variants run the same programs in guests that differ in nothing else. Time is the number of
instructions of the guest: its clock counts them, so that a run repeats to the digit, on any host.
"""

import json
import os
import re
import statistics

from . import common, guest, memory, plot, profile, report, userland
from .common import TOP, Failure, say
from .kernel import Kernel, Module

# variant: (kernel, module, how the tables name it)
VARIANTS = {
    "unpatched": ("bench-base", "none", "unpatched"),
    "no-module": ("bench", "none", "no module"),
    "off": ("bench", "off", "lazy off"),
    "on": ("bench", "on", "lazy on"),
}
PARTS = ("speed", "memory", "threads", "wall")
# Guests of each variant, in turn, for wall time.
ROUNDS = 5
SPEED = ("fork", "fork_touch", "fork_exec", "first_fault", "mmap_touch_munmap", "mmap_munmap",
         "munmap_many", "mprotect_split_merge", "brk", "mremap", "mremap_first", "exit", "swap",
         "reclaim", "family", "thp")
# What the parameter of a benchmark is.
PARAMETER = {
    "fork_call": "{} faulted VMAs", "fork_exit_wait": "{} faulted VMAs",
    "fork_touch": "{} faulted VMAs", "fork_exec": "{} faulted VMAs", "exit": "{} faulted VMAs",
    "mmap_touch_munmap": "{} pages", "munmap_many": "{} VMAs, per VMA",
    "first_fault": "per VMA", "swap_out": "per page", "swap_in": "per page",
    "reclaim": "{} children, per page",
    **{f"{name}{which}": "{} children, per page" for which in ("", "_apart", "_later")
       for name in ("rmap_walk", "migrate")},
}
# Lazy on / unpatched, at most: the aims that the project was given.
TARGETS = {
    ("fork_exit_wait", 500): 0.79, ("fork_exit_wait", 20000): 1.0, ("fork_call", 500): 0.80,
    ("fork_touch", 500): 0.90, ("fork_exec", 20): 0.985, ("mmap_touch_munmap", 1): 0.91,
    ("mprotect_split_merge", 3): 0.90, ("rmap_walk", 0): 1.05, ("rmap_walk", 100): 1.5,
}
# The same for all benchmarks, of the other two variants.
TARGET_OF = {"no-module": 1.002, "off": 1.01}


def profiled():
    """The benchmark and its parameter of BENCH=profile/fork/500, or None."""
    match = re.fullmatch(r"profile/(\w+)/(\d+)", common.setting("BENCH"))
    if match and match.group(1) in SPEED:
        return match.groups()
    return None


def selection():
    """{part: benchmarks, or none for all} of BENCH=, such as "speed/fork speed/thp memory"."""
    asked = common.setting("BENCH").replace(",", " ").split()
    found = {} if asked else {part: [] for part in PARTS}
    for word in asked:
        part, _, name = word.partition("/")
        if part not in PARTS or (name and (part not in ("speed", "wall") or name not in SPEED)):
            raise Failure(f"BENCH={word} is unknown: use {', '.join(PARTS)}, speed/NAME or "
                          f"profile/NAME/PARAMETER with NAME of {', '.join(SPEED)}")
        found.setdefault(part, []).extend([name] if name else [])
    return found


def compile_programs(toolchain, arch, log):
    out = TOP / "build" / arch / "bench"
    out.mkdir(parents=True, exist_ok=True)
    # The zygote loads Debian's libraries, and so it cannot be static.
    for name, link in (("speed", ["-static"]), ("threads", ["-static", "-pthread"]),
                       ("zygote", ["-ldl"])):
        toolchain.run([toolchain.gcc(arch), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror",
                       "-Wno-unused-parameter", "-Wno-sign-compare", "-o", out / name,
                       f"tests/bench/{name}.c", *link], log, f"compiling {name}.c", cwd=TOP)
    return out


class Bench:
    """The kernels of all variants, and one initramfs for all of them."""

    def __init__(self, toolchain, arch, variants=tuple(VARIANTS)):
        self.arch = arch
        self.seed = common.number("SEED", 1)
        self.commit = report.commit()
        self.guests = guest.Guests(toolchain, arch)
        kinds = {VARIANTS[variant][0] for variant in variants} | {"bench"}
        self.kernels = {kind: Kernel(toolchain, arch, kind).build() for kind in sorted(kinds)}
        kernel = self.kernels["bench"]
        self.module = Module(toolchain, arch, kernel.build_dir,
                             TOP / "build" / arch / "module-bench").build()
        log = common.log_path(f"guest-{arch}")
        programs = guest.compile_programs(toolchain, arch, kernel.source, log)
        own = compile_programs(toolchain, arch, log)
        rows = ["dir /avl/bench 755 0 0",
                f"file /avl/run-bench {TOP}/scripts/guest/run-bench 755 0 0",
                f"file /avl/userland {TOP}/scripts/guest/userland 755 0 0",
                f"file /avl/zygote {own}/zygote 755 0 0",
                *(f"file /avl/bench/{name} {own}/{name} 755 0 0" for name in ("speed", "threads"))]
        self.initrd = guest.initramfs(toolchain, arch, kernel, [self.module.file], programs, log,
                                      rows)

        self._large = None

    @property
    def large(self):
        """The initramfs with a Debian userland in front."""
        if not self._large:
            self._large = userland.joined([memory.image(self.arch), self.initrd],
                                          self.initrd.with_name("userland.cpio"))
        return self._large

    def run(self, part, variant, machine, options="", initrd=None, timeout=1800):
        """One guest; the lines that it sent, and what is to be kept with each of them."""
        kind, module, _ = VARIANTS[variant]
        kernel = self.kernels[kind]
        result = self.guests.run(f"bench-{part}-{variant}", kernel, initrd or self.initrd, "bench",
                                 f"avl.bench={part} avl.module={module} {options}",
                                 guest.time_limit(timeout), machine)
        lines = [line.split() for line in result.verdict.splitlines()]
        faults = result.faults()
        if ["#", "done"] not in lines:
            faults.append("the benchmark did not come to its end")
        if faults:
            result.show_end()
            raise Failure(f"make bench, {part}, {variant}: {'; '.join(faults)}; the whole log: "
                          f"{result.directory}")
        say(f"  {part}, {variant}: {result.seconds:.0f} s")
        release = next(line[2] for line in lines if line[:2] == ["#", "release"])
        about = {"arch": self.arch, "variant": variant, "kernel": release,
                 "config": common.digest(kernel.build_dir / ".config"), "commit": self.commit,
                 "seed": self.seed}
        return [line for line in lines if line[0] != "#"], about, \
            [line for line in lines if line[0] == "#"]


def speed(bench, names):
    """The records of the speed benchmarks."""
    machine = guest.Machine(cpus=1, counted=bench.seed)
    options = f"avl.names={','.join(names)}" if names else ""
    records = []
    for variant in VARIANTS:
        lines, about, _ = bench.run("speed", variant, machine, options)
        records += [{**about, "name": name, "parameter": int(parameter),
                     "repetition": int(repetition), "value": float(value),
                     "unit": "instructions"}
                    for name, parameter, repetition, value in lines]
    return records


def wall(bench, names):
    """
    The records of the speed benchmarks in wall time, where KVM works: on one CPU of the host, the
    variants in turn, so that whatever else changes changes all of them.
    """
    machine = guest.Machine(cpus=1, pinned=(os.cpu_count() or 1) - 1)
    options = f"avl.names={','.join(names)}" if names else ""
    records = []
    for number in range(ROUNDS):
        for variant in VARIANTS:
            lines, about, _ = bench.run("speed", variant, machine, options)
            records += [{**about, "name": name, "parameter": int(parameter),
                         "repetition": 1000 * number + int(repetition), "value": float(value),
                         "unit": "ns"} for name, parameter, repetition, value in lines]
    return records


def memory_of(bench, variants):
    """The records of the memory benchmark."""
    machine = memory.MACHINE._replace(counted=bench.seed)
    records = []
    for variant in variants:
        lines, about, _ = bench.run("memory", variant, machine, memory.SLAB_DEBUG, bench.large)
        records += memory.records(lines, about)
    return records


def threads_of(bench):
    """The records of the contention benchmark, and the module's counters with lazy mode on."""
    machine = guest.Machine()
    records, counters = [], {}
    for variant in VARIANTS:
        lines, about, notes = bench.run("threads", variant, machine)
        records += [{**about, "name": name, "parameter": int(parameter),
                     "repetition": int(repetition), "value": int(value), "unit": "events"}
                    for name, parameter, repetition, value in lines]
        if variant == "on":
            counters = {line[2]: int(line[3]) for line in notes if line[1] == "counter"}
    return records, counters


def threads_table(found, counters):
    """Markdown: medians of each variant, and how often walks met a lock that was taken."""
    rows = [f"| in {{}} threads | {' | '.join(VARIANTS[v][2] for v in VARIANTS)} |".format(
        next(iter(found))[1]), f"|---|{'---:|' * len(VARIANTS)}"]
    for (name, _), by in found.items():
        rows.append(f"| {name.replace('_', ' ')} | "
                    f"{' | '.join(f'{by[v][0]:,.0f} ({by[v][1]:.0f} %)' for v in VARIANTS)} |")
    shown = ("walk", "walk_vma", "walk_descend", "walk_skip", "walk_retry")
    return [*rows, "", "With lazy mode on, the module's counters: " +
            ", ".join(f"{name} {counters.get(name, 0):,}" for name in shown) + "."]


def medians(records):
    """{(name, parameter): {variant: (median, spread in percent of it, repetitions)}}, in order."""
    values = {}
    for record in records:
        values.setdefault((record["name"], record["parameter"]), {}).setdefault(
            record["variant"], []).append(record["value"])
    found = {}
    for key, variants in values.items():
        for variant, some in variants.items():
            middle = statistics.median(some)
            spread = 100 * (max(some) - min(some)) / middle if middle else 0
            found.setdefault(key, {})[variant] = (middle, spread, len(some))
    return found


def title(name, parameter):
    text = PARAMETER.get(name, "").format(parameter)
    return f"{name}, {text}" if text else name


def verdict(ratio, limit):
    if limit is None:
        return ""
    return f"{'met' if round(ratio, 3) <= limit else '**missed**'} ({limit})"


def speed_table(found):
    """Markdown: medians of the unpatched kernel, and the ratios of the others to it."""
    rows = ["| benchmark | unpatched | spread | no module | lazy off | lazy on | spread | target |",
            "|---|---:|---:|---:|---:|---:|---:|---|"]
    for (name, parameter), by in found.items():
        base, base_spread, _ = by["unpatched"]
        ratios = {variant: by[variant][0] / base for variant in VARIANTS if variant != "unpatched"}
        cells = [f"{ratios[v]:.3f}{'' if round(ratios[v], 3) <= limit else ' !'}"
                 for v, limit in TARGET_OF.items()]
        rows.append(f"| {title(name, parameter)} | {base:,.0f} | {base_spread:.1f} % | "
                    f"{' | '.join(cells)} | {ratios['on']:.3f} | {by['on'][1]:.1f} % | "
                    f"{verdict(ratios['on'], TARGETS.get((name, parameter)))} |")
    return rows


def speed_bars(found):
    """What the plot shows: {benchmark: [ratio of each variant]}."""
    return {title(*key): [by[variant][0] / by["unpatched"][0] for variant in VARIANTS
                          if variant != "unpatched"] for key, by in found.items()}


def write(directory, name, records, rows):
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record) + "\n")
    first = records[0]
    head = ["<!-- SPDX-License-Identifier: GPL-2.0 -->",
            f"Linux {first['kernel']}, {first['arch']}, commit {first['commit']}, "
            f"seed {first['seed']}; configurations " +
            ", ".join(f"{variant} {config}" for variant, config in dict.fromkeys(
                (record["variant"], record["config"]) for record in records)) + ".", ""]
    (directory / f"{name}.md").write_text("\n".join(head + rows) + "\n")


def measured(made, name, records, what, directory):
    """Table and plot of speed benchmarks."""
    found = medians(records)
    rows = speed_table(found)
    write(directory, name, records, rows)
    labels = [VARIANTS[v][2] for v in VARIANTS if v != "unpatched"]
    plot.bars(directory / f"{name}.svg", f"{what}, relative to an unpatched kernel, {made.arch}",
              labels, speed_bars(found))
    return rows


def remembered(made, records, directory):
    """Table and plot of the memory benchmark."""
    found = memory.figures(records)
    rows = memory.table(found, {v: VARIANTS[v][2] for v in VARIANTS})
    write(directory, "memory", records, rows)
    others = [v for v in VARIANTS if v != "unpatched"]
    plot.bars(directory / "memory.svg", "Bytes of anon_vma, anon_vma_chain and lazy roots, "
              f"relative to an unpatched kernel, {made.arch}", [VARIANTS[v][2] for v in others],
              {memory.LOADS[load][0]: [memory.ratio(caches, "sum", v, "unpatched")
                                       for v in others] for load, caches in found.items()})
    return rows


def bench(toolchain, arch):
    one = profiled()
    asked = {} if one else selection()
    made = Bench(toolchain, arch)
    if one:
        before, after = (profile.profile(made, *one, variant) for variant in ("unpatched", "on"))
        print("\n".join(profile.table(before, after)))
        return 0
    directory = TOP / "build" / "bench" / arch
    tables = []
    kvm = "wall" in asked and made.guests.accel(made.kernels["bench"], made.initrd) == "kvm"
    if "wall" in asked and not kvm:
        if common.setting("BENCH"):
            raise Failure("BENCH=wall needs KVM: an emulator's times say nothing")
        say("no wall times: they need KVM, and an emulator's say nothing")
    if "speed" in asked:
        tables += measured(made, "speed", speed(made, asked["speed"]), "Instructions", directory)
    if kvm:
        tables += ["", *measured(made, "wall", wall(made, asked["wall"]), "Time", directory)]
    if "memory" in asked:
        tables += ["", *remembered(made, memory_of(made, VARIANTS), directory)]
    if "threads" in asked:
        records, counters = threads_of(made)
        rows = threads_table(medians(records), counters)
        write(directory, "threads", records, rows)
        tables += ["", *rows]
    print("\n".join(["", *tables, ""]))
    say(f"tables, plots and raw figures: {directory}")
    return 0
