# SPDX-License-Identifier: GPL-2.0
"""
A Debian userland for guests, below /debian of an initramfs.

Packages and what they depend on are taken apart in memory and written as a cpio archive: no root,
no file system tools, owners and modes as in the packages, any architecture. Maintainer scripts do
not run; what they would have made, as far as it is used, is handed in as users, files and links.
A guest gets this archive in front of its own (see joined()) and enters it by chroot.
"""

import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

from . import common
from .common import Failure, say
from .toolchain import DEB_ARCH, ESSENTIAL, SUITE, Apt

ROOT = "debian"
# Asked for beside the caller's: what a tree without maintainer scripts misses first.
BASE = [*ESSENTIAL, "base-passwd", "login", "procps", "libc-bin"]
# Memory of the guest, for nothing.
LEFT_OUT = tuple(f"usr/share/{name}/" for name in (
    "doc", "man", "info", "locale", "lintian", "bug", "icons", "doc-base"))
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
LINKS = {"usr/bin/awk": "mawk", "usr/bin/which": "which.debianutils", "etc/mtab": "/proc/mounts",
         "var/run": "/run", "var/lock": "/run/lock"}
FILES = {"etc/hostname": "avl\n", "etc/hosts": "127.0.0.1 localhost avl\n",
         "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
         "etc/machine-id": "0123456789abcdef0123456789abcdef\n"}
FIRST_UID = 200


class Archive:
    """A cpio archive in the format of an initramfs (newc), written in one go."""

    def __init__(self, file):
        self.file = file
        self.number = 0
        self.names = set()
        # Where the content of a regular file lies, for hard links to it.
        self.content = {}
        self.add(ROOT, stat.S_IFDIR | 0o755)

    def _header(self, name, mode, uid, gid, size, device=(0, 0)):
        self.number += 1
        encoded = name.encode("utf-8", "surrogateescape") + b"\0"
        fields = (self.number, mode, uid, gid, 1, 0, size, 0, 0, *device, len(encoded), 0)
        self.file.write(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        self._pad(4)

    def _pad(self, to):
        self.file.write(b"\0" * (-self.file.tell() % to))

    def add(self, name, mode, data=b"", uid=0, gid=0):
        self._header(name, mode, uid, gid, len(data))
        if stat.S_ISREG(mode):
            self.content[name] = (self.file.tell(), len(data))
        self.file.write(data)
        self._pad(4)
        self.names.add(name)

    def parents(self, name):
        """The directories on the way, as far as no package has them."""
        for parent in reversed(Path(name).parents):
            if str(parent) not in (".", *self.names):
                self.add(str(parent), stat.S_IFDIR | 0o755)

    def again(self, name):
        """The content of a file that is in the archive."""
        offset, size = self.content[name]
        here = self.file.tell()
        self.file.seek(offset)
        data = self.file.read(size)
        self.file.seek(here)
        return data

    def end(self):
        self._header("TRAILER!!!", 0, 0, 0, 0)
        self._pad(512)


def place(name):
    """Where a file of a package goes, or None: all of /bin and so on are links into /usr."""
    name = name.removeprefix("./").rstrip("/")
    if not name or any(f"{name}/".startswith(out) for out in LEFT_OUT):
        return None
    first = name.split("/", 1)[0]
    return f"{ROOT}/usr/{name}" if first in MERGED and name != first else f"{ROOT}/{name}"


def add_package(archive, deb):
    """The files of one package."""
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE)
    with process, tarfile.open(fileobj=process.stdout, mode="r|") as members:
        for member in members:
            name = place(member.name)
            # Directories are in many packages, and a link stands for some of them.
            if not name or name in archive.names:
                continue
            archive.parents(name)
            owner = {"uid": member.uid, "gid": member.gid}
            if member.isdir():
                archive.add(name, stat.S_IFDIR | member.mode, **owner)
            elif member.issym():
                archive.add(name, stat.S_IFLNK | 0o777, member.linkname.encode(), **owner)
            elif member.islnk():
                target = place(member.linkname)
                archive.add(name, stat.S_IFREG | member.mode, archive.again(target), **owner)
            elif member.isreg():
                archive.add(name, stat.S_IFREG | member.mode,
                            members.extractfile(member).read(), **owner)
    if process.returncode:
        raise Failure(f"dpkg-deb cannot read {deb}")


def add_accounts(archive, users):
    """/etc/passwd and /etc/group: Debian's own, and the users that packages would have made."""
    for kind, row in (("passwd", "{0}:x:{1}:{1}::/nonexistent:/usr/sbin/nologin\n"),
                      ("group", "{0}:x:{1}:\n")):
        text = archive.again(f"{ROOT}/usr/share/base-passwd/{kind}.master").decode()
        text += "".join(row.format(user, FIRST_UID + number)
                        for number, user in enumerate(users))
        archive.add(f"{ROOT}/etc/{kind}", stat.S_IFREG | 0o644, text.replace(":*:", ":x:").encode())


def image(arch, packages, users=(), files=None, links=None, without=()):
    """
    The archive with these packages (and what they depend on), made once for what is asked for:
    a file in the cache, and beside it the list of packages. `files` are {path: text}, executable
    if they begin with #!, `links` {path: target}; packages `without` which the others run are
    left out.
    """
    files = {**FILES, **(files or {})}
    links = {**LINKS, **(links or {})}
    wanted = [*BASE, *packages]
    key = common.digest(SUITE, arch, repr(sorted(wanted)), repr(users), repr(sorted(files.items())),
                        repr(sorted(links.items())), repr(without), Path(__file__))
    final = common.cache_dir() / f"userland-{arch}-{key}"
    with common.locked(common.cache_dir() / "userland.lock"):
        if not final.is_dir():
            make(final, arch, wanted, users, files, links, without)
    return final / "userland.cpio"


def make(final, arch, packages, users, files, links, without):
    log = common.log_path(f"userland-{arch}")
    with common.made_whole(final) as partial:
        apt = Apt(partial / "apt", [SUITE], DEB_ARCH[arch])
        apt.update(log)
        megabytes, count = apt.size(packages)
        common.need_space(final.parent, max(1, round(6 * megabytes / 1000)), "the Debian userland")
        say(f"userland: fetching {count} Debian packages ({SUITE}, {arch}), {megabytes:.0f} MB; "
            f"log: {log}")
        # Links such as /bin have to be there before the rest.
        debs = sorted(apt.fetch(packages, log),
                      key=lambda deb: (not deb.name.startswith("base-files_"), deb.name))
        with open(partial / "userland.cpio", "w+b") as file:
            archive = Archive(file)
            for name, target in {**{n: f"usr/{n}" for n in MERGED}, **links}.items():
                archive.parents(f"{ROOT}/{name}")
                archive.add(f"{ROOT}/{name}", stat.S_IFLNK | 0o777, target.encode())
            for name, text in files.items():
                mode = 0o755 if text.startswith("#!") else 0o644
                archive.parents(f"{ROOT}/{name}")
                archive.add(f"{ROOT}/{name}", stat.S_IFREG | mode, text.encode())
            for deb in debs:
                if deb.name.split("_")[0] not in without:
                    add_package(archive, deb)
            add_accounts(archive, users)
            archive.end()
            size = file.tell()
        (partial / "packages").write_text("".join(f"{deb.name}\n" for deb in debs))
        shutil.rmtree(partial / "apt")
    say(f"userland: {final}/userland.cpio, {size / 1e6:.0f} MB")


def joined(parts, output):
    """One initramfs of several archives: later ones add to the earlier ones."""
    with open(output, "wb") as out:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
            out.write(b"\0" * (-out.tell() % 512))
    return output
