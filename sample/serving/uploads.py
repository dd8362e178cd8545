"""Pictures that a client sends. All of it stays in memory."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from unitok.data.decoding import FORMATS, PictureError, decode

from ..masks import mask_of_picture
from .errors import ApiError, invalid

Checked = TypeVar("Checked", bound=BaseModel)
MOST_FIELDS = 64
MOST_FILES = 8
HALF = 128
"""Opacities below are transparent."""


class InMemory(MultiPartParser):
    """A parser of forms that writes no file; the whole body is held to a limit before."""

    spool_max_size = 2**40


class Form(NamedTuple):
    """What a form holds."""

    values: dict[str, str | list[str]]
    files: dict[str, list[bytes]]


async def read_form(request: Request, files: Sequence[str]) -> Form:
    """The fields and files of a form. A field that comes more than once, or as `name[]`, is a list.

    Raises:
        ApiError: no form, a broken one, or files of other names.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "files are sent as multipart/form-data: make the request a form", files[0])
    parser = InMemory(request.headers, request.stream(), max_files=MOST_FILES, max_fields=MOST_FIELDS)
    try:
        parsed = await parser.parse()
    except (MultiPartException, ValueError) as error:
        raise ApiError(400, f"the form is broken: {getattr(error, 'message', error)}") from None
    form = Form({}, {name: [] for name in files})
    for key, value in parsed.multi_items():
        name = key.removesuffix("[]")
        if isinstance(value, UploadFile):
            if name not in form.files:
                raise ApiError(400, f"unknown file {name!r:.80}: send {' and '.join(files)}", name[:80])
            form.files[name].append(await value.read())
        elif key == name and name not in form.values:
            form.values[name] = value
        else:
            before = form.values.get(name, [])
            form.values[name] = [*(before if isinstance(before, list) else [before]), value]
    return form


def checked(kind: type[Checked], form: Form) -> Checked:
    """The values of a form, which are all text, as fields. Raises ApiError for wrong ones."""
    try:
        return kind.model_validate(form.values, strict=False)
    except ValidationError as error:
        raise invalid(error.errors()) from None


def read_picture(data: bytes, size: tuple[int, int] | None, pixels: int, field: str) -> torch.Tensor:
    """A picture (3, H, W) uint8, scaled and cropped to a size (H, W), or as it is.

    Raises:
        ApiError: no picture, a broken one, or one of more than so many pixels.
    """
    try:
        return decode(data, size, max_pixels=pixels)
    except PictureError as error:
        raise ApiError(400, f"{field} cannot be read as a picture: {error}", field) from None


def read_mask(data: bytes, pixels: int) -> torch.Tensor:
    """(H, W) bool, true where a picture is drawn anew: where the mask is transparent, or white in one that is not
    transparent anywhere.

    Raises:
        ApiError: no picture, or nothing in it says what is drawn anew.
    """
    picture = read_picture(data, None, pixels, "mask")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = Image.open(io.BytesIO(data), formats=FORMATS)  # `decode` has opened it, and refuses what is too large
        alpha = torch.from_numpy(np.array(opened.convert("RGBA").getchannel("A")))
    mask = alpha < HALF if (alpha < HALF).any() else mask_of_picture(picture)
    if not mask.any():
        raise ApiError(400, "mask has no transparent and no white pixel: mark what is to be drawn anew", "mask")
    return mask


def data_of_url(url: str, field: str) -> bytes:
    """The file in a data: address.

    Raises:
        ApiError: another address, or one that is broken.
    """
    head, comma, encoded = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise ApiError(
            400, f"{field} must hold its picture, as data:image/png;base64,...: this server fetches nothing", field
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{field} is not valid base64", field) from None
