"""What several processes say to each other, on paper: `python docs/scale.py` prints the table of
docs/scale.md, `python docs/scale.py measure 4` counts the bytes of real processes on this machine.

One step of `repulsive`. Payloads are what a process gives to a message; on the wire a gathering of
b bytes brings each of W processes (W - 1) b, and a sum of b bytes sends and brings 2 (W - 1) / W b.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FLOAT = 4  # bytes of factors, gradients and Grams


@dataclass(frozen=True)
class Setting:
    """Who trains what.

    Attributes:
        particles: n.
        layers: adapted layers, of equal rank.
        factors: numbers in all factors of one particle.
        copied: numbers of one particle's heads.
        particle_processes: that share out the particles.
        data_processes: that share out the examples, of each set of particles.
    """

    particles: int
    layers: int
    factors: int
    copied: int = 0
    particle_processes: int = 1
    data_processes: int = 1

    @property
    def own(self) -> int:
        """Particles of one process."""
        return -(-self.particles // self.particle_processes)


def gathered(s: Setting) -> int:
    """Bytes that one process gives to the gatherings of one step."""
    if s.particle_processes == 1:
        return 0
    factors = 2 * FLOAT * s.own * s.factors  # for the distances, and again for the forces
    grams = FLOAT * s.layers * s.own * s.particles
    sizes = FLOAT * s.layers * s.own
    losses = FLOAT * s.own
    return factors + grams + sizes + losses


def summed_over_particles(s: Setting) -> int:
    """Bytes that one process gives to sums over those with other particles."""
    if s.particle_processes == 1:
        return 0
    means = FLOAT * (s.factors + s.copied)  # for the Stein ratio
    figures = 3 * FLOAT  # the ratio, gradient and repulsion
    finite = 8
    return means + figures + finite


def summed_over_examples(s: Setting) -> int:
    """Bytes that one process gives to sums over those with other examples."""
    if s.data_processes == 1:
        return 0
    gradients = FLOAT * s.own * (s.factors + s.copied)
    counts = losses = FLOAT * s.own
    return gradients + counts + losses


def on_the_wire(s: Setting) -> float:
    """Bytes that arrive at one process in one step, by ring algorithms."""
    p, d = s.particle_processes, s.data_processes
    return (
        (p - 1) * gathered(s)
        + 2 * (p - 1) / p * summed_over_particles(s)
        + 2 * (d - 1) / d * summed_over_examples(s)
    )


def coupling_flops(s: Setting, rank: int) -> float:
    """Multiplications and additions of one process for Grams, forces, and the Grams of the forces:
    2 r (factors) for a pair of particles, three times."""
    return 3 * 2.0 * s.own * s.particles * rank * s.factors


# ------------------------------------------------------------ 1,000 particles of a 70B base

LAYERS, WIDTH, KEYS, WEIGHTS = 80, 8192, 1024, 70.6e9
RANK, PARTICLES, TOKENS = 8, 1000, 16 * 512
FACTORS = LAYERS * RANK * ((WIDTH + WIDTH) + (WIDTH + KEYS))  # q_proj and v_proj
BF16 = 2
GPU = {"memory": 80e9, "flops": 400e12, "float32": 50e12, "near": 450e9, "far": 50e9}
"""An H100: bytes, multiplications in bfloat16 as large networks reach them and in float32, and
bytes a second within a machine of eight and between machines."""


def table() -> str:
    """The table of docs/scale.md, in Markdown."""
    rows = [
        "| | 8 GPUs | 64 GPUs | 512 GPUs |",
        "|---|---|---|---|",
    ]
    found = []
    for count in (8, 64, 512):
        s = Setting(PARTICLES, 2 * LAYERS, FACTORS, particle_processes=count)
        wire = GPU["near"] if count == 8 else GPU["far"]
        base = BF16 * WEIGHTS / count
        block = 2 * BF16 * WEIGHTS / LAYERS
        state = 4 * FLOAT * FACTORS * s.own
        kept = LAYERS * TOKENS * WIDTH * BF16  # of one particle: inputs of blocks, recomputed
        at_once = max(1, int((GPU["memory"] * 0.9 - base - block - state - 2**31) // kept))
        at_once = min(at_once, s.own)
        passes = -(-s.own // at_once)
        flops = 6 * WEIGHTS * TOKENS * s.own  # forward, again in backward, and by activations
        gathers = 2 * passes * BF16 * WEIGHTS * (1 - 1 / count)
        found.append(
            {
                "particles a process": f"{s.own}",
                "base, a share (bf16)": f"{base / 1e9:.1f} GB",
                "factors, gradients, Adam's moments": f"{state / 1e9:.1f} GB",
                "particles a pass that fit (blocks recomputed)": f"{at_once}",
                "passes a step": f"{passes}",
                "multiplying": f"{flops / GPU['flops']:.0f} s",
                "base gathered, a process": f"{gathers / 1e12:.2f} TB, {gathers / wire:.0f} s",
                "coupling, a process receives": f"{on_the_wire(s) / 1e9:.0f} GB, "
                f"{on_the_wire(s) / wire:.1f} s",
                "coupling, Grams and forces": f"{coupling_flops(s, RANK) / GPU['float32']:.2f} s",
            }
        )
    for name in found[0]:
        rows.append(f"| {name} | " + " | ".join(column[name] for column in found) + " |")
    return "\n".join(rows)


# ------------------------------------------------------------ measured here


def received() -> int:
    """Bytes that came over the loopback device of this network namespace so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[0])
    raise OSError("no loopback device")


def measure(processes: int) -> None:
    """Steps of real processes, in a network namespace of their own where that is allowed."""
    tests = Path(__file__).parents[1] / "tests" / "cases"
    for particle_processes in {1, 2, processes}:
        program = (
            f"import sys; sys.path.insert(0, {str(tests)!r})\n"
            "import parallel_cases, torch\n"
            f"found = parallel_cases.weighed({particle_processes}, 512, 8)\n"
            "import os\n"
            "if os.environ['RANK'] == '0': print(*found['arrived'], sep='\\n')\n"
        )
        port = str(29000 + (os.getpid() + particle_processes) % 1000)
        said = [
            os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            for rank in range(processes)
        ]
        running = [
            subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE)
            for env in said
        ]
        counted = [int(x) for x in running[0].communicate()[0].split()]
        for process in running[1:]:
            process.wait()
        s = Setting(
            particles=8,
            layers=2,
            factors=2 * 8 * (512 + 512),
            copied=513 * 3,
            particle_processes=particle_processes,
            data_processes=processes // particle_processes,
        )
        paper = processes * on_the_wire(s)
        for count in counted:
            print(
                f"{processes} processes, {particle_processes} share particles: on paper "
                f"{paper:,.0f} bytes a step, arrived {count:,}, {count / paper:.3f} of it"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        if "ALONE" not in os.environ:
            command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$0" "$@"']
            env = os.environ | {"ALONE": "1"}
            done = subprocess.run([*command, sys.executable, *sys.argv], env=env, check=False)
            sys.exit(done.returncode)
        begun = time.time()
        measure(int(sys.argv[2]))
        print(f"{time.time() - begun:.0f} s")
    else:
        print(table())
