# SPDX-License-Identifier: GPL-2.0
"""Style and static checks. Each one fails on its first warning."""

import re

from . import common, kernel, source
from .common import TOP, Failure, say

# Files that cannot bear a line of their own: mail, as git am takes it, what cargo writes, records.
NO_SPDX = re.compile(r"^patches/.*\.patch$|/Cargo\.lock$|^Documentation/.*\.jsonl$")
# What must not be committed: paths below a home or work directory of one machine, and
# addresses of hosts, of package registries above all. This machine is nobody's. Cargo.lock
# has to name crates.io by an address that nobody asks; it is the same with any mirror. An SVG
# names its namespace.
PRIVATE = re.compile(r"(?<![\w.~$}])/(?:work|root|farm|home)/\w|"
                     r"https?://(?!127\.0\.0\.1|www\.w3\.org/2000/svg)")
CRATES_IO = re.compile(r'^source = "registry\+https?://github\.com/rust-lang/crates\.io-index"$',
                       re.M)


def tracked():
    text = common.output(["git", "-C", str(TOP), "ls-files", "-co", "--exclude-standard"])
    if text is None:
        raise Failure("lint looks at the files that git knows: run it in a git work tree")
    return [TOP / name for name in text.split("\n") if name and (TOP / name).is_file()]


def rust_files():
    return [f for f in tracked() if f.suffix == ".rs"]


def rustfmt(toolchain, check=True):
    tree, _ = source.pristine()
    argv = ["rustfmt", "--edition", "2021", "--config-path", tree / ".rustfmt.toml"]
    # rustfmt follows `mod`; each file is given, so that none is left out.
    toolchain.run(argv + (["--check"] if check else []) + rust_files(),
                  common.log_path("rustfmt"), "rustfmt" + (" --check" if check else ""))


def clippy(toolchain, arch):
    built = kernel.Kernel(toolchain, arch).build()
    module = kernel.Module(toolchain, arch, built.build_dir, TOP / "build" / arch / "clippy",
                           samples=True)
    module.prepare_output()
    for part in ("rust", "samples/rmap_who"):
        for old in (module.output / part).glob("*"):
            old.unlink()
    log = common.log_path("clippy")
    log.write_text("")
    toolchain.run(module.make("modules", clippy=True), log, "clippy, module")
    refuse_warnings(log, "clippy")
    log = common.log_path("clippy-host")
    log.write_text("")
    toolchain.run(["cargo", "clippy", "--locked", "--all-targets", "--workspace", "--manifest-path",
                   TOP / "tests/host/Cargo.toml", "--", "-D", "warnings"], log,
                  "clippy, host tests", env={"CARGO_TARGET_DIR": TOP / "build/host-clippy"})


def refuse_warnings(log, what):
    found = re.findall(r"^.*\bwarning\b.*$", log.read_text(errors="replace"), re.M | re.I)
    if found:
        raise Failure(f"{what}: {found[0].strip()}; the whole log: {log}")


def checkpatch(toolchain):
    tree, _ = source.pristine()
    log = common.log_path("checkpatch")
    log.write_text("")
    base = ["perl", tree / "scripts/checkpatch.pl", "--strict", "--root", tree, "--show-types"]
    toolchain.run(base + source.series(), log, "checkpatch, patches", cwd=tree)
    # C of this tree is user space, but for the module's: without the kernel's types, and with
    # volatile where C wants it (sig_atomic_t). TRACE_EVENT has a form of its own.
    files = [f for f in tracked() if f.suffix in (".c", ".h")]
    traces = [f for f in files if f.name.endswith("_trace.h")]
    for some, ignore in (([f for f in files if f not in traces], "PREFER_KERNEL_TYPES,VOLATILE"),
                         (traces, "PARENTHESIS_ALIGNMENT,OPEN_ENDED_LINE")):
        toolchain.run(base + ["--no-tree", "--ignore", ignore, "--file", *some], log,
                      "checkpatch, C of this tree", cwd=tree)


def shellcheck(toolchain):
    files = [f for f in tracked() if f.suffix in (".sh", "") and f.stat().st_size and
             re.match(rb"#!.*\bsh\b|#!.*bash", f.read_bytes()[:40])]
    toolchain.run(["shellcheck", "--shell=dash", "-e", "SC2086,SC2046,SC2181,SC3037", *files],
                  common.log_path("shellcheck"), "shellcheck")


def python(toolchain):
    files = [f for f in tracked() if f.suffix == ".py"]
    toolchain.run(["pyflakes3", *files], common.log_path("pyflakes"), "pyflakes")
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if len(line) > 100 or line != line.rstrip():
                raise Failure(f"{file.relative_to(TOP)}:{number}: longer than 100 columns, "
                              "or blanks at its end")


def headers():
    for file in tracked():
        name = str(file.relative_to(TOP))
        head = file.read_bytes()[:400]
        if b"\0" in head:
            continue
        if not NO_SPDX.search(name) and b"SPDX-License-Identifier: GPL-2.0" not in head:
            raise Failure(f"{name} has no SPDX line")
        text = file.read_text(errors="replace")
        if file.name == "Cargo.lock":
            text = CRATES_IO.sub("", text)
        match = PRIVATE.search(text)
        if match:
            raise Failure(f"{name} names {match.group(0)}: a place of one machine or a registry")


def lint(toolchain, arch):
    for name, step in (("headers", headers), ("rustfmt", lambda: rustfmt(toolchain)),
                       ("shellcheck", lambda: shellcheck(toolchain)),
                       ("python", lambda: python(toolchain)),
                       ("checkpatch", lambda: checkpatch(toolchain)),
                       ("clippy", lambda: clippy(toolchain, arch))):
        step()
        say(f"lint: {name} ok")
