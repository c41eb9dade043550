"""The zoo of architectures, asked one by one.

    python docs/zoo.py                     every case: a count, and what is wrong or looped
    python docs/zoo.py llama/q_proj        the cases whose names begin so, call by call
    python docs/zoo.py --write             writes the counts and what loops into architecture.md

It needs what the tests need (`make test` installs it), and takes a few minutes.
"""

from __future__ import annotations

import runpy
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- zoo: written by docs/zoo.py -->", "<!-- end of zoo -->"

sys.path[:0] = [str(ROOT / "tests" / "cases")]
SETUP = runpy.run_path(str(ROOT / "tests" / "conftest.py"))  # timm and open_clip can be imported

from zoo import ZOO  # noqa: E402
from zoo_check import Case, Verdict, cases, check  # noqa: E402

Found = dict[Case, list[Verdict]]


def run(wanted: list[str]) -> Found:
    """Check the cases whose names begin with one of ``wanted``; all for an empty list."""
    found = {}
    for name in ZOO:
        if wanted and not any(name == w.split("/")[0] for w in wanted):
            continue
        for case in cases(name):
            if not wanted or case.name.startswith(tuple(wanted)):
                found[case] = check(case)
    return found


def show(found: Found, *, everything: bool) -> None:
    """Print verdicts, and how many there are of each kind."""
    for case, verdicts in found.items():
        for verdict in verdicts:
            if everything or verdict.kind in ("wrong", "raised") or "looped" in verdict.how:
                print(case.name, verdict.batch, verdict.kind, verdict.how, verdict.said, sep="\t")
    calls = [verdict for verdicts in found.values() for verdict in verdicts]
    print(dict(Counter(v.kind for v in calls)), dict(Counter(v.how for v in calls if v.how)))


def wrong(verdicts: list[Verdict]) -> bool:
    """Whether one of a case's calls is neither right nor refused."""
    return any(verdict.kind in ("wrong", "raised") for verdict in verdicts)


def page(found: Found) -> str:
    """What stands in docs/architecture.md."""
    calls = [verdict for verdicts in found.values() for verdict in verdicts]
    how = Counter(verdict.how for verdict in calls if verdict.how)
    refused = sum(verdict.kind == "refused" for verdict in calls)
    ran = how.total()
    looped: dict[str, set[str]] = {}
    for case, verdicts in found.items():
        if any("looped" in verdict.how for verdict in verdicts):
            looped.setdefault(case.architecture, set()).add(case.suffix)
    lines = [
        f"{len(ZOO)} architectures, {len(found)} cases of one suffix in one mode, {len(calls)} "
        f"calls: {refused} are refused in a sentence; of the {ran} others "
        f"{how['shared'] / ran:.1%} fold behind a shared prefix, "
        f"{how['folded'] / ran:.1%} fold from the inputs on, "
        f"{how['shared, looped'] / ran:.1%} loop behind a shared prefix and "
        f"{how['looped'] / ran:.1%} loop from the inputs on.",
        "",
    ]
    if looped:
        lines += ["These loop:", ""]
        lines += [f"- {name}: {', '.join(sorted(looped[name]))}" for name in sorted(looped)]
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The command; 1 where something is wrong."""
    flags = {a for a in arguments if a.startswith("--")}
    wanted = [a for a in arguments if a not in flags]
    found = run(wanted)
    if "--write" in flags:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{page(found)}{END}{after}")
    show(found, everything=bool(wanted))
    return int(any(wrong(verdicts) for verdicts in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
