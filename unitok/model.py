"""A model: a trunk between ports, with its image tokenizer, its text tokenizer and the vocabulary that joins them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from tokenizers_vq.base import CONFIG_FILE, ImageTokenizer, load_tokenizer
from tokenizers_vq.errors import Problems, UserError, shown
from tokenizers_vq.images import to_uint8
from tokenizers_vq.layout import Layout
from tokenizers_vq.parts import Tunable
from tokenizers_vq.storage.digests import check_digest, check_own, read_configuration, with_digests
from tokenizers_vq.storage.files import part, read_stable, replace_parts, write_json
from tokenizers_vq.storage.hub import local_folder
from tokenizers_vq.storage.weights import build_empty, read_weights, write_weights

from .boxes import with_boxes
from .conditions import STATES, AttendedModality, Classes, ClassModality, StatesModality, caption_ports
from .config import ALIKE, HEAD, ModelConfig, ObjectiveSettings, PortConfig, TrunkConfig, name_of_format_1
from .modalities import ANSWER, PASSAGE, ImageModality, Modality, PassageModality, TextModality
from .objectives import get_objective, objective_class
from .objectives.base import Objective
from .objectives.sub_tokens import SubTokenPort
from .ports import AttendedPort, IdPort, StatesPort, add_features, build_ports, said, vectors_of_codes
from .reader.config import READER
from .reader.port import ReaderPort
from .sequence import Conditions, PackedBatch
from .tasks import TASKS
from .text import FILE as TEXT_FILE
from .text import CaptionEncoder, TextTokenizer, load_text_tokenizer
from .text_encoder.encoder import CaptionStates
from .trunk.base import Beside
from .trunk.cache import KVCache
from .trunk.fusion import FUSIONS
from .trunk.native import Transformer
from .trunk.rule import Visibility
from .vocabulary import Vocabulary

CONFIG, WEIGHTS = "config.json", "model.safetensors"
IMAGE_TOKENIZER, TEXT_TOKENIZER = "image_tokenizer", "text_tokenizer"
PROVEN = (WEIGHTS, f"{IMAGE_TOKENIZER}/{CONFIG_FILE}", f"{TEXT_TOKENIZER}/{TEXT_FILE}")
"""Files whose digests stand in `config.json`; that of the image tokenizer has those of its weights."""


class UniTok(Tunable):
    """What a model folder holds.

    `config.json`, `model.safetensors` (trunk and ports), `image_tokenizer/` and `text_tokenizer/`. `save_pretrained`
    and `from_pretrained` are inverse to the bit.
    """

    def __init__(self, config: ModelConfig, image_tokenizer: ImageTokenizer, text_tokenizer: TextTokenizer) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(config.vocabulary)
        problems = Problems()
        codes, texts = self.vocabulary.codebook_size, dict(self.vocabulary.spans)["text"]
        kind = objective_class(config.objective)
        wanted = kind.ids_of(image_tokenizer)
        problems.check(
            codes == wanted,
            f"the model knows {codes} image {kind.counted}, its tokenizer has {wanted}: use the tokenizer it was "
            "trained with",
        )
        problems.check(
            texts == text_tokenizer.size,
            f"the model knows {texts} text ids, its text tokenizer has {text_tokenizer.size}: "
            "use the text tokenizer it was trained with",
        )
        problems.raise_if_any()
        trunk = config.trunk
        self.objective: Objective = get_objective(config.objective, image_tokenizer, trunk.plain_inputs)
        self.objective.frames, self.objective.cools_fast = trunk.frames, trunk.cools_fast
        self.objective.sub_tokens = trunk.sub_tokens
        ports = self.objective.ports(image_tokenizer.layout) | caption_ports(trunk.captions, trunk.state_width)
        waves = {name: port for name, port in config.ports.items() if port.kind == "waves"}
        unknown = sorted(name for name in waves if name not in self.vocabulary)
        if unknown:
            raise UserError(f"the model has waves of {', '.join(map(shown, unknown))}, its vocabulary no such span")
        own = {name: port for name, port in config.ports.items() if port.kind not in ALIKE}
        if own != ports:
            raise UserError(
                f"the model takes {said(own)} beside its ids, its objective and tokenizer make "
                f"{said(ports)}: use the tokenizer it was trained with"
            )
        self.text_tokenizer = text_tokenizer
        self.ids = self._id_port(waves, image_tokenizer)
        self.ports = build_ports(own, trunk.width)
        if config.reader is not None:
            self.ports[READER] = ReaderPort(config.reader, trunk.width, image_tokenizer)
        self.trunk = Transformer(trunk) if isinstance(trunk, TrunkConfig) else trunk.build()
        self.fusion = None if config.reader is None else FUSIONS[config.reader.fusion](self.trunk, config.reader)
        if isinstance(self.ids, SubTokenPort):
            self.ids.intra = self.trunk.intra
        self.image_tokenizer = image_tokenizer.eval().requires_grad_(False)

    def _id_port(self, waves: Mapping[str, PortConfig], image_tokenizer: ImageTokenizer) -> IdPort | SubTokenPort:
        trunk, size, image = self.config.trunk, self.vocabulary.size, self.vocabulary.image_range
        if trunk.sub_tokens:
            number = self.vocabulary.codebook_size
            if prod(trunk.sub_tokens) != number:
                raise UserError(
                    f"trunk.sub_tokens is {trunk.sub_tokens}, the model has {number} image codes: "
                    "give sizes whose product that is"
                )
            return SubTokenPort(size, image, trunk.sub_tokens, trunk.width)
        scales = {name: (self.vocabulary[name], port.size) for name, port in waves.items()}
        deep, bits = image if trunk.deep_head else None, image if self.objective.bitwise else None
        codes = vectors_of_codes(self.config.ports, self.vocabulary, image_tokenizer)
        return IdPort(size, trunk.width, trunk.tied_head, trunk.head_bias, scales, deep, bits, codes)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Sums of cross-entropy of every task, (tasks,) float32.

        Sums, not means: what they are divided by counts over the whole step, which only its caller knows. At each
        position the softmax is over the ids that can stand there.
        """
        hidden = self.states(batch, self.config.trunk.attention).flatten(0, 1)
        counts = [n for _, n in batch.spans]
        states, targets = hidden.index_select(0, batch.at).split(counts), batch.targets.split(counts)
        parts = [
            self.ids.losses(some, wanted, ids)
            for some, wanted, (ids, _) in zip(states, targets, batch.spans, strict=True)
        ]
        losses = torch.cat(parts) * batch.weights
        return torch.zeros(len(TASKS), device=losses.device).index_add(0, batch.tasks, losses)

    def states(self, batch: PackedBatch, attention: str = "sdpa") -> torch.Tensor:
        """Last states (R, T, C) of a batch."""
        condition = self.embedded(batch.conditions)
        seen = batch.visibility(attention)
        return self.hidden(batch.inputs, batch.places, seen, None, batch.features, batch.stands, condition)

    def embedded(self, conditions: Conditions | None) -> Beside | None:
        """Conditions as vectors of the trunk's width."""
        if conditions is None:
            return None
        vector, states = add_features(self.ids(conditions.ids), self.ports, conditions.features), conditions.states
        if states is None:
            return Beside(vector)
        found: Beside = self.ports[states.port](states)
        return found._replace(vector=vector + found.vector)

    def hidden(
        self,
        ids: torch.Tensor,
        places: torch.Tensor,
        seen: Visibility,
        cache: KVCache | None = None,
        features: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
        stands: torch.Tensor | None = None,
        condition: Beside | None = None,
    ) -> torch.Tensor:
        """Ids (B, T) at places (B, T, 3) to last states (B, T, C); `features` and `stands` as in `PackedBatch`, a
        `condition` as `embedded`."""
        x = self.ids(ids)
        if condition is not None:  # an image begins with it
            x = torch.where((ids == self.vocabulary.boi)[..., None], condition.vector.to(x.dtype), x)
        x = add_features(x, self.ports, features or {})
        if self.fusion is not None:
            seen = self.fusion.told(seen, x, (features or {}).get(READER, (None,))[0], cache)
        return self.trunk(x, places, seen, cache, stands, condition)

    @torch.no_grad()
    def start_from(self, other: UniTok) -> None:
        """Takes the weights of a model of the same sizes; ids and waves that only this one has keep their own."""
        mine = self.state_dict()
        for name, given in other.state_dict().items():
            here = mine[name][: len(given)] if given.ndim else mine[name]
            here.copy_(given)

    def with_tokenizer(self, image_tokenizer: ImageTokenizer) -> UniTok:
        """This model with another decoder of its codes.

        Raises:
            UserError: a tokenizer that makes other codes.
        """
        if not image_tokenizer.same_codes(self.image_tokenizer):
            raise UserError(
                "the image tokenizer makes other codes than that of the model: train its decoder alone, from the "
                "model's own, with unitok train tokenizer --init MODEL/image_tokenizer --trainable 'decoder.*'"
            )
        config = replace(self.config, image_tokenizer=image_tokenizer.fingerprint())
        model = build_empty(lambda: UniTok(config, image_tokenizer, self.text_tokenizer), "the model")
        model.load_state_dict(self._state(), strict=False)
        return model.eval()

    def train(self, mode: bool = True) -> UniTok:
        super().train(mode)
        self.image_tokenizer.eval()
        return self

    def modalities(
        self, encode: Callable[[str], list[int]] | None = None, settings: ObjectiveSettings | None = None
    ) -> dict[str, Modality]:
        """What the model reads and writes, by name. `encode` turns texts into ids (default: the model's own, which
        refuses long ones); `settings` are those of training."""
        encode, own, seen = encode or self.text_ids, self.config, self.seen
        arguments = (self.vocabulary, encode, own.text_length, self.layout, self.objective, settings)
        found = modalities(*arguments, self.captions(encode), seen, own.restates)
        image = found["image"]
        assert isinstance(image, ImageModality)
        return found if seen is None else {**found, "image": replace(image, decode=self.pictures)}

    @property
    def reader(self) -> ReaderPort | None:
        """The port of pictures that are given; None: they are read as codes."""
        port = dict(self.ports.items()).get(READER)
        assert port is None or isinstance(port, ReaderPort)
        return port

    @property
    def seen(self) -> torch.Tensor | None:
        """(m, 3) float32: the places of a picture that is read through its port."""
        return None if self.reader is None else self.reader.places(self.layout)

    @property
    def picture_length(self) -> int:
        """Positions of a picture at most, whether it is read or drawn."""
        drawn = self.objective.positions(self.layout)
        return drawn if self.reader is None else max(drawn, self.reader.length)

    @torch.inference_mode()
    def pictures(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (N, L) to pictures (N, 3, H, W) uint8, on the CPU."""
        return to_uint8(self.image_tokenizer.decode(codes.to(self.device))).cpu()

    def captions(
        self, encode: Callable[[str], list[int]]
    ) -> TextModality | ClassModality | StatesModality | AttendedModality:
        """How the model reads captions: as texts, or as a condition."""
        port, trunk = self._states_port, self.config.trunk
        if isinstance(port, StatesPort):
            return StatesModality(self.vocabulary, self.caption_states, nothing=port.left_out.detach().float().cpu())
        if isinstance(port, AttendedPort):
            return AttendedModality(self.vocabulary, self.caption_states, 0, *port.left_out.shape)
        if trunk.captions == "text":
            asking = trunk.asking and trunk.asking.known_to(self.vocabulary)
            how = trunk.wording, trunk.padded, trunk.keeps_wording, trunk.frames, asking, trunk.left_out
            return TextModality(self.vocabulary, encode, self.config.text_length, *how)
        return ClassModality(self.vocabulary, self.classes)

    @property
    def classes(self) -> Classes:
        """How captions are read, where they are classes."""
        return Classes(self.text_tokenizer.size, self.config.classes)

    @property
    def _states_port(self) -> StatesPort | AttendedPort | None:
        port = dict(self.ports.items()).get(STATES)
        return port if isinstance(port, StatesPort | AttendedPort) else None

    @property
    def caption_states(self) -> CaptionStates:
        """What turns captions into states. Raises UserError where the model reads none."""
        port, trunk = self._states_port, self.config.trunk
        if port is None:
            raise UserError("the model reads captions without a text encoder: leave --text_encoder out")
        (most, size), cleans = port.left_out.shape, trunk.cleans_captions
        return CaptionStates(self.config.text_encoder, most, size, trunk.text_encoder, cleans, self.device)

    def too_long(self, caption: str) -> bool:
        """Whether a caption of data is cut before it is read."""
        if self.config.trunk.captions == "class":
            return False
        texts = CaptionEncoder(self.text_tokenizer, self.config.text_length) if self._states_port is None else None
        return (texts or self.caption_states).too_long(caption)

    @property
    def device(self) -> torch.device:
        return self.ids.embedding.weight.device

    @property
    def layout(self) -> Layout:
        """Layout of the pictures that the model draws."""
        return replace(self.image_tokenizer.layout, in_line=self.config.trunk.in_line)

    def text_ids(self, caption: str) -> list[int]:
        """Ids of a caption, or of the class whose number it is. Raises UserError when it is too long for the model, or
        no class."""
        if self._states_port is not None:
            raise UserError("this model reads states of a text encoder: a caption has no ids")
        if self.config.trunk.captions == "class":
            return self.classes(caption)
        ids = self.text_tokenizer.encode(caption)
        if len(ids) > self.config.text_length:
            start = caption if len(caption) < 40 else caption[:37] + "..."
            raise UserError(
                f"the caption {start!r} has {len(ids)} tokens, this model takes {self.config.text_length}: shorten it"
            )
        return ids

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights and the configuration; names the model in the records of its pictures."""
        digest = hashlib.sha256(json.dumps(self.config.to_json(), sort_keys=True).encode())
        for name, tensor in sorted(self._state().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model folder: all its parts are replaced or none, whenever the process is killed.

        Other files in the folder stay.

        Raises:
            UserError: a weight is not finite, or the folder cannot be written.
        """
        replace_parts(Path(folder), self._write_parts)

    def _write_parts(self, folder: Path) -> None:
        self.image_tokenizer.write_parts(folder / IMAGE_TOKENIZER)
        self.text_tokenizer.save(folder / TEXT_TOKENIZER)
        write_weights(self._state(), folder / WEIGHTS)
        write_json(folder / CONFIG, with_digests(self.config.to_json(), folder, CONFIG, *PROVEN))

    def _state(self) -> dict[str, torch.Tensor]:
        """The tensors of trunk and ports as their file holds them: a tied head is the embedding, and not there."""
        state = {n: t for n, t in self.state_dict().items() if not n.startswith("image_tokenizer.")}
        if self.config.trunk.tied_head:
            del state[HEAD]
        return state

    @classmethod
    def from_pretrained(cls, name: str | Path, device: torch.device | str = "cpu") -> UniTok:
        """Reads a model folder, or `hf:owner/name` from the hub. Of the folder of an adapter, the model that it makes
        of its base.

        Raises:
            UserError: files that are missing, foreign or damaged.
        """
        from .tuning.adapter import is_adapter, open_adapter  # which opens a model itself

        folder = local_folder(name)
        if is_adapter(folder):
            return open_adapter(folder).to(device)
        if not folder.is_dir():
            raise UserError(f"model folder {folder} does not exist")
        parts = CONFIG, WEIGHTS, IMAGE_TOKENIZER, TEXT_TOKENIZER
        lacking = [one for one in parts if not part(folder, one).exists()]
        if lacking:
            raise UserError(f"model folder {folder} has no {' and no '.join(lacking)}: is it a finished generator?")
        return read_stable(part(folder, CONFIG), lambda: cls._load(folder)).to(device)

    @classmethod
    def _load(cls, folder: Path) -> UniTok:
        where = part(folder, CONFIG)
        data, files = read_configuration(where)
        config = ModelConfig.from_json(data, str(where))
        check_own(data, files, where)
        for file in PROVEN:
            check_digest(folder, file, files, "restore the model folder")
        images, texts = load_tokenizer(part(folder, IMAGE_TOKENIZER)), load_text_tokenizer(part(folder, TEXT_TOKENIZER))
        found = images.fingerprint()
        if config.image_tokenizer and found != config.image_tokenizer:
            raise UserError(
                f"{folder / IMAGE_TOKENIZER} is not the tokenizer this model was trained with "
                f"(fingerprint {found[:12]}, expected {config.image_tokenizer[:12]}): put the right one back"
            )
        model = build_empty(lambda: cls(config, images, texts), str(where))
        advice = "weights and configuration are of different models, or damaged: restore both"
        if model.reader is not None:
            model.reader.check_width(part(folder, WEIGHTS), advice)
        old, own = data.get("format") == 1, model._state()
        named = {name_of_format_1(name) if old else name: name for name in own}
        given = read_weights(part(folder, WEIGHTS), {name: own[new] for name, new in named.items()}, advice)
        given = {named[name]: tensor for name, tensor in given.items()}
        model.load_state_dict(given, strict=False)  # the image tokenizer has its weights
        return model.eval()


def modalities(
    vocabulary: Vocabulary,
    encode: Callable[[str], list[int]],
    text_length: int,
    layout: Layout,
    objective: Objective,
    settings: ObjectiveSettings | None = None,
    captions: Modality | None = None,
    seen: torch.Tensor | None = None,
    restates: bool = False,
) -> dict[str, Modality]:
    """See `UniTok.modalities`; holds nothing heavy but what the objective needs."""
    texts = captions or TextModality(vocabulary, encode, text_length)
    asking = texts.asking if isinstance(texts, TextModality) else None
    opening = tuple(encode(asking.before)) if asking else ()
    found: dict[str, Modality] = {
        "text": texts,
        ANSWER: replace(texts, answers=True) if isinstance(texts, TextModality) and asking else texts,
        PASSAGE: PassageModality(vocabulary, encode, text_length),
        "image": ImageModality(vocabulary, layout, objective, settings, seen, opening),
    }
    return found | with_boxes(vocabulary, encode, text_length, restates)
