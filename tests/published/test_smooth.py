"""VAR at random: codes by its filters, and pictures from mixtures of code vectors (`more_smooth`), as plain code from a
description draws them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_uint8
from tokenizers_vq.quantizers.multi_scale import MultiScaleQuantizer
from unitok.cli.main import main
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.sample.jobs import job_for
from unitok.sample.pipeline import draw, draw_codes, run, settings_for, value_of
from unitok.sampling import SampleSettings
from unitok.seeding import keyed_generator

from .test_generators import LABELS, var, var_inputs
from .tiny import CLASSES, SIDES, Weights, tokenizer, var_weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> UniTok:
    path = tmp_path_factory.mktemp("var") / "x.pt"
    torch.save(var_weights(False), path)
    return import_generator("var", path, tokenizer(SIDES))


def kept(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The authors' filters: those below the k-th, then the least likely that make up 1 - p together, go."""
    logits = logits.masked_fill(logits < logits.topk(top_k)[0][..., -1:], -torch.inf)
    ascending, places = logits.sort(-1)
    gone = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    gone[..., -1] = False
    return logits.masked_fill(gone.scatter(-1, places, gone), -torch.inf)


def authors_codes(
    w: Weights, images: ImageTokenizer, label: int, seed: int, cfg: float, top_k: int, top_p: float
) -> Tensor:
    """(1, 30): of one picture, each code where the sum of probabilities passes the random number of its place."""
    uniform = torch.rand(30, generator=keyed_generator(seed, "next_scale")).double()
    codes = torch.zeros(1, 0, dtype=torch.int64)
    for number, side in enumerate(SIDES):
        ratio, here = number / (len(SIDES) - 1), uniform[codes.shape[1] :][: side * side]
        seen = var_inputs(images, codes)
        given, bare = (var(w, [one], seen)[:, -side * side :] for one in (label, CLASSES))
        logits = kept((1 + cfg * ratio) * given - cfg * ratio * bare, top_k, top_p)
        passed = logits.softmax(-1).double().cumsum(-1) > here[:, None]
        codes = torch.cat([codes, passed.int().argmax(-1)], 1)
    return codes


@torch.inference_mode()
def test_codes_are_those_of_the_authors_filters(model: UniTok) -> None:
    """With their top-p, and a top-k as small among these codes as theirs."""
    w, images, cfg, top_k, top_p = var_weights(False), model.image_tokenizer, 1.5, 20, 0.96
    labels, seeds = LABELS * 3, range(9)
    settings = SampleSettings(guidance=1 + cfg, guidance_rises=True, top_k=top_k, top_p=top_p)
    found = draw_codes(model, labels, settings, seeds)
    wanted = [authors_codes(w, images, *pair, cfg, top_k, top_p) for pair in zip(labels, seeds, strict=True)]
    assert torch.equal(found, torch.cat(wanted))
    for left_out in ({"top_k": 0}, {"top_p": 0.0}):
        assert not torch.equal(draw_codes(model, labels, replace(settings, **left_out), seeds), found), left_out


def authors_latents(
    w: Weights, images: ImageTokenizer, label: int, seed: int, cfg: float, top_k: int, top_p: float
) -> Tensor:
    """(1, D, h, w): of one picture, with the random numbers of its seed."""
    quantizer = images.quantizer
    assert isinstance(quantizer, MultiScaleQuantizer)
    book, last = images.code_vectors()[0], SIDES[-1]
    total, seen = torch.zeros(1, 8, last, last), []
    for number, side in enumerate(SIDES):
        ratio = number / (len(SIDES) - 1)
        given, bare = (var(w, [one], seen)[:, -side * side :] for one in (label, CLASSES))
        logits = kept((1 + cfg * ratio) * given - cfg * ratio * bare, top_k, top_p)
        noise = torch.empty(logits.shape).exponential_(generator=keyed_generator(seed, "smooth", number))
        tau = max(0.27 * (1 - ratio * 0.95), 0.005)
        mixed = ((logits * (1 + ratio) - noise.log()) / tau).softmax(-1) @ book
        part = F.interpolate(mixed.transpose(1, 2).view(1, 8, side, side), (last, last), mode="bicubic")
        ticks = [abs(tick - ratio) for tick in torch.linspace(1 / 12, 11 / 12, 4).tolist()]
        phi = quantizer.convs[ticks.index(min(ticks))] if len(quantizer.convs) == 4 else quantizer.convs[number]
        total = total + 0.5 * part + 0.5 * phi(part)
        if number + 1 < len(SIDES):
            after = F.interpolate(total, (SIDES[number + 1],) * 2, mode="area")
            seen.append(after.flatten(2).transpose(1, 2))
    return total


@torch.inference_mode()
def test_pictures_are_those_of_plain_code(model: UniTok) -> None:
    w, images, cfg = var_weights(False), model.image_tokenizer, 1.5
    settings = SampleSettings(guidance=1 + cfg, guidance_rises=True, top_k=20, top_p=0.9, smooth=True)
    jobs = [
        job_for("text_to_image", {"caption": value_of(model, label)}, seed, settings)
        for seed, label in enumerate(LABELS)
    ]
    found = [written[0] for written in run(model, jobs)]
    wanted = [authors_latents(w, images, label, seed, cfg, 20, 0.9) for seed, label in enumerate(LABELS)]
    torch.testing.assert_close(torch.stack(found), torch.cat(wanted), atol=1e-4, rtol=1e-4)
    quantizer = images.quantizer
    assert isinstance(quantizer, MultiScaleQuantizer)
    pictures = draw(model, LABELS, settings)
    painted = to_uint8(torch.cat([images.decoder(images.post_quant_conv(one)) for one in wanted]))
    assert (pictures.int() - painted.int()).abs().max() <= 1
    plain = draw(model, LABELS, SampleSettings(guidance=1 + cfg, guidance_rises=True, top_k=20, top_p=0.9))
    assert not torch.equal(pictures, plain)
    # Beside others that draw codes, and alone.
    mixed = [*jobs, job_for("text_to_image", {"caption": value_of(model, 3)}, 0, SampleSettings())]
    again = [written[0] for written in run(model, mixed, batch_size=4)]
    assert all(torch.equal(one, other) for one, other in zip(again, found, strict=False))
    assert again[-1].dtype == torch.int64 and torch.equal(draw(model, LABELS[1:2], settings, [1])[0], pictures[1])


def test_known_codes_stay_in_the_mixtures(model: UniTok) -> None:
    """Where all codes are known, the picture is that of the codes."""
    known = torch.arange(30) % 7
    job = job_for("text_to_image", {"caption": [3]}, 0, SampleSettings(smooth=True), known=known)
    latents = run(model, [job])[0][0]
    assert isinstance(model.image_tokenizer.quantizer, MultiScaleQuantizer)
    wanted = model.image_tokenizer.quantizer.vectors(known[None], model.layout)[0]
    torch.testing.assert_close(latents, wanted, atol=1e-5, rtol=1e-5)


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        run()
    return str(error.value)


def test_where_codes_are_needed_it_is_told(
    model: UniTok, make_model: Callable[..., UniTok], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smooth, wanted = (
        SampleSettings(smooth=True),
        "--smooth draws pictures that no codes say, and here codes are needed: ",
    )
    assert refused(lambda: draw_codes(model, LABELS, smooth, [0, 1, 2])).startswith(wanted)
    assert refused(lambda: settings_for(model, {"smooth": True, "best_of": 2})).startswith(wanted)
    other = make_model("next_token")
    assert refused(lambda: draw(other, ["a"], smooth)) == (
        "--smooth is VAR's, but this model draws by next_token: leave it out"
    )
    model.save_pretrained(tmp_path / "m")
    argv = ["sample", "--model", str(tmp_path / "m"), "3", "--n", "1", "--smooth", "true", "--out", str(tmp_path / "d")]
    assert main([*argv, "--progress", "true"]) == 2 and wanted in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    assert main(argv) == 0 and list((tmp_path / "d" / "pictures").glob("*.png"))
