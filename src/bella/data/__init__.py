"""Images as data sets: a user's own, and two public ones with real shifts and real doubt."""

from bella.data.elpv import SolarCells, elpv
from bella.data.fashion_mnist import FashionMnist, fashion_mnist
from bella.data.folder import ImageFolder, open_images, splits
from bella.data.images import IMAGENET_MEAN, IMAGENET_STD, Augment, Preprocess, load_image
from bella.data.labelled import ImageList, LabelledImages, OnBadImage
from bella.data.split import FRACTIONS, stratified_split
from bella.data.table import ImageTable

__all__ = [
    "FRACTIONS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Augment",
    "FashionMnist",
    "ImageFolder",
    "ImageList",
    "ImageTable",
    "LabelledImages",
    "OnBadImage",
    "Preprocess",
    "SolarCells",
    "elpv",
    "fashion_mnist",
    "load_image",
    "open_images",
    "splits",
    "stratified_split",
]
