# SPDX-License-Identifier: GPL-2.0
"""
Memory of a real userland: slab objects after the boot of Debian daemons, after 24 programs have
been started, with children of a zygote, with many VMAs. For make bench and make run.
"""

from . import guest, userland

# Daemons, started in scripts/guest/userland as a boot would.
DAEMONS = ("udev dbus rsyslog cron at openssh-server nginx-light dnsmasq-base "
           "iproute2").split()
# Programs, started one after the other by the same script, which names them.
PROGRAMS = ("zsh ksh93u+m fish python3 perl ruby lua5.4 tcl php-cli nodejs guile-3.0 gawk "
            "sbcl erlang-base sqlite3 gdb-minimal vim redis-server memcached lighttpd mosquitto "
            "haproxy tmux chromium-headless-shell").split()
# Named as dependencies, and not used by what runs here.
WITHOUT = ("libllvm19", "libz3-4", "mesa-libgallium", "man-db", "vim-runtime")
USERS = ("messagebus", "sshd", "dnsmasq", "redis", "memcache", "mosquitto", "haproxy")
CACHES = ("anon_vma", "anon_vma_chain", "anon_vma_lazy_root", "vm_area_struct")
SLAB_DEBUG = guest.EXACT_COUNTS
MACHINE = guest.Machine(cpus=1, memory=4096, nodes=1)
# load: (how the table names it, the state of the guest, the state that it is compared with)
LOADS = {
    "boot": ("after boot", "boot", None),
    "programs": ("after boot and 24 programs", "programs", None),
    "added": ("what the 24 programs added", "programs", "boot"),
    "zygote": ("what 24 zygote children added", "zygote", "before-zygote"),
    "vmas": ("what 5,000 faulted VMAs added", "vmas", "before-vmas"),
}
# Bytes of all caches but the VMAs', lazy on / unpatched, at most; and of the VMAs'.
TARGETS = {"boot": 0.06, "added": 0.02, "zygote": 0.012}
VMAS = "vm_area_struct"


def image(arch):
    return userland.image(arch, DAEMONS + PROGRAMS, USERS, without=WITHOUT)


def records(lines, about):
    """A record for each state and cache that a guest sent."""
    return [{**about, "name": state, "parameter": cache, "repetition": 0,
             "value": int(objects), "unit": "objects", "size": int(size)}
            for state, cache, objects, size in lines]


def figures(some):
    """{load: {cache: {variant: (objects, bytes)}}}; the cache "sum" has all but the VMAs."""
    states = {(r["variant"], r["name"], r["parameter"]): (r["value"], r["size"]) for r in some}
    variants = list(dict.fromkeys(r["variant"] for r in some))
    found = {}
    for load, (_, state, before) in LOADS.items():
        caches = found.setdefault(load, {})
        for cache in CACHES:
            for variant in variants:
                objects, size = states.get((variant, state, cache), (0, 0))
                objects -= states.get((variant, before, cache), (0, 0))[0]
                caches.setdefault(cache, {})[variant] = (objects, objects * size)
        caches["sum"] = {
            variant: tuple(sum(caches[cache][variant][i] for cache in CACHES if cache != VMAS)
                           for i in (0, 1)) for variant in variants}
    return found


def ratio(caches, cache, variant, base):
    """Bytes of a cache in that variant, relative to the `base`."""
    return caches[cache][variant][1] / max(caches[cache][base][1], 1)


def table(found, titles):
    """Markdown: objects of each cache, and bytes of all but the VMAs."""
    variants = list(titles)
    base, last = variants[0], variants[-1]
    rows = [f"| load | slab cache | {' | '.join(titles.values())} | ratio | target |",
            f"|---|---|{'---:|' * len(variants)}---:|---|"]
    for load, caches in found.items():
        name = LOADS[load][0]
        for cache in (*CACHES, "sum"):
            cells = [f"{caches[cache][v][0]:,}" if cache != "sum" else f"{caches[cache][v][1]:,}"
                     for v in variants]
            limit = TARGETS.get(load) if cache == "sum" else 1.0 if cache == VMAS else None
            part = ratio(caches, cache, last, base)
            text = "" if cache == "anon_vma_lazy_root" else f"{part:.3f}"
            met = "" if limit is None else \
                f"{'met' if round(part, 3) <= limit else '**missed**'} ({limit})"
            label = "**bytes but for VMAs**" if cache == "sum" else cache
            rows.append(f"| {name} | {label} | {' | '.join(cells)} | {text} | {met} |")
            name = ""
    return rows
