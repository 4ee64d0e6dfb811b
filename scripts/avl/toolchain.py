# SPDX-License-Identifier: GPL-2.0
"""
The compilers, QEMU and the small tools that everything here is built with.

Where the host has fitting versions they are used. Otherwise Debian packages
are unpacked, once, into a directory of the cache, and commands see that
directory as /usr by way of bubblewrap: no root, and nothing on the host changes.
"""

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from . import common
from .common import Failure, say

SUITE = "trixie"
# Debian's own keyring names, newest first.
KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.pgp",
            "/usr/share/keyrings/debian-archive-keyring.gpg")
# A tree without maintainer scripts: what is essential has to be asked for.
ESSENTIAL = """base-files bash coreutils dash debianutils diffutils findutils grep gzip
    hostname libc-bin mawk sed tar util-linux""".split()
TOOLS = """bc bindgen bison bubblewrap busybox-static bzip2 ca-certificates cargo ccache
    clang-19 cpio flex gcc git kmod libc6-dev libelf-dev libssl-dev lld-19 llvm-19 make
    pahole patch perl pyflakes3 python3 python3-git python3-ply qemu-system-arm
    qemu-system-x86 rsync rust-clippy rust-src rustc rustfmt shellcheck xz-utils zstd""".split()
# The compiler for test programs of the other architecture.
CROSS = {"amd64": ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
         "arm64": ["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"]}
DEB_ARCH = {"x86_64": "amd64", "arm64": "arm64"}
GNU_TRIPLE = {"x86_64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
QEMU = {"x86_64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}
# Directories of the host that the unpacked tree replaces.
OWN = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr"}
# The certificates that are trusted, of the host and of the tree.
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


class Apt:
    """apt-get with a state of its own: the host's lists and status are not read or written."""

    def __init__(self, state, suites, deb_arch=None):
        common.need_tool("apt-get", "apt")
        common.need_tool("dpkg-deb", "dpkg")
        self.state = state
        self.deb_arch = deb_arch or host_deb_arch()
        for sub in ("lists/partial", "archives/partial", "etc"):
            (state / sub).mkdir(parents=True, exist_ok=True)
        (state / "status").write_text("")
        keyring = next((k for k in KEYRINGS if os.path.exists(k)), None)
        if not keyring:
            raise Failure("Debian's archive keys are missing: "
                          "apt-get install debian-archive-keyring")
        self.mirror = mirror()
        (state / "sources.list").write_text("".join(
            f"deb [signed-by={keyring}] {self.mirror} {suite} main\n" for suite in suites))
        self.argv = ["apt-get", "-q"]
        for option in (f"Dir::Etc::sourcelist={state}/sources.list", "Dir::Etc::sourceparts=-",
                       f"Dir::Etc::preferencesparts={state}/etc", f"Dir::State={state}",
                       f"Dir::State::status={state}/status", f"Dir::Cache={state}",
                       f"Dir::Log={state}", "APT::Sandbox::User=root", "Acquire::Languages=none",
                       "Acquire::Retries=2", "APT::Install-Recommends=0", "Debug::NoLocking=1",
                       f"APT::Architecture={self.deb_arch}", f"APT::Architectures={self.deb_arch}"):
            self.argv += ["-o", option]

    def update(self, log):
        try:
            common.logged(self.argv + ["update"], log, "apt-get update", quiet=True)
        except Failure as error:
            raise Failure(f"no package lists from {self.mirror}: check the network and Debian's "
                          f"keys, or set MIRROR=; log: {log}") from error
        # apt-get reports an unreachable mirror as a warning.
        if not any((self.state / "lists").glob("*Packages*")):
            raise Failure(f"no package lists from {self.mirror}: check the network, or set "
                          f"MIRROR=; log: {log}")

    def size(self, packages):
        """MB to download for these and what they depend on, and the number of packages."""
        text = common.output(self.argv + ["install", "--print-uris", "-y"] + packages)
        if text is None:
            raise Failure(f"{self.mirror} does not offer all of: {' '.join(packages)}")
        sizes = [int(line.split()[2]) for line in text.splitlines() if line.startswith("'")]
        return sum(sizes) / 1e6, len(sizes)

    def fetch(self, packages, log):
        """Download these packages and all that they depend on; return the files."""
        common.logged(self.argv + ["install", "-d", "-y"] + packages, log, "fetching packages")
        return sorted((self.state / "archives").glob("*.deb"))

    def download(self, package, directory, log, version=None):
        """Download one package, the newest or that version, without its dependencies."""
        for old in directory.glob(f"{package}_*.deb"):
            old.unlink()
        wanted = f"{package}={version}" if version else package
        common.logged(self.argv + ["download", wanted], log, f"fetching {package}", cwd=directory)
        return next(directory.glob(f"{package}_*.deb"))


def host_deb_arch():
    return (common.output(["dpkg", "--print-architecture"]) or "").strip()


def mirror():
    """The Debian mirror that the host's own apt configuration names."""
    if common.setting("MIRROR"):
        return common.setting("MIRROR")
    targets = common.output(["apt-get", "indextargets", "--format",
                             "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]) or ""
    for line in targets.splitlines():
        uri, _, component = (line.split() + ["", "", ""])[:3]
        if uri.startswith("mirror+file:"):
            # Cloud images name a list of mirrors.
            with contextlib.suppress(OSError, IndexError):
                uri = Path(uri.removeprefix("mirror+file:")).read_text().split()[0]
        if component == "main" and re.search(r"/debian/?$", uri):
            return uri
    raise Failure("found no Debian mirror in apt's configuration: set MIRROR=<its address>")


def unpack_tree(tree, log):
    """Make the tree of Debian packages. `tree` does not exist yet."""
    with common.made_whole(tree) as partial:
        apt = Apt(partial / "apt", [SUITE])
        apt.update(log)
        packages = ESSENTIAL + TOOLS + CROSS.get(apt.deb_arch, [])
        megabytes, count = apt.size(packages)
        say(f"toolchain: fetching {count} Debian packages ({SUITE}), {megabytes:.0f} MB, "
            f"about 2.5 GB unpacked into {tree}; log: {log}")
        debs = apt.fetch(packages, log)
        # The links /bin -> usr/bin and so on have to be there before the rest.
        debs.sort(key=lambda deb: not deb.name.startswith("base-files_"))
        for number, deb in enumerate(debs):
            if number % 100 == 99:
                say(f"  unpacked {number + 1} of {len(debs)}")
            common.logged(["dpkg-deb", "-x", deb, partial], log, f"unpacking {deb.name}")
        # What the maintainer scripts would have made, as far as it is used.
        for link, target in (("awk", "mawk"), ("which", "which.debianutils"), ("cc", "gcc")):
            if not (partial / "usr/bin" / link).exists():
                (partial / "usr/bin" / link).symlink_to(target)
        # Mount points for what is the host's own.
        (partial / "usr/lib/modules").mkdir(exist_ok=True)
        for name in ("passwd", "group", "resolv.conf", "hosts"):
            (partial / "etc" / name).touch()
        certs = partial / "etc/ssl/certs"
        certs.mkdir(parents=True, exist_ok=True)
        with open(certs / "ca-certificates.crt", "wb") as bundle:
            for cert in sorted((partial / "usr/share/ca-certificates").rglob("*.crt")):
                bundle.write(cert.read_bytes())
        (partial / "packages").write_text("\n".join(sorted(d.name for d in debs)) + "\n")
        shutil.rmtree(partial / "apt")


def unpacked(name, packages, deb_arch):
    """A directory of the cache with these packages, without what they depend on."""
    directory = common.cache_dir() / f"{name}-{deb_arch}"
    if directory.is_dir():
        return directory
    log = common.log_path("toolchain")
    with common.locked(common.cache_dir() / "toolchain.lock"):
        if not directory.is_dir():
            say(f"fetching {', '.join(packages)} for {deb_arch}, about 1 MB")
            with common.made_whole(directory) as partial:
                apt = Apt(partial / "apt", [SUITE], deb_arch)
                apt.update(log)
                for package in packages:
                    deb = apt.download(package, partial, log)
                    common.logged(["dpkg-deb", "-x", deb, partial], log, f"unpacking {package}")
                    deb.unlink()
                shutil.rmtree(partial / "apt")
    return directory


class Toolchain:
    """Runs commands with the chosen tools, the host's or the unpacked ones."""

    def __init__(self):
        choice = self.choice = common.setting("TOOLCHAIN", "auto")
        if choice not in ("auto", "host", "tree"):
            raise Failure(f"TOOLCHAIN={choice} is unknown: use auto, host or tree")
        self.tree = None
        missing = host_misfit()
        if choice == "host" and missing:
            raise Failure(f"TOOLCHAIN=host, but {missing}")
        if choice == "tree" or missing:
            self.tree = self._tree()
        self._choose_llvm()

    def _choose_llvm(self):
        self.llvm = common.setting("LLVM", "1") if self.tree else host_llvm()
        if self.tree and self.llvm == "1":
            # The only LLVM of the tree has its version in its name.
            self.llvm = "-19"
        suffix = self.llvm if self.llvm.startswith("-") else ""
        prefix = self.llvm if self.llvm.endswith("/") else ""
        self.clang = f"{prefix}clang{suffix}"
        self._version = None

    @staticmethod
    def _tree():
        cache = common.cache_dir()
        packages = ESSENTIAL + TOOLS + CROSS.get(host_deb_arch(), [])
        key = common.digest(" ".join(packages), SUITE, host_deb_arch())
        tree = cache / f"toolchain-{key}"
        if not tree.is_dir():
            with common.locked(cache / "toolchain.lock"):
                if not tree.is_dir():
                    common.need_space(cache, 12, "the toolchain, the kernel source and the builds")
                    unpack_tree(tree, common.log_path("toolchain"))
                    say(f"toolchain: ready, {tree}")
        return tree

    def check_rust(self, make, env):
        """Leave the host's tools, if they were not asked for, where the kernel cannot use them."""
        if self.tree or self.choice == "host" or self.output(make, env=env) is not None:
            return
        say("the host's tools do not pass the kernel's rustavailable: using Debian's packages")
        self.tree = self._tree()
        self._version = None
        self._choose_llvm()

    def wrap(self, argv, cwd=None, env=None):
        """The argument list that runs `argv` with these tools."""
        env = dict(env or {})
        if not self.tree:
            settings = [f"{key}={value}" for key, value in env.items()]
            return ["env", *(["-C", str(cwd)] if cwd else []), *settings, *map(str, argv)]
        lib = next(self.tree.glob("usr/lib/*-linux-gnu/libc.so.6")).parent
        loader = next(self.tree.glob("usr/lib*/ld-linux-*.so.*"), None) or \
            next(lib.glob("ld-linux-*.so.*"))
        out = [str(loader), "--library-path", str(lib), str(self.tree / "usr/bin/bwrap"),
               # With a process namespace of its own nothing outlives the run that started it.
               "--die-with-parent", "--unshare-pid", "--ro-bind", str(self.tree / "usr"), "/usr",
               "--ro-bind", str(self.tree / "etc"), "/etc", "--proc", "/proc",
               "--dev-bind", "/dev", "/dev", "--ro-bind", "/sys", "/sys"]
        for name in ("bin", "sbin", "lib", "lib64"):
            if os.path.lexists(self.tree / name):
                out += ["--symlink", f"usr/{name}", f"/{name}"]
        for name in sorted(os.listdir("/")):
            if name not in OWN and os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}"):
                out += ["--bind", f"/{name}", f"/{name}"]
        # Kernel builds of the host (KDIR=) beside the sources of the tree.
        out += ["--tmpfs", "/usr/src"]
        for root in ("/", str(self.tree)):
            directory = os.path.join(root, "usr/src")
            for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
                out += ["--bind", f"{directory}/{name}", f"/usr/src/{name}"]
        if os.path.exists("/usr/lib/modules"):
            out += ["--bind", "/usr/lib/modules", "/usr/lib/modules"]
        for extra in ("/etc/passwd", "/etc/group", "/etc/resolv.conf",
                      "/etc/hosts"):
            if os.path.exists(extra):
                out += ["--ro-bind", extra, extra]
        # Whom the host trusts: a proxy may have a certificate of its own.
        trusted = os.environ.get("SSL_CERT_FILE", f"/{CERTIFICATES}")
        if os.path.exists(trusted) and (self.tree / CERTIFICATES).exists():
            out += ["--ro-bind", trusted, f"/{CERTIFICATES}"]
        base = {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin", "LANG": "C.UTF-8"}
        for key in ("HOME", "TERM", "USER", "CARGO_NET_OFFLINE", "http_proxy", "https_proxy"):
            if key in os.environ:
                base[key] = os.environ[key]
        out.append("--clearenv")
        for key, value in {**base, **env}.items():
            out += ["--setenv", key, str(value)]
        out += ["--chdir", str(cwd or os.getcwd()), "--", *map(str, argv)]
        return out

    def run(self, argv, log, what, cwd=None, env=None):
        common.logged(self.wrap(argv, cwd, env), log, what, shown=argv)

    def output(self, argv, cwd=None, env=None):
        return common.output(self.wrap(argv, cwd, env))

    def interactive(self, argv, cwd=None, env=None):
        """Run with the terminal of the user; return the exit status."""
        return subprocess.run(self.wrap(argv, cwd, env), check=False).returncode

    def version(self):
        """What identifies the tools, for the keys of what they built."""
        if self._version is None:
            parts = [self.output(c) for c in (["rustc", "-vV"], [self.clang, "--version"],
                                              ["bindgen", "--version"])]
            if None in parts:
                why = subprocess.run(self.wrap([self.clang, "--version"]), check=False,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE).stderr
                why = (why.decode(errors="replace").strip().splitlines() or ["no message"])[0]
                raise Failure(f"the tools in {self.tree or 'PATH'} do not run: {why}")
            self._version = "\n".join(parts)
        return self._version

    def gcc(self, arch):
        """The C compiler for static programs of the guest."""
        return "gcc" if DEB_ARCH[arch] == host_deb_arch() else f"{GNU_TRIPLE[arch]}-gcc"

    def busybox(self, arch):
        """A static busybox of that architecture."""
        if DEB_ARCH[arch] == host_deb_arch():
            path = (self.tree or Path("/")) / "usr/bin/busybox"
            if path.exists():
                return path
            return Path(shutil.which("busybox"))
        return unpacked("busybox", ("busybox-static",), DEB_ARCH[arch]) / "usr/bin/busybox"


def version_of(argv, pattern):
    match = re.search(pattern, common.output(argv) or "")
    return tuple(map(int, match.group(1).split("."))) if match else (0,)


def host_llvm():
    """The value of LLVM for the host: as given, else 1 or the first version that is whole."""
    for llvm in ("1", "-19", "-20", "-21", "-22", "-18", "-17"):
        suffix = llvm if llvm.startswith("-") else ""
        if all(shutil.which(f"{t}{suffix}") for t in ("clang", "ld.lld", "llvm-ar", "llvm-link")):
            return common.setting("LLVM", llvm)
    return common.setting("LLVM", "1")


def host_misfit():
    """Why the host's own tools cannot be used, or None if they can."""
    suffix = host_llvm()
    suffix = suffix if suffix.startswith("-") else ""
    needed = [f"clang{suffix}", f"ld.lld{suffix}", f"llvm-ar{suffix}", f"llvm-link{suffix}",
              "bindgen", "rustc", "rustfmt", "clippy-driver", "cargo", "gcc", "make", "flex",
              "bison", "bc", "cpio", "ccache", "pahole", "busybox", "perl", "shellcheck",
              "pyflakes3", "rsync", "patch", QEMU[common.arch()]]
    if DEB_ARCH[common.arch()] != host_deb_arch():
        needed.append(f"{GNU_TRIPLE[common.arch()]}-gcc")
    for tool in needed:
        if not shutil.which(tool):
            return f"the host has no {tool}"
    for argv, pattern, minimum in ((["rustc", "--version"], r"rustc (\d+\.\d+)", (1, 85)),
                                   (["bindgen", "--version"], r"bindgen (\d+\.\d+)", (0, 71)),
                                   ([f"clang{suffix}", "--version"], r"version (\d+)", (17,))):
        if version_of(argv, pattern) < minimum:
            return f"the host's {argv[0]} is older than {'.'.join(map(str, minimum))}"
    if common.output(["ldd", shutil.which("busybox")]) is not None:
        return "the host's busybox is not static"
    sysroot = (common.output(["rustc", "--print", "sysroot"]) or "").strip()
    source = os.environ.get("RUST_LIB_SRC", f"{sysroot}/lib/rustlib/src/rust/library")
    if not os.path.exists(f"{source}/core/src/lib.rs"):
        return "the host's rustc has no rust-src"
    for header in ("/usr/include/libelf.h", "/usr/include/openssl/ssl.h"):
        if not os.path.exists(header):
            return f"the host has no {header}"
    return None
