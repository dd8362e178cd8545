"""The fields of requests. A field that is unknown or of another type is refused; none is guessed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from unitok.sampling import GivenSettings, SampleSettings

LONGEST_TEXT = 32_000
"""Characters of a text; a model reads far fewer tokens."""
MOST_PARTIAL_IMAGES = 100
LARGEST_SEED = 2**63 - 1


class Named(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    """The name of the model that is served, or nothing."""


class Fields(Named):
    seed: Annotated[int, Field(ge=-LARGEST_SEED, le=LARGEST_SEED)] | None = None
    """Of the first picture or text; the next has the next. Without it, one of chance; the answer tells it."""


SETTINGS = get_type_hints(GivenSettings)
"""Setting of `unitok sample` -> its type; None: the model's own."""
_OPTIONAL: dict[str, Any] = {name: (kind, None) for name, kind in SETTINGS.items()}
_Settings: Any = create_model("_Settings", __base__=Fields, **_OPTIONAL)


class DrawingFields(_Settings):
    """Of all routes that draw: with all settings of `unitok sample`."""

    prompt: Annotated[str, Field(max_length=LONGEST_TEXT)]
    n: Annotated[int, Field(ge=1)] = 1
    """Pictures, with the seeds seed, seed + 1, ..."""
    response_format: Literal["b64_json"] | None = None
    """The server keeps no files, so there are no addresses."""

    def settings(self) -> dict[str, Any]:
        """The settings that are given. Raises UserError for values out of range."""
        return SampleSettings.given(GivenSettings(**{name: getattr(self, name) for name in SETTINGS}))


class ImageFields(DrawingFields):
    """Of `/v1/images/generations`, and beside the files of `/v1/images/edits`."""

    size: str | None = None
    """WIDTHxHEIGHT; it must be the model's."""
    stream: bool = False
    """Whether steps and partial pictures are sent while it draws."""
    partial_images: Annotated[int, Field(ge=0, le=MOST_PARTIAL_IMAGES)] = 3
    """Partial pictures of each picture of a stream, evenly over its steps; fewer where the server is short of time."""


class ExtensionFields(DrawingFields):
    """Of `/v1/images/extensions`, beside the file."""

    left: int = 0
    """Pixels to add; so are the other sides."""
    right: int = 0
    top: int = 0
    bottom: int = 0
    stream: Literal[False] = False


class InspectionFields(Named):
    """Of `/v1/images/inspections`, beside the file."""

    prompt: Annotated[str, Field(max_length=LONGEST_TEXT)] = ""
    """The caption by which the codes would be drawn."""
    words: bool = False
    """Whether what each word of it is worth is told too."""


class GroundingFields(Named):
    """Of `/v1/images/groundings`, beside the file."""

    prompt: Annotated[str, Field(max_length=LONGEST_TEXT)] = ""
    """What is looked for; without it the picture is captioned, with the box of each thing that is named."""


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Annotated[str, Field(max_length=LONGEST_TEXT)]


class ImageUrl(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    url: str
    """data:image/png;base64,... : the server fetches nothing."""


class ImagePart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: (
        Annotated[str, Field(max_length=LONGEST_TEXT)]
        | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    )


class ChatFields(Fields):
    """Of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    n: Literal[1] = 1
    stream: Literal[False] = False
    temperature: float | None = None
    """Of texts. Without it 1 in documents, and 0, the most likely token each time, in answers about a picture."""
    top_k: int = 0
    top_p: float = 0.0
    pictures: Annotated[int, Field(ge=0)] | None = None
    """Most pictures that are drawn in an answer."""
    task: Literal["question", "image_to_text", "interleaved"] | None = None
    """How the messages are read; else documents where the model learned them, and a question or a caption elsewhere."""
