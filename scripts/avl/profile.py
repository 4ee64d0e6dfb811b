# SPDX-License-Identifier: GPL-2.0
"""
Instructions per kernel function of one benchmark, unpatched and with lazy mode on.

QEMU logs each instruction of the kernel that it executes (one in each translation block, none
chained) into a pipe, from the moment that the guest says so; what comes out is counted.
"""

import bisect
import os
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from . import guest
from .common import Failure, say

# Where kernels and modules are; user space is not logged.
KERNEL = "0xffff000000000000..0xffffffffffffffff"
SHOWN = 40


def monitor(path, *commands):
    """Gives QEMU commands; each is done when the next prompt comes."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(path))
        for command in ("", *commands):
            if command:
                channel.sendall(command.encode() + b"\n")
            text = b""
            while b"(qemu) " not in text:
                text += channel.recv(4096)


def watch(scratch, verdict, done):
    """Switches the log on and off when the guest says so. It pauses each time."""
    for mark, commands in (("# profile begin", ("one-insn-per-tb on", "log exec,nochain")),
                           ("# profile end", ("log none", "one-insn-per-tb off"))):
        while not (verdict.exists() and mark in verdict.read_text(errors="replace")):
            if done.wait(0.1):
                return
        monitor(scratch / "monitor", *commands)


def drain(pipe, counts):
    """Counts instructions by address."""
    with open(pipe, "rb", buffering=1 << 20) as log:
        for line in log:
            if line.startswith(b"Trace "):
                counts[line.split(b"/", 2)[1]] += 1


def symbols(text):
    """Sorted addresses and names of the functions in a kallsyms listing."""
    rows = sorted((int(address, 16), name) for address, name in
                  re.findall(r"^# ([0-9a-f]{16}) [tTwW] ([^$\s]\S*)", text, re.M))
    return [row[0] for row in rows], [row[1] for row in rows]


def of_functions(counts, text):
    addresses, names = symbols(text)
    found = Counter()
    for pc, number in counts.items():
        at = bisect.bisect_right(addresses, int(pc, 16)) - 1
        found[names[at] if at >= 0 else "?"] += number
    return found


def profile(bench, name, parameter, variant):
    """{function: instructions}, of the three repetitions together."""
    with tempfile.TemporaryDirectory(prefix="avl-profile-") as scratch:
        scratch = Path(scratch)
        pipe = scratch / "log"
        os.mkfifo(pipe)
        machine = guest.Machine(cpus=1, emulated=(
            "-monitor", f"unix:{scratch}/monitor,server=on,wait=off", "-D", str(pipe),
            "-dfilter", KERNEL))
        counts, done = Counter(), threading.Event()
        verdict = guest.run_directory(bench.arch, f"bench-profile-{variant}") / "verdict.log"
        verdict.unlink(missing_ok=True)
        # Open for writing, too, so that neither side waits for the other to begin.
        keeper = os.open(pipe, os.O_RDWR)
        readers = [threading.Thread(target=drain, args=(pipe, counts)),
                   threading.Thread(target=watch, args=(scratch, verdict, done))]
        for reader in readers:
            reader.start()
        try:
            time.sleep(0.1)
            lines, *_ = bench.run("profile", variant, machine,
                                  f"avl.names=-p,{name},{parameter}", timeout=900)
        finally:
            done.set()
            os.close(keeper)
            # QEMU has ended, and may never have opened it.
            os.close(os.open(pipe, os.O_RDWR))
            for reader in readers:
                reader.join()
    text = verdict.read_text(errors="replace")
    if not counts:
        raise Failure(f"the profile of {name} is empty: {verdict}")
    say(f"  {variant}: {sum(counts.values()):,} instructions of the kernel; {len(lines)} results")
    return of_functions(counts, text)


def table(before, after, wanted=SHOWN):
    """The functions whose share has changed most, and the sum."""
    names = sorted(set(before) | set(after), key=lambda n: -abs(after[n] - before[n]))
    rows = ["| function | unpatched | lazy on | difference |", "|---|---:|---:|---:|"]
    for name in names[:wanted]:
        rows.append(f"| {name} | {before[name]:,} | {after[name]:,} | "
                    f"{after[name] - before[name]:+,} |")
    sums = sum(before.values()), sum(after.values())
    return [*rows, f"| all {len(names)} functions | {sums[0]:,} | {sums[1]:,} | "
                   f"{sums[1] - sums[0]:+,} |"]
