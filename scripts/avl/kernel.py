# SPDX-License-Identifier: GPL-2.0
"""Kernel configuration and builds, and the build of the module against one."""

import re
from pathlib import Path

from . import common, source
from .common import TOP, Failure, say

CONFIG_DIR = TOP / "scripts/config"
# Fragments of each variant on top of common and architecture, and how the user knows it.
NEEDS = "../../.config.fragment"
# For kernels that run the tests; one architecture may have nothing to say.
TESTS = ("oracle.config", "tests-{arch}.config")
VARIANTS = {
    "release": (["mm.config", NEEDS, *TESTS], "patched"),
    "base": (["mm.config", NEEDS, *TESTS], "unpatched, but for the oracle"),
    "plain": (["plain.config"], "unpatched, small"),
    "debug": (["mm.config", NEEDS, *TESTS, "debug.config", "debug-{arch}.config"],
              "patched, debug options"),
    "kcsan": (["mm.config", NEEDS, *TESTS, "kcsan.config"], "patched, race detector"),
    "kcsan-base": (["mm.config", NEEDS, *TESTS, "kcsan.config"],
                   "unpatched, but for the oracle; race detector"),
    "bench": (["mm.config", NEEDS, "bench.config"], "patched, for benchmarks"),
    "bench-base": (["mm.config", NEEDS, "bench.config"], "unpatched, for benchmarks"),
}
# The oracle is a patch, too: these have no other.
WITH_ORACLE = ("base", "kcsan-base")
UNPATCHED = (*WITH_ORACLE, "plain", "bench-base")
IMAGE = {"x86_64": "arch/x86/boot/bzImage", "arm64": "arch/arm64/boot/Image"}
OPTION = re.compile(r"^(?:(CONFIG_\w+)=(.*)|# (CONFIG_\w+) is not set)$")


def options(text):
    """The options that a fragment or a .config sets; 'n' for those not set."""
    found = {}
    for line in text.splitlines():
        match = OPTION.match(line.strip())
        if match:
            found[match.group(1) or match.group(3)] = match.group(2) or "n"
    return found


class Kernel:
    """
    One kernel: an architecture, a variant, its source and its build directory. `upto` stops
    after so many patches of the series, `extra` are some more on top of it.
    """

    def __init__(self, toolchain, arch, variant="release", upto=None, extra=()):
        if variant not in VARIANTS:
            raise Failure(f"VARIANT={variant} is unknown: use {', '.join(VARIANTS)}")
        self.toolchain = toolchain
        self.arch = arch
        self.variant = variant
        self.patched = variant not in UNPATCHED
        self.upto = 0 if variant in WITH_ORACLE else upto
        self.extra = extra
        self.source = None
        self._source_key = None
        user = common.path_setting("O") if self.patched else None
        if user and variant != "release":
            user = user.with_name(f"{user.name}-{variant}")
        name = f"{source.kernel_version()}-{arch}-{variant}{self._owner()}"
        self.build_dir = user or common.cache_dir() / "build" / name

    @staticmethod
    def _owner():
        """Builds of a user's own tree do not share a directory with the packaged one."""
        own = common.setting("KSRC") + common.setting("KERNEL_TARBALL")
        return f"-{common.digest(own)[:8]}" if own else ""

    def __str__(self):
        return f"{self.arch} kernel ({VARIANTS[self.variant][1]})"

    @property
    def image(self):
        return self.build_dir / IMAGE[self.arch]

    def fragments(self):
        names = ["common.config", f"{self.arch}.config", *VARIANTS[self.variant][0]]
        files = [(CONFIG_DIR / name.format(arch=self.arch)).resolve() for name in names]
        return [file for file in files if file.exists()]

    def make(self, *targets):
        """The make command line for this kernel."""
        argv = ["make", "-C", str(self.source), f"O={self.build_dir}", f"ARCH={self.arch}",
                f"LLVM={self.toolchain.llvm}", f"CC=ccache {self.toolchain.clang}",
                f"-j{common.jobs()}"]
        if common.setting("V"):
            argv.append(f"V={common.setting('V')}")
        return argv + list(targets)

    def environment(self):
        return {"CCACHE_DIR": str(common.cache_dir() / "ccache"), "CCACHE_MAXSIZE": "10G",
                # Objects of two builds differ only where their inputs do.
                "KBUILD_BUILD_USER": "avl", "KBUILD_BUILD_HOST": "avl",
                "KBUILD_BUILD_TIMESTAMP": "2026-01-01"}

    def locate(self):
        """Find the source tree and its key; whether the tree is there and current."""
        if self.patched or self.upto == 0:
            self.source, _, identity = source.patched_tree(self.upto)
            self._source_key = source.series_key(identity, self.upto, self.extra)
            return source.patched_is_current(self.upto, self.extra)
        source.need_plain()
        self.source, self._source_key = source.pristine()
        return not common.path_setting("KSRC")

    @property
    def key(self):
        """Everything that the build depends on."""
        return common.digest(self._source_key, self.arch, self.variant, self.toolchain.version(),
                             *self.fragments())

    def _configure(self, log):
        """tinyconfig plus the fragments; every requested option must survive."""
        wanted = {}
        for file in self.fragments():
            wanted.update(options(file.read_text()))
        if not self.patched:
            wanted.pop("CONFIG_ANON_VMA_LAZY", None)
        merged = self.build_dir / ".avl-fragment"
        merged.write_text("".join(
            f"# {name} is not set\n" if value == "n" else f"{name}={value}\n"
            for name, value in wanted.items()))
        run = self.toolchain.run
        run(self.make("tinyconfig"), log, "tinyconfig", env=self.environment())
        run(["scripts/kconfig/merge_config.sh", "-m", "-O", self.build_dir,
             self.build_dir / ".config", merged], log, "merging the configuration", cwd=self.source)
        run(self.make("olddefconfig"), log, "olddefconfig", env=self.environment())
        got = options((self.build_dir / ".config").read_text())
        lost = [f"{name}={value} (is {got.get(name, 'n')})" for name, value in wanted.items()
                if got.get(name, "n") != value]
        if lost:
            raise Failure(f"{self}: options that did not survive the merge: {'; '.join(lost)}; "
                          f"log: {log}")

    def is_built(self):
        """Whether the build directory holds this very kernel."""
        stamp = self.build_dir / ".avl-stamp"
        return stamp.exists() and stamp.read_text() == self.key and self.image.exists()

    def verify(self):
        """Refuse to go on with a kernel that another run has replaced meanwhile."""
        if not self.is_built():
            raise Failure(f"{self}: another run has replaced {self.build_dir}: run it again")

    def build(self):
        """Configure and build, unless it was built from the same inputs already."""
        source.check_settings()
        common.CacheLock.take(exclusive=False)
        # A user's own tree is never current: make has to look at it.
        if self.locate() and self.is_built():
            say(f"{self}: up to date, {self.build_dir}")
            self._note()
            return self
        common.CacheLock.take(exclusive=True)
        if self.patched or self.upto == 0:
            source.patched(self.toolchain, self.upto, self.extra)
        log = common.log_path(f"kernel-{self.arch}-{self.variant}")
        log.write_text("")
        self._claim_build_dir()
        common.need_space(self.build_dir, 3, f"the {self}")
        stamp = self.build_dir / ".avl-stamp"
        stamp.unlink(missing_ok=True)
        say(f"{self}: building in {self.build_dir} (5 to 30 minutes on 2 cores, less with "
            f"ccache); log: {log}")
        if self.variant != "plain":
            self.toolchain.check_rust(self.make("rustavailable"), self.environment())
            self.toolchain.run(self.make("rustavailable"), log, "rustavailable",
                               env=self.environment())
        self._configure(log)
        self.toolchain.run(self.make(IMAGE[self.arch].rsplit("/", 1)[1], "modules"), log,
                           str(self), env=self.environment())
        stamp.write_text(self.key)
        common.CacheLock.take(exclusive=False)
        self.verify()
        self._note()
        return self

    def _note(self):
        """For the record of the run: the version, and a key over the configuration."""
        release = self.build_dir / "include/config/kernel.release"
        version = release.read_text().strip() if release.exists() else "unknown"
        common.note(f"kernel, {self.variant}", f"{version}, configuration "
                    f"{common.digest(self.build_dir / '.config')}")
        tools = self.toolchain.version().splitlines()
        for tool, pattern in (("rustc", r"rustc \d"), ("clang", r".*clang version"),
                              ("bindgen", r"bindgen \d")):
            common.note(tool, next((line for line in tools if re.match(pattern, line)), None))

    def _claim_build_dir(self):
        """A directory that the user names with O= must be new, or one that this made."""
        mine = self.build_dir / ".avl-fragment"
        if self.build_dir.is_dir() and not mine.exists() and any(self.build_dir.iterdir()):
            raise Failure(f"O={self.build_dir} is not empty and was not made here: choose another")
        self.build_dir.mkdir(parents=True, exist_ok=True)
        mine.touch()


def check_kdir(kdir, arch, toolchain):
    """Refuse a kernel build directory that the module cannot be built against."""
    config = kdir / ".config"
    if not config.exists():
        raise Failure(f"KDIR={kdir} is not a kernel build directory (no .config)")
    got = options(config.read_text())
    link = kdir / "source"
    tree = link.resolve() if link.exists() else kdir
    if not (tree / "include/linux/anon_vma_lazy.h").exists():
        raise Failure(f"KDIR={kdir}: its kernel lacks the patches: "
                      f"make patches-apply KSRC={tree}, then build it with .config.fragment")
    source.check_version(tree)
    for name in ("CONFIG_RUST", "CONFIG_ANON_VMA_LAZY", "CONFIG_MODULES", "CONFIG_SYSCTL"):
        if got.get(name) != "y":
            raise Failure(f"KDIR={kdir} was configured without {name}: merge .config.fragment into "
                          "its .config and build it again")
    wanted = {"x86_64": "CONFIG_X86_64", "arm64": "CONFIG_ARM64"}[arch]
    if got.get(wanted) != "y":
        raise Failure(f"KDIR={kdir} is not for ARCH={arch}")
    if not (kdir / "Module.symvers").exists():
        raise Failure(f"KDIR={kdir} was not built yet (no Module.symvers)")
    built_with = got.get("CONFIG_RUSTC_VERSION_TEXT", "").strip('"')
    ours = (toolchain.output(["rustc", "--version"]) or "").strip()
    if built_with != ours:
        raise Failure(f"KDIR={kdir} was built with '{built_with}', this toolchain is '{ours}': "
                      "set TOOLCHAIN=host or TOOLCHAIN=tree so that they agree")
    return tree


def module_info(data):
    """What modinfo would say of a module, of these fields: they are strings in the file."""
    found = dict(re.findall(rb"\0(version|srcversion|vermagic)=([^\0]*)(?=\0)", data))
    return ", ".join(f"{name} {found[name.encode()].decode(errors='replace').strip()}"
                     for name in ("version", "srcversion", "vermagic") if name.encode() in found)


class Module:
    """anon_vma_lazy.ko, built against one kernel build directory, from the sources in `top`."""

    def __init__(self, toolchain, arch, kdir, output=None, top=TOP, samples=False, more=()):
        self.top = top
        self.toolchain = toolchain
        self.samples = samples
        # Variables for Kbuild.
        self.more = more
        self.arch = arch
        self.kdir = kdir
        self.output = output or common.path_setting("MO") or TOP / "build" / arch / "module"
        self.source = check_kdir(kdir, arch, toolchain)

    @property
    def file(self):
        return self.output / "anon_vma_lazy.ko"

    @property
    def sample(self):
        """The module that uses this one."""
        return self.output / "samples/rmap_who/rmap_who.ko"

    def make(self, *targets, clippy=False):
        argv = ["make", "-C", str(self.kdir), f"M={self.top}", f"MO={self.output}",
                f"ARCH={self.arch}", f"LLVM={self.toolchain.llvm}", f"-j{common.jobs()}"]
        if clippy:
            argv.append("CLIPPY=1")
        if self.samples:
            argv.append("AVL_SAMPLES=y")
        argv += self.more
        for name in ("V", "INSTALL_MOD_PATH", "INSTALL_MOD_DIR"):
            if common.setting(name):
                argv.append(f"{name}={common.setting(name)}")
        return argv + list(targets)

    def prepare_output(self):
        """Nothing built for another kernel configuration may be linked into this module."""
        key = common.digest(self.kdir / ".config", self.kdir / "Module.symvers", str(self.kdir),
                            self.toolchain.version())
        stamp = self.output / ".avl-kdir"
        if self.output.is_dir() and (not stamp.exists() or stamp.read_text() != key):
            if not stamp.exists() and any(self.output.iterdir()):
                raise Failure(f"MO={self.output} is not empty and was not made here: "
                              "choose another")
            source.discard(self.output)
        self.output.mkdir(parents=True, exist_ok=True)
        stamp.write_text(key)

    def build(self, may_warn=False):
        self.prepare_output()
        log = common.log_path(f"module-{self.arch}")
        log.write_text("")
        self.toolchain.run(self.make("modules"), log, "the module")
        warnings = re.findall(r"^warning.*$|WARNING.*$", log.read_text(errors="replace"), re.M)
        if warnings and not may_warn:
            # Not to be taken for good by a run that finds nothing to compile.
            source.discard(self.output)
            raise Failure(f"the module builds with warnings: {warnings[0]}; the whole log: {log}")
        if self.top == TOP:
            common.note(self.output.name, f"{module_info(self.file.read_bytes())}, "
                        f"contents {common.digest(self.file)}")
        return self


def built_kernel(toolchain, arch):
    """The kernel that `make kernel` built, without building one."""
    kernel = Kernel(toolchain, arch, common.setting("VARIANT", "release"))
    if not kernel.image.exists():
        return None
    common.CacheLock.take(exclusive=False)
    kernel.locate()
    return kernel if kernel.is_built() else None


def module_for_user(toolchain, arch, samples=False):
    """What plain `make` builds: against KDIR, or against the kernel of `make kernel`."""
    kdir = common.path_setting("KDIR")
    if not kdir:
        kernel = built_kernel(toolchain, arch)
        if not kernel:
            raise Failure(f"no up-to-date {arch} kernel to build against: run 'make kernel', or "
                          "give KDIR=<kernel build directory>")
        kdir = kernel.build_dir
    return Module(toolchain, arch, Path(kdir), samples=samples)
