"""Pre-trained networks by name, each with its preprocessing and with what to adapt in it."""

from bella.models.efficientnet_lite import efficientnet_lite0
from bella.models.opened import Defaults, Opened, guess_defaults
from bella.models.registry import full_name, open_network, registry
from bella.models.tasks import TASKS, OpenedTask, open_task
from bella.particles.attention import split_attention

__all__ = [
    "TASKS",
    "Defaults",
    "Opened",
    "OpenedTask",
    "efficientnet_lite0",
    "full_name",
    "guess_defaults",
    "open_network",
    "open_task",
    "registry",
    "split_attention",
]
