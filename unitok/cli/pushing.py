"""`unitok push`. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers_vq.errors import UserError


def push(
    *,
    model: Path,
    name: str,
    licence: str,
    about: str | None = None,
    data: str | None = None,
    reports: list[Path] | None = None,
    picture: Path | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> None:
    """Send a model or a tokenizer with its card to the Hugging Face hub, as one commit.

    The card, MODEL/README.md, names data, scores and how each was made, licence, and shows a picture. Its scores are
    those of the reports in MODEL and of --reports that were made with exactly these weights. If you edit the card, it
    is sent as you left it. Every command takes hf:owner/name where it takes a folder.

    Args:
        model: Folder of a model or of a tokenizer.
        name: Repository on the hub, owner/name; it is made if need be.
        licence: Licence of the weights, as the hub names it: mit, apache-2.0, cc-by-4.0, other, ...
        about: A text for the top of the card, instead of a line on what the model is.
        data: What the card says of the data, instead of what run.json in MODEL says.
        reports: Further reports of unitok eval: report.json, or the folders that hold them.
        picture: PNG or JPEG for the card; by default the newest samples of the training in MODEL.
        private: Make a new repository private.
        dry_run: Write the card and list what would be sent; send nothing.

    Example:
        unitok push runs/generator me/emoji-painter --licence cc-by-4.0 --dry_run true
    """
    from tokenizers_vq.storage.files import atomic_path

    from ..exporting.card import CARD, Facts, card, data_of, edited, reports_in, scores_of
    from ..exporting.hub import check_name, check_text_encoder, files_of, newest_picture, open_either, send

    check_name(name, licence)
    if picture is not None and (not picture.is_file() or picture.suffix.lower() not in (".png", ".jpg", ".jpeg")):
        raise UserError(f"--picture {picture} is no PNG or JPEG file: give one, or leave it out")
    made = open_either(model)
    check_text_encoder(made, model)
    fingerprints = [made.fingerprint()]
    scores = []
    for report in reports or []:
        found = scores_of(report, fingerprints)
        if not found:
            raise UserError(f"--reports {report} measured no {model} with these weights: measure it again")
        scores += found
    for report in reports_in(model):
        found = scores_of(report, fingerprints)
        if not found:
            print(f"left out: {report} is of other weights", file=sys.stderr)
        scores += [score for score in found if score not in scores]
    shown = picture or newest_picture(model)
    files = files_of(model)
    if shown is not None:
        files[f"sample{shown.suffix.lower()}"] = shown
    facts = Facts(
        name,
        licence,
        data or data_of(model),
        about or "",
        scores,
        None if shown is None else f"sample{shown.suffix.lower()}",
    )
    place = model / CARD
    if edited(place):
        print(f"{place} was written by hand: it is sent as it is", file=sys.stderr)
    else:
        with atomic_path(place) as temporary:
            temporary.write_text(card(made, facts), encoding="utf-8")
    files[CARD] = place
    if dry_run:
        for path, file in files.items():
            print(f"{file.stat().st_size:>12,}  {path}")
        print(f"nothing was sent to {name}; the card is {place}")
        return
    print(send(name, files, private, f"{model.name} of unitok"))
