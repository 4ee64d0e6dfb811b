# SPDX-License-Identifier: GPL-2.0
"""make stressors: stress-ng and trinity of a Debian userland, all lazy, the oracle in between."""

import re

from . import check, common, guest, userland
from .common import TOP, Failure, say
from .ktap import Result

PACKAGES = ("stress-ng", "trinity", "e2fsprogs")
# Named as dependencies, and not used by what runs here.
WITHOUT = ("libllvm19", "libz3-4", "mesa-libgallium")
# Seconds of each, and how long it may take at most until it has come to its end.
SECONDS = 12
LIMIT = 120
# trinity is done after so many system calls, however long they take on a busy machine.
TRINITY_LIMIT = 480
GUEST_LIMIT = 3600
# Those that meet anonymous memory: what stress-ng is told, a few processes of each.
STRESS_NG = {
    "rmap": "--rmap 4",
    "vma": "--vma 2",
    "mremap": "--mremap 4 --mremap-bytes 32M",
    "mmapfork": "--mmapfork 2 --mmapfork-bytes 64M",
    "fork": "--fork 4 --fork-vm",
    "forkheavy": "--forkheavy 1 --forkheavy-procs 64 --forkheavy-allocs 64",
    "vforkmany": "--vforkmany 2 --vforkmany-vm-bytes 8M",
    "clone": "--clone 2",
    "exec": "--exec 4",
    "daemon": "--daemon 2",
    "zombie": "--zombie 2",
    "pagemove": "--pagemove 4 --pagemove-bytes 16M",
    "pageswap": "--pageswap 4",
    "userfaultfd": "--userfaultfd 4 --userfaultfd-bytes 16M",
    "swap": "--swap 2",
    "madvise": "--madvise 4",
    "munmap": "--munmap 4",
    "stack": "--stack 2 --stack-fill",
    "stackmmap": "--stackmmap 4",
    "brk": "--brk 2 --brk-bytes 128M",
    "bigheap": "--bigheap 2 --bigheap-bytes 256M",
    "oom-pipe": "--oom-pipe 2 --pathological",
    # Not --mmap-mprotect: it fails just the same with lazy mode off.
    "mmap": "--mmap 4 --mmap-bytes 64M --mmap-madvise --mmap-mergeable",
    "mmapmany": "--mmapmany 4",
    "mmapaddr": "--mmapaddr 4",
    "mmapfixed": "--mmapfixed 4",
    "mmaphuge": "--mmaphuge 2 --mmaphuge-mmaps 16",
    "memthrash": "--memthrash 2",
    "vm": "--vm 4 --vm-bytes 256M --vm-madvise mergeable",
    "vm-hang": "--vm 8 --vm-bytes 1600M --vm-keep --oomable",
    "vm-rw": "--vm-rw 4 --vm-rw-bytes 8M",
    "vm-splice": "--vm-splice 4",
    "vm-addr": "--vm-addr 2",
    "vm-segv": "--vm-segv 4",
    "ksm": "--madvise 2 --vm 2 --vm-bytes 64M --vm-method zero-one --ksm",
    "malloc": "--malloc 4 --malloc-bytes 32M",
    "mlockmany": "--mlockmany 2 --mlockmany-procs 32 --pathological",
    "mprotect": "--mprotect 4",
    "numa": "--numa 2 --numa-bytes 16M",
    "remap": "--remap 4 --remap-pages 256",
    "tlb-shootdown": "--tlb-shootdown 4",
    "memfd": "--memfd 2 --memfd-bytes 32M",
    "all": "--rmap 2 --fork 2 --fork-vm --mremap 2 --mremap-bytes 32M --pagemove 2 "
           "--pagemove-bytes 16M --userfaultfd 2 --userfaultfd-bytes 16M --madvise 2 --vma 1 "
           "--vm 2 --vm-bytes 700M --oomable",
}
# Refused to root by stress-ng. The path, or busybox takes its own.
NOBODY = ("exec",)
AS_NOBODY = "/usr/bin/setpriv --reuid=65534 --regid=65534 --clear-groups -- "
# System calls of trinity: those on memory and processes, as a user without rights.
TRINITY = ("mmap munmap mremap mprotect madvise process_madvise mlock mlock2 munlock mlockall "
           "munlockall brk mincore msync remap_file_pages mbind set_mempolicy move_pages "
           "migrate_pages pkey_mprotect process_vm_readv process_vm_writev fork vfork vmsplice "
           "userfaultfd shmat shmdt prctl").split()
RUN_TRINITY = f"""#!/bin/sh
mkdir -m 777 -p /tmp/trinity && cd /tmp/trinity || exit 1
exec {AS_NOBODY}\\
	trinity -q -l off -C 8 -N 20000 -s "$1" {" ".join(f"-c {call}" for call in TRINITY)}
"""


def commands():
    """[(label, limit, command)], those of STRESSORS= or all."""
    seed = common.number("SEED", 1)
    # stress-ng multiplies with carry, the halves of its seed apart: one that is zero stays so.
    halves = seed << 32 | 521288629
    rows = [(name, LIMIT, f"{AS_NOBODY if name in NOBODY else ''}stress-ng {options} "
                          f"--timeout {SECONDS} --seed {halves} --temp-path /tmp --metrics-brief")
            for name, options in STRESS_NG.items()]
    rows.append(("trinity", TRINITY_LIMIT, f"run-trinity {seed}"))
    names = common.setting("STRESSORS").replace(",", " ").split()
    unknown = sorted(set(names) - {row[0] for row in rows})
    if unknown:
        raise Failure(f"STRESSORS={' '.join(unknown)}: no such stressor; there are "
                      f"{', '.join(row[0] for row in rows)}")
    return [row for row in rows if not names or row[0] in names]


def stressors(toolchain, arch):
    """make stressors."""
    rows = commands()
    guests = guest.Guests(toolchain, arch)
    with check.Stage(f"kernel, module, userland, {arch}"):
        bench = check.Bench(toolchain, arch)
        debian = userland.image(arch, PACKAGES, files={"usr/bin/run-trinity": RUN_TRINITY},
                                without=WITHOUT)
        log = common.log_path(f"guest-{arch}")
        out = TOP / "build" / arch / "stressors"
        out.mkdir(parents=True, exist_ok=True)
        (out / "list").write_text("".join(f"{label} {limit} {command}\n"
                                          for label, limit, command in rows))
        own = guest.initramfs(toolchain, arch, bench.kernel, [bench.module.file], bench.programs,
                              log, [f"file /avl/run-stressors {TOP}/scripts/guest/run-stressors "
                                    "755 0 0",
                                    f"file /avl/stressors {out}/list 644 0 0"], "stressors")
        initrd = userland.joined([debian, own], out / "initramfs.cpio")
    with check.Stage(f"stressors, {arch}"):
        run = guests.run("stressors", bench.kernel, initrd, "stressors", guest.EXACT_COUNTS,
                         guest.time_limit(GUEST_LIMIT))
    results = guest.judge(run, tuple(row[0] for row in rows), bench.kernel.source)
    if any(r.status == "failed" for r in results):
        run.show_end()
    looks = [tuple(map(int, found)) for found in
             re.findall(r"# oracle: (\d+) folios, (\d+) mappings in (\d+) looks", run.verdict)]
    say(f"the oracle looked {sum(row[2] for row in looks)} times: {sum(row[0] for row in looks)} "
        f"folios, {sum(row[1] for row in looks)} mappings")
    results = [Result(f"stressors/{r.name}", r.status, r.reason, r.evidence) for r in results]
    return check.finish("stressors", results, arch)
