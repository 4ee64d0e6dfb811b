# SPDX-License-Identifier: GPL-2.0
"""make run: the workload with lazy mode off and on, and what that saved."""

from . import guest
from .check import Bench
from .common import Failure, say

LOADS = {
    "vmas": "1 process, 500 faulted VMAs",
    "forks": "200 faulted VMAs, 20 children",
    "shells": "50 sleeping busybox shells",
}


def parse(text):
    """{(load, cache): {mode: (objects, bytes)}} of the lines that the guest sent."""
    found = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 5 and fields[0] in ("off", "on"):
            mode, load, cache, objects, size = fields
            found.setdefault((load, cache), {})[mode] = (int(objects), int(size))
    return found


def table(found):
    """The lines of the table: per load, each cache, and their sum without the VMAs."""
    rows = [f"{'load':<30} {'slab cache':<20} {'off':>9} {'on':>9} {'saved':>9}  bytes saved"]
    for load, title in LOADS.items():
        sums = {"off": 0, "on": 0}
        for (of_load, cache), modes in sorted(found.items()):
            if of_load != load:
                continue
            off, on = modes.get("off", (0, 0)), modes.get("on", (0, 0))
            rows.append(f"{title:<30} {cache:<20} {off[0]:>9} {on[0]:>9} {off[0] - on[0]:>9}  "
                        f"{off[1] - on[1]}")
            title = ""
            if cache != "vm_area_struct":
                sums["off"] += off[1]
                sums["on"] += on[1]
        saved = sums["off"] - sums["on"]
        share = f" ({100 * saved / sums['off']:.0f} %)" if sums["off"] else ""
        rows.append(f"{'':<30} {'bytes but for VMAs':<20} {sums['off']:>9} {sums['on']:>9} "
                    f"{saved:>9} {share}")
    return rows


def run(toolchain, arch):
    bench = Bench(toolchain, arch)
    guests = guest.Guests(toolchain, arch)
    # Sanity checks keep free objects out of per-CPU stocks, so that counts are exact.
    result = guests.run("run", bench.kernel, bench.initrd, "run",
                        "slab_debug=F,anon_vma*,vm_area_struct", timeout=300)
    found = parse(result.verdict)
    faults = result.faults()
    if "unloaded" not in result.verdict.splitlines():
        faults.append("the workload did not come to its end")
    missing = [load for load in LOADS if not any(key[0] == load for key in found)]
    if missing:
        faults.append(f"no figures for {', '.join(missing)}")
    if faults:
        result.show_end()
        raise Failure(f"make run: {'; '.join(faults)}; the whole log: {result.directory}")
    print()
    print(f"Slab objects that each load adds, vm.anon_vma_lazy=0 and =1, {arch}:")
    for row in table(found):
        print(f"  {row}")
    print()
    say(f"raw figures: {result.directory}/verdict.log")
    return 0
