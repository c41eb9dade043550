"""`ensemble`: no coupling; each particle descends its own loss (the paper's "Ensemble Bella")."""

from __future__ import annotations

from typing import ClassVar

from bella.transport.base import Transport


class Ensemble(Transport):
    """Independent particles. See `Transport` for the arguments.

    Source:
        Lakshminarayanan et al. 2017; Doan et al., Table 1.
    """

    name: ClassVar[str] = "ensemble"
