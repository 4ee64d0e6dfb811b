# SPDX-License-Identifier: GPL-2.0
"""The commands behind the Makefile's targets."""

import os
import shutil
import signal
import sys

from . import (bench, check, common, coverage, facts, guest, kernel, lint, mutants, races, report,
               source, stressors, workload)
from .common import TOP, Failure, say
from .toolchain import Toolchain


def cmd_kernel(toolchain, arch):
    built = kernel.Kernel(toolchain, arch, common.setting("VARIANT", "release")).build()
    say(f"{built}: {built.image}; build directory, for KDIR=: {built.build_dir}")


def cmd_kernel_built(toolchain, arch):
    """For scripts: whether `make kernel` would find it built. Builds nothing."""
    return 0 if kernel.built_kernel(toolchain, arch) else 1


def cmd_modules(toolchain, arch):
    module = kernel.module_for_user(toolchain, arch).build()
    say(f"module: {module.file}")


def cmd_samples(toolchain, arch):
    module = kernel.module_for_user(toolchain, arch, samples=True).build()
    programs = guest.compile_programs(toolchain, arch, module.source,
                                      common.log_path(f"guest-{arch}"))
    say(f"modules: {module.file}, {module.sample}")
    say("programs, static: " + ", ".join(f"{programs}/{file.stem}"
                                         for file in sorted((TOP / "samples").glob("*.c"))))


def cmd_modules_install(toolchain, arch):
    module = kernel.module_for_user(toolchain, arch)
    if not module.file.exists():
        raise Failure(f"{module.file} is not built: run make first")
    toolchain.run(module.make("modules_install"), common.log_path("modules_install"),
                  "modules_install")
    say(f"installed below {common.setting('INSTALL_MOD_PATH', '/')}")


def cmd_rust_analyzer(toolchain, arch):
    module = kernel.module_for_user(toolchain, arch)
    module.build()
    toolchain.run(module.make("rust-analyzer"), common.log_path("rust-analyzer"), "rust-analyzer")
    made = module.output / "rust-project.json"
    if not made.exists():
        raise Failure(f"the kernel's rust-analyzer target made no {made}")
    text = made.read_text()
    if "rust/lazy_main.rs" not in text:
        raise Failure(f"{made} does not have the module's crate: see rust/Kbuild")
    if toolchain.tree:
        # The editor runs outside of the unpacked tree.
        text = text.replace('"sysroot": "/usr"', f'"sysroot": "{toolchain.tree}/usr"')
    (TOP / "rust-project.json").write_text(text)
    say(f"{TOP}/rust-project.json")


def cmd_rustdoc(toolchain, arch):
    module = kernel.module_for_user(toolchain, arch).build()
    log = common.log_path("rustdoc")
    log.write_text("")
    out = TOP / "build" / "rustdoc"
    toolchain.run(module.make("modules") + [f"AVL_RUSTDOC={out}"], log, "rustdoc")
    lint.refuse_warnings(log, "rustdoc")
    say(f"{out}/lazy_main/index.html")


def cmd_run(toolchain, arch):
    return workload.run(toolchain, arch)


def cmd_qemu(toolchain, arch):
    bench = check.Bench(toolchain, arch)
    guests = guest.Guests(toolchain, arch)
    say("the guest's shell follows; leave it with exit, or QEMU with Ctrl-A X")
    return guests.shell(bench.kernel, bench.initrd)


def cmd_clean(*_):
    """Remove what was built in the tree; the cache stays."""
    shutil.rmtree(TOP / "build", ignore_errors=True)
    (TOP / "rust-project.json").unlink(missing_ok=True)
    say("removed build/")


def cmd_distclean(*_):
    # First: it refuses a directory with other things in it, before anything is removed.
    cache = common.cache_dir()
    cmd_clean()
    # Made by the harness, or empty when it began: see cache_dir(). Locks stay, others may wait.
    common.CacheLock.take(exclusive=True)
    for path in list(cache.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    say(f"removed the kernels, sources and tools in {cache}")


COMMANDS = {
    # name: (function, whether it needs the toolchain)
    "kernel": (cmd_kernel, True),
    "kernel-built": (cmd_kernel_built, True),
    "modules": (cmd_modules, True),
    "modules_install": (cmd_modules_install, True),
    "rust-analyzer": (cmd_rust_analyzer, True),
    "rustdoc": (cmd_rustdoc, True),
    "run": (cmd_run, True),
    "qemu": (cmd_qemu, True),
    "check": (check.check, True),
    "check-debug": (check.check_debug, True),
    "check-unpatched": (check.unpatched, True),
    "check-selftests": (check.check_selftests, True),
    "coverage": (coverage.coverage, True),
    "stressors": (stressors.stressors, True),
    "check-kcsan": (races.races, True),
    "litmus": (check.check_litmus, False),
    "check-full": (lambda *_: check.check_full(), False),
    "bench": (bench.bench, True),
    "smoke": (check.smoke, True),
    "patches-check": (check.patches_check, True),
    "mutants": (mutants.mutants, True),
    "samples": (cmd_samples, True),
    "facts": (facts.facts, False),
    "patches-apply": (lambda *_: source.apply_for_user(), False),
    "report": (lambda *_: report.report(), False),
    "rustfmt": (lambda toolchain, _: lint.rustfmt(toolchain, check=False), True),
    "rustfmtcheck": (lambda toolchain, _: lint.rustfmt(toolchain), True),
    "clippy": (lint.clippy, True),
    "checkpatch": (lambda toolchain, _: lint.checkpatch(toolchain), True),
    "lint": (lint.lint, True),
    "clean": (cmd_clean, False),
    "distclean": (cmd_distclean, False),
}


def terminate(*_):
    raise KeyboardInterrupt


def main(argv):
    if len(argv) != 1 or argv[0] not in COMMANDS:
        print(f"avl: unknown target '{' '.join(argv)}': make help lists them", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGHUP, terminate)
    os.umask(0o022)
    function, needs_tools = COMMANDS[argv[0]]
    try:
        arch = common.arch()
        if needs_tools:
            common.jobs()
            result = function(Toolchain(), arch)
        else:
            result = function(None, arch)
        return 1 if result else 0
    except Failure as error:
        print(f"avl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("avl: interrupted; nothing half-done is used, run it again to continue",
              file=sys.stderr)
        return 130
    except OSError as error:
        print(f"avl: {error.strerror}: {error.filename or ''}", file=sys.stderr)
        return 2
    finally:
        guest.Guests.show_aborts()
