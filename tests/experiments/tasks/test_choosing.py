"""What is said of a task's network changes what is compared, or is refused."""

import pytest

from bella.errors import BellaError
from bella.experiments.tasks.choosing import choose_task


def test_a_task_seen_by_another_network_is_the_data_set_of_that_name():
    task, other = choose_task("digits"), choose_task("digits", image_size=48)
    assert task.part("test", 0)[0][0].shape != (3, 48, 48)
    assert other.part("test", 0)[0][0].shape == (3, 48, 48)


def test_a_network_for_a_task_that_is_no_data_set_is_refused():
    with pytest.raises(BellaError, match="'fashion-resnet' is neither a data set nor"):
        choose_task("fashion-resnet", network="efficientnet-lite0")
