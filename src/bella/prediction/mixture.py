"""A mixture: a posterior's particles pooled with readouts of frozen activations, and a distance.

Members of all kinds are logits; how they speak as one is a `Pool`. A *readout* is a linear
classifier of what training never moves, so it is right where the particles were led astray; the
*distance* to the nearest training example, among frozen activations as well, tells what is unlike
all of them. Made by `bella.mixture`, predicted with by `bella.predict` and `bella.evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bella import metrics, storage
from bella.errors import BellaError
from bella.files import shown
from bella.inputs import arguments
from bella.particles.sober import evaluating
from bella.posterior import Posterior
from bella.prediction.activations import Place, Reader, Reading
from bella.prediction.pool import Pool
from bella.prediction.predict import Combined, predict
from bella.prediction.predictive import Predictive
from bella.sealed import digest, read_sealed, write_sealed

FILE = "mixture.safetensors"
FORMAT = 2

NEAREST = 1e-6
"""1 - cos of two examples that are the same, so that its logarithm is a number."""

NEIGHBOURS = 5
"""Training examples that an example's distance is taken to."""


@dataclass(frozen=True, eq=False)
class Readout:
    """A linear classifier of frozen activations: logits = weight [features, ...] + bias.

    Attributes:
        readings: whose features stand side by side.
        weight: (classes, size of all features).
        bias: (classes,).
    """

    readings: tuple[Reading, ...]
    weight: Float[Tensor, "classes size"]
    bias: Float[Tensor, " classes"]

    def __call__(self, features: dict[Reading, Tensor]) -> Float[Tensor, "1 batch classes"]:
        """One member's logits."""
        weight, bias = metrics.precise(self.weight), metrics.precise(self.bias)
        x = torch.cat([features[reading].to(weight.dtype) for reading in self.readings], 1)
        if x.shape[1] != self.weight.shape[1]:
            raise BellaError(
                f"{self} reads {self.weight.shape[1]} numbers of each example, and {x.shape[1]} "
                "arrived: give inputs of the size that it was made with."
            )
        return (x @ weight.mT + bias).unsqueeze(0)

    def __str__(self) -> str:
        return "+".join(map(str, self.readings))


@dataclass(frozen=True, eq=False)
class Distance:
    """How far an example is from the training data, beside how far apart those are themselves.

        d(x) = mean over the k nearest training examples r of log(1 - cos(x, r))
        u(x) = mean over the same of d(r), among the other training examples
        distance  d(x) - slope u(x)

    Some regions are sparse (short texts, rare kinds of images): what lies there is far from its
    neighbours, and they are from theirs. The slope is that of a line through validation examples.

    Attributes:
        reading: of the features.
        references: (count, size), each of length 1.
        usual: d of each reference.
        slope: from 0 to 1; with 1 it is a local outlier factor's ratio.

    Source:
        Sun et al. 2022, Out-of-distribution detection with deep nearest neighbors; Breunig et al.
        2000, LOF: identifying density-based local outliers, for what is usual in a place.
    """

    reading: Reading
    references: Float[Tensor, "count size"]
    usual: Float[Tensor, " count"]
    slope: float

    @classmethod
    def to(
        cls,
        reading: Reading,
        features: Float[Tensor, "count size"],
        validation: Float[Tensor, "others size"],
    ) -> Distance:
        """The distance to these training examples, of the slope that validation ones show."""
        references = nn.functional.normalize(features.float(), dim=1)
        usual = torch.cat([nearest(x, references, same=True)[0] for x in references.split(ROWS)])
        far, who = nearest(nn.functional.normalize(validation.float(), dim=1), references)
        d, u = far.double(), usual[who].mean(1).double()
        around = u - u.mean()
        slope = float((around * (d - d.mean())).sum() / around.square().sum().clamp_min(1e-12))
        return cls(reading, references, usual, min(max(slope, 0.0), 1.0))

    def __call__(self, features: dict[Reading, Tensor]) -> Float[Tensor, " batch"]:
        """The distance of each example."""
        references = metrics.precise(self.references)
        x = nn.functional.normalize(features[self.reading].to(references.dtype), dim=1)
        far, who = nearest(x, references)
        return far - self.slope * self.usual.to(far)[who].mean(1)


ROWS = 1000
"""Training examples whose distances to all others are taken at once."""


def nearest(
    x: Float[Tensor, "batch size"], references: Float[Tensor, "count size"], *, same: bool = False
) -> tuple[Float[Tensor, " batch"], Int[Tensor, "batch neighbours"]]:
    """The mean log(1 - cos) to the nearest references, and which those are.

    Args:
        x: of length 1.
        references: of length 1.
        same: whether x are among them: the nearest one of each is then itself, and left out.
    """
    first = int(same and len(references) > 1)
    who = (x @ references.mT).topk(min(NEIGHBOURS + first, len(references)), 1).indices[:, first:]
    # 1 - cos of vectors of length 1, without the digits that 1 - cos would lose.
    far = torch.stack([(x - references[column]).square().sum(1) / 2 for column in who.unbind(1)], 1)
    return far.clamp_min(NEAREST).log().mean(1), who


class Mixture(Combined):
    """Particles, readouts and a distance that predict as one. Made by `bella.mixture`.

    Args:
        posterior: the particles, of any kind.
        pool: fitted to the particles and to each readout, in this order, and to the distances.
        readouts: of the posterior's frozen base.
        distances: from the training data.
        places: where readouts and distances read.
        figures: what it was found to be worth on validation data, for people.

    Raises:
        BellaError: the pool was fitted to other members, or a place is missing.
    """

    def __init__(
        self,
        posterior: Posterior,
        pool: Pool,
        readouts: Sequence[Readout] = (),
        distances: Sequence[Distance] = (),
        places: Sequence[Place] = (),
        figures: dict[str, Any] | None = None,
    ):
        super().__init__()
        if (len(pool.weights), len(pool.distances)) != (1 + len(readouts), len(distances)):
            raise BellaError("The pool was fitted to other readouts or distances than these.")
        self.posterior = posterior
        self.pool = pool
        self.figures = figures or {}
        self.readings = tuple(
            dict.fromkeys(chain(*(r.readings for r in readouts), (d.reading for d in distances)))
        )
        missing = {reading.place for reading in self.readings} - {place.name for place in places}
        if missing:
            raise BellaError(f"Nobody says how to read at {', '.join(sorted(missing))}.")
        # A Laplace posterior lies around the particles whose base it shares.
        self.reader = Reader(getattr(posterior, "around", posterior), places)
        self._readouts = [readout.readings for readout in readouts]
        self._distances = [(distance.reading, distance.slope) for distance in distances]
        for number, readout in enumerate(readouts):
            self.register_buffer(f"readout_{number}_weight", readout.weight)
            self.register_buffer(f"readout_{number}_bias", readout.bias)
        for number, distance in enumerate(distances):
            self.register_buffer(f"distance_{number}_references", distance.references)
            self.register_buffer(f"distance_{number}_usual", distance.usual)

    @property
    def readouts(self) -> list[Readout]:
        """The readouts, where the mixture is."""
        return [
            Readout(
                readings,
                self.get_buffer(f"readout_{number}_weight"),
                self.get_buffer(f"readout_{number}_bias"),
            )
            for number, readings in enumerate(self._readouts)
        ]

    @property
    def distances(self) -> list[Distance]:
        """The distances, where the mixture is."""
        return [
            Distance(
                reading,
                self.get_buffer(f"distance_{number}_references"),
                self.get_buffer(f"distance_{number}_usual"),
                slope,
            )
            for number, (reading, slope) in enumerate(self._distances)
        ]

    @property
    def particles(self) -> int:
        """Number of particles, without the readouts."""
        return self.posterior.particles

    @property
    def stochastic(self) -> bool:
        """Whether its particles are drawn, see `Posterior`."""
        return self.posterior.stochastic

    def predict(self, inputs: Any, **options: Any) -> Predictive:
        """The predictive of a batch, (members, batch, classes): particles first, then readouts.

        Args:
            inputs: see `bella.predict`.
            **options: of `bella.predict`, for the particles.

        Raises:
            BellaError: see `bella.predict`; or inputs for which the readouts were not made.
        """
        features: dict[Reading, Tensor] = {}
        with evaluating(self.posterior), torch.no_grad():
            if self.readings:
                features, args, kwargs = self.reader.features(self.readings, *arguments(inputs))
                inputs = kwargs or args
            said = predict(self.posterior, inputs, **options)
            check_pooled(said)
            return self._pooled(said.logits, features)

    def around(self, logits: Tensor, inputs: Any) -> Predictive:
        """See `Combined.around`."""
        features = (
            self.reader.features(self.readings, *arguments(inputs))[0] if self.readings else {}
        )
        return self._pooled(logits, features)

    def _pooled(self, logits: Tensor, features: dict[Reading, Tensor]) -> Predictive:
        # Passes may run in fewer bits; of a distance such rounding would leave nothing.
        with torch.autocast(logits.device.type, enabled=False):
            features = {reading: metrics.precise(x) for reading, x in features.items()}
            groups = [readout(features) for readout in self.readouts]
            measured = [measure(features) for measure in self.distances]
            return self.pool([logits, *groups], torch.stack(measured) if measured else None)

    def extra_repr(self) -> str:
        """Shown by print(mixture)."""
        names = ["particles", *map(str, self.readouts)]
        weights = zip(names, self.pool.weights, strict=True)
        return (
            f"pool={self.pool.kind}, temperature={self.pool.temperature:.3f}, "
            f"{', '.join(f'{name}={weight:.3f}' for name, weight in weights)}, "
            f"distance={', '.join(str(reading) for reading, _ in self._distances) or None}"
        )

    # ------------------------------------------------------------ files

    def save(self, folder: str | Path) -> Path:
        """Write the particles as `Posterior.save` does, and beside them ``mixture.safetensors``.

        Raises:
            BellaError: the files cannot be written.
        """
        folder = self.posterior.save(folder)
        self.save_beside(folder)
        return folder

    def save_beside(self, folder: str | Path) -> None:
        """Write ``mixture.safetensors`` alone, into the folder that holds the particles."""
        tensors = {name: value.contiguous() for name, value in self.named_buffers(recurse=False)}
        record = {
            "format": FORMAT,
            "particles": particles_digest(self.posterior),
            "pool": self.pool.to_json(),
            "readouts": [[str(r) for r in readings] for readings in self._readouts],
            "distances": [[str(reading), slope] for reading, slope in self._distances],
            "places": [[p.name, p.leaf, p.role] for p in self.reader.places.values()],
            "figures": self.figures,
        }
        write_sealed(Path(folder) / FILE, tensors, record)


def check_pooled(said: Any) -> None:
    """Refuse what is not one distribution over classes for each example.

    Raises:
        BellaError: it is not.
    """
    if type(said) is not Predictive or said.logits.dim() != 3:
        raise BellaError(
            "A mixture is for one class an example, and not for tokens or pixels, several labels "
            "at once or numbers: predict with the posterior itself."
        )


def particles_digest(posterior: Posterior) -> str:
    """SHA-256 of the particles that a mixture was made for."""
    return digest(storage.own_tensors(posterior))


def is_there(folder: str | Path) -> bool:
    """Whether a folder holds a mixture."""
    return (Path(folder) / FILE).exists()


def read_mixture(folder: str | Path, posterior: Posterior) -> Mixture:
    """The mixture that a folder holds, around the particles that were loaded from there.

    Args:
        folder: what `Mixture.save` wrote; it may be a stranger's.
        posterior: its particles.

    Raises:
        BellaError: there is none, it is damaged, or it was made for other particles.
    """
    path = Path(folder) / FILE
    try:
        record, tensors = read_sealed(path)
    except FileNotFoundError:
        raise BellaError(f"{folder} holds no mixture: {FILE} is missing.") from None
    if record is None or record.get("format") != FORMAT:
        raise BellaError(
            f"{path} is not of the form that this version of bella writes: make the mixture again, "
            "or take the file away to predict with the particles alone."
        )
    if record.get("particles") != particles_digest(posterior):
        raise BellaError(
            f"{path} was made for other particles than lie beside it: make the mixture again, or "
            "take it away."
        )
    try:
        readouts = [
            Readout(
                tuple(map(Reading.parse, readings)),
                tensors[f"readout_{number}_weight"],
                tensors[f"readout_{number}_bias"],
            )
            for number, readings in enumerate(record["readouts"])
        ]
        distances = [
            Distance(
                Reading.parse(reading),
                tensors[f"distance_{number}_references"],
                tensors[f"distance_{number}_usual"],
                float(slope),
            )
            for number, (reading, slope) in enumerate(record["distances"])
        ]
        places = [Place(str(name), int(leaf), int(role)) for name, leaf, role in record["places"]]
        if not all(len(d.usual) == len(d.references) and 0 <= d.slope <= 1 for d in distances):
            raise ValueError("distances")
        pool, figures = Pool.from_json(record["pool"]), dict(record["figures"])
        known = dict(posterior.network.named_modules())
        strange = [place.name for place in places if place.name not in known]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BellaError(f"{path} is damaged: make the mixture again.") from error
    if strange:
        raise BellaError(f"{path} reads at {shown(strange[0])}, which the network does not have.")
    mixture = Mixture(posterior, pool, readouts, distances, places, figures)
    return mixture.to(next(posterior.parameters()).device)
