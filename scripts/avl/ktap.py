# SPDX-License-Identifier: GPL-2.0
"""Verdicts: read with the kernel's own KTAP parser, held against what was planned."""

import io
import re
import sys
from dataclasses import dataclass

from .common import TOP, Failure

SKIPS = TOP / "tests/expected-skips"
# The status of a test that fails with the series and without, and is known to: neither passed, nor
# a failure of this run.
FAILS_ON_ALL = "fails on all"


@dataclass
class Result:
    """
    One test: where it is, 'passed', 'failed', 'skipped' or FAILS_ON_ALL, why, lines of a log, and
    whether another list than that of skips excuses it.
    """
    name: str
    status: str
    reason: str = ""
    evidence: tuple = ()
    listed: bool = False


def expected_skips(arch):
    """{test: reason} from the committed list, for one architecture."""
    found = {}
    for number, line in enumerate(SKIPS.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(None, 2)
        if len(fields) < 3:
            raise Failure(f"{SKIPS.name}:{number}: needs ARCH TEST REASON")
        if fields[0] in (arch, "all"):
            found[fields[1]] = fields[2]
    return found


def _parser(source_tree):
    directory = str(source_tree / "tools/testing/kunit")
    if directory not in sys.path:
        sys.path.insert(0, directory)
    import kunit_parser  # pylint: disable=import-outside-toplevel
    from kunit_printer import Printer  # pylint: disable=import-outside-toplevel
    return kunit_parser, Printer


def _leaves(test, path):
    name = f"{path}/{test.name}" if path else test.name
    if test.subtests:
        for sub in test.subtests:
            yield from _leaves(sub, name)
    else:
        yield name, test


def parse(text, planned, source_tree):
    """
    The results of a guest. `planned` names the tests that were asked for: one
    that is missing, or has no verdict, or a plan that does not hold, is a failure.
    """
    parser, printer = _parser(source_tree)
    messages = io.StringIO()
    lines = text.splitlines()
    if not re.search(r"^1\.\.\d+$", text, re.M):
        return [Result("plan", "failed", "the guest sent no plan")] + \
            [Result(name, "failed", "missing") for name in planned]
    # The parser has no use for binary junk of a test that broke off.
    plan = int(re.search(r"^1\.\.(\d+)$", text, re.M).group(1))
    root = parser.parse_run_tests([line + "\n" for line in lines], printer(output=messages))
    status = parser.TestStatus
    results = []
    if plan != len(planned):
        results.append(Result("plan", "failed", f"{plan} tests, {len(planned)} were asked for"))
    top = {test.name: test for test in root.subtests}
    for name in planned:
        if name not in top:
            results.append(Result(name, "failed", "missing: the guest did not get that far"))
            continue
        test = top[name]
        before = len(results)
        if not test.subtests and test.status != status.SKIPPED:
            results.append(Result(name, "failed", "it has a verdict, but no plan and no results"))
            continue
        for leaf_name, leaf in _leaves(test, ""):
            if leaf.status == status.SUCCESS:
                results.append(Result(leaf_name, "passed"))
            elif leaf.status == status.SKIPPED:
                results.append(Result(leaf_name, "skipped",
                                      leaf.skip_reason or "no reason given"))
            else:
                results.append(Result(leaf_name, "failed", leaf.status.name.lower(),
                                      tuple(leaf.log[-12:])))
        # Its own verdict (an exit status, a plan of its own that did not hold) counts as well.
        if all(r.status != "failed" for r in results[before:]) and \
                (not test.ok_status() or test.counts.errors):
            results.append(Result(name, "failed", "its plan or its exit status does not fit"))
    # A broken-off guest leaves a last one without a name; what it lacks is reported above.
    unasked = sorted(set(top) - set(planned) - {""})
    results += [Result(name, "failed", "not planned") for name in unasked]
    return results


def settle(results, arch):
    """A skip that is not on the committed list is a failure."""
    known = expected_skips(arch)
    settled = []
    for result in results:
        if result.listed:
            pass
        elif result.status == "skipped" and result.name not in known:
            result = Result(result.name, "failed",
                            f"skipped ({result.reason}), and not in tests/expected-skips",
                            result.evidence)
        elif result.status == "skipped":
            result = Result(result.name, "skipped", known[result.name])
        settled.append(result)
    return settled


def listed(results):
    """A line for each reason that a list gives: there may be many results of one."""
    groups = {}
    for result in results:
        if result.listed:
            groups.setdefault((result.status, result.reason), []).append(result.name)
    return [f"{status.upper()} {names[0]}" +
            (f" and {len(names) - 1} more" if names[1:] else "") + f": {reason}"
            for (status, reason), names in groups.items()]


def report(results, arch):
    """Settle, show failures and skips, and the line that counts. Returns the failures."""
    results = settle(results, arch)
    count = {status: sum(r.status == status for r in results)
             for status in ("passed", "failed", "skipped", FAILS_ON_ALL)}
    for line in listed(results):
        print(f"  {line}")
    for status in ("skipped", "failed"):
        for result in results:
            if result.status == status and not result.listed:
                print(f"  {status.upper()} {result.name}: {result.reason}")
                for line in result.evidence:
                    print(f"    | {line}")
    if not results:
        print("  FAILED: no test ran")
        count["failed"] = 1
    if count[FAILS_ON_ALL]:
        print(f"{count[FAILS_ON_ALL]} fail with the series and without, and are known to")
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped",
          flush=True)
    return count["failed"]
