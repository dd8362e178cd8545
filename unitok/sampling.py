"""Settings of sampling. Free of torch, so that the command line can show them quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokenizers_vq.errors import Problems, UserError, shown
from tokenizers_vq.storage.schema import read_dataclass

from .config import ModelConfig

MOST_GUIDANCE, MOST_TEMPERATURE = 1000, 1000
"""Beyond these a number is a slip: all pictures of a caption are alike, or noise."""
LONGEST_NEGATIVE = 32_000
"""Characters; a model reads far fewer tokens."""
MOST_DRAWINGS = 1000
"""Of one picture, to choose the best from."""


@dataclass
class SampleSettings:
    """How codes are chosen. `temperature`, `top_k` and `top_p` may be lists: for the next-scale objective a value for
    each scale, for codes in sub-tokens one for each sub-token."""

    guidance: float | list[float] = 3.0
    """Classifier-free guidance scale s: uncond + s * (cond - uncond). At 1 the unconditional pass is left out. A list
    has a scale for each condition of the task that can be left out (of `edit`: the instruction, the source); a number
    is that of the first."""
    temperature: float | list[float] = 1.0
    """Divides the logits; 0 takes the most likely code."""
    entropy_temperature: list[float] = field(default_factory=list)
    """Three numbers a, b, c: `temperature` is multiplied by a * exp(-H / b) + c, where H is the entropy in nats of what
    `top_k` and `top_p` keep of a code's distribution; here they come before the temperature (arXiv:2510.09012, with
    2.5, 3, 0.6). With a above 0 codes of which the model is sure are drawn warmer than others, below 0 colder. Empty:
    one temperature throughout."""
    top_k: int | list[int] = 0
    """Keep the k most likely codes; 0 keeps all."""
    top_p: float | list[float] = 0.0
    """Keep the smallest set of codes with this much probability, in (0, 1]; 0 keeps all."""
    steps: int = 12
    """Passes in which `masked_token` and `maskgit` draw an image. Other objectives do not use it."""
    guidance_rises: bool = False
    """Next scale: guidance grows evenly from 1 at the first scale to `guidance` at the last (VAR's ramp)."""
    guidance_by_sub_token: bool = False
    """Models whose codes have sub-tokens: a list in `guidance` has a scale for each of them, not for each condition."""
    guided_codes: int = 0
    """Only the first so many codes of a picture are guided; for the others the model runs without the prompt that
    guidance compares with (LlamaGen's cfg_interval is 2 less; guidance in an interval, arXiv:2404.07724). A pass that
    draws several codes is guided if it begins among the first. 0 guides all."""
    ahead: int = 0
    """Next token, random order: guess so many codes behind the one that is drawn, and check them in the same pass. The
    pictures stay the same, but for rounding, and take fewer passes. 0 guesses none."""
    row_window: int = 0
    """Next token: draw codes of neighbouring rows in one pass, each as soon as the row above is so many codes ahead of
    it (ZipAR, arXiv:2412.04062). Fewer passes, other pictures. 0, or the width of a row, draws code by code."""
    scales: int = 0
    """Next scale: draw only so many scales, for a coarse preview in less time; 0 draws all."""
    smooth: bool = False
    """VAR: go on, map by map, from mixtures of code vectors, and decode them (its authors' more_smooth). No codes say
    such a picture."""
    random_order: bool = False
    """Random order, masked token: draw codes in an order of the seed's own."""
    best_of: int = 1
    """Draw each picture so many times and keep the one from which the model itself reads the caption most readily, or
    of a part of a picture the one that goes best with what is known."""
    negative: str = ""
    """Guidance compares with this caption, and leads away from it (a negative prompt); empty: with a caption that is
    left out."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check(
            _all(self.guidance, 0, MOST_GUIDANCE),
            f"--guidance is {shown(self.guidance)}: choose a scale from 0 to {MOST_GUIDANCE} (1 turns guidance off)",
        )
        problems.check(
            _all(self.temperature, 0, MOST_TEMPERATURE),
            f"--temperature is {shown(self.temperature)}: choose a value from 0 to {MOST_TEMPERATURE}",
        )
        problems.check(
            not self.entropy_temperature or _is_rule(*self.entropy_temperature),
            f"--entropy-temperature is {shown(self.entropy_temperature)}: give three numbers a, b, c for a factor of "
            f"a * exp(-entropy / b) + c, with b above 0, and c and a + c from 0 to {MOST_TEMPERATURE}",
        )
        problems.check(_all(self.top_k, 0), f"--top-k is {shown(self.top_k)}: choose 1 or more, or 0 to keep all codes")
        problems.check(
            _all(self.top_p, 0, 1), f"--top-p is {shown(self.top_p)}: choose a value in (0, 1], or 0 to keep all codes"
        )
        problems.check_range("--steps", self.steps, 1, 2**16)
        problems.check_range("--best-of", self.best_of, 1, MOST_DRAWINGS)
        problems.check(
            self.guided_codes >= 0, f"--guided-codes is {self.guided_codes}: choose 1 or more, or 0 to guide all codes"
        )
        problems.check_range("--ahead", self.ahead, 0, 2**16)
        problems.check_range("--row-window", self.row_window, 0, 2**16)
        problems.check(
            not (self.ahead and self.row_window),
            f"--ahead {self.ahead} guesses codes of a row, --row-window {self.row_window} draws several rows at once: "
            "choose one of them",
        )
        problems.check(
            len(self.negative) <= LONGEST_NEGATIVE,
            f"--negative has {len(self.negative)} characters: up to {LONGEST_NEGATIVE} are read",
        )
        problems.check(self.scales >= 0, f"--scales is {self.scales}: choose 1 or more, or 0 to draw all")
        problems.raise_if_any()

    @classmethod
    def of(cls, model: ModelConfig, given: Mapping[str, Any] | None = None) -> SampleSettings:
        """What is given, else the model's own, else the defaults. Raises UserError for what are no settings."""
        return replace(read_dataclass(cls, model.sampling, "config.json of the model: sampling"), **(given or {}))

    @classmethod
    def given(cls, options: GivenSettings) -> dict[str, Any]:
        """Those of a command's options that are not None. Raises UserError for values out of range."""
        given = {name: value for name, value in vars(options).items() if value is not None}
        cls(**given)
        return given

    def at_scale(self, scale: int = 0, scales: int = 1) -> SampleSettings:
        """The settings of one scale, every one a number.

        Raises:
            UserError: a list that does not have a value for each scale, or more scales asked for than there are.
        """
        problems = Problems()
        names = ["temperature", "top_k", "top_p", *(["guidance"] if self.guidance_by_sub_token else [])]
        for name in names:
            values = getattr(self, name)
            problems.check(
                not isinstance(values, list) or len(values) == scales,
                f"--{name.replace('_', '-')} is {values}: give one value, or {scales}, one for each scale or sub-token",
            )
        problems.check(
            self.scales <= scales, f"--scales is {self.scales}: this model has {scales}, choose a number up to that"
        )
        problems.raise_if_any()
        chosen = {name: values[scale] if isinstance(values := getattr(self, name), list) else values for name in names}
        rise = scale / max(1, scales - 1) if self.guidance_rises else 1.0
        guidance = [1 + (scale - 1) * rise for scale in replace(self, **chosen).guidance_scales(0)]
        return replace(self, **chosen | {"guidance": guidance[0] if len(guidance) == 1 else guidance})

    @property
    def guidance_varies(self) -> bool:
        """Whether steps may be guided by other scales than those of `guidance_scales`."""
        return self.guidance_rises or (self.guidance_by_sub_token and isinstance(self.guidance, list))

    def guidance_scales(self, conditions: int) -> list[float]:
        """A scale for each of so many conditions, those that are not given 1; with 0 those that are given. Where
        sub-tokens have their own, the first one's.

        Raises:
            UserError: more scales than conditions.
        """
        given = self.guidance if isinstance(self.guidance, list) else [self.guidance]
        given = given[:1] if self.guidance_by_sub_token else given
        if conditions and len(given) > conditions:
            raise UserError(
                f"--guidance is {given}, but this task has {conditions} condition(s) that can be left out: give as many"
            )
        return [*given, *[1.0] * (conditions - len(given))]


@dataclass(frozen=True)
class GivenSettings:
    """The settings as options of a command: those of `SampleSettings`, None where the model's own shall count."""

    guidance: float | list[float] | None = None
    """Classifier-free guidance scale; 1 turns it off and halves the work. Also a list, a scale for each condition of
    the task. Like the following settings, null is the model's own (--sampling of train generator), else 3."""
    temperature: float | list[float] | None = None
    """Divides the logits; 0 takes the most likely code. Next scale: also a list, a value for each scale."""
    entropy_temperature: list[float] | None = None
    """Three numbers a, b, c: the temperature times a * exp(-H / b) + c, by the entropy H in nats of what top_k and
    top_p keep of a code's distribution; [] is one temperature throughout."""
    top_k: int | list[int] | None = None
    """Keep the k most likely codes; 0 keeps all. Next scale: also a list."""
    top_p: float | list[float] | None = None
    """Keep the smallest set of codes with this much probability, in (0, 1]; 0 keeps all. Next scale: also a list."""
    steps: int | None = None
    """Masked token, MaskGIT: passes in which an image is drawn, else 12."""
    guidance_rises: bool | None = None
    """Next scale: guidance grows from 1 at the first scale to its value at the last."""
    guidance_by_sub_token: bool | None = None
    """Sub-tokens: a list in --guidance has a scale for each sub-token of a code, not for each condition."""
    guided_codes: int | None = None
    """Guide only the first so many codes of a picture, which saves up to half of the work for the others; 0 guides
    all."""
    ahead: int | None = None
    """Next token, random order: guess so many codes ahead and check them in the same pass: the same pictures in fewer
    passes; 0 guesses none."""
    row_window: int | None = None
    """Next token: draw codes of neighbouring rows in one pass, each as soon as the row above is so many codes ahead of
    it: fewer passes, other pictures; 0 draws code by code."""
    scales: int | None = None
    """Next scale: draw only so many scales, for a coarse preview in less time; 0 draws all."""
    smooth: bool | None = None
    """VAR: draw from mixtures of code vectors, for smoother pictures (its authors' more_smooth; not for FID)."""
    random_order: bool | None = None
    """Random order, masked token: draw the codes in an order of the seed's own."""
    best_of: int | None = None
    """Draw each picture so many times and keep the one from which the model itself reads the caption most readily, or
    of a part of a picture the one that goes best with what is known."""
    negative: str | None = None
    """What is not wanted: guidance compares with this caption, and not with one that is left out. It does nothing at
    guidance 1."""


NONE_GIVEN = GivenSettings()
"""A model is drawn with as it likes best."""


def _all(values: float | list[float] | list[int], low: float, high: float = 2**53) -> bool:
    """Whether a value, or every one of a list, lies between; an empty list says nothing."""
    return values != [] and all(low <= value <= high for value in (values if isinstance(values, list) else [values]))


def _is_rule(*numbers: float) -> bool:
    """Whether they say a temperature for every entropy."""
    if len(numbers) != 3:
        return False
    scale, decay, floor = numbers
    return decay > 0 and all(0 <= end <= MOST_TEMPERATURE for end in (floor, scale + floor))
