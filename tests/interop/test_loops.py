"""Trainer, Lightning and Accelerate train particles as `bella.fit` does."""

from __future__ import annotations

import functools
import os
import random

import numpy as np
import pytest
import torch
from fit_cases import assert_same, values
from text_cases import Sentences, language_model, loader, make, pad

import bella
from bella.training.optimizer import make_optimizer, make_schedule
from bella.training.settings import Settings
from bella.training.step import Step

hf = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")
pl = pytest.importorskip("lightning.pytorch")

from bella.interop.accelerate import Coupling as AccelerateCoupling  # noqa: E402
from bella.interop.lightning import Coupling as LightningCoupling  # noqa: E402
from bella.interop.trainer import Trainer  # noqa: E402

DATA = Sentences(10)
EPOCHS, PARTS, CLIP = 3, 2, 0.5
STEPS = 3  # an epoch: five batches of two sentences, two a step
CLOSE = {"rtol": 0, "atol": 1e-5}
SETTINGS = Settings(epochs=EPOCHS, learning_rate=0.02, clip=CLIP, accumulate=PARTS)


def moved_by(name, posterior):
    return bella.transport.by_name(name, posterior, data_size=len(DATA))


def parts(posterior):
    """The optimiser and schedule of `bella.fit`."""
    optimizer = make_optimizer(posterior, SETTINGS, None)
    return optimizer, make_schedule(optimizer, EPOCHS * STEPS, SETTINGS.warmup)


@functools.cache
def fitted(name="repulsive", precision="no"):
    posterior = make(DATA)
    bella.fit(
        posterior,
        loader(DATA),
        epochs=EPOCHS,
        learning_rate=0.02,
        clip=CLIP,
        accumulate=PARTS,
        transport=name,
        precision=precision,
        coupling_warmup=0,
        cache_prefix=False,
        progress=False,
    )
    return posterior


def far_from_start(posterior, least=0.01):
    start = values(make(DATA))
    return all((v - start[k]).abs().max() > least for k, v in values(posterior).items())


# ---------------------------------------------------------------- transformers' Trainer


def arguments(folder, **options):
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": PARTS,
        "num_train_epochs": EPOCHS,
        "max_grad_norm": CLIP,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
    } | options
    return hf.TrainingArguments(str(folder), **options)


def trainer_of(folder, posterior, name="repulsive", **options):
    return Trainer(
        posterior,
        arguments(folder, **options),
        train_dataset=DATA,
        eval_dataset=DATA,
        data_collator=pad,
        move=moved_by(name, posterior),
        optimizers=parts(posterior),
    )


@pytest.mark.parametrize("name", ["repulsive", "svgd"])
def test_the_trainer_goes_the_way_of_fit(tmp_path, name):
    posterior = make(DATA)
    trainer_of(tmp_path, posterior, name).train()
    assert far_from_start(posterior)
    assert_same(posterior, fitted(name), **CLOSE)


def test_the_trainer_s_log_is_the_mean_over_particles(tmp_path):
    posterior = make(DATA)
    logits = posterior(**{k: v for k, v in pad(list(DATA)).items() if k != "labels"}).logits
    mean = bella.nll(logits, pad(list(DATA))["labels"], likelihood="tokens") / 3
    trainer = trainer_of(
        tmp_path,
        posterior,
        per_device_train_batch_size=10,
        gradient_accumulation_steps=1,
        max_steps=1,
        logging_strategy="steps",
        logging_steps=1,
    )
    trainer.train()
    said = trainer.state.log_history[0]
    assert said["loss"] == pytest.approx(float(mean.detach()), abs=1e-4)
    assert said["grad_norm"] > 0


def test_the_trainer_resumes_to_the_same_bits(tmp_path):
    whole, stopped, resumed = make(DATA), make(DATA), make(DATA)
    trainer_of(tmp_path / "whole", whole).train()
    saving = {"save_strategy": "steps", "save_steps": 4}
    trainer_of(tmp_path / "parts", stopped, **saving).train()
    folder = tmp_path / "parts" / "checkpoint-4"
    assert not (folder / "model.safetensors").exists()  # the base is not in it
    trainer = trainer_of(tmp_path / "rest", resumed)
    trainer.train(resume_from_checkpoint=str(folder))
    assert trainer.step.number == trainer.move.steps == EPOCHS * STEPS
    assert_same(stopped, whole)
    assert_same(resumed, whole)


def test_a_checkpoint_of_the_trainer_is_a_saved_posterior(tmp_path):
    posterior = make(DATA)
    trainer_of(tmp_path, posterior, save_strategy="epoch").train()
    loaded = bella.load(
        tmp_path / f"checkpoint-{EPOCHS * STEPS}", language_model(len(DATA.vocabulary))
    )
    assert_same(loaded, posterior)


def test_the_trainer_evaluates_the_predictive(tmp_path):
    posterior = make(DATA)
    seen = {}

    def figures(prediction):
        seen["logits"], seen["labels"] = prediction
        return {}

    trainer = trainer_of(tmp_path, posterior, per_device_eval_batch_size=10)
    trainer.compute_metrics = figures
    found = trainer.evaluate()
    expected = bella.evaluate(posterior, loader(DATA, 10))
    assert found["eval_loss"] == pytest.approx(expected["nll"], abs=1e-5)
    assert seen["logits"].shape[:2] == seen["labels"].shape  # (sentences, tokens), no particles
    assert np.exp(seen["logits"]).sum(-1) == pytest.approx(1, abs=1e-4)


def test_the_trainer_s_own_optimiser_decays_what_the_posterior_lets_decay(tmp_path):
    posterior = bella.rank1(make(DATA).soup(), 2, target_modules=("c_fc",))
    trainer = Trainer(
        posterior,
        arguments(tmp_path, weight_decay=0.1, max_steps=1),
        train_dataset=DATA,
        data_collator=pad,
        move=bella.transport.ensemble(posterior, data_size=len(DATA)),
    )
    trainer.train()
    decays = {group["weight_decay"] for group in posterior.parameter_groups(0.1)}
    assert {g["weight_decay"] for g in trainer.optimizer.optimizer.param_groups} == decays
    assert len(decays) == 2


def test_what_would_undo_the_coupling_in_the_trainer_is_refused(tmp_path):
    posterior = make(DATA)
    move = moved_by("repulsive", posterior)
    with pytest.raises(bella.BellaError, match="leave out label_smoothing_factor"):
        Trainer(posterior, arguments(tmp_path, label_smoothing_factor=0.1), move=move)
    with pytest.raises(bella.BellaError, match="leave out compute_loss_func"):
        Trainer(posterior, arguments(tmp_path), move=move, compute_loss_func=bella.nll)
    several = arguments(tmp_path)
    several._n_gpu = 2
    with pytest.raises(bella.BellaError, match="in 2 processes"):
        Trainer(posterior, several, move=move)
    with pytest.raises(bella.BellaError, match="must be a posterior"):
        Trainer(posterior.network, arguments(tmp_path), move=move)
    with pytest.raises(bella.BellaError, match="made for it"):
        Trainer(make(DATA), arguments(tmp_path), move=move)


def test_a_trainer_that_steps_without_coupling_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda self, model, grad_norm=None: None)
    with pytest.raises(bella.BellaError, match="made 1 steps and coupled the particles in 0"):
        trainer_of(tmp_path, make(DATA)).train()


# ---------------------------------------------------------------- Lightning


class Module(pl.LightningModule):
    def __init__(self, posterior, coupling):
        super().__init__()
        self.posterior, self.coupling = posterior, coupling

    def training_step(self, batch, number):
        labels = batch.pop("labels")
        return self.coupling.loss(self.posterior(**batch), labels)

    def configure_optimizers(self):
        optimizer, schedule = parts(self.posterior)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def lightning_of(folder, coupling, epochs=EPOCHS, **options):
    return pl.Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "max_epochs": epochs,
            "accumulate_grad_batches": PARTS,
            "callbacks": [coupling],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        | options
    )


def with_lightning(folder, name="repulsive", **options):
    posterior = make(DATA)
    coupling = LightningCoupling(moved_by(name, posterior), clip=CLIP)
    lightning_of(folder, coupling, **options).fit(Module(posterior, coupling), loader(DATA))
    return posterior


def test_lightning_goes_the_way_of_fit(tmp_path):
    posterior = with_lightning(tmp_path)
    assert far_from_start(posterior)
    assert_same(posterior, fitted(), **CLOSE)


def test_lightning_resumes_to_the_same_bits(tmp_path):
    whole = with_lightning(tmp_path)
    first = make(DATA)
    coupling = LightningCoupling(moved_by("repulsive", first), clip=CLIP)
    trainer = lightning_of(tmp_path, coupling, epochs=2)
    trainer.fit(Module(first, coupling), loader(DATA))
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    rest = make(DATA)
    coupling = LightningCoupling(moved_by("repulsive", rest), clip=CLIP)
    lightning_of(tmp_path, coupling).fit(
        Module(rest, coupling), loader(DATA), ckpt_path=tmp_path / "two.ckpt"
    )
    assert coupling.step.number == coupling.move.steps == EPOCHS * STEPS
    assert_same(rest, whole)


def test_lightning_s_fp16_is_unscaled_before_particles_are_coupled(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    posterior = with_lightning(
        tmp_path, "svgd", plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
    )
    assert scaler.get_scale() == 2.0**10  # no step was left out
    plain = with_lightning(tmp_path, "svgd")
    start = values(make(DATA))
    for name, value in values(posterior).items():
        far = (values(plain)[name] - start[name]).norm()
        assert (value - values(plain)[name]).norm() < 0.1 * far


def test_what_would_undo_the_coupling_in_lightning_is_refused(tmp_path):
    with pytest.raises(bella.BellaError, match="give clip to this callback"):
        with_lightning(tmp_path, gradient_clip_val=1.0)
    posterior = make(DATA)
    coupling = LightningCoupling(moved_by("repulsive", posterior))
    with pytest.raises(bella.BellaError, match="has not begun"):
        coupling.loss(torch.zeros(3, 2, 4), torch.zeros(2, dtype=torch.long))


# ---------------------------------------------------------------- Accelerate


def accelerated(name="repulsive", epochs=EPOCHS, folder=None, after=0, **options):
    """The loop that the docs show; it goes on from a folder's state, or leaves one there."""
    posterior = make(DATA)
    theirs = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=PARTS, **options)
    optimizer, schedule = parts(posterior)
    posterior, optimizer, batches = theirs.prepare(posterior, optimizer, loader(DATA))
    coupling = AccelerateCoupling(theirs, moved_by(name, posterior), optimizer, clip=CLIP)
    theirs.register_for_checkpointing(coupling, schedule)
    if after:
        theirs.load_state(folder)
    posterior.train()
    for _ in range(after, epochs):
        for batch in batches:
            with theirs.accumulate(posterior):
                labels = batch.pop("labels")
                theirs.backward(coupling.loss(posterior(**batch), labels))
                coupling.ready()
                optimizer.step()
                optimizer.zero_grad()
            if theirs.sync_gradients:
                schedule.step()
    if folder and not after:
        theirs.save_state(folder)
    assert coupling.step.number == STEPS * epochs
    return posterior


@pytest.mark.parametrize("name", ["ensemble", "repulsive", "svgd", "function"])
def test_accelerate_goes_the_way_of_fit(name):
    posterior = accelerated(name)
    assert far_from_start(posterior)
    assert_same(posterior, fitted(name), **CLOSE)


def test_accelerate_goes_the_way_of_fit_in_bfloat16():
    # Adam makes a step of a gradient's sign where bfloat16 rounds it away: near, not equal.
    start, theirs = values(make(DATA)), values(accelerated(mixed_precision="bf16"))
    plain, ours = values(fitted()), values(fitted(precision="bf16"))
    for name, value in theirs.items():
        assert (value - ours[name]).norm() < 0.1 * (ours[name] - start[name]).norm()
        assert not torch.equal(value, plain[name])


def test_accelerate_resumes_to_the_same_bits(tmp_path):
    whole = accelerated()
    accelerated(epochs=2, folder=tmp_path)
    assert_same(accelerated(folder=tmp_path, after=2), whole)


def test_nothing_of_the_process_is_touched():
    theirs = accelerate.Accelerator(cpu=True)
    posterior, given = make(DATA), loader(DATA)
    optimizer, _ = parts(posterior)
    prepared = theirs.prepare(given)
    batches = list(prepared)

    def state():
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(),
            dict(os.environ),
            dict(theirs.state.__dict__),
            dict(theirs.gradient_state.__dict__),
            given.__dict__,
        )

    before = state()
    coupling = AccelerateCoupling(theirs, moved_by("repulsive", posterior), optimizer)
    for batch in batches:
        labels = batch.pop("labels")
        theirs.backward(coupling.loss(posterior(**batch), labels))
        coupling.ready()
        optimizer.step()
        optimizer.zero_grad()
    assert state() == before
    assert far_from_start(posterior, 1e-3)


# ---------------------------------------------------------------- what they share


def test_an_optimiser_of_other_parameters_is_refused():
    posterior = make(DATA)
    other = torch.optim.SGD(make(DATA).parameter_groups(0.0), lr=0.1)
    theirs = accelerate.Accelerator(cpu=True)
    with pytest.raises(bella.BellaError, match="none of the posterior's particles"):
        AccelerateCoupling(theirs, moved_by("repulsive", posterior), other)


def test_the_state_of_another_loop_is_refused():
    posterior = make(DATA)
    optimizer, _ = parts(posterior)
    step = Step(posterior, optimizer, moved_by("repulsive", posterior))
    for wrong in ({}, {"step": 1}, step.state_dict() | {"movers": [{}]}):
        with pytest.raises(bella.BellaError):
            step.load_state_dict(wrong)
