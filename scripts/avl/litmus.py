# SPDX-License-Identifier: GPL-2.0
"""make litmus: orders that only the kernel's memory model can judge, asked of herd7."""

import os
import re
import shutil
import subprocess

from . import common, source
from .common import TOP, Failure
from .ktap import Result

DIRECTORY = TOP / "tests/litmus"


def missing():
    """Why herd7 cannot be run, or None. Debian has it in sid only, so not in the toolchain."""
    words = common.setting("HERD7", "herd7").split()
    if shutil.which(words[0]):
        return None
    return f"HERD7={words[0]} is no program" if common.setting("HERD7") else \
        "there is no herd7: install Debian's herdtools7 7.58, of sid, or set HERD7= to where it is"


def parse(text, names):
    """One result for each of the tests, of what tests/litmus/run has printed."""
    found, words = {}, []
    for line in text.splitlines():
        verdict = re.match(r"^(ok|not ok) \d+ (\S+): (.*)$", line)
        if not verdict:
            words.append(line)
            continue
        passed = verdict.group(1) == "ok"
        found[verdict.group(2)] = Result(f"litmus/{verdict.group(2)}",
                                         "passed" if passed else "failed",
                                         "" if passed else verdict.group(3),
                                         () if passed else tuple(words[-40:]))
        words = []
    lacking = [Result(f"litmus/{name}", "failed", "missing") for name in names
               if name not in found]
    return [*found.values(), *lacking]


def run():
    """The results of all of them."""
    why = missing()
    if why:
        raise Failure(why)
    tree, tree_name = source.pristine()
    words = common.setting("HERD7", "herd7").split()
    common.note("herd7", common.output([words[0], "-version"]))
    common.note("memory model of", tree_name)
    log = common.log_path("litmus")
    with open(log, "wb") as out:
        subprocess.run([DIRECTORY / "run", tree / "tools/memory-model"], check=False, stdout=out,
                       stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                       env={**os.environ, "HERD7": common.setting("HERD7", "herd7")})
    return parse(log.read_text(errors="replace"),
                 [file.stem for file in sorted(DIRECTORY.glob("*.litmus"))])
