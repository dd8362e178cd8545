"""The frozen text tower beside a vision model: captions -> vectors, for the contrastive loss of tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenizers_vq.losses.contrast import CaptionFeatures
from tokenizers_vq.storage.hub import from_hub


class TextTower:
    """The text part of the CLIP or SigLIP model in a folder or on the hub, with its text tokenizer.

    It is no part of the tokenizer that trains: it does not learn, is in no checkpoint, and is read anew on a resume.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        import transformers  # heavy, and only needed here

        with from_hub(
            lambda error: (
                f"tokenizer.contrastive_weight needs the text tower of {source} and its text tokenizer, which "
                f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:120]}): put all files of the "
                "model into one folder and name that as tokenizer.vision, or leave contrastive_weight out"
            )
        ):
            model = transformers.AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
            self._words = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            if self._words("green")["input_ids"] == self._words("black")["input_ids"]:
                # Without a file, transformers makes a text tokenizer that knows no word.
                raise ValueError("no vocabulary")
        del model.vision_model
        self._model = model.eval().requires_grad_(False).to(device)
        self._device = device
        self._longest: int = model.config.text_config.max_position_embeddings
        # SigLIP reads its vector at the last place, and has learned with padding up to there; CLIP at the end mark, and
        # no place before it sees the padding. So neither wants a mask.
        self._padding = "max_length" if model.config.model_type == "siglip" else "longest"

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> CaptionFeatures:
        """The vectors of a batch of captions, each different one read once; an empty caption is none."""
        different = {caption: number for number, caption in enumerate(dict.fromkeys(filter(None, captions)))}
        numbers = torch.tensor([different.get(caption, -1) for caption in captions], device=self._device)
        ids = self._words(
            list(different) or [""],  # so that the vectors have their width
            padding=self._padding,
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        )["input_ids"]
        with torch.autocast(self._device.type, enabled=False):
            found = self._model.get_text_features(input_ids=ids.to(self._device))
        vectors = getattr(found, "pooler_output", found)
        return CaptionFeatures(vectors[numbers].masked_fill(numbers[:, None] < 0, 0.0), numbers)
