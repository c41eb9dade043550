"""The sampler of `bella.evaluation.reference`: No-U-Turn sampling, in a process of its own.

    python -m bella.evaluation.nuts FOLDER

reads ``target.safetensors`` and ``target.json`` there and writes ``draws.safetensors`` and
``draws.json``. NumPyro samples, compiled by JAX in double precision, all chains at once. JAX has
threads and a process-wide precision that the networks' process shall not have, so it stays here.

Source:
    Hoffman & Gelman 2014, The No-U-Turn sampler; split R-hat and effective sample size: Gelman et
    al., Bayesian Data Analysis, chapter 11.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

BLOCKS = 10
"""Parts in which draws are taken, each told to who waits."""


def main(folder: Path) -> None:
    """Sample the target of a folder."""
    import jax
    from safetensors.numpy import load_file, save_file

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    arrays = load_file(folder / "target.safetensors")
    asked = json.loads((folder / "target.json").read_text())
    begun = time.perf_counter()
    draws, facts = sample(arrays, asked)
    figures = diagnose(arrays, asked, draws)
    save_file({name: as_numpy(x) for name, x in draws.items()}, folder / "draws.safetensors")
    told = facts | figures | {"seconds": time.perf_counter() - begun, "versions": versions()}
    (folder / "draws.json").write_text(json.dumps(told, indent=2) + "\n")


def sample(arrays: dict[str, Any], asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws of every parameter, (chains, draws, ...), with their log density; and what happened."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer import MCMC, NUTS

    log_density = log_density_of(arrays, asked)
    kernel = NUTS(
        potential_fn=lambda theta: -log_density(theta),
        max_tree_depth=asked["max_tree_depth"],
        dense_mass=asked["dense_metric"],
        target_accept_prob=0.8,
    )
    chains, blocks = asked["chains"], min(BLOCKS, asked["draws"])
    keys = jax.random.split(jax.random.PRNGKey(asked["seed"]), len(asked["shapes"]) + blocks + 1)
    # Starts are draws of the prior: far apart, or R-hat would say little.
    start = {
        name: asked["prior_std"] * jax.random.normal(key, (chains, *shape))
        for key, (name, shape) in zip(keys, asked["shapes"].items(), strict=False)
    }
    run = MCMC(
        kernel,
        num_warmup=asked["warmup"],
        num_samples=1,  # drawn below
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    run.warmup(keys[-1], init_params=start, collect_warmup=False)
    state = jax.block_until_ready(run.post_warmup_state)
    tell("warmed up")

    def one(state: Any, _: None) -> tuple[Any, Any]:
        state = kernel.sample(state, (), {})
        return state, (state.z, state.potential_energy, state.diverging, state.num_steps)

    # Compiled once for all blocks: MCMC.run compiles anew at every call, for as long as it draws.
    length = -(-asked["draws"] // blocks)
    advance = jax.jit(lambda state: jax.lax.scan(one, state, None, length))
    found = []
    for block in range(blocks):
        own = jax.random.split(keys[len(start) + block], chains)
        state, drawn = jax.block_until_ready(advance(state._replace(rng_key=own)))
        found.append(jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drawn))  # chains first
        tell("block")
    z, energy, diverging, steps = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *found)
    draws = {**z, "log_density": -energy}
    return draws, {
        "divergences": int(diverging.sum()),
        "leapfrog_steps": float(steps.mean()),
        "draws": int(energy.size),
    }


# ------------------------------------------------------------ the target


def log_density_of(arrays: dict[str, Any], asked: dict[str, Any]) -> Any:
    """Σ log p(y | x, θ) + log N(θ; 0, prior_std²), a function of θ by name.

    The same formula as `bella.evaluation.reference.Target.log_density`, which checks it.
    """
    import jax
    import jax.numpy as jnp

    x, y = jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"])
    std, variance = asked["prior_std"], asked["variance"]
    outputs = outputs_of(arrays)

    def log_density(theta: dict[str, Any]) -> Any:
        said = outputs(theta, x)
        if variance is None:
            fit = jnp.take_along_axis(jax.nn.log_softmax(said), y[:, None], 1).sum()
        else:
            square = (y - said[:, 0]) ** 2 / variance
            fit = -0.5 * (square + jnp.log(2 * jnp.pi * variance)).sum()
        prior = sum(
            -0.5 * ((value / std) ** 2 + jnp.log(2 * jnp.pi * std**2)).sum()
            for value in theta.values()
        )
        return fit + prior

    return log_density


def outputs_of(arrays: dict[str, Any]) -> Any:
    """The network: a head on the inputs, or on tanh((W0 + B A) x)."""
    import jax.numpy as jnp

    base = jnp.asarray(arrays["base"]) if "base" in arrays else None

    def outputs(theta: dict[str, Any], x: Any) -> Any:
        if base is not None:
            x = jnp.tanh(x @ (base + theta["B"] @ theta["A"]).T)
        return x @ theta["head"].T

    return outputs


# ------------------------------------------------------------ what the draws are worth


def diagnose(
    arrays: dict[str, Any], asked: dict[str, Any], draws: dict[str, Any]
) -> dict[str, Any]:
    """R-hat and effective sample size of what no gauge changes: Δ, and what is said of the test.

    Factors are free up to an invertible r x r matrix, so theirs would say nothing.
    """
    import jax
    import jax.numpy as jnp
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    theta = {name: draws[name] for name in asked["shapes"]}
    x = jnp.asarray(arrays["test_x"])
    outputs = outputs_of(arrays)

    def said(one: dict[str, Any]) -> Any:
        out = outputs(one, x)
        return (out if asked["variance"] is not None else jax.nn.log_softmax(out)).reshape(-1)

    each = jax.jit(jax.vmap(said))
    flat = {
        "predictions": jnp.stack(
            [each({k: v[c] for k, v in theta.items()}) for c in range(asked["chains"])]
        )
    }
    if "B" in theta:
        delta = jnp.einsum("cdor,cdri->cdoi", theta["B"], theta["A"])
        flat["delta"] = delta.reshape(*delta.shape[:2], -1)
    flat["head"] = theta["head"].reshape(*theta["head"].shape[:2], -1)
    found: dict[str, Any] = {}
    for name, values in flat.items():
        r_hat = split_gelman_rubin(as_numpy(values))
        size = effective_sample_size(as_numpy(values))
        found[name] = {
            "r_hat_max": float(r_hat.max()),
            "ess_min": float(size.min()),
            "ess_mean": float(size.mean()),
        }
    return {"diagnostics": found}


def as_numpy(x: Any) -> Any:
    """A contiguous array in the memory of numpy."""
    import numpy as np

    return np.ascontiguousarray(np.asarray(x))


def versions() -> dict[str, str]:
    """Of what sampled."""
    import jax
    import numpyro

    return {"numpyro": numpyro.__version__, "jax": jax.__version__}


def tell(what: str) -> None:
    """One line for who waits."""
    print(what, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
