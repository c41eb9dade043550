"""Images: as files of a form, or in base64 within JSON."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, File, Request, UploadFile
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from bella.data.images import FORMATS, load_image
from bella.errors import BellaError
from bella.prediction.predict import predict
from bella.serve.guard import RefusedError
from bella.serve.kinds.base import Kind, check_count
from bella.serve.limits import Limits
from bella.serve.line import Line
from bella.serve.shapes import Asked, Predictions, Text

SMALLEST = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR42mNwOMBw"
    "wAEABgYCAWhqW7kAAAAASUVORK5CYII="
)
"""A PNG of four grey pixels."""


class Base64Images(Asked):
    """Images as JSON can hold them."""

    images: Annotated[list[Text], Field(min_length=1)] = Field(
        description="Files (JPEG, PNG, WebP, TIFF, GIF, BMP) in base64, or as data URLs.",
        examples=[[SMALLEST]],
    )


class Images(Kind):
    """The classes of images."""

    name: ClassVar[str] = "images"

    def router(self, line: Line) -> APIRouter:
        """``/v1/predict`` and ``/v1/predict/files``."""
        router = APIRouter()

        @router.post("/v1/predict", response_model=Predictions)
        async def predict_images(asked: Base64Images, request: Request) -> Any:
            """The classes of images in base64, with their uncertainties."""

            def read() -> list[Tensor]:
                check_count(asked.images, self.limits)
                files = [decoded(text, i) for i, text in enumerate(asked.images, 1)]
                return [self.read(f, f"Image {i}") for i, f in enumerate(files, 1)]

            return {"predictions": await line.ask(request, read)}

        @router.post("/v1/predict/files", response_model=Predictions)
        async def predict_files(
            images: Annotated[list[UploadFile], File(description="Image files.")], request: Request
        ) -> Any:
            """The classes of image files that a form holds, with their uncertainties."""
            check_count(images, self.limits)
            contents = [await file.read() for file in images]

            def read() -> list[Tensor]:
                return [self.read(file, f"Image {i}") for i, file in enumerate(contents, 1)]

            return {"predictions": await line.ask(request, read)}

        return router

    def read(self, content: bytes, name: str) -> Tensor:
        """The network's input from a file's content, (3, height, width).

        Raises:
            BellaError: it is no image.
            RefusedError: it has too many pixels.
        """
        check_pixels(content, name, self.limits)
        return self.run.preprocess(load_image(name, content))

    def answer(self, items: Sequence[Tensor], key: Any) -> list[dict[str, Any]]:
        """One pass of all particles over these images."""
        loader: DataLoader = DataLoader(items, len(items))  # type: ignore[arg-type]
        with self.drawing():
            # A loader draws a number too: where particles are drawn, theirs are those of a file.
            (batch,) = loader
            said = predict(self.predicts, batch.to(self.device), **self.run.options).cpu()
        return self.class_rows(said, self.run.classes)

    def trial(self) -> Tensor:
        """An image that shades from side to side and from top to bottom: of a plain one networks
        may see nothing."""
        size = self.run.preprocess.width, self.run.preprocess.height
        across = Image.linear_gradient("L").resize(size)
        down = Image.linear_gradient("L").rotate(90).resize(size)
        return self.run.preprocess(Image.merge("RGB", (across, down, across)))


def decoded(text: str, number: int) -> bytes:
    """A file's content from base64, with or without what stands before it in a data URL.

    Raises:
        BellaError: it is no base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BellaError(f"Image {number} is no base64: encode the whole file.") from None


def check_pixels(content: bytes, name: str, limits: Limits) -> None:
    """Refuse an image of too many pixels by its header: a small file may stand for gigabytes.

    Raises:
        RefusedError: it is one.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            pixels = opened.width * opened.height
    except Image.DecompressionBombError:
        pixels = limits.pixels + 1
    except Exception:  # what is wrong with it is said where it is read
        return
    if pixels > limits.pixels:
        raise RefusedError(
            413, f"{name} has more than {limits.pixels:,} pixels: send a smaller one."
        )
