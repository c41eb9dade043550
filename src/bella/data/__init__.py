"""Data: a user's own images, sets that are known by name, and whatever Hugging Face's hub has."""

from bella.data.checking import check_data
from bella.data.domains import open_domains
from bella.data.folder import ImageFolder, open_images, open_other, splits
from bella.data.hub import HubImages, open_hub
from bella.data.images import IMAGENET_MEAN, IMAGENET_STD, Augment, Preprocess, load_image
from bella.data.labelled import ArrayImages, ImageList, Labelled, LabelledImages, OnBadImage
from bella.data.opening import open_data, shifts_of
from bella.data.sets import SETS, DataSet
from bella.data.sets.elpv import SolarCells, elpv
from bella.data.sets.fashion_mnist import fashion_mnist
from bella.data.split import FRACTIONS, grouped_split, stratified_split
from bella.data.table import ImageTable
from bella.data.written import ImageQuestions, LabelledTexts, Questions

__all__ = [
    "FRACTIONS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SETS",
    "ArrayImages",
    "Augment",
    "DataSet",
    "HubImages",
    "ImageFolder",
    "ImageList",
    "ImageQuestions",
    "ImageTable",
    "Labelled",
    "LabelledImages",
    "LabelledTexts",
    "OnBadImage",
    "Preprocess",
    "Questions",
    "SolarCells",
    "check_data",
    "elpv",
    "fashion_mnist",
    "grouped_split",
    "load_image",
    "open_data",
    "open_domains",
    "open_hub",
    "open_images",
    "open_other",
    "shifts_of",
    "splits",
    "stratified_split",
]
