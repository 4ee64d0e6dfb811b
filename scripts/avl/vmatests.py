# SPDX-License-Identifier: GPL-2.0
"""tools/testing/vma of the patched kernel source: mm/vma.c as a program, with its own tests."""

import re
import shutil

from . import common
from .common import TOP, Failure, say
from .ktap import Result
from .toolchain import host_deb_arch, unpacked

# Of the tree: copied, since the programs are built in place, and only linked to.
COPIED = ("tools/testing/vma", "tools/testing/shared")
LINKED = ("include", "lib", "mm", "tools/arch", "tools/build", "tools/include", "tools/lib",
          "tools/scripts")
# It names the tests that fail; this makes it name the others, too.
FAILED = '''fprintf(stderr, "Test " #name " FAILED\\n");	\\
		}'''
PASSED = FAILED + ''' else {						\\
			fprintf(stderr, "Test " #name " passed\\n");	\\
		}'''


def parse(text):
    """One result for each test, held against what the program has counted."""
    total = re.search(r"^(\d+) tests run, (\d+) passed, (\d+) failed\.$", text, re.M)
    why = {name: line for line, name in
           re.findall(r"^(Assert FAILED at \S+?:test_(\w+)\(\).*)$", text, re.M)}
    results = [Result(f"vma/{name}", "passed" if verdict == "passed" else "failed",
                      why.get(name, "") if verdict == "FAILED" else "")
               for name, verdict in re.findall(r"^Test (\w+) (passed|FAILED)$", text, re.M)]
    failed = sum(r.status == "failed" for r in results)
    if not total:
        end = (text.strip().splitlines() or ["it printed nothing"])[-1]
        results.append(Result("vma/end", "failed", f"it did not come to its end: {end}"))
    elif tuple(map(int, total.groups())) != (len(results), len(results) - failed, failed) or \
            not results:
        results.append(Result("vma/count", "failed", f"{len(results)} have a verdict, but: "
                                                     f"{total.group(0)}"))
    # Sanitizers speak up between the tests, and go on, or after the last one.
    reports = re.findall(r"^.*(?:runtime error:|ERROR: \w*Sanitizer).*$", text, re.M)
    if reports:
        results.append(Result("vma/sanitizers", "failed", reports[0].strip(), tuple(reports[:12])))
    return results


def run(toolchain, source):
    """Build it out of the tree, with the address and undefined behaviour sanitizers; run it."""
    tree = TOP / "build" / "vma"
    shutil.rmtree(tree, ignore_errors=True)
    for name in COPIED:
        shutil.copytree(source / name, tree / name)
    for name in LINKED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(source / name)
    header = tree / COPIED[0] / "shared.h"
    text = header.read_text()
    if FAILED not in text:
        raise Failure("tools/testing/vma/shared.h has another TEST(): FAILED is out of date")
    header.write_text(text.replace(FAILED, PASSED))
    libs = unpacked("liburcu", ("liburcu-dev",), host_deb_arch())
    triple = next((libs / "usr/lib").glob("*-linux-gnu"))
    log = common.log_path("vma-tests")
    log.write_text("")
    failure = None
    try:
        toolchain.run(["make", "-C", tree / COPIED[0], f"-j{common.jobs()}", "CC=gcc",
                       f"EXTRA_CFLAGS=-I{libs}/usr/include -I{libs}/usr/include/{triple.name}",
                       f"LDLIBS=-lpthread {triple}/liburcu.a {triple}/liburcu-common.a"],
                      log, "building tools/testing/vma")
        log.write_text("")
        toolchain.run([tree / COPIED[0] / "vma"], log, "tools/testing/vma")
    except Failure as error:
        failure = error
    text = log.read_text(errors="replace")
    if failure and not re.search(r"^Test \w+ (?:passed|FAILED)$", text, re.M):
        return [Result("vma/builds", "failed", str(failure))]
    results = parse(text)
    if failure and all(r.status != "failed" for r in results):
        results.append(Result("vma/exit", "failed", str(failure)))
    say(f"tools/testing/vma: {len(results)} tests of mm/vma.c with the series")
    return results
