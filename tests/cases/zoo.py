"""The zoo: real architectures, small, each with a function that makes its inputs."""

from __future__ import annotations

import zoo_images
import zoo_mixed
import zoo_text
import zoo_torch

ZOO = {**zoo_images.ZOO, **zoo_text.ZOO, **zoo_mixed.ZOO, **zoo_torch.ZOO}
