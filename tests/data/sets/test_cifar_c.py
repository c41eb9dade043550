import numpy as np
import pytest
import torch
from set_files import picture, write_cifar10

from bella.data import Preprocess, open_data
from bella.errors import BellaError

PIXELS = Preprocess(32, mean=0.0, std=1.0)
pytestmark = pytest.mark.filterwarnings("ignore:.*the published")


@pytest.fixture
def both(tmp_path):
    """CIFAR-10 with 4 test images, and two corruptions of them at five severities."""
    write_cifar10(tmp_path / "cifar-10-batches-py", each=4)
    root = tmp_path / "CIFAR-10-C"
    root.mkdir()
    written = {}
    for place, name in enumerate(("brightness", "fog")):
        written[name] = np.stack([picture(50 * place + i, 32, 32) for i in range(20)])
        np.save(root / f"{name}.npy", written[name])
    np.save(root / "labels.npy", np.tile([5, 6, 7, 8], 5))
    return tmp_path, written


def test_a_part_for_each_corruption_and_severity(both):
    folder, written = both
    parts = open_data("cifar10-c", PIXELS, folder=folder)
    assert list(parts) == ["train", "validation", "test", "brightness-5", "fog-5"]
    assert parts["fog-5"].labels == parts["test"].labels == [5, 6, 7, 8]
    chosen = {"corruptions": ["fog"], "severities": [1, 3]}
    parts = open_data("cifar10-c", PIXELS, folder=folder, options=chosen)
    assert list(parts)[3:] == ["fog-1", "fog-3"]
    x, y = parts["fog-3"][2]
    assert torch.equal(x, torch.tensor(written["fog"][10]).permute(2, 0, 1).float())
    assert y == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": ["fogg"]}, "no corruption 'fogg': near are 'fog'"),
        ({"severities": [0]}, "0 is not one of 1 to 5"),
        ({"severity": 3}, "no option 'severity': its own are 'severities'"),
    ],
)
def test_unknown_corruptions_are_refused(both, options, message):
    with pytest.raises(BellaError, match=message):
        open_data("cifar10-c", PIXELS, folder=both[0], options=options)


def test_wrong_files_are_named(both):
    folder, written = both
    root = folder / "CIFAR-10-C"
    with pytest.warns(UserWarning, match="2 corruptions and the published CIFAR-10-C 19"):
        open_data("cifar10-c", PIXELS, folder=folder)

    def refused(message):
        with pytest.raises(BellaError, match=message):
            open_data("cifar10-c", PIXELS, folder=folder)

    whole = (root / "fog.npy").read_bytes()
    (root / "fog.npy").write_bytes(whole[:5000])
    refused(r"fog.npy is damaged, or not whole .*2,918,471,680 bytes")
    np.save(root / "fog.npy", written["fog"][:15])
    refused(r"fog.npy is damaged.*uint8 of shape \(15, 32, 32, 3\)")
    np.save(root / "fog.npy", np.array([print], object), allow_pickle=True)
    refused(r"fog.npy is damaged")
    np.save(root / "labels.npy", np.arange(20))
    refused(r"labels beyond the ten classes")
    (root / "labels.npy").unlink()
    refused(r"does not hold CIFAR-10-C .*unpacked beside CIFAR-10")
