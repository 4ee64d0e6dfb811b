# SPDX-License-Identifier: GPL-2.0
"""make report: one page of what was tried, from what the last runs left behind."""

import html
import json
import re
import time

from . import common, litmus
from .common import TOP, Failure, say
from .ktap import FAILS_ON_ALL

RESULTS = TOP / "build" / "results"
OUTPUT = TOP / "build" / "report"
# What is excused, and where: in which file, and what its lines say before the reason.
LISTS = (("expected-differences", "mm selftests that differ"),
         ("expected-selftests", "mm selftests that say nothing of any kernel"),
         ("expected-skips", "tests that may skip"), ("expected-races", "data races of Linux alone"))
# What a guest says at its end: how often the module went each way.
# Of the counters the ones that count what cannot be.
NEVER = ("refused",)
COUNTER = re.compile(r"^avl: counter (\w+) (\d+)$", re.M)


def commit():
    """The commit that was tested, with a mark if the tree has changes."""
    git = ["git", "-C", str(TOP)]
    head = (common.output([*git, "rev-parse", "--short=12", "HEAD"]) or "no git").strip()
    dirty = common.output([*git, "status", "--porcelain", "--untracked-files=no"])
    return head + (" with changes" if dirty and dirty.strip() else "")


def logs(arch, name):
    """The logs of guests without a fault on purpose, those of parts of targets among them."""
    return [log for runs in ("run", "run/*")
            for log in sorted((TOP / "build").glob(f"{arch}/{runs}/*/{name}"))
            if not log.parent.name.startswith(("mutant-", "must-fail-"))]


def record_name(target):
    """How a run is called that may be a part of its target only."""
    part = common.part()
    return f"{target}-some" if part == "some" else part or target


def record_file(target, arch):
    return RESULTS / f"{record_name(target)}-{arch}.json"


def write(record):
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{record['target']}-{record['arch']}.json").write_text(
        json.dumps(record, indent=1) + "\n")


def save(target, arch, results, stages, extra=None, raw=None):
    """
    Keep what a run has found, for the page; the last run of that name counts. `raw` is what the
    target itself wants to find again.
    """
    write({
        "target": record_name(target), "arch": arch, "commit": commit(),
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        # What may have made it less than its target; what else was asked for.
        "narrowed": common.given(*common.SELECTING, *common.EFFORT),
        "settings": common.given(*common.OTHERS),
        "versions": dict(common.noted),
        "stages": [(name, round(seconds)) for name, seconds in stages],
        "results": [(r.name, r.status, r.reason) for r in results],
        "extra": extra or {}, "raw": raw,
    })


def save_again(record, results, extra):
    """The same run with other verdicts: when and of what it was stays."""
    write({**record, "results": [(r.name, r.status, r.reason) for r in results], "extra": extra})


def counts(record):
    found = {"passed": 0, "failed": 0, "skipped": 0, FAILS_ON_ALL: 0}
    for _, status, _ in record["results"]:
        found[status] = found.get(status, 0) + 1
    return found


def oracle_figures():
    """What the oracle has looked at, over the verdicts that guests left."""
    asked = folios = mappings = 0
    for verdict in logs("*", "verdict.log"):
        for text in re.findall(r"oracle: (\d+) folios, (\d+) mappings(?:.* in (\d+) looks)?",
                               verdict.read_text(errors="replace")):
            asked += int(text[2] or 1)
            folios += int(text[0])
            mappings += int(text[1])
        # Of stress, which asks it at its quiet points and says so once.
        for text in re.findall(r"the oracle saw (\d+) folios,.* (\d+) mappings in (\d+) looks",
                               verdict.read_text(errors="replace")):
            asked += int(text[2])
            folios += int(text[0])
            mappings += int(text[1])
    return asked, folios, mappings


def events():
    """{counter: what it counts} for each event of the module, from its source."""
    text = (TOP / "rust/pure/counters.rs").read_text()
    meaning = dict((name, " ".join(line.strip(" /") for line in lines.splitlines()))
                   for lines, name in re.findall(r"((?:^    /// .*\n)+)^    (\w+),$", text, re.M))
    names = re.findall(r"^            Event::(\w+) => \"(\w+)\",$", text, re.M)
    if not names or any(name not in meaning for name, _ in names):
        raise Failure("rust/pure/counters.rs has another form: events() is out of date")
    return {shown: meaning[name] for name, shown in names}


def transitions():
    """How often each of them happened, over the guests whose logs are there."""
    totals = {}
    for console in logs("*", "console.log"):
        arch = console.relative_to(TOP / "build").parts[0]
        for name, value in COUNTER.findall(console.read_text(errors="replace")):
            counts_of = totals.setdefault(name, {})
            counts_of[arch] = counts_of.get(arch, 0) + int(value)
    arches = sorted({arch for values in totals.values() for arch in values})
    if not arches:
        return []
    lines = ["", "## How often the module went each way", "",
             "Its counters at the end of the guests whose logs are there.", "",
             f"| counter | what | {' | '.join(arches)} |", f"|---|---|{'---|' * len(arches)}"]
    for name, what in events().items():
        cells = [totals.get(name, {}).get(arch, 0) for arch in arches]
        zero = "0, as it must be" if name in NEVER else "0: NO TEST DID"
        lines.append(f"| {name} | {what} | {' | '.join(str(cell or zero) for cell in cells)} |")
    return lines


def versions(records):
    """What the runs were made with: each of it once, and by which of them."""
    by = {}
    for record in records:
        for what, version in record.get("versions", {}).items():
            by.setdefault((what, version), []).append(f"{record['target']} {record['arch']}")
    return ["", "## What it was made with", "", "| what | version | runs |", "|---|---|---|"] + [
        f"| {what} | {version} | {', '.join(runs)} |" for (what, version), runs in
        sorted(by.items())]


def excuses():
    """The committed lists of what is excused, in full."""
    lines = []
    for name, title in LISTS:
        lines += ["", f"## Excused: {title} (tests/{name})", "", "| what | why |", "|---|---|"]
        for line in (TOP / "tests" / name).read_text().splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            # That of skips has no mark: ARCH TEST REASON.
            what, mark, why = line.partition(" :: ")
            if not mark:
                what, why = " ".join(line.split(None, 2)[:2]), line.split(None, 2)[2]
            lines.append(f"| {what} | {why} |")
    return lines


def page(records):
    """The Markdown text."""
    lines = ["# anon_vma_lazy: what was tried", ""]
    commits = sorted({record["commit"] for record in records})
    lines += [f"Commits tested: {', '.join(commits)}. Each row is the last run of that name: "
              "full-NAME is a stage of check-full, TARGET-some was narrowed.", ""]
    lines += ["| target | arch | when | passed | failed | skipped | fails on all | seconds | "
              "narrowed to | other settings |", "|---|---|---|---|---|---|---|---|---|---|"]
    for record in records:
        found = counts(record)
        narrowed, settings = (", ".join(f"{k}={v}" for k, v in record.get(kind, {}).items())
                              for kind in ("narrowed", "settings"))
        lines.append(f"| {record['target']} | {record['arch']} | {record['when']} | "
                     f"{found['passed']} | {found['failed']} | {found['skipped']} | "
                     f"{found[FAILS_ON_ALL]} | "
                     f"{sum(seconds for _, seconds in record['stages'])} | {narrowed} | "
                     f"{settings} |")
    asked, folios, mappings = oracle_figures()
    lines += ["", f"The oracle was asked {asked} times in the guests whose logs are there: "
              f"{folios} folios, {mappings} mappings.", ""]
    # A stage that was left out has no record.
    if litmus.missing() and all("litmus" not in record["target"] for record in records):
        lines += [f"Not run: litmus tests: {litmus.missing()}", ""]
    failed = [(record, name, reason) for record in records
              for name, status, reason in record["results"] if status == "failed"]
    lines += ["## Failures", ""]
    lines += [f"* {record['target']} {record['arch']}: {name}: {reason}"
              for record, name, reason in failed] or ["None."]
    for record in records:
        for title, text in record["extra"].items():
            lines += ["", f"## {title}, {record['arch']}", "", text]
    lines += transitions() + versions(records) + excuses()
    lines += ["", "## Stages", "", "| target | arch | stage | seconds |", "|---|---|---|---|"]
    lines += [f"| {record['target']} | {record['arch']} | {name} | {seconds} |"
              for record in records for name, seconds in record["stages"]]
    lines += ["", "## Every result", ""]
    for record in records:
        lines += [f"### {record['target']}, {record['arch']}", ""]
        lines += [f"* {status}: {name}{': ' + reason if reason else ''}"
                  for name, status, reason in record["results"]]
        lines.append("")
    return "\n".join(lines) + "\n"


def to_html(text):
    """The same as HTML: headings, tables, lists and paragraphs are all that there is."""
    out = ["<!DOCTYPE html><meta charset=utf-8><title>anon_vma_lazy</title>",
           "<style>body{font:14px sans-serif;margin:2em}"
           "td,th{border:1px solid #999;padding:2px 8px;"
           "text-align:left}table{border-collapse:collapse}</style>"]
    kind = None
    ends = {"table": "</table>", "list": "</ul>", None: ""}
    for line in text.splitlines():
        now = "table" if line.startswith("|") else "list" if line.startswith("* ") else None
        if now != kind:
            out.append(ends[kind])
            out.append({"table": "<table>", "list": "<ul>"}.get(now, ""))
            kind = now
        if now == "table":
            cells = [html.escape(cell.strip()) for cell in line.strip("|").split("|")]
            if not all(re.fullmatch("-+", cell) for cell in cells):
                out.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        elif now == "list":
            out.append(f"<li>{html.escape(line[2:])}</li>")
        elif line.startswith("#"):
            level = len(line) - len(line.lstrip("#"))
            out.append(f"<h{level}>{html.escape(line.lstrip('# '))}</h{level}>")
        elif line:
            out.append(f"<p>{html.escape(line)}</p>")
    return "\n".join([*out, ends[kind]]) + "\n"


def report():
    """Write the page, in both forms."""
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        raise Failure("nothing has run yet: make check first")
    records = [json.loads(file.read_text()) for file in files]
    text = page(records)
    OUTPUT.with_suffix(".md").write_text(text)
    OUTPUT.with_suffix(".html").write_text(to_html(text))
    say(f"{OUTPUT}.md and {OUTPUT}.html, from {len(records)} runs")
    return 0
