"""In words, what the particles bought and what they did not."""

from __future__ import annotations

from itertools import groupby

from bella.metrics.paired import needed
from bella.report.claims import Claim, claims, difference
from bella.report.tables import Results


def verdict(results: Results) -> list[str]:
    """Each pair of methods in a sentence, and before them what the seeds know.

    A difference counts where its paired test over the seeds stands among all claims of the
    comparison (Holm); see `bella.report.claims`.
    """
    if results["seeds"] == 1:
        return ["One seed shows no spread, so no difference can be told from chance: run three."]
    found = claims(results)
    if not found:
        return []
    pairs = groupby(found, key=lambda claim: (claim.ours, claim.other))
    return [what_the_seeds_know(results, found), *(sentence(list(group)) for _, group in pairs)]


def what_the_seeds_know(results: Results, found: list[Claim]) -> str:
    """What a difference is one of, other data or another training alone, and by which test."""
    if results["splits"] == "each seed":
        knows = (
            "Each seed splits the data anew: a difference is one of training and of which "
            f"{results['words']['examples']} were drawn, and its test is corrected for the overlap "
            "of the splits (Nadeau and Bengio)."
        )
    elif results["splits"] == "training data":
        knows = (
            "Each seed draws its training data anew, and all share one test part: a difference is "
            f"one of training and of which {results['words']['examples']} were drawn to learn "
            "from, on this test part; its test is corrected for what the draws share."
        )
    else:
        knows = (
            "All seeds share one split of the data: a difference is one of training again, and "
            f"does not say what other {results['words']['examples']} would show."
        )
    bar = needed(results["seeds"], len(found))
    return (
        f"{knows} Paired t tests over {results['seeds']} seeds; better or worse is what stands "
        f"among all {len(found)} claims here (Holm, p < .05), which takes {bar:.1f} standard "
        "errors. In brackets 95% intervals of the mean difference."
    )


def sentence(found: list[Claim]) -> str:
    """One method against another, over all questions."""
    groups: dict[str, list[str]] = {}
    for claim in found:
        word = "better" if claim.good else "worse"
        if not claim.stands:
            word = f"{word}, if nothing else were asked" if claim.alone else "not told apart"
        text = f"{claim.figure} ({told(claim)})" if claim.alone else claim.figure
        groups.setdefault(word, []).append(text)
    order = sorted(groups, key=ORDER.index)
    parts = [f"{word}: {', '.join(groups[word])}" for word in order]
    return f"{found[0].ours} against {found[0].other}. " + "; ".join(parts) + "."


ORDER = (
    "better",
    "worse",
    "better, if nothing else were asked",
    "worse, if nothing else were asked",
    "not told apart",
)


def told(claim: Claim) -> str:
    """From where to where, the difference, and on how many seeds."""
    ours, other = claim.means
    return f"{other:.3f} to {ours:.3f}: {difference(claim.test)}, {claim.seeds} seeds"
