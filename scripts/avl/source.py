# SPDX-License-Identifier: GPL-2.0
"""
Kernel source trees: the pristine one, and the one with patches/series applied.

The patched tree keeps its place when the series changes: just the files whose
content differs are rewritten, so that make rebuilds what depends on them and
nothing else. Its stamp is removed before the first write and set after the last.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import common
from .common import TOP, Failure, say
from .toolchain import Apt

# What the series is for, and the first kernel that has what it stands on.
VERSION = "7.3"
SUITES = ("trixie-backports", "forky", "sid", "experimental")
# Packages that this series was tested with; apt checks all others by Debian's signatures.
PINNED = {"linux-source-7.3_7.3.4-1~bpo13+1_all.deb":
          "703e369ddd4cce971452f5a593ee55df3a5c10c83caf0fa0df039633ed181ee3"}
STAMP = ".avl-series"
TOUCHED = ".avl-touched"
BACKUP = ".avl-backup"


def kernel_version():
    """The kernel of KERNEL=: 7.3 is the newest 7.3.y that there is, 7.3.4 that one."""
    wanted = common.setting("KERNEL", VERSION)
    numbers = re.fullmatch(r"(\d+)\.(\d+)(?:\.\d+)?", wanted)
    if not numbers:
        raise Failure(f"KERNEL={wanted} is not a version such as {VERSION} or {VERSION}.4")
    if tuple(map(int, numbers.groups())) < tuple(map(int, VERSION.split("."))):
        raise Failure(f"KERNEL={wanted}: the series stands on vma_start_anon_pgoff(), new in "
                      f"{VERSION}; see Documentation/porting.rst")
    return wanted


def package():
    """Debian's source package of that kernel."""
    return "linux-source-" + ".".join(kernel_version().split(".")[:2])


def series(upto=None):
    """The patch files in order, or the first `upto` of them."""
    names = [line.strip() for line in (TOP / "patches/series").read_text().splitlines()]
    files = [TOP / "patches" / n for n in names if n and not n.startswith("#")]
    for file in files:
        if not file.is_file():
            raise Failure(f"patches/series names {file.name}, which does not exist")
    return files[:upto]


def test_patches():
    """What the harness adds to each tree that it builds: checks, no behaviour. Not for users."""
    return sorted((TOP / "patches/test").glob("*.patch"))


def touched_files(patches):
    """The paths that these patches change, add or remove."""
    names = set()
    for patch in patches:
        for line in patch.read_text().splitlines():
            match = re.match(r"(?:---|\+\+\+) [ab]/(\S+)", line)
            if match:
                names.add(match.group(1))
    return names


def tree_version(tree):
    """VERSION.PATCHLEVEL.SUBLEVEL of a kernel tree, or a failure."""
    try:
        text = (tree / "Makefile").read_text(errors="replace")
    except OSError:
        text = ""
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", text, re.M))
    if len(found) != 3:
        raise Failure(f"{tree} is not a kernel source tree")
    return f"{found['VERSION']}.{found['PATCHLEVEL']}.{found['SUBLEVEL']}"


def check_version(tree):
    version = tree_version(tree)
    wanted = kernel_version()
    if not f"{version}.".startswith(f"{wanted}."):
        raise Failure(f"{tree} is Linux {version}: the series needs {VERSION}.y" if
                      wanted == VERSION else f"{tree} is Linux {version}, not KERNEL={wanted}")
    return version


def apply_to_copy(base, patches, directory):
    """Copy what the patches touch from `base`, and apply them there, exactly."""
    for name in touched_files(patches):
        if (base / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / name, directory / name)
    for patch in patches:
        with open(patch, "rb") as text:
            result = subprocess.run(["patch", "-p1", "-s", "-f", "-F0", "--no-backup-if-mismatch"],
                                    stdin=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                    cwd=directory, check=False)
        if result.returncode:
            return patch, result.stdout.decode(errors="replace")
    return None, ""


def state_of(tree):
    """'plain', 'patched' with exactly this series, or a failure."""
    patches = series()
    common.need_tool("patch", "patch")
    with tempfile.TemporaryDirectory(prefix="avl-patches-") as scratch:
        scratch = Path(scratch)
        failed, text = apply_to_copy(tree, patches, scratch)
        if not failed:
            return "plain"
    # Is it patched already? Then the series can be taken off again, exactly.
    with tempfile.TemporaryDirectory(prefix="avl-patches-") as scratch:
        scratch = Path(scratch)
        for name in touched_files(patches):
            if (tree / name).exists():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(tree / name, scratch / name)
        for patch in reversed(patches):
            with open(patch, "rb") as stream:
                result = subprocess.run(["patch", "-R", "-p1", "-s", "-f", "-F0"], stdin=stream,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        cwd=scratch, check=False)
            if result.returncode:
                break
        else:
            return "patched"
    if (tree / "include/linux/anon_vma_lazy.h").exists():
        raise Failure(f"{tree} carries another version of this series: start from a plain "
                      f"{VERSION}.y tree")
    reason = (text.strip().splitlines() or ["?"])[0]
    raise Failure(f"{failed.name} does not apply to {tree} (Linux {tree_version(tree)}): {reason}")


def unpack(archive, tree):
    """Unpack a source tarball whose only top directory is the kernel's."""
    common.need_tool("xz", "xz-utils")
    with common.made_whole(tree) as partial:
        log = common.log_path("source")
        common.logged(["tar", "-xf", archive, "-C", partial, "--strip-components=1"], log,
                      "unpacking the kernel source")
        check_version(partial)


def from_package(tree):
    """Fetch Debian's source package and unpack it."""
    cache = common.cache_dir()
    log = common.log_path("source")
    name = package()
    found = None
    for suite in SUITES:
        apt = Apt(cache / f"apt-source-{suite}", [suite])
        try:
            apt.update(log)
        except Failure:
            continue
        policy = common.output(["apt-cache", *apt.argv[2:], "show", name]) or ""
        # Newest first. An exact version is that of one of them, a series is any of its kernels.
        offered = [version for version in re.findall(r"^Version: (\S+)", policy, re.M)
                   if re.match(rf"{re.escape(kernel_version())}[.-]", version)]
        if offered:
            found = apt
            break
    if not found:
        raise Failure(f"no {name} with Linux {kernel_version()} in {', '.join(SUITES)} of "
                      f"{mirror_name()}: check the network and KERNEL=, or give KERNEL_TARBALL= or "
                      "KSRC=")
    size = int((re.findall(r"^Size: (\d+)", policy, re.M) or ["0"])[0])
    say(f"kernel source: fetching {name} {offered[0]} from Debian {suite}, {size / 1e6:.0f} MB, "
        f"1.8 GB unpacked; log: {log}")
    download = cache / "download"
    download.mkdir(exist_ok=True)
    deb = found.download(name, download, log, offered[0])
    pinned = PINNED.get(deb.name.replace("%7e", "~"))
    if pinned:
        actual = (common.output(["sha256sum", deb]) or "").split(" ")[0]
        if actual != pinned:
            deb.unlink()
            raise Failure(f"{deb.name} has SHA256 {actual}, expected {pinned}: "
                          "fetched file removed")
    with tempfile.TemporaryDirectory(dir=download) as scratch:
        tarball = Path(scratch) / "linux.tar.xz"
        common.logged(["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" | tar -xO '
                       f'./usr/src/{name}.tar.xz > "$2"', "sh", deb, tarball], log,
                      "reading the package")
        unpack(tarball, tree)
    deb.unlink()


def mirror_name():
    return common.setting("MIRROR", "the configured mirror")


def check_settings():
    """Refuse what KERNEL=, KSRC= and KERNEL_TARBALL= cannot be. No lock: nobody waits for that."""
    kernel_version()
    user = common.path_setting("KSRC")
    if user:
        check_version(user)
    tarball = common.path_setting("KERNEL_TARBALL")
    if tarball and not tarball.is_file():
        raise Failure(f"KERNEL_TARBALL={tarball} does not exist")


def need_plain():
    """Refuse a KSRC= that has the series: where an unpatched kernel is to be built of it."""
    check_settings()
    user = common.path_setting("KSRC")
    if user and state_of(user) != "plain":
        raise Failure(f"KSRC={user} is patched: an unpatched kernel needs a plain tree")


def pristine():
    """The unpatched tree, and what its content is known by."""
    check_settings()
    user = common.path_setting("KSRC")
    if user:
        return user, f"ksrc:{user}"
    cache = common.cache_dir()
    tarball = common.path_setting("KERNEL_TARBALL")
    if tarball:
        tree = cache / "src" / f"linux-{common.digest(tarball)}"
    else:
        tree = cache / "src" / f"linux-{kernel_version()}"
    if not tree.is_dir():
        with common.locked(cache / "source.lock"):
            if not tree.is_dir():
                common.need_space(cache, 10, "the kernel source and the builds")
                tree.parent.mkdir(exist_ok=True)
                if tarball:
                    say(f"kernel source: unpacking {tarball}, 1.8 GB")
                    unpack(tarball, tree)
                else:
                    from_package(tree)
                say(f"kernel source: Linux {tree_version(tree)} in {tree}")
    return tree, f"{tree.name}:{check_version(tree)}"


def wanted_patches(upto=None, extra=()):
    """The series, or its first patches, or (upto=0) none of it; the test patches; some more."""
    return series(upto) + test_patches() + list(extra)


def series_key(identity, upto=None, extra=()):
    return common.digest(identity, *wanted_patches(upto, extra))


def sync(base, tree, patches):
    """Make `tree` equal `base` with the patches applied, rewriting only what differs."""
    with tempfile.TemporaryDirectory(prefix="avl-patches-") as scratch:
        scratch = Path(scratch)
        failed, text = apply_to_copy(base, patches, scratch)
        if failed:
            raise Failure(f"{failed.name} does not apply to Linux {tree_version(base)}: "
                          f"{(text.strip().splitlines() or ['?'])[0]}")
        names = touched_files(patches)
        if (tree / TOUCHED).exists():
            names |= set((tree / TOUCHED).read_text().split())
        (tree / TOUCHED).write_text("\n".join(sorted(names)) + "\n")
        for name in sorted(names):
            wanted = scratch / name if (scratch / name).exists() else base / name
            target = tree / name
            if not wanted.exists():
                target.unlink(missing_ok=True)
            elif not target.exists() or target.read_bytes() != wanted.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(wanted, target)


# What a build leaves in a user's tree: not copied. The copy is built out of place.
BUILT = """/.git *.o *.a *.ko *.mod *.cmd *.rmeta /.config* /vmlinux* /System.map /Module.symvers
    /include/config /include/generated /arch/*/include/generated /.avl-*""".split()


def patched_tree(upto=None):
    """Where the patched tree is, and the key of its content when the series is applied."""
    base, identity = pristine()
    user = common.path_setting("KSRC")
    name = f"user-{common.digest(str(user))}" if user else base.name
    kind = "unpatched" if upto == 0 else "patched"
    return common.cache_dir() / "src" / f"{name}-{kind}", base, identity


def patched_is_current(upto=None, extra=()):
    """Whether the patched tree is there as wanted. A user's own tree is always looked at again."""
    tree, _, identity = patched_tree(upto)
    stamp = tree / STAMP
    return not common.path_setting("KSRC") and stamp.exists() and \
        stamp.read_text() == series_key(identity, upto, extra)


def patched(toolchain, upto=None, extra=()):
    """
    The tree with the series (or its first patches) applied, and its key.

    A user's own tree is copied and the copy is patched; a user's tree that has the series
    already is copied as it is. The caller holds CacheLock exclusively, unless
    patched_is_current().
    """
    common.need_tool("patch", "patch")
    tree, base, identity = patched_tree(upto)
    key = series_key(identity, upto, extra)
    if patched_is_current(upto, extra):
        return tree, key
    user = common.path_setting("KSRC")
    patches = wanted_patches(upto, extra)
    if user and state_of(user) == "patched":
        if upto is not None:
            raise Failure(f"KSRC={user} is patched already: this needs a plain tree")
        patches = test_patches() + list(extra)
    if not tree.is_dir():
        common.need_space(common.cache_dir(), 8, "the patched source and the build")
        say(f"kernel source: copying {base} to {tree}, to patch the copy")
        tree.parent.mkdir(exist_ok=True)
        with common.made_whole(tree) as partial:
            if user:
                copy_user_tree(toolchain, user, partial, ())
            else:
                common.logged(["cp", "-a", "--reflink=auto", f"{base}/.", partial],
                              common.log_path("source"), "copying the source")
    (tree / STAMP).unlink(missing_ok=True)
    if user:
        copy_user_tree(toolchain, user, tree, touched_files(patches))
    sync(base, tree, patches)
    (tree / STAMP).write_text(key)
    say(f"kernel source: {len(patches)} patches applied in {tree}")
    return tree, key


def copy_user_tree(toolchain, user, tree, patched_files):
    """Bring the copy up to date, but for the patched files, which sync() compares."""
    excludes = [f"--exclude={name}" for name in BUILT]
    excludes += [f"--exclude=/{name}" for name in sorted(patched_files)]
    toolchain.run(["rsync", "-a", "--delete", *excludes, f"{user}/", f"{tree}/"],
                  common.log_path("source"), "copying the source")


def apply_for_user():
    """`make patches-apply KSRC=...`: put the series onto the user's own tree."""
    user = common.path_setting("KSRC")
    if not user:
        raise Failure("patches-apply needs KSRC=<your kernel source tree>")
    check_version(user)
    restore(user)
    if state_of(user) == "patched":
        say(f"{user} has this series already: nothing to do")
        return
    patches = series()
    if (user / ".git").exists():
        common.need_tool("git", "git")
        git = ["git", "-C", str(user)]
        if (user / ".git/rebase-apply").exists():
            raise Failure(f"{user} is in the middle of a git am or rebase: finish that first")
        dirty = common.output(git + ["status", "--porcelain", "--untracked-files=no"])
        if dirty is None:
            raise Failure(f"git does not work in {user}")
        if dirty.strip():
            raise Failure(f"{user} has uncommitted changes: commit or stash them first")
        try:
            common.logged(git + ["am", "-q", *map(str, patches)], common.log_path("patches-apply"),
                          "git am")
        except BaseException as error:
            common.output(git + ["am", "--abort"])
            if not isinstance(error, Failure):
                raise
            raise Failure(f"git am refused the series, the tree is as it was ({error})") from error
        say(f"{len(patches)} commits on top of {user}")
        return
    with tempfile.TemporaryDirectory(prefix="avl-patches-") as scratch:
        scratch = Path(scratch)
        apply_to_copy(user, patches, scratch)
        names = sorted(touched_files(patches))
        # What is there now, for a run that finds this one interrupted.
        with common.made_whole(user / BACKUP) as backup:
            for name in names:
                if (user / name).exists():
                    (backup / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(user / name, backup / name)
            (backup / TOUCHED).write_text("\n".join(names) + "\n")
        for name in names:
            (user / name).unlink(missing_ok=True)
            if (scratch / name).exists():
                (user / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(scratch / name, user / name)
        discard(user / BACKUP)
    say(f"{len(patches)} patches applied to {user}")


def discard(directory):
    """Remove a directory; it loses its name first."""
    aside = directory.with_name(directory.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    directory.rename(aside)
    shutil.rmtree(aside)


def restore(tree):
    """Undo a patches-apply that was interrupted."""
    backup = tree / BACKUP
    if not backup.is_dir():
        return
    for name in (backup / TOUCHED).read_text().split():
        (tree / name).unlink(missing_ok=True)
        if (backup / name).exists():
            shutil.copy2(backup / name, tree / name)
    discard(backup)
    say(f"{tree}: undid a patches-apply that was interrupted")
