# SPDX-License-Identifier: GPL-2.0
"""make run: the memory of a Debian userland with lazy mode off and on, in one screen."""

from . import bench, guest, memory
from .common import say

SHOWN = {"off": "off", "on": "on"}


def table(found):
    """The lines of the table: per load, each cache, and their sum without the VMAs."""
    rows = [f"{'':<31} {'slab cache':<19} {'off':>9} {'on':>9} {'saved':>9}"]
    for load, caches in found.items():
        title = memory.LOADS[load][0]
        for cache in memory.CACHES:
            off, on = (caches[cache][mode][0] for mode in SHOWN)
            rows.append(f"{title:<31} {cache:<19} {off:>9} {on:>9} {off - on:>9}")
            title = ""
        off, on = (caches["sum"][mode][1] for mode in SHOWN)
        share = f" ({100 * (off - on) / off:.1f} %)" if off else ""
        rows.append(f"{'':<31} {'bytes but for VMAs':<19} {off:>9} {on:>9} {off - on:>9}{share}")
    return rows


def run(toolchain, arch):
    made = bench.Bench(toolchain, arch, tuple(SHOWN))
    records = bench.memory_of(made, tuple(SHOWN))
    print()
    print(f"Objects of slab caches in a Debian userland, vm.anon_vma_lazy=0 and =1, {arch}:")
    for row in table(memory.figures(records)):
        print(f"  {row}")
    print()
    say(f"raw figures: {guest.run_directory(arch, 'bench-memory-*')}/verdict.log")
    return 0
