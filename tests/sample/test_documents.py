"""Documents of texts and pictures: the model says when a picture begins and when a document ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.modalities import PassageWriter
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.objectives.base import Draw
from unitok.sample.documents import DocumentWriter, Part, write_documents
from unitok.sample.engine import Engine
from unitok.sample.jobs import Job
from unitok.sample.pipeline import run
from unitok.sampling import SampleSettings
from unitok.seeding import fold
from unitok.sequence import lay_out
from unitok.tasks import documents

PLAIN = SampleSettings(guidance=1.0, steps=3)


def lean(model: UniTok, picture: float = 0.0, end: float = 0.0) -> UniTok:
    """Makes the ends of texts likelier by so many nats."""
    scores, vocabulary = model.ids.scores, model.vocabulary

    def biased(hidden: torch.Tensor, ids: slice, *more: Any) -> torch.Tensor:
        found = scores(hidden, ids, *more)
        if ids.start <= vocabulary.eos < ids.stop:
            found[..., vocabulary.eos - ids.start] += end
        if ids.start <= vocabulary.boi < ids.stop:
            found[..., vocabulary.boi - ids.start] += picture
        return found

    model.ids.scores = biased  # type: ignore[method-assign]
    return model


def written(
    model: UniTok, beginnings: list[list[Part]], seeds: list[int], batch_size: int = 32, **settings: Any
) -> list[list[Part]]:
    settings = {"images": PLAIN, "texts": SampleSettings(guidance=1.0)} | settings
    writer = DocumentWriter(model, **settings)
    found = dict(write_documents(writer, beginnings, seeds, batch_size=batch_size))
    return [found[place] for place in range(len(beginnings))]


def kinds(document: list[Part]) -> list[str]:
    return [kind for kind, _ in document]


def same(first: list[Part], second: list[Part]) -> bool:
    return kinds(first) == kinds(second) and all(
        torch.equal(a, b) if kind == "image" else a == b for (kind, a), (_, b) in zip(first, second, strict=True)
    )


def codes(number: int, length: int) -> torch.Tensor:
    return torch.arange(length) * (3 + number) % 16


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_model_that_wants_pictures_draws_as_many_as_it_may(make_model: Callable[..., UniTok], objective: str) -> None:
    model = lean(make_model(objective), picture=99)
    beginnings: list[list[Part]] = [[], [("text", "a red circle")]]
    empty, begun = written(model, beginnings, [0, 1], pictures=2)
    assert kinds(empty) == ["image"] * 2 and kinds(begun) == ["text", "image", "image"]
    for kind, value in [*empty, *begun]:
        if kind == "image":
            assert value.shape == (model.layout.length,) and 0 <= value.min() <= value.max() < 1024
    assert begun[0] == ("text", "a red circle")
    assert kinds(written(model, beginnings, [0, 1], pictures=0)[1]) == ["text"]


def test_a_model_that_wants_no_picture_ends(make_model: Callable[..., UniTok]) -> None:
    model = lean(make_model(), end=99)
    image = codes(0, model.layout.length)
    document: list[Part] = [("image", image), ("text", "a red circle")]
    assert written(model, [[], document], [0, 1])[0] == []
    assert same(written(model, [document], [1])[0], document)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@torch.inference_mode()
def test_each_step_sees_what_training_shows(make_model: Callable[..., UniTok], objective: str) -> None:
    """The logits of texts are those of the finished document as it would be learned, behind pictures of all objectives
    and in a text that was begun."""
    model = lean(make_model(objective), picture=4.0, end=1.0)
    met: list[torch.Tensor] = []
    writer = DocumentWriter(model, PLAIN, SampleSettings(guidance=1.0), pictures=2)
    beginning: list[Part] = [("image", codes(1, model.layout.length)), ("text", "a small red")]
    job = writer.job(writer.pieces(beginning), 3)
    engine = Engine(model, 1, 1000, watch=lambda _, logits: met.append(logits[0]))
    engine.add(job)
    finished: list[tuple[int, list[torch.Tensor]]] = []
    while engine.busy:
        finished += engine.step()
    ((_, values),) = finished
    texts = values[::2]
    assert len(values) == 5
    parts: list[Part] = [beginning[0], ("text", writer.passage.value(texts[0]))]
    for image, text in zip(values[1::2], texts[1:], strict=True):
        parts += [("image", image), ("text", writer.passage.value(text))]
    found = documents(
        ["interleaved"], [{"parts": parts}], [Draw(torch.Generator())], model.modalities(), {}, {"interleaved": 0}
    )
    batch = lay_out([found], pad=model.vocabulary.pad)
    hidden = model.hidden(batch.inputs, batch.places, batch.visibility(), None, batch.features, batch.stands)[0]
    words, picture = model.vocabulary.passage_ranges
    forced = torch.cat([model.ids.scores(hidden, words), model.ids.scores(hidden, picture)], -1)
    starts = (batch.inputs[0] == model.vocabulary.bos).nonzero()[1:, 0].tolist()  # behind the given picture
    lengths = [len(writer.passage.value(text)) + 1 for text in texts]
    known = len(model.text_ids("a small red"))
    wanted = [forced[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    wanted[0] = wanted[0][known:]
    decoded_words = torch.cat([logits for logits in met if logits.shape[-1] == words.stop - words.start])
    decoded_picture = torch.cat([logits for logits in met if logits.shape[-1] == 1])
    decoded = torch.cat([decoded_words, decoded_picture], -1)
    torch.testing.assert_close(decoded, torch.cat(wanted), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_documents_do_not_depend_on_their_batch(make_model: Callable[..., UniTok], objective: str) -> None:
    model = lean(make_model(objective), picture=4.0, end=4.0)
    settings = {"images": SampleSettings(guidance=2.0, steps=3), "pictures": 2}
    image = codes(2, model.layout.length)
    beginnings: list[list[Part]] = [[], [("image", image), ("image", image), ("text", "a red circle")], []]
    together = written(model, beginnings, [0, 1, 5], **settings)
    assert len({str(kinds(document)) for document in together}) > 1, "of several shapes"
    assert same(written(model, beginnings[1:2], [1], **settings)[0], together[1])
    for one, other in zip(written(model, beginnings, [0, 1, 5], 2, **settings), together, strict=True):
        assert same(one, other)


def test_a_document_is_the_same_where_ends_of_texts_are_looked_for_seldom(
    make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a text runs on behind its end for some steps: what it ran too much is given back."""
    model = lean(make_model(), picture=4.0, end=4.0)
    often = written(model, [[], [("text", "a red")]], [0, 1], pictures=2)
    begin = PassageWriter.__init__

    def seldom(self: PassageWriter, *given: Any) -> None:
        begin(self, *given)
        self.look_every = 8

    monkeypatch.setattr(PassageWriter, "__init__", seldom)
    for one, other in zip(often, written(model, [[], [("text", "a red")]], [0, 1], pictures=2), strict=True):
        assert same(one, other)


def test_guidance_compares_with_nothing_and_leaves_texts_alone(make_model: Callable[..., UniTok]) -> None:
    model = lean(make_model(), picture=99)
    beginnings: list[list[Part]] = [[("text", "a red circle")], [("text", "zebra")]]

    def drawn(guidance: float) -> list[torch.Tensor]:
        found = written(model, beginnings, [5, 5], images=SampleSettings(guidance=guidance), pictures=1)
        return [document[1][1] for document in found]

    assert torch.equal(*drawn(0.0)), "the document is not seen"
    assert not torch.equal(*drawn(1.0)) and not torch.equal(drawn(1.0)[0], drawn(3.0)[0])
    lean(model, picture=-95)
    texts = [written(model, beginnings, [5, 5], images=SampleSettings(guidance=g), pictures=0) for g in (0.0, 1.0)]
    assert texts[0] == texts[1]


def test_a_smaller_number_of_pictures_cuts_the_same_document(make_model: Callable[..., UniTok]) -> None:
    model = lean(make_model(), picture=6.0)
    few, many = (written(model, [[]], [2], pictures=pictures)[0] for pictures in (1, 3))
    assert kinds(few).count("image") == 1 and kinds(many).count("image") == 3
    assert same(few, many[: len(few)])


def test_pictures_are_drawn_while_the_context_holds_them(make_model: Callable[..., UniTok]) -> None:
    model = lean(make_model(), picture=99)
    assert model.layout.length == 64 and model.config.text_length == 48
    plain = {"images": PLAIN, "texts": PLAIN}
    writer = DocumentWriter(model, **plain, context=64 + 2 * 49)
    assert writer.fitting == 1
    assert kinds(written(model, [[]], [0], context=64 + 2 * 49, pictures=9)[0]) == ["image"]
    # Empty texts take a position each, so a second picture fits where the first left room for a whole text behind it.
    assert len(written(model, [[]], [0], context=1 + 64 + 1 + 64 + 49, pictures=9)[0]) == 2
    assert len(written(model, [[]], [0], context=1 + 64 + 1 + 64 + 48, pictures=9)[0]) == 1
    image = codes(0, 64)
    with pytest.raises(UserError, match="3 pictures and 196 positions, but a context of 162 holds 1 pictures of 64 po"):
        written(model, [[("image", image)] * 3], [0], context=162)
    with pytest.raises(UserError, match="a picture of this model takes 64 positions and a text up to 49, choose at le"):
        DocumentWriter(model, **plain, context=161)
    with pytest.raises(UserError, match="--scales draws a preview, which nothing can follow"):
        DocumentWriter(make_model("next_scale"), SampleSettings(scales=2), PLAIN)


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
@torch.inference_mode()
def test_guidance_compares_with_the_document_without_its_last_text(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    """At guidance 0 a picture is drawn as behind the document before its last text, and an empty one."""
    model = lean(make_model(objective), picture=99)
    images = SampleSettings(guidance=0.0, steps=3)
    pictures = [torch.full((model.layout.length,), code) for code in (1, 9)]

    def begun(first: torch.Tensor, text: str) -> list[Part]:
        return [("text", "a circle"), ("image", first), ("text", text)]

    beginnings = [begun(pictures[0], "zebra"), begun(pictures[0], "red"), begun(pictures[1], "zebra")]
    found = written(model, beginnings, [5, 5, 5], images=images, pictures=2)
    drawn = [[value for kind, value in document if kind == "image"] for document in found]
    assert torch.equal(drawn[0][1], drawn[1][1]), "the last text is not seen"
    assert not torch.equal(drawn[0][1], drawn[2][1]), "what stands before is"
    for document, values in zip(found, drawn, strict=True):
        assert kinds(document) == ["text", "image", "text", "image", "image"]
        for number in (1, 2):  # the second has an empty text before it, which the other way round is one
            before: list[Part] = [("text", "a circle"), ("image", values[0])]
            before += [document[2], ("image", values[1])] if number == 2 else []
            writer = DocumentWriter(model, images, PLAIN)
            prompt = writer.pieces(before)
            plain = SampleSettings(guidance=1.0, steps=3)
            [wanted] = run(model, [Job([prompt], "image", fold(5, "turn", 2 * number - 1), plain)])
            assert torch.equal(values[number], wanted[0])
