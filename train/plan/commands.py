"""`unitok plan`. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tokenizers_vq.errors import Problems, UserError, shown

if TYPE_CHECKING:
    from .memory import Sizes

FITS = (24, 40, 80)
"""Gigabytes of GPUs that are sold."""
FREE = 0.92
"""Share of them that a program gets: the rest is the driver's, and lost between tensors."""


def plan(
    *,
    model: str,
    tokenizer: str = "base",
    gpus: int = 1,
    batch_size: int = 256,
    micro_batch: int | None = None,
    precision: Literal["bf16", "fp32"] = "bf16",
    checkpointing: bool = False,
    muon: bool = False,
    text_vocabulary: int = 4096,
    caption_tokens: int = 32,
    pictures: int = 16,
    tflops: float = 300.0,
    measured: float | None = None,
    link_gb: float = 50.0,
    device: Literal["cuda", "cpu"] = "cuda",
) -> None:
    """Say what training a generator and drawing with it would need: memory, traffic, time.

    Nothing is trained and no weight is held: sizes are added up. Times follow from the assumptions that are printed.

    Args:
        model: Preset of a trunk, such as base, or the folder of a model of our own.
        tokenizer: Preset of the image tokenizer, for the codes of a picture; a model folder has its own.
        gpus: Processes of the run, one on each GPU.
        batch_size: Pictures per step, over all GPUs.
        micro_batch: Pictures per forward pass of one GPU; null = its share at once.
        precision: What is computed in; weights, gradients and moments stay float32.
        checkpointing: As --run.checkpointing.
        muon: As --optim.muon.
        text_vocabulary: Ids of the text tokenizer; a model folder has its own.
        caption_tokens: Tokens of a caption, on average.
        pictures: Pictures that are drawn side by side, with guidance.
        tflops: What a GPU reaches in a training step, in 10^12 operations a second.
        measured: Instead of that, tokens a second of this training on one such GPU: tokens/s in the log of a few steps.
        link_gb: What a GPU sends to the others, in GB a second.
        device: cpu counts as torch computes on a CPU.

    Example:
        unitok plan large --gpus 8 --batch_size 512 --micro_batch 16
    """
    problems = Problems()
    for name, value, least in (("gpus", gpus, 1), ("batch_size", batch_size, 1), ("pictures", pictures, 1)):
        problems.check_range(name, value, least, 2**20)
    problems.check(tflops > 0, f"tflops is {tflops}: choose a value above 0")
    problems.check(measured is None or measured > 0, f"measured is {measured}: choose a value above 0")
    problems.check(link_gb > 0, f"link_gb is {link_gb}: choose a value above 0")
    problems.check_range("caption_tokens", caption_tokens, 0, 2**20)
    problems.check_range("text_vocabulary", text_vocabulary, 1, 2**22)
    problems.raise_if_any()
    from ..config import RunConfig

    try:
        rows = RunConfig(batch_size=batch_size, micro_batch=micro_batch).micro_batch_for(gpus)
    except UserError as error:  # which names options of a run
        raise UserError(str(error).replace("run.", "")) from None
    from dataclasses import replace

    from . import memory

    sizes = _sizes(model, tokenizer, text_vocabulary, caption_tokens)
    sizes = replace(
        sizes, rows=rows, bf16=precision == "bf16", checkpointing=checkpointing, muon=muon, gpu=device == "cuda"
    )
    counts = memory.count(sizes)
    micro_batches = batch_size // gpus // rows
    trunk = sizes.trunk
    print(f"model: {counts.all / 1e6:.1f} M parameters (width {trunk.width}, depth {trunk.depth}, heads {trunk.heads})")
    print(f"row: {sizes.positions} positions, {sizes.text} of a caption and {sizes.codes} codes of {sizes.codebook}")
    print(f"step: {batch_size} pictures, {micro_batches} micro-batches of {rows} on each of {gpus} GPUs")
    ways: tuple[memory.Parallel, ...] = ("ddp", "fsdp") if gpus > 1 else ("ddp",)
    needs = {way: memory.training(sizes, counts, way, gpus) for way in ways}
    names = list(dict.fromkeys(name for need in needs.values() for name in need))
    print(f"\n{'training, GB of a GPU':28}" + "".join(f"{way if gpus > 1 else 'one':>10}" for way in ways))
    for name in names:
        print(f"  {name:26}" + "".join(f"{needs[way].get(name, 0) / 1e9:10.2f}" for way in ways))
    print(f"  {'all':26}" + "".join(f"{memory.total(needs[way]) / 1e9:10.2f}" for way in ways))
    for size in FITS:
        fits = ("yes" if memory.total(needs[way]) <= FREE * size * 1e9 else "no" for way in ways)
        print(f"  {f'fits {size} GB':26}" + "".join(f"{word:>10}" for word in fits))
    sent = {way: memory.traffic(sizes, counts, way, gpus, micro_batches) for way in ways}
    tokens = batch_size * sizes.positions
    rate = measured or tflops * 1e12 / memory.flops(sizes, counts)  # tokens a second of one GPU
    computing = tokens / gpus / rate
    print(f"\n{'a step':28}" + "".join(f"{way if gpus > 1 else 'one':>10}" for way in ways))
    print(f"  {'GB that a GPU sends':26}" + "".join(f"{sent[way] / 1e9:10.2f}" for way in ways))
    print(f"  {'seconds of computing':26}" + "".join(f"{computing:10.3f}" for _ in ways))
    print(f"  {'seconds of sending':26}" + "".join(f"{sent[way] / link_gb / 1e9:10.3f}" for way in ways))
    slower = {way: max(computing, sent[way] / link_gb / 1e9) for way in ways}
    print(f"  {'tokens/s, all GPUs':26}" + "".join(f"{tokens / slower[way]:10,.0f}" for way in ways))
    draw = memory.drawing(sizes, counts, pictures)
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in draw.items())
    print(f"\ndrawing {pictures} pictures side by side: {memory.total(draw) / 1e9:.2f} GB ({parts})")
    reaches = f"reaches {tflops:g} TFLOP/s in a step" if measured is None else f"takes {measured:g} tokens/s alone"
    if gpus > 1:
        whole = 4 * counts.all / 1e9
        print(f"fsdp evaluates, draws and saves with the whole model: {whole:.2f} GB beside the shards")
    print(
        f"\nassumed: a GPU {reaches} and sends {link_gb:g} GB/s; sending and computing "
        f"overlap; rows of one picture with a caption of {sizes.text} tokens; no image tokenizer beside (codes were "
        f"made before); {1 - FREE:.0%} of a GPU is not to be had"
    )


def _sizes(model: str, tokenizer: str, text_vocabulary: int, caption_tokens: int) -> Sizes:
    from tokenizers_vq.base import CONFIG_FILE
    from tokenizers_vq.config import TOKENIZER_PRESETS, config_from_dict
    from tokenizers_vq.storage.digests import read_configuration
    from tokenizers_vq.storage.files import part
    from tokenizers_vq.storage.hub import local_folder
    from unitok.config import TRUNK_PRESETS, ModelConfig, TrunkConfig
    from unitok.model import CONFIG, IMAGE_TOKENIZER
    from unitok.vocabulary import Vocabulary

    from .memory import Sizes

    if model in TRUNK_PRESETS:
        if tokenizer not in TOKENIZER_PRESETS:
            raise UserError(f"tokenizer is {shown(tokenizer)}: choose one of {', '.join(TOKENIZER_PRESETS)}")
        images, trunk = TOKENIZER_PRESETS[tokenizer](), TRUNK_PRESETS[model]()
        size = Vocabulary.of(text_vocabulary, images.quantizer.size).size
    else:
        folder = local_folder(model)
        if not part(folder, CONFIG).is_file():
            names = ", ".join(TRUNK_PRESETS)
            raise UserError(f"{shown(model)} is neither a preset ({names}) nor the folder of a model: choose one")
        where = part(folder, CONFIG)
        config = ModelConfig.from_json(read_configuration(where)[0], str(where))
        if not isinstance(config.trunk, TrunkConfig):
            raise UserError(
                f"the trunk of {model} is that of {config.trunk.kind}: give a model with a trunk of our own"
            )
        trunk, size = config.trunk, Vocabulary(config.vocabulary).size
        where = part(folder, IMAGE_TOKENIZER) / CONFIG_FILE
        images = config_from_dict(read_configuration(where)[0], str(where))
    layout = images.layout_for(*images.size)
    return Sizes(trunk, size, images.quantizer.size, layout.length, caption_tokens, 1, True)
