"""Neighbouring rows at once (ZipAR): the codes of a slow reference without a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from captures import Captures

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from tokenizers_vq.quantizers.config import MultiVQ
from unitok.choose import choose
from unitok.model import UniTok
from unitok.objectives import get_objective
from unitok.objectives.base import Writer
from unitok.sample import engine as engine_module
from unitok.sample.engine import Engine
from unitok.sample.jobs import Job, Turn, job_for
from unitok.sample.pipeline import run
from unitok.sample.prompts import document_of
from unitok.sampling import SampleSettings
from unitok.seeding import keyed_generator
from unitok.tasks import Piece
from unitok.trunk.rule import Visibility
from unitok.vocabulary import Frames, Vocabulary

HEIGHT = WIDTH = 8
PLAIN = SampleSettings(guidance=2.0, temperature=0.8, top_p=0.9)
ENDS = pytest.mark.parametrize("ends", [False, True], ids=["no row ends", "row ends"])
HOLE = torch.tensor([[2 <= row < 7 and 1 <= column < 6 for column in range(WIDTH)] for row in range(HEIGHT)]).flatten()


def job(
    settings: SampleSettings, seed: int = 0, known: torch.Tensor | None = None, caption: str = "a red circle"
) -> Job:
    return job_for("text_to_image", {"caption": caption}, seed, settings, known=known)


class Slow:
    """Draws one picture code by code from whole passes, each over the prompt and all positions so far, with a mask of
    who sees whom. A position is the pair (line number, what it carries); it sees those of no higher number that ran
    before it or with it."""

    def __init__(self, model: UniTok, one: Job) -> None:
        self.model, self.job, self.settings = model, one, one.settings
        self.ends = bool(model.objective.frames.row_end)
        self.window = min(self.settings.row_window or WIDTH, WIDTH)
        self.codes = [-1] * (HEIGHT * WIDTH) if one.known is None else one.known.tolist()
        self.given = [code >= 0 for code in self.codes]
        self.reached = [0] * HEIGHT
        """Codes of each row that are drawn, or were given and come up to there."""
        self.line: list[tuple[int, int, int]] = []
        """(number, id, pass) of the positions that stay."""
        self.uniform = torch.rand(1, HEIGHT * WIDTH, generator=keyed_generator(one.seed, "next_token"))[0]
        self.passes = 0

    def number(self, row: int, column: int) -> int:
        return row * (WIDTH + self.ends) + column

    def carried(self, row: int, column: int) -> int | None:
        """The id at the position that predicts a code; None: it is not there yet."""
        vocabulary = self.model.vocabulary
        if row == column == 0:
            return vocabulary.boi
        if column == 0 and self.ends:
            return vocabulary[self.model.objective.frames.row_end].start
        code = self.codes[row * WIDTH + column - 1]
        return None if code < 0 else vocabulary.image_start + code

    def may_go_on(self, row: int) -> bool:
        column = self.reached[row]
        if column == WIDTH:
            return False
        if row == 0:
            return True
        if row == 1 and column == 0 and self.carried(1, 0) is None:
            return self.reached[0] == WIDTH
        return self.reached[row - 1] >= min(WIDTH, column + self.window)

    def draw(self) -> torch.Tensor:
        while -1 in self.codes:
            for row in range(HEIGHT):
                while self.may_go_on(row) and self.given[row * WIDTH + self.reached[row]]:
                    self.reached[row] += 1
            drawn = [(row, self.reached[row]) for row in range(HEIGHT) if self.may_go_on(row)]
            self.one_pass(drawn)
        return torch.tensor(self.codes)

    def one_pass(self, drawn: list[tuple[int, int]]) -> None:
        self.passes += 1
        before = {number for number, _, _ in self.line}
        for row in range(HEIGHT):
            for column in range(self.reached[row] + ((row, self.reached[row]) in drawn)):
                id_, number = self.carried(row, column), self.number(row, column)
                if id_ is not None and number not in before:
                    self.line.append((number, id_, self.passes))
            last = self.number(row, WIDTH)  # carries the last code of a row that has an end
            if self.ends and row < HEIGHT - 1 and self.reached[row] == WIDTH and last not in before:
                self.line.append(
                    (last, self.model.vocabulary.image_start + self.codes[row * WIDTH + WIDTH - 1], self.passes)
                )
        line = list(self.line)
        for row, column in drawn:
            if self.carried(row, column) is None:
                stand_in = self.codes[(row - 2) * WIDTH + self.reached[row - 2] - 1]
                line.append((self.number(row, column), self.model.vocabulary.image_start + stand_in, self.passes))
        logits = [self.logits(which, line, drawn) for which in range(2)]
        most = self.settings.guided_codes
        scale = self.settings.guidance if not most or sum(self.reached) < most else 1.0
        guided = (logits[1] + scale * (logits[0] - logits[1]))[None] if scale != 1 else logits[0][None]
        places = [row * WIDTH + column for row, column in drawn]
        found = choose(guided, self.uniform[places][None], [self.settings])[0][0]
        for (row, _), place, code in zip(drawn, places, found.tolist(), strict=True):
            self.codes[place] = code
            self.reached[row] += 1

    @torch.inference_mode()
    def logits(self, which: int, line: list[tuple[int, int, int]], drawn: list[tuple[int, int]]) -> torch.Tensor:
        model, prompt = self.model, document_of(self.job.prompts[which], self.model.modalities())
        numbers, ids, passes = (torch.tensor(column) for column in zip(*line, strict=True))
        places = torch.zeros(len(line), 3)
        if self.ends:
            places[:, 0] = numbers
        else:
            places[:, 1], places[:, 2] = numbers // WIDTH, numbers % WIDTH
        places[:, 0] += prompt.order
        n = len(prompt)
        mask = torch.zeros(n + len(line), n + len(line), dtype=torch.bool)
        mask[:n, :n] = prompt.groups[None] <= prompt.groups[:, None]
        mask[n:, :n] = True
        mask[n:, n:] = (numbers[None] <= numbers[:, None]) & (passes[None] <= passes[:, None])
        hidden = model.hidden(
            torch.cat([prompt.inputs, ids])[None],
            torch.cat([prompt.places, places])[None],
            Visibility("sdpa", mask=mask[None, None]),
        )
        at = {number: place for place, (number, _, _) in enumerate(line)}
        asked = hidden[0, [n + at[self.number(row, column)] for row, column in drawn]]
        return model.ids.scores(asked, model.vocabulary.image_range)


def with_row_ends(model: UniTok) -> UniTok:
    model.objective.frames = Frames(row_end="mask")
    return model


@pytest.fixture
def make(make_model: Callable[..., UniTok]) -> Callable[[bool], UniTok]:
    """A model whose rows end with an id, or do not."""

    def made(ends: bool) -> UniTok:
        model = make_model()
        model.objective.frames = Frames(row_end="mask") if ends else model.objective.frames
        return model

    return made


@ENDS
def test_codes_are_those_of_the_slow_reference(make: Callable[[bool], UniTok], ends: bool) -> None:
    """With guidance, without, and ending; known codes around a hole, and anywhere; plain rows beside others. The
    reference draws alone; lanes are used again."""
    model, random = make(ends), torch.Generator().manual_seed(1)
    known = torch.randint(model.vocabulary.codebook_size, (HEIGHT * WIDTH,), generator=random)
    anywhere = torch.rand(len(known), generator=random) < 0.5
    jobs = [
        job(replace(PLAIN, row_window=1)),
        job(replace(PLAIN, row_window=3, guidance=1.0, temperature=1.0), 1, caption="a large blue square"),
        job(replace(PLAIN, row_window=4, guided_codes=21), 2, torch.where(HOLE, -1, known)),
        job(replace(PLAIN, row_window=2), 3, torch.where(anywhere, -1, known)),
        job(PLAIN, 4),
    ]
    found = [written[0] for written in run(model, jobs, batch_size=3)]
    passes = []
    for one, codes in zip(jobs, found, strict=True):
        slow = Slow(model, one)
        assert torch.equal(codes, slow.draw()), one.seed
        passes.append(slow.passes)
    assert passes[:2] == ([15, 29] if ends else [22, 34]) and passes[4] == 64
    assert passes[2] < HOLE.sum() and passes[3] < anywhere.sum()
    assert torch.equal(found[2][~HOLE], known[~HOLE]) and torch.equal(found[3][~anywhere], known[~anywhere])


@ENDS
def test_a_window_of_a_whole_row_draws_code_by_code(make: Callable[[bool], UniTok], ends: bool) -> None:
    model, known = make(ends), torch.where(HOLE, -1, 3)
    given = [None, known, torch.full_like(known, 3)]
    plain = run(model, [job(PLAIN, 0, one) for one in given])
    for window in (WIDTH, WIDTH + 5):
        wide = run(model, [job(replace(PLAIN, row_window=window), 0, one) for one in given])
        assert all(torch.equal(one[0], other[0]) for one, other in zip(plain, wide, strict=True))


def test_what_follows_a_picture_does_not_tell_how_it_was_drawn(make_model: Callable[..., UniTok]) -> None:
    """A second picture behind one that was drawn, and behind the same codes given."""
    model, found = make_model(), []
    known = None
    for _ in range(2):
        one = job(replace(PLAIN, row_window=2), 0, known)
        one.then = [Turn([Piece("text", [5, 6], False)], "image")]
        found += run(model, [one])
        known = found[0][0]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_lane_that_is_used_again_forgets_the_picture_before(make_model: Callable[..., UniTok]) -> None:
    """A longer prompt stands where the first picture stood."""
    model, settings = make_model(), replace(PLAIN, row_window=2)
    jobs = [job(settings, 0, caption="a"), job(settings, 1, caption="a large cross above a small yellow circle")]
    found = run(model, jobs, batch_size=1)
    assert all(torch.equal(one[0], run(model, [alone])[0][0]) for one, alone in zip(found, jobs, strict=True))


def test_passes_are_captured_and_replayed(make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches, so that the passes of the second were captured in the first."""
    model, captures = make_model(), Captures()
    jobs = [job(replace(PLAIN, row_window=2 + 2 * (seed % 2), guidance=1.0), seed) for seed in range(8)]
    right = [written[0] for written in run(model, jobs)]
    monkeypatch.setattr(engine_module, "capturing", lambda device: captures)
    engine = Engine(model, lanes=4, room=300)
    found, numbers = {}, [engine.add(one) for one in jobs]
    while engine.busy:
        found |= {number: written[0] for number, written in engine.step()}
    assert all(torch.equal(found[number], codes) for number, codes in zip(numbers, right, strict=True))
    assert captures.replayed > 10


def test_progress_counts_passes_and_shows_the_codes_that_there_are(make_model: Callable[..., UniTok]) -> None:
    model = make_model()
    known = torch.where(HOLE, -1, 3)
    engine = Engine(model, lanes=2, room=300)
    number, seen = engine.add(job(replace(PLAIN, row_window=1), 0, known)), []
    while engine.busy:
        now = engine.progress(number)
        if now is not None:
            seen.append((now.step, now.steps, int((now.so_far >= 0).sum())))
        [*done] = engine.step()
    assert [step for step, _, _ in seen] == list(range(1, len(seen) + 1)) and seen[-1][1] == len(seen) + 1
    drawn = [codes for *_, codes in seen]
    assert drawn == sorted(drawn) and drawn[0] >= (~HOLE).sum() and max(b - a for a, b in pairwise(drawn)) > 1
    assert torch.equal(done[0][1][0][~HOLE], known[~HOLE])


def test_grids_with_books_of_their_own_are_drawn_one_after_another() -> None:
    """What a code is depends on nothing but its place here, so in any order the codes are those drawn one by one."""
    config = replace(TOKENIZER_PRESETS["debug"](), quantizer=MultiVQ(dim=8, codebook_size=16, codebooks=2))
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config).eval()
    vocabulary, objective = Vocabulary.of(10, tokenizer.codebook_size), get_objective("next_token", tokenizer)
    length = tokenizer.layout.length
    logits = torch.randn(length, 16, generator=torch.Generator().manual_seed(0)) * 3
    found = []
    for window in (0, 2):
        writer: Writer = objective.writer(tokenizer.layout, vocabulary, 1, torch.device("cpu"))
        writer.admit(0, 0, SampleSettings(row_window=window))
        while not writer.finished([0]):
            at, asked = writer.before(0), writer.ask([0], torch.tensor([0]))
            (ids, here), n = asked.spans[0], asked.ids.shape[1]
            place = torch.tensor([[at]]) if asked.numbers is None else asked.numbers[:, here]
            assert here.stop == n and (ids.start == vocabulary.image_start) == bool((place < length // 2).all())
            assert (ids.start == vocabulary.image_start) == bool((place < length // 2).any())
            writer.take([0], torch.tensor([0]), [logits[place]])
        found.append(writer.written(0).clone())
    assert torch.equal(found[0], found[1]) and writer.steps(0) == 2 * (2 * WIDTH + (HEIGHT - 2) * 2)


def test_other_objectives_do_not_use_it(make_model: Callable[..., UniTok]) -> None:
    model = make_model("random_order")
    assert torch.equal(run(model, [job(PLAIN)])[0][0], run(model, [job(replace(PLAIN, row_window=2))])[0][0])


def test_a_window_below_zero_and_one_with_guesses_are_refused() -> None:
    with pytest.raises(UserError, match="--row-window is -1: choose 0 or more"):
        SampleSettings(row_window=-1)
    with pytest.raises(
        UserError, match="--ahead 4 guesses codes of a row, --row-window 2 draws several rows at once: "
    ):
        SampleSettings(row_window=2, ahead=4)
