"""Data sets by name: a file a set, and its line in `SETS`."""

from __future__ import annotations

from bella.data.sets.base import DataSet
from bella.data.sets.camelyon17 import CAMELYON17
from bella.data.sets.cifar import CIFAR10, CIFAR100
from bella.data.sets.cifar_c import CIFAR10_C
from bella.data.sets.digits import DIGITS
from bella.data.sets.domainnet import DOMAINNET
from bella.data.sets.drug_reviews import DRUG_REVIEWS
from bella.data.sets.easy_vqa import EASY_VQA
from bella.data.sets.elpv import ELPV
from bella.data.sets.fashion_mnist import FASHION_MNIST
from bella.data.sets.imagenet import IMAGENET
from bella.data.sets.stl10 import CIFAR10_STL10, STL10
from bella.data.sets.vqa import VQA
from bella.data.sets.wordnet import WORDNET, WORDNET_CHOICE

__all__ = ["SETS", "DataSet"]

SETS: dict[str, DataSet] = {
    dataset.name: dataset
    for dataset in (
        ELPV,
        FASHION_MNIST,
        DIGITS,
        CIFAR10,
        CIFAR100,
        CIFAR10_C,
        STL10,
        CIFAR10_STL10,
        CAMELYON17,
        IMAGENET,
        DOMAINNET,
        WORDNET,
        DRUG_REVIEWS,
        WORDNET_CHOICE,
        EASY_VQA,
        VQA,
    )
}
"""All sets by name."""
