"""The commands that train. Free of torch until one runs, so that help is quick."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from tokenizers_vq.config import config_to_dict
from tokenizers_vq.config_base import TokenizerConfig
from tokenizers_vq.errors import Problems, UserError
from tokenizers_vq.losses.adversarial_config import AdversarialConfig
from tokenizers_vq.losses.config import LossConfig
from unitok.config import ObjectiveSettings, TasksConfig, TrunkConfig
from unitok.data.records import CaptionsWanted
from unitok.processes import refused_together
from unitok.reader.config import NO_READER, ReaderSettings
from unitok.sampling import GivenSettings, SampleSettings
from unitok.trunk.hf import HFTrunk
from unitok.trunk.published import PublishedTrunk
from unitok.tuning.config import NO_LORA, LoraConfig

from .config import AS_IT_IS, AugmentConfig, OptimConfig, RunConfig, SourceConfig
from .tuning.stages import run_stages
from .tuning.start import (
    Beginning,
    LanguageStart,
    ReaderStart,
    Start,
    begin_from,
    check_start,
    check_tokenizer_start,
    given_patterns,
    settled,
)

T = TypeVar("T")


def train_tokenizer(
    *,
    data: str,
    out: Path,
    init: Path | None = None,
    trainable: str | list[str] | None = None,
    preset: str = "small",
    tokenizer: TokenizerConfig,
    losses: LossConfig,
    adversarial: AdversarialConfig,
    augment: AugmentConfig,
    optim: OptimConfig,
    run: RunConfig,
    val_data: str | None = None,
    resume: bool = False,
) -> None:
    """Train a VQ image tokenizer on a folder of pictures.

    The output folder becomes the tokenizer: give it to --image_tokenizer of the other commands. Beside it stand
    checkpoints, log.jsonl, TensorBoard files, sample grids (originals above reconstructions) and loss.png. Ctrl-C
    saves; the same command with --resume goes on. Several GPUs:
    torchrun --nproc-per-node 8 -m unitok train tokenizer ...

    Args:
        data: Pictures to learn from, such as shapes or pictures/ or hf:owner/name@train. Captions are not read, unless
            tokenizer.contrastive_weight is set.
        out: New folder for the tokenizer.
        init: Folder of a tokenizer to start from: its weights and sizes, instead of fresh ones.
        trainable: Names of the weights that are trained, with * for any text, such as 'decoder.*', and commas between
            several; the rest of --init stays as it is. With encoder and codebook frozen, codes stay as they are.
        preset: Starting values of --tokenizer.*; with --help, the options of its family.
        tokenizer: The network.
        losses: What it is trained for.
        adversarial: A discriminator against blur; weight 0 is without.
        augment: Changes of the training pictures.
        optim: Optimizer.
        run: Length, hardware, and intervals of logging, evaluation and saving.
        val_data: Pictures to measure on, such as shapes@val.
        resume: Go on from the newest checkpoint in the output folder.

    Example:
        unitok train tokenizer --data shapes --val_data shapes@val --preset shapes --out runs/tokenizer
    """
    settings = _settings(locals()) | {"tokenizer": config_to_dict(tokenizer)}
    with refused_together():
        patterns = given_patterns(trainable, init)
        if init is not None:
            check_tokenizer_start(tokenizer)
    if adversarial.weight == 0:  # then the rest says nothing, and runs that know nothing of it can go on
        del settings["adversarial"]
    if not augment.shift:
        del settings["augment"]["shift"]
    if losses.perceptual is None:
        settings["losses"] = {name: value for name, value in settings["losses"].items() if "perceptual" not in name}
    from unitok.data.open import open_data
    from unitok.device import check_memory
    from unitok.processes.world import join

    from .folder import RunFolder
    from .log import print_parameters, print_result
    from .loop import train
    from .tokenizer import TokenizerTrainee, parameters_of, tokenizer_to_train

    folder = RunFolder(out, resume)
    with join(run.device, run.threads, run.timeout_minutes) as world, folder.held(world):
        pictures = world.from_main(lambda: run.micro_batch_for(world.size))
        start = world.together(lambda: tokenizer_to_train(init)) if init is not None else None
        if start is not None:
            tokenizer = start.config
            settings |= {"init": start.fingerprint(), "tokenizer": config_to_dict(tokenizer), "trainable": patterns}
        captions: CaptionsWanted = "optional" if tokenizer.text_tower else False
        dataset, validation = world.together(
            lambda: [open_data(one, tokenizer.size, captions=captions) if one else None for one in (data, val_data)]
        )
        height, width = tokenizer.size

        def built() -> TokenizerTrainee:
            check_memory(parameters_of(tokenizer), pictures * 3 * height * width, "a tokenizer")
            return TokenizerTrainee(
                tokenizer, losses, adversarial, augment, _given(dataset), validation, run, world, start, patterns
            )

        trainee = world.together(built)
        parts = [*trainee.tokenizer.named_children()]
        if trainee.adversarial is not None:
            parts += trainee.adversarial.named_children()
        print_parameters({name: sum(w.numel() for w in part.parameters()) for name, part in parts}, world.is_main)
        facts = train(trainee, _given(dataset), folder, settings, optim, run, world)
        if world.is_main:
            print_result("tokenizer", out, facts)


def train_generator(
    *,
    data: str | list[SourceConfig],
    out: Path,
    image_tokenizer: Path | None = None,
    image_size: int | None = None,
    init: Path | None = None,
    trainable: str | list[str] | None = None,
    lora: LoraConfig = NO_LORA,
    preset: str = "small",
    objective: str = "next_token",
    objective_settings: ObjectiveSettings,
    trunk: TrunkConfig | str,
    code_vectors: bool = False,
    tasks: TasksConfig,
    reader: ReaderSettings = NO_READER,
    augment: AugmentConfig = AS_IT_IS,
    sampling: GivenSettings,
    text_tokenizer: str | None = None,
    text_vocabulary: int = 4096,
    text_length: int = 128,
    optim: OptimConfig,
    run: RunConfig,
    val_data: str | list[str] | None = None,
    stages: list[dict[str, Any]] | None = None,
    resume: bool = False,
) -> None:
    """Train one transformer over text and image codes: it draws captions, captions pictures, answers questions.

    The output folder becomes the model: give it to --model of the other commands. Beside it stand checkpoints,
    log.jsonl, TensorBoard files, sample grids and loss.png. Ctrl-C saves; the same command with --resume goes on.
    Several GPUs: torchrun --nproc-per-node 8 -m unitok train generator ...

    Args:
        data: Captioned pictures, such as shapes, pictures/, or the codes of unitok encode (faster). A list in a
            --config file names several sources, each with data, share, tasks and weight.
        out: New folder for the model.
        image_tokenizer: Folder of the image tokenizer.
        image_size: Side of the pictures that are learned; null for that of the image tokenizer.
        init: Model folder to start from, or hf:owner/name: its weights, sizes, objective and both tokenizers, instead
            of fresh ones. One of unitok import does too. Tasks may be new to it.
        trainable: Names of the weights that are trained, with * for any text, such as 'trunk.blocks.1?.*', and commas
            between several; the rest of --init stays as it is.
        lora: Thin matrices beside those of --init, which stay as they are; the output folder holds the thin ones alone.
        preset: Starting values of --trunk.*
        objective: Order in which pictures are drawn: next_token (code by code), masked_token (many at a time, pass
            by pass), next_scale (scale by scale), random_order (code by code, trained in any order), maskgit (many at a
            time, by confidence).
        objective_settings: How the objective is trained; null is the objective's own value.
        trunk: The transformer. Or hf:NAME, a causal language model that goes on learning: a folder, a .gguf file, a
            config.json alone for fresh weights, or owner/name on the hub. Then its text tokenizer is the model's.
        code_vectors: Whether codes have in common, in and out, what linear maps make of the vectors that the image
            tokenizer has for them, or of their levels (FSQ): then what is learned of a code is learned of those like
            it, which takes fewer steps.
        tasks: What the model learns to do.
        reader: How pictures that are given are read; by default as codes.
        augment: Changes of the training pictures of --data that are pixels; codes stay as they are.
        sampling: How its pictures are best drawn: the grids of this run, and the defaults of unitok sample. Null is the
            objective's own value.
        text_tokenizer: Folder or Hugging Face name; by default a byte-level BPE is trained on the captions.
        text_vocabulary: Size of that BPE.
        text_length: Longest text in tokens; longer ones are cut in training.
        optim: Optimizer.
        run: Length, hardware, and intervals of logging, evaluation and saving.
        val_data: Pictures to measure on, such as shapes@val, or a list of such, for several tasks.
        stages: In a --config file: what is different in one stage after the other, such as data, tasks, trainable,
            lora, optim or run. Each has a folder of its own in --out and starts from the model of the one before.
        resume: Go on from the newest checkpoint in the output folder.

    Example:
        unitok train generator --data shapes --image_tokenizer runs/tokenizer --preset shapes --out runs/generator
    """
    if stages is not None:
        return run_stages(train_generator, locals(), stages)
    settings = _settings(locals())
    if lora.rank is None:  # then the rest says nothing, and runs that know nothing of it can go on
        del settings["lora"]
    if not code_vectors:
        del settings["code_vectors"]
    if reader.encoder is None:
        del settings["reader"]
    if augment == AS_IT_IS:
        del settings["augment"]
    with refused_together():
        patterns = given_patterns(trainable, init, trunk, reader)
        settings["trainable"] = patterns or None
        if init is not None:
            check_start(settings)
            drawn = SampleSettings(**SampleSettings.given(sampling))
        elif lora.rank is not None:
            raise UserError("lora.rank tunes a model that has learned: give its folder with --init")
        elif image_tokenizer is None:
            raise UserError("a generator draws codes of an image tokenizer: give its folder with --image_tokenizer")
        else:
            from unitok.objectives import chosen_objective

            kind = chosen_objective(objective)
            objective_settings, drawn = kind.settled(objective_settings), kind.drawn(sampling)
    from tokenizers_vq.base import load_tokenizer
    from unitok.data.mixture import slots_of
    from unitok.data.open import open_data
    from unitok.device import check_memory
    from unitok.objectives import objective_class
    from unitok.processes.world import join
    from unitok.text import CaptionEncoder

    from .data import open_sources, restated, text_fingerprint, text_tokenizer_for
    from .folder import RunFolder
    from .generator import GeneratorTrainee
    from .log import print_parameters, print_result
    from .loop import train
    from .tuning.described import described

    folder = RunFolder(out, resume)
    with join(run.device, run.threads, run.timeout_minutes) as world, folder.held(world):
        world.from_main(lambda: run.micro_batch_for(world.size))  # said before anything is read, and once
        begun = world.together(lambda: begin_from(init, trunk, patterns, lora, reader))
        start = begun.model if isinstance(begun, Start) else None
        network: TrunkConfig | HFTrunk | PublishedTrunk
        if start is not None:
            network, objective, text_length = start.config.trunk, start.config.objective, start.config.text_length
            own, given = start.config, objective_settings
            objective_settings = world.together(lambda: settled(given, objective_class(objective), own.trunk))
            drawn = world.together(lambda: SampleSettings.of(own, SampleSettings.given(sampling)))
            images = start.image_tokenizer
        else:
            network = begun.language.trunk if isinstance(begun, LanguageStart) else cast("TrunkConfig", trunk)
            images = world.together(lambda: load_tokenizer(_given(image_tokenizer), image_size=image_size))
        if begun is not None:
            settings |= {"init": begun.fingerprint, "trunk": _as_plain(network), "objective": objective}
        settings |= {"objective_settings": _as_plain(objective_settings), "sampling": _as_plain(drawn)}
        if tasks.caption_dropout == 0 and start is None:  # an empty caption means nothing to a model that never saw one
            drawn = dataclasses.replace(drawn, guidance=1.0)
        dataset = world.together(lambda: open_sources(data, tasks, images.image_size))
        validation = world.together(
            lambda: [open_data(one, images.image_size, captions="optional") for one in _listed(val_data)]
        )
        texts = start.text_tokenizer if start is not None else None
        if isinstance(begun, LanguageStart) and text_tokenizer is None:
            texts = begun.language.texts
        texts = texts or world.from_main(
            lambda: text_tokenizer_for(dataset, text_tokenizer, text_vocabulary, folder.newest, run)
        )
        seen = None if start is None else start.config.reader
        beginning: Beginning | None = begun
        if reader.encoder is not None:
            seen, beginning = world.together(lambda: ReaderStart.of(reader, images, begun, patterns))
            settings |= {"reader": seen.to_json(), "encoder": beginning.encoder.fingerprint()}
        # What the paths stand for decides whether a run can be resumed, not the paths.
        settings |= {"image_tokenizer": images.fingerprint(), "text_tokenizer": text_fingerprint(texts)}

        def built() -> GeneratorTrainee:
            wanted = {slot.task for slot in slots_of(dataset.sources, run.batch_size)}
            config = described(start, network, objective, images, texts, wanted, drawn, text_length, code_vectors, seen)
            if network.captions == "text" and network.wording == "{}":  # captions are read as they are
                words = restated(dataset, CaptionEncoder(texts, text_length))
                config.restates = words if words is not None else start is not None and start.config.restates
            if isinstance(network, PublishedTrunk):
                counts = {"model": sum(weight.numel() for weight in _given(start).parameters() if weight.requires_grad)}
            else:
                ids, vectors = dict(config.vocabulary), sum(port.vectors for port in config.ports.values())
                counts = network.parameters(sum(ids.values()), vectors)
                del counts["total"]
            print_parameters(counts, world.is_main)
            scored = sum(network.sub_tokens) or dict(config.vocabulary)["image"]
            logits = run.micro_batch_for(world.size) * images.layout.length * scored
            check_memory(sum(counts.values()), logits, "a generator", frozen=lora.rank is not None or bool(patterns))
            return GeneratorTrainee(
                config, images, texts, tasks, objective_settings, augment, dataset, validation, run, world, beginning
            )

        trainee = world.together(built)
        start = begun = beginning = None  # its weights have been taken over, and need not be held twice
        facts = train(trainee, dataset, folder, settings, optim, run, world)
        if world.is_main:
            print_result("model", out, facts)


def _given(value: T | None) -> T:
    assert value is not None, "checked before"
    return value


def _listed(data: str | list[str] | None) -> list[str]:
    return [] if data is None else [data] if isinstance(data, str) else data


def encode(
    *,
    data: str,
    image_tokenizer: Path,
    out: Path,
    batch_size: int = 64,
    shard_size: int = 8192,
    workers: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    max_bad: float = 0.01,
    image_size: int | None = None,
    augment: AugmentConfig = AS_IT_IS,
    copies: int = 1,
    caption_suffix: str = "",
) -> None:
    """Tokenize a data set once, into shards of codes beside their captions.

    Training from the shards sees the same batches as training from the pictures, without paying for the encoder at
    every step. Run the same command again to go on after an interruption. Several GPUs or machines share the shards:
    torchrun --nproc-per-node 8 -m unitok encode ...

    Args:
        data: Captioned pictures, such as pictures/ or hf:owner/name@train; for shapes say how many: shapes?limit=50000
        image_tokenizer: Folder of the image tokenizer.
        out: Folder for the codes; give it to --data of train generator.
        batch_size: Pictures encoded at once; fewer of large ones, 16 megapixels at the most.
        shard_size: Pictures per file, fewer of large ones; an interruption costs at most this many. A folder that was
            begun keeps its own.
        workers: Processes that read pictures; 0: they are read between the batches.
        device: auto takes a GPU where there is one.
        max_bad: Share of the pictures that may be unreadable.
        image_size: Pictures are scaled and cropped to this square; null for the tokenizer's own size. Give it to train
            generator too.
        augment: Changes of the pictures before they are encoded, other ones for each copy.
        copies: Changed copies of each picture; more than one needs --augment.
        caption_suffix: Appended to the captions, such as ", moved", so that a model that learns from whole and changed
            pictures is told which is which.

    Example:
        unitok encode --data pictures/ --image_tokenizer runs/tokenizer --out runs/codes
    """
    problems = Problems()
    for name, value in {"batch_size": batch_size, "shard_size": shard_size, "image_size": image_size}.items():
        problems.check(value is None or value >= 1, f"--{name} is {value}: choose 1 or more")
    problems.check(workers >= 0, f"--workers is {workers}: choose 0 or more")
    problems.check_range("--copies", copies, 1, 1000)
    problems.check(
        copies <= 1 or augment != AS_IT_IS, f"--copies is {copies}: equal copies teach nothing, so give --augment too"
    )
    from unitok.processes.world import sharing

    from .encode import encode_data

    with sharing(out, device) as world:
        world.from_main(problems.raise_if_any)
        sizes = batch_size, shard_size, workers
        changes = augment, copies, caption_suffix
        count, bad = encode_data(world, data, image_tokenizer, out, *sizes, max_bad, image_size, *changes)
        if world.is_main:
            print(f"codes: {out}\npictures: {count}  unreadable: {bad}")


def _settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a command as plain data; what names a place to write to is no setting of the run."""
    return {name: _as_plain(value) for name, value in arguments.items() if name not in ("out", "preset", "resume")}


def _as_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_plain(one) for one in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
