# SPDX-License-Identifier: GPL-2.0
"""What every step needs: settings, messages, locks, checked commands."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
START = time.monotonic()
GIB = 1 << 30

ARCH_NAMES = {"x86_64": "x86_64", "x86": "x86_64", "amd64": "x86_64",
              "arm64": "arm64", "aarch64": "arm64"}


# Settings that change what a run finds. These choose some of the tests of a target,
SELECTING = ("TESTS", "MUTANTS", "SELFTESTS", "STRESSORS", "STEPS")
# these say how much the tests do, less than usual or more,
EFFORT = ("ROUNDS", "STRIDE", "GENERATIONS", "PROPTEST_CASES", "LOOM_MAX_PREEMPTIONS")
# and these what is run, on what, with what, from where on, and for how long.
OTHERS = ("VARIANT", "SEED", "SOAK", "TIMEOUT", "KERNEL", "KSRC", "KERNEL_TARBALL", "LLVM",
          "TOOLCHAIN", "ACCEL", "AVL_CACHE", "HERD7")


class Failure(Exception):
    """An expected failure: its text is the one line that the user sees."""


def setting(name, default=""):
    """A variable of the command line (`make NAME=...`) or the environment."""
    return os.environ.get(name, "").strip() or default


def given(*names):
    """{name: value} of those of these settings that are set."""
    return {name: setting(name) for name in names if setting(name)}


def part():
    """
    What a run is, if it is not a whole target by itself: the stage of check-full that AVL_STAGE
    names, or "some", if it is narrowed. Its record and its guests are kept apart, so that they
    replace those of no whole run.
    """
    stage = setting("AVL_STAGE")
    if stage and not re.fullmatch(r"\w[\w-]*", stage):
        raise Failure(f"AVL_STAGE={stage} is not a name: letters, digits and - only")
    return stage or ("some" if given(*SELECTING, *EFFORT) else "")


def number(name, default):
    text = setting(name, str(default))
    if not text.isdigit() or int(text) < 1:
        raise Failure(f"{name}={text} is not a positive number")
    return int(text)


def path_setting(name):
    """A directory or file given by the user, absolute, or None."""
    text = setting(name)
    return Path(text).expanduser().resolve() if text else None


def arch():
    text = setting("ARCH", os.uname().machine)
    if text not in ARCH_NAMES:
        raise Failure(f"ARCH={text} is not supported: use ARCH=x86_64 or ARCH=arm64")
    return ARCH_NAMES[text]


MARKER = ".anon-vma-lazy-cache"


def cache_dir():
    """The cache: a directory of its own, marked as such, since distclean empties it."""
    base = setting("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    path = Path(setting("AVL_CACHE", f"{base}/anon-vma-lazy")).expanduser().resolve()
    if TOP == path or TOP in path.parents:
        raise Failure(f"AVL_CACHE={path} lies inside the source tree: choose another directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"cannot make the cache {path}: {error.strerror}; set AVL_CACHE=") from error
    if not (path / MARKER).exists():
        if any(path.iterdir()):
            raise Failure(f"AVL_CACHE={path} holds other things: name an empty or a new directory")
        (path / MARKER).touch()
    return path


# {what: version} of what this run is made with, for its record.
noted = {}


def note(what, version):
    noted[what] = (version or "unknown").strip()


def jobs():
    return number("JOBS", os.cpu_count() or 1)


def say(text):
    # In one piece: guests that run side by side say something at the same time.
    print(f"[{time.monotonic() - START:5.0f} s] {text}\n", end="", flush=True)


class Stage:
    """Times a stage and says so."""

    times = []

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        say(f"--- {self.name}")
        self.started = time.monotonic()
        return self

    def __exit__(self, *_):
        self.times.append((self.name, time.monotonic() - self.started))

    @classmethod
    def show(cls):
        print("  stage                                      seconds")
        for name, seconds in cls.times:
            print(f"  {name:<42} {seconds:7.0f}")


def need_space(path, gib, what):
    """Refuse before a step rather than fail in the middle of it."""
    free = shutil.disk_usage(path).free
    if free < gib * GIB:
        raise Failure(f"{path} has {free / GIB:.1f} GB free, {what} may take {gib} GB: "
                      "make room or set AVL_CACHE= to another disk")


def need_tool(name, package):
    if not shutil.which(name):
        raise Failure(f"{name} is missing: install it (apt-get install {package})")


def log_path(name):
    path = TOP / "build" / "log" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def digest(*parts):
    """A short key over strings, bytes and the contents of files."""
    state = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        data = data.encode() if isinstance(data, str) else data
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()[:16]


@contextlib.contextmanager
def locked(path):
    """Hold a lock file: one builder at a time for a shared directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"waiting for another run that holds {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class CacheLock:
    """
    Who may write the patched tree and the kernel builds of the cache.

    Held until the process ends: shared while kernels are used, exclusive while one is
    built. Between the two another run may get its turn, so whoever goes back to shared
    has to look again whether what it wants is still there (Kernel.verify).
    """

    _handle = None

    @classmethod
    def take(cls, exclusive):
        if not cls._handle:
            cls._handle = open(cache_dir() / "build.lock", "w", encoding="utf-8")
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(cls._handle, mode | fcntl.LOCK_NB)
        except OSError:
            say(f"waiting for another run that uses {cache_dir()}")
            fcntl.flock(cls._handle, mode)


@contextlib.contextmanager
def made_whole(final):
    """Fill a directory under another name; it gets its own only when complete."""
    partial = final.with_name(final.name + ".partial")
    if partial.exists():
        say(f"removing {partial}, left by a run that was interrupted")
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(final)


def stop_group(process):
    """End a process that was started here, and its children."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sig)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
            return


def tail(path, lines=15):
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").splitlines()[-lines:]
    return []


def logged(argv, log, what, shown=None, quiet=False, **options):
    """
    Run a command with its output in a log. Long ones show that they live.
    On failure the end of the log is shown, and where the whole of it is.
    """
    started = time.monotonic()
    with open(log, "ab") as out:
        out.write(f"\n$ {' '.join(map(str, shown or argv))}\n".encode())
        out.flush()
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=subprocess.STDOUT, start_new_session=True, **options)
        except FileNotFoundError as error:
            raise Failure(f"{argv[0]} is missing: install it") from error
        try:
            next_note = 30
            while True:
                try:
                    status = process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - started
                    if elapsed >= next_note:
                        last = (tail(log, 1) or [""])[0].strip()
                        say(f"  {what}: {elapsed:.0f} s, now: {last[:70]}")
                        next_note += 30 if elapsed < 120 else 60
        except BaseException:
            stop_group(process)
            raise
    if status:
        for line in tail(log) if not quiet else ():
            print(f"    {line}", file=sys.stderr)
        raise Failure(f"{what} failed (exit {status}); the whole log: {log}")


def output(argv, **options):
    """Standard output of a short command, or None if it fails."""
    try:
        result = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, check=False, **options)
    except OSError:
        return None
    return result.stdout.decode(errors="replace") if result.returncode == 0 else None


def tree_key(documents=True, env=None, without=None):
    """
    What the outcome of a run depends on: every committed or changed file but `without`, of
    documents only if the run reads them, and the settings in `env` (the environment) but for
    those that select: what they leave out was not run. None if that cannot be known.
    """
    env = os.environ if env is None else env
    files = output(["git", "-C", str(TOP), "ls-files", "-co", "--exclude-standard"])
    if files is None or env.get("KSRC", "").strip():
        return None
    if not documents:
        files = re.sub(r"(?m)^(Documentation/.*|[^/]*\.md)$", "", files)
    settings = [f"{name}={env.get(name, '').strip()}" for name in (*EFFORT, *OTHERS)]
    return digest(*settings, *[part for name in sorted(files.split("\n")) if name
                               and TOP / name != without and (TOP / name).is_file()
                               for part in (name, TOP / name)])
