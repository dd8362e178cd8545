"""The engine: load, loss, backward, guard, clip, step, average, log; then evaluate, sample, save.

Both trainers run through it. A step's micro-batches are prepared first, so that every loss is divided by what it is
averaged over in the WHOLE step, over all micro-batches and processes: 8 x 1 pictures teach the same as 2 x 4.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unitok.data.loader import BadPictures, make_loader
from unitok.data.records import RecordDataset
from unitok.device import autocast, keep_freed_memory, return_freed_memory
from unitok.processes.world import World
from unitok.seeding import fold
from unitok.tuning.quantized import held_in_few_bits

from .before_step import agree, load_step
from .checkpoint import TrainState, keep_newest, load, read_about
from .config import OptimConfig, RunConfig
from .folder import DATA, RunFolder, environment, flatten
from .guard import Guard
from .log import RunLog, Speed, plot_losses
from .optim import AveragedWeights, build_opponent_optimizer, build_optimizers, learning_rate
from .parallel.choice import spread
from .parallel.replicas import Replicas
from .saving.saver import Saver
from .signals import StopRequest
from .trainee import Trainee

RETURN_EVERY = 100
"""Steps on a CPU between two returns of freed memory, which cost a fraction of a step each."""


def train(
    trainee: Trainee,
    dataset: RecordDataset,
    folder: RunFolder,
    settings: dict[str, Any],
    optim: OptimConfig,
    run: RunConfig,
    world: World,
) -> dict[str, Any]:
    """Runs to the end, or to a signal (then it saves and raises SystemExit). Returns what run.json says at the end.

    A run that is finished is left as it is.

    Raises:
        UserError: settings that do not fit the checkpoint, too many broken pictures, a loss that is not finite, a full
            disk.
    """
    if world.device.type == "cpu":
        keep_freed_memory()
    micro_batch = run.micro_batch_for(world.size)
    micro_batches = run.batch_size // world.size // micro_batch
    data = world.agreed(dataset.fingerprint, "pictures or captions")
    settings = {**settings, "pictures": len(dataset), DATA: data}
    newest = world.from_main(lambda: folder.newest)
    if newest:
        world.from_main(lambda: folder.check_settings(settings, newest))

    world.doing = "the building of the model"
    parallel, why = spread(trainee, optim, run, world)
    model, opponent = parallel.model, trainee.opponent
    optimizers = build_optimizers(model, optim)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    weights = [weight for group in groups for weight in group["params"]]
    learners: nn.Module = model
    opponent_weights: list[nn.Parameter] = []
    if opponent:
        optimizers.append(build_opponent_optimizer(opponent))
        opponent_weights = list(opponent.network.parameters())
        learners = nn.ModuleDict({"model": model, "opponent": opponent.network})
    state = TrainState(learners, AveragedWeights(model, optim.ema), optimizers, step=0, sums={})
    resumed_at: int | None = None
    numbers: dict[str, Any] = {}
    unreadable: dict[int, tuple[str, str]] = {}
    before = 0.0  # seconds of earlier processes, up to their last checkpoint
    if newest:
        about = world.together(lambda: load(newest, state))
        resumed_at = state.step
        state.sums = {name: total / world.size for name, total in state.sums.items()}  # those of all processes
        numbers, before = about["numbers"], about["seconds"]
        unreadable = {int(index): (name, reason) for index, (name, reason) in about["unreadable"].items()}
        done = world.from_main(lambda: folder.finished(state.step) if state.step >= run.steps else None)
        with parallel.showing(state.average):
            whole = done and world.from_main(lambda: trainee.exported(folder.path))
        if done and whole:
            if world.is_main:
                more = f", more than run.steps {run.steps}" if state.step > run.steps else ""
                print(f"{folder.path} is finished after {state.step} steps{more}: nothing to do", file=sys.stderr)
            return done
    if run.checkpointing:
        recompute_activations(model)
    if run.compile:
        parallel.compile()
    parallel.start()
    bad = world.together(lambda: BadPictures(len(dataset), run.max_bad, dataset.left_out))
    bad.reasons.update(unreadable)
    guard = Guard(state.optimizers, world, late=world.device.type == "cuda" and isinstance(parallel, Replicas))

    world.wait()  # nobody writes before everybody has looked
    started = time.perf_counter()
    facts = {
        "kind": type(trainee).__name__,
        "parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
    }
    if world.is_main:
        folder.open()
        folder.describe(settings, **facts, processes=world.size, finished=False)

    with (
        RunLog(folder if world.is_main else None, run.steps, state.step) as log,
        StopRequest() as stop,
        Saver(trainee, parallel, folder, run, world, log.say, resumed_at) as saver,
    ):
        _announce(log, folder, model, newest, run, world, parallel.name, why)
        batches = make_loader(
            dataset,
            seed=run.seed,
            batch_size=run.batch_size,
            micro_batch=micro_batch,
            rank=world.rank,
            world=world.size,
            start_step=state.step,
            workers=_workers(run, world),
            transform=trainee.transform,
            finish=trainee.finish,
        )
        with parallel.showing(state.average), autocast(world.device, run.precision):
            trainee.evaluate(pictures=2 * world.size)  # what is broken here shows in the first minute
        speed = Speed()

        def taken() -> float:
            return round(before + time.perf_counter() - started, 1)

        def save_now(last: bool) -> None:
            world.doing = f"the checkpoint of step {state.step}"
            guard.settle()
            met = world.gather(bad.reasons)
            about = {"settings": settings, "numbers": _plain(numbers), "unreadable": _union(met), **environment()}
            about["seconds"] = taken()
            whole = replace(state, sums=world.sum_all(state.sums) if state.sums else {})
            saver.save(whole, about, last)

        if state.step >= run.steps:  # killed between the last checkpoint and the end
            if world.is_main:
                keep_newest(folder.checkpoints, state.step, run.keep)
            saver.export(state)
        while state.step < run.steps:
            step = state.step
            world.doing = f"step {step + 1}"
            torch.manual_seed(fold(run.seed, "step", step, world.rank))

            # load
            if not model.training:
                learners.train()
            micros, error = load_step(trainee, batches, bad, micro_batches, step)
            totals, stopping, usable = agree(trainee, micros, error or saver.error, stop, world, speed)
            if stopping:
                if saver.newest == step:
                    saver.wait()
                else:
                    save_now(last=True)
                log.say(
                    f"stopped by a signal after step {step} of {run.steps}, saved in {folder.path}:"
                    " repeat the command with --resume to go on"
                )
                raise SystemExit(128 + stopping)
            if not usable:
                log.say(f"step {step + 1} is skipped: a process has no readable picture for it")
            else:
                # loss, backward
                losses = []
                passes = micro_batches if parallel.in_step else len(micros)
                for index in range(passes):
                    last, counts = index == passes - 1, index < len(micros)
                    micro = micros[index if counts else 0]  # one without a readable picture: a pass that counts nothing
                    with parallel.exchanging(last), autocast(world.device, run.precision):
                        loss, sums = trainee.loss(parallel.forward, micro.data, totals, last)
                        # Gradients are averaged over processes; the loss is a share of the whole step's. One that is
                        # not finite makes the gradient so, which all processes see.
                        (loss * ((world.size if counts else 0) + 0 * loss.detach())).backward()
                    if counts:
                        losses.append(loss.detach())
                        _add(state.sums, sums)
                # guard, clip
                longest = optim.clip or float("inf")
                norm = parallel.clip(weights, longest)
                world.average_gradients(opponent_weights)  # the model's are averaged already
                opponent_norm = nn.utils.clip_grad_norm_(opponent_weights, longest)
                guard.check(step + 1, norm + opponent_norm, losses, [micro.names for micro in micros])
                # step, average
                rate = learning_rate(step, run.steps, optim)
                for group in groups:
                    group["lr"] = rate
                if opponent:
                    for group in optimizers[-1].param_groups:
                        group["lr"] = rate / optim.lr * opponent.lr
                for optimizer in state.optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                state.average.update(step)
                _add(
                    state.sums,
                    {
                        "step.loss": torch.stack(losses).sum(),
                        "step.grad_norm": norm.detach() / world.size,
                        "step.count": torch.tensor(1 / world.size),
                    },
                )
            state.step = step = step + 1

            if step % RETURN_EVERY == 0 and world.device.type == "cpu":
                return_freed_memory()

            # log
            log.advance(step)
            if step % run.log_every == 0 or step == run.steps:
                guard.settle()
                numbers = _interval(trainee, state, world, speed)
                log.numbers("train", step, {**numbers, "lr": groups[0]["lr"]})
                for notice in trainee.notices(step, numbers):
                    log.say(f"warning: {notice}")
            # evaluate, sample, save
            if _due(step, run.eval_every, run.steps):
                world.doing = f"the evaluation after step {step}"
                with speed.pause(), parallel.showing(state.average), autocast(world.device, run.precision):
                    validation = trainee.evaluate(run.eval_pictures)
                if validation:
                    log.numbers("val", step, validation)
                    numbers |= {f"val {name}": value for name, value in validation.items()}
            if _due(step, run.sample_every, run.steps):
                world.doing = f"the pictures after step {step}"
                with speed.pause(), parallel.showing(state.average):
                    path = folder.samples / f"step-{step:08d}.png"
                    world.from_main(partial(trainee.draw, path))
                if world.is_main and path.exists():
                    log.picture(step, path)
            if _due(step, run.save_every, run.steps):
                with speed.pause():
                    save_now(last=step == run.steps)

        guard.settle()
        facts |= {"processes": world.size, "steps": state.step, "seconds": taken(), "numbers": _plain(numbers)}
        facts["unreadable_pictures"] = len(_union(world.gather(bad.reasons)))
        facts |= {"peak_memory_gb": round(_peak_memory(world.device) / 1e9, 2), "finished": True}
        if world.is_main:
            plot_losses(folder.log, folder.path / "loss.png")
            folder.describe(settings, **facts)
        world.wait()
    return facts


def recompute_activations(model: nn.Module) -> None:
    """Turns on activation checkpointing in every part of the model that has the switch."""
    for module in model.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = True  # type: ignore[assignment]


def _union(met: list[dict[int, tuple[str, str]]]) -> dict[str, tuple[str, str]]:
    """The unreadable pictures that the processes have met, by number, for JSON."""
    return {str(index): reason for index, reason in sorted({k: v for part in met for k, v in part.items()}.items())}


def _plain(numbers: dict[str, Any]) -> dict[str, Any]:
    """Numbers for JSON, which knows no infinity (the PSNR of equal pictures): null."""
    return {name: value if value is None or math.isfinite(value) else None for name, value in numbers.items()}


def _add(sums: dict[str, torch.Tensor], more: dict[str, torch.Tensor]) -> None:
    for name, value in more.items():
        value = value.detach().double()
        sums[name] = sums[name] + value if name in sums else value


def _interval(trainee: Trainee, state: TrainState, world: World, speed: Speed) -> dict[str, float]:
    """The numbers since the last log entry; starts the next interval."""
    if not state.sums:
        return {}
    waited = speed.waited  # a time, which does not go into checkpoints
    seconds = speed.lap()
    sums = world.sum_all({**state.sums, "waited": torch.tensor(waited / seconds / world.size)})
    state.sums.clear()
    steps = sums["step.count"]
    numbers = {"loss": float(sums["step.loss"] / steps)}
    for name, value in trainee.summarise(sums).items():
        numbers[name] = value / seconds if name.endswith("/s") else value
    numbers["grad_norm"] = float(sums["step.grad_norm"] / steps)
    if world.size > 1:
        numbers["waiting"] = float(sums["waited"])
    return numbers


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def _workers(run: RunConfig, world: World) -> int:
    if run.workers is not None:
        return run.workers
    if world.device.type == "cpu":
        return 0
    import os

    return max(1, min(8, (os.cpu_count() or 1) // world.size - 1))


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _announce(
    log: RunLog,
    folder: RunFolder,
    model: nn.Module,
    newest: Path | None,
    run: RunConfig,
    world: World,
    parallel: str,
    why: str,
) -> None:
    with autocast(world.device, run.precision):
        precision = "bf16" if torch.is_autocast_enabled(world.device.type) else "fp32"
    how = f", {parallel}" if world.size > 1 else ""
    log.say(f"training on {world.size} x {world.device.type}{how}, {precision}, {run.batch_size} pictures per step")
    if why:
        log.say(f"run.parallel auto is {parallel}: {why}")
    trained, still = (
        sum(w.numel() for w in model.parameters() if w.requires_grad is learns) for learns in (True, False)
    )
    numbers, size = held_in_few_bits(model)
    if still or numbers:
        log.say(f"{trained:,} of {trained + still + numbers:,} parameters are trained")
    if numbers:
        log.say(f"{numbers:,} of them are held in {size / 1e6:,.1f} MB")
    if newest:
        log.say(f"going on from {newest}")
        steps = flatten(read_about(newest)["settings"]).get("run.steps", run.steps)
        if steps != run.steps:
            log.say(f"run.steps was {steps} and is {run.steps}: the learning rate follows the new length from here on")
    elif folder.resume:
        log.say(f"{folder.path} holds no checkpoint yet: starting at step 0")
