"""`unitok plan`. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from tokenizers_vq.errors import Problems, UserError
from unitok.reader.config import NO_READER, ReaderSettings
from unitok.tuning.config import NO_LORA, LoraConfig, as_patterns

if TYPE_CHECKING:
    from unitok.model import UniTok

    from .sums import Counts

FITS = (24, 40, 80)
"""Gigabytes of GPUs that are sold."""
FREE = 0.92
"""Share of them that a program gets: the rest is the driver's, and lost between tensors."""


def plan(
    *,
    model: str,
    tokenizer: str | None = None,
    objective: str = "next_token",
    trainable: str | list[str] | None = None,
    lora: LoraConfig = NO_LORA,
    reader: ReaderSettings = NO_READER,
    task: str = "text_to_image",
    gpus: int = 1,
    per_machine: int = 8,
    batch_size: int = 256,
    micro_batch: int | None = None,
    precision: Literal["bf16", "fp32"] = "bf16",
    checkpointing: bool = False,
    muon: bool = False,
    text_vocabulary: int | None = None,
    caption_tokens: int = 32,
    pictures: int = 16,
    tflops: float = 300.0,
    measured: float | None = None,
    link_gb: float = 300.0,
    network_gb: float = 50.0,
    device: Literal["cuda", "cpu"] = "cuda",
) -> None:
    """Say what training a generator and drawing with it would need: memory, traffic, time.

    Nothing is trained and no weight of the model is held: a pass is followed with tensors that have no content, and
    sizes are added up. Times follow from the assumptions that are printed.

    Args:
        model: Preset of a trunk, such as base; hf:NAME, a language model as the trunk; the name of a released file,
            such as var_d30.pth or Janus-Pro-7B; or the folder of a model, imported or own.
        tokenizer: Preset or folder of the image tokenizer; null = base, or the one that the model has.
        objective: Of a preset or a language model.
        trainable: As --trainable of a training: what learns has gradients, moments and averages.
        lora: As --lora.* of a training.
        reader: As --reader.* of a training.
        task: What is learned: text_to_image, image_to_text or text_only.
        gpus: Processes of the run, one on each GPU.
        per_machine: GPUs of a machine.
        batch_size: Pictures per step, over all GPUs.
        micro_batch: Pictures per forward pass of one GPU; null = its share at once.
        precision: What is computed in; weights, gradients and moments stay float32.
        checkpointing: As --run.checkpointing.
        muon: As --optim.muon.
        text_vocabulary: Ids of the text tokenizer of a preset or a language model; null = 4096, or the model's own.
        caption_tokens: Tokens of a caption, on average.
        pictures: Pictures that are drawn side by side, by the sampling settings that the model keeps.
        tflops: What a GPU reaches in a training step, in 10^12 operations a second.
        measured: Instead of that, tokens a second of this training on one such GPU: tokens/s in the log of a few steps.
        link_gb: What a GPU sends to the others of its machine, in GB a second.
        network_gb: What a GPU sends to other machines, in GB a second.
        device: cpu counts as torch computes on a CPU.

    Example:
        unitok plan large --gpus 64 --batch_size 1024 --micro_batch 16
    """
    problems = Problems()
    counted = {"gpus": gpus, "batch_size": batch_size, "pictures": pictures, "per_machine": per_machine}
    for name, value in counted.items():
        problems.check_range(name, value, 1, 2**20)
    for name, rate in {"tflops": tflops, "measured": measured, "link_gb": link_gb, "network_gb": network_gb}.items():
        problems.check(rate is None or rate > 0, f"{name} is {rate}: choose a value above 0")
    problems.check_range("caption_tokens", caption_tokens, 0, 2**20)
    if text_vocabulary is not None:
        problems.check_range("text_vocabulary", text_vocabulary, 1, 2**22)
    problems.raise_if_any()
    from ..config import RunConfig

    try:
        rows = RunConfig(batch_size=batch_size, micro_batch=micro_batch).micro_batch_for(gpus)
    except UserError as error:  # which names options of a run
        raise UserError(str(error).replace("run.", "")) from None
    from . import sums
    from .drawing import drawing
    from .model import Wanted, batch_of, build
    from .passes import measure, products

    patterns = [] if trainable is None else as_patterns(trainable)
    built = build(Wanted(model, tokenizer, objective, text_vocabulary, reader, patterns, lora))
    batches = [batch_of(built, task, number, caption_tokens) for number in (rows, 2 * rows, 1)]
    counts, length = sums.count(built), batches[0].inputs.shape[1]
    held = measure(built, batches[0], batches[1], precision == "bf16", device == "cuda", checkpointing)
    operations = products(built, batches[2], checkpointing) / length  # of one position
    how = sums.Training(2 if precision == "bf16" else 4, muon)
    micro_batches = batch_size // gpus // rows

    _say_model(built, counts, length, caption_tokens)
    print(f"step: {batch_size} pictures, {micro_batches} micro-batches of {rows} on each of {gpus} GPUs")
    ways = sums.ways(gpus, per_machine)
    needs = {way: sums.training(counts, held, way, how) for way in ways}
    head = "".join(f"{way.name:>12}" for way in ways)
    print(f"\n{'training, GB of a GPU':28}{head}")
    names = dict.fromkeys(name for need in needs.values() for name in need)
    for name in names:
        _row(name, [f"{needs[way].get(name, 0) / 1e9:.2f}" for way in ways])
    _row("all", [f"{sums.total(needs[way]) / 1e9:.2f}" for way in ways])
    for size in FITS:
        _row(f"fits {size} GB", [_fits(sums.total(needs[way]), size) for way in ways])

    links = sums.Links(link_gb, network_gb, per_machine)
    sent = {way: sums.sending(counts, way, how.item, micro_batches, links) for way in ways}
    tokens = batch_size * length
    rate_alone = measured or tflops * 1e12 / operations  # tokens a second of one GPU
    computing = tokens / gpus / rate_alone
    slower = {way: max(computing, sent[way][1]) for way in ways}
    print(f"\n{'a step':28}{head}")
    _row("GB that a GPU sends", [f"{sent[way][0] / 1e9:.2f}" for way in ways])
    _row("seconds of computing", [f"{computing:.3f}" for way in ways])
    _row("seconds of sending", [f"{sent[way][1]:.3f}" for way in ways])
    _row("time spent computing", [f"{computing / slower[way]:.0%}" for way in ways])
    _row("tokens/s, all GPUs", [f"{tokens / slower[way]:,.0f}" for way in ways])

    draw = drawing(built, counts, pictures, caption_tokens, precision == "bf16", device == "cuda")
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in draw.items())
    print(f"\ndrawing {pictures} pictures side by side: {sums.total(draw) / 1e9:.2f} GB ({parts})")
    print("  fits " + ", ".join(f"{size} GB: {_fits(sums.total(draw), size)}" for size in FITS))
    copies = ", ".join(f"{way.name} {sums.copied(counts, way, needs[way]) / 1e9:.2f}" for way in ways)
    print(f"memory of the host for the copy that run.async_save writes, GB of the first process: {copies}")
    if gpus > 1:
        print(
            f"fsdp evaluates, draws and saves with the whole model: {4 * (counts.all - counts.packed) / 1e9:.2f} GB "
            "beside the shards"
        )
    reaches = f"reaches {tflops:g} TFLOP/s in a step" if measured is None else f"takes {measured:g} tokens/s alone"
    spread = f"; a GPU sends {link_gb:g} GB/s in its machine of {per_machine} and {network_gb:g} GB/s to others; "
    spread += "sending and computing overlap"
    print(
        f"\nassumed: a GPU {reaches}{spread if gpus > 1 else ''}; every row is one picture ({task}), its codes made "
        f"before; gradients stay from one micro-batch to the next; {1 - FREE:.0%} of a GPU is not to be had"
    )


def _say_model(model: UniTok, counts: Counts, length: int, caption_tokens: int) -> None:
    trunk = model.config.trunk
    learned = "" if counts.learned == counts.all else f", {counts.learned / 1e6:.1f} M of them learn"
    if counts.packed:
        learned += f", {counts.packed / 1e6:.1f} M are held in {counts.packed_bytes / 1e9:.2f} GB"
    print(
        f"model: {counts.all / 1e6:.1f} M parameters with its image tokenizer{learned} (width {trunk.width}, depth "
        f"{trunk.depth}, heads {trunk.heads}, {model.config.objective})"
    )
    caption = "a class" if trunk.captions == "class" else f"a caption of {caption_tokens} tokens"
    codes = f"{model.layout.length} codes of {model.image_tokenizer.codebook_size}"
    print(f"row: {length} positions, for {codes} and {caption}")


def _fits(needed: float, size: float) -> str:
    return "yes" if needed <= FREE * size * 1e9 else "no"


def _row(name: str, values: Sequence[str]) -> None:
    print(f"  {name:26}" + "".join(f"{value:>12}" for value in values))
