"""Figure 11: entropy of right and of wrong answers, beside Laplace-LoRA (VBL)."""

from __future__ import annotations

from bella.experiments.paper.figures.common import density_figure, finding, raw, said_of, summary
from bella.experiments.paper.figures.soups import WORD, as_well, aurocs, aurocs_said, test_doubts
from bella.experiments.paper.item import Item, Setup
from bella.experiments.paper.product import Picture, Product


def make(setup: Setup) -> Product:
    """Particles beside a Gaussian around one of them."""
    found = test_doubts(setup)
    first, second = (setup.methods[0].title, setup.methods[-1].title)
    notes = []
    for where in dict.fromkeys(one.where for one in found):
        of = aurocs(found, where)
        notes.append(
            finding(
                "SVGD Bella tells its errors by entropy as well as VBL or better",
                f"the AUROCs of the entropy for errors on {where}, with 95% intervals, are "
                + aurocs_said(of),
                as_well(of[first], of[second]) if first != second else None,
                setup.seeds,
            )
        )
    return Product(
        title="Figure 11: entropy, beside Laplace-LoRA",
        shows=(
            "Densities of the entropy on test examples: good is far left where the answer is right "
            "and far right where it is wrong."
        ),
        sheet=summary(found, WORD),
        comparable=(
            "The paper prints a picture, of CLIP ViT-B/32 on CIFAR-10 and CIFAR-100. Its VBL loses "
            "three points of accuracy to one fine-tuned network on CIFAR-10 (94.41 against 97.20); "
            "a linearised Laplace approximation keeps the accuracy of the network that it is put "
            "around, and ours does, so this is a harder comparison than the paper's."
        ),
        pictures=[Picture("", said_of(found, WORD), density_figure(found, WORD))],
        notes=[*notes, setup.averaging],
        more={"values": raw(found, WORD)},
    )


ITEM = Item(
    make=make,
    title="entropy of right and of wrong answers, beside Laplace-LoRA (VBL)",
    methods=("svgd-bella", "vbl"),
    data=("digits", "elpv"),
    train=200,
    others=200,
    cost="2 minutes",
)
