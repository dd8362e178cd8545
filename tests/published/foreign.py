"""Tiny models of transformers with random weights, saved as their authors save them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.sample.pipeline import draw_codes
from unitok.sampling import SampleSettings
from unitok.sequence import pack
from unitok.tasks import TASKS, documents
from unitok.trunk.published import published_family

CODES, SIDE, TEXTS = 50, 4, 120
WORDS = 40


def text_tokenizer(folder: Path, specials: Sequence[str], more: Sequence[str] = ()) -> Tokenizer:
    """Words "w0", "w1", ... behind special tokens; writes tokenizer.json."""
    tokens = [*specials, *more, ":", *(f"w{number}" for number in range(WORDS))]
    assert len(tokens) <= TEXTS
    tokenizer = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token=":"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(specials))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@torch.no_grad()
def stirred(model: nn.Module, seed: int = 1) -> Any:
    """The model with weights that keep states near 1 and make everything count, also biases and norms."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=random)
        if "norm" in name and name.endswith("weight"):
            weight.copy_(1 + 0.2 * noise)
        elif weight.ndim < 2:
            weight.copy_(0.1 * noise)
        elif "embed" in name:
            weight.copy_(noise)
        else:
            weight.copy_(noise / weight[0].numel() ** 0.5)
    return model.eval()


def loss_among(whole: Tensor, logits: Tensor, ids: Tensor | list[int]) -> Tensor:
    """A mean loss over all ids, without what it says of ids that cannot stand there: the loss among `ids`. `logits`
    (n, V) are those of its targets."""
    others = -logits.log_softmax(-1)[:, ids].logsumexp(-1).mean()
    assert others > 0.01
    return whole - others


def mean_losses(model: UniTok, tasks: Sequence[str], records: Sequence[Any], dropped: float = 0.0) -> dict[str, Tensor]:
    """Task -> the mean loss of a training step, a record for each task of the list."""
    draws = [Draw(torch.Generator().manual_seed(row)) for row in range(len(tasks))]
    numbers = {task: list(TASKS).index(task) for task in tasks}
    made = documents(tasks, records, draws, model.modalities(), {"text": dropped}, numbers)
    batch = pack(made, pad=model.vocabulary.pad)
    losses, counts = model.train()(batch), torch.bincount(batch.tasks, minlength=len(TASKS))
    model.eval()
    return {task: losses[number] / counts[number] for task, number in numbers.items()}


def released_as_in_transformers(family: str, name: str, kind: Any, config: Any, **more: Any) -> None:
    """A released model, as its family's table has it, has the tensors of a class of transformers."""
    table = published_family(family)
    trunk, texts, codes = table.released()[name]
    sizes = {"vocab_size": texts, "hidden_size": trunk.width, "intermediate_size": trunk.inner, **more}
    sizes |= {"num_hidden_layers": trunk.depth, "num_attention_heads": trunk.heads}
    with torch.device("meta"):
        state = kind(config(**sizes, num_key_value_heads=trunk.key_heads)).state_dict()
    kept = {name: tuple(one.shape) for name, one in state.items() if not name.startswith(table.left_out)}
    assert kept == table.shapes(trunk, texts, codes)


def survives(model: UniTok, captions: Sequence[str], folder: Path) -> None:
    """The model is the same once it was written and read, and draws each caption alone as beside others."""
    model.save_pretrained(folder)
    loaded = UniTok.from_pretrained(folder)
    assert loaded.config == model.config and loaded.fingerprint() == model.fingerprint()
    settings, seeds = SampleSettings(guidance=2.0, top_k=20, top_p=0.9), list(range(len(captions)))
    together = draw_codes(loaded, captions, settings, seeds)
    alone = [draw_codes(model, [caption], settings, [seed]) for caption, seed in zip(captions, seeds, strict=True)]
    assert torch.equal(together, torch.cat(alone))
