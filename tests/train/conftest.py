"""A toy that trains in milliseconds (a linear autoencoder of 8x8 pictures), and both trainers at their smallest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.losses.adversarial_config import AdversarialConfig
from tokenizers_vq.losses.config import LossConfig
from tokenizers_vq.quantizers.config import MultiVQ
from unitok.cli.main import main
from unitok.config import ObjectiveSettings, TasksConfig, TrunkConfig
from unitok.data.records import Record
from unitok.processes.world import World
from unitok.sampling import GivenSettings
from unitok.seeding import keyed_generator
from unitok.train import data as training_data
from unitok.train import loop
from unitok.train.commands import train_generator, train_tokenizer
from unitok.train.config import AugmentConfig, OptimConfig, RunConfig
from unitok.train.folder import RunFolder
from unitok.train.generator import GeneratorTrainee
from unitok.train.log import read_log
from unitok.train.loop import train
from unitok.train.trainee import MicroBatch

SMALL_RUN: dict[str, Any] = {"batch_size": 8, "log_every": 1, "eval_pictures": 8, "device": "cpu"}


class Pictures:
    """48 noise pictures; those in `broken` cannot be read, those in `poisoned` hold a NaN for the trainee."""

    name, endless, left_out = "noise", False, ()

    def __init__(self, broken: tuple[int, ...] = (), poisoned: tuple[int, ...] = ()) -> None:
        self.broken, self.poisoned = broken, poisoned

    def __len__(self) -> int:
        return 48

    def fingerprint(self) -> str:
        return f"noise {self.poisoned}"

    def __getitem__(self, index: int) -> Record:
        if index in self.broken:
            return Record(f"{index}.png", problem="torn file")
        name = f"poison-{index}.png" if index in self.poisoned else f"{index}.png"
        generator = keyed_generator("noise", index)
        return Record(name, caption="", image=torch.randint(256, (3, 8, 8), generator=generator).to(torch.uint8))


class Toy:
    parts = ("even", "odd")
    opponent = None
    transform = None
    finish = None

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Dropout(0.1), nn.Linear(8, 192))
        self.seen: list[str] = []
        self.drawn: list[int] = []

    def compile(self) -> None:
        self.model.compile()

    def prepare(self, records: Any, step: int) -> MicroBatch:
        self.seen += [f"{step}:{name}" for name in records.names]
        images = records.images.float() / 255
        for row, name in enumerate(records.names):
            if name.startswith("poison"):
                images[row] = float("nan")
        part = torch.tensor([key.index % 2 for key in records.keys])
        counts = torch.bincount(part, minlength=2).double()
        return MicroBatch((images, part), counts, records.names)

    def loss(
        self, forward: Any, data: Any, totals: torch.Tensor, last: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images, part = data
        errors = (forward(images) - images.flatten(1)).float().square().mean(1)
        sums = torch.zeros(2).index_add(0, part, errors)
        return (sums / totals).sum(), {"error": errors.sum(), "count": torch.tensor(float(len(images)))}

    def summarise(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        return {"loss/error": float(sums["error"] / sums["count"]), "images/s": float(sums["count"])}

    def notices(self, step: int, numbers: dict[str, float]) -> list[str]:
        return []

    def evaluate(self, pictures: int) -> dict[str, float]:
        return {"loss": float(sum(weight.detach().abs().sum() for weight in self.model.parameters()))}

    def draw(self, path: Path) -> None:
        from PIL import Image

        Image.new("RGB", (8, 8)).save(path)

    exports_all = True

    def export(self, folder: Path, model: nn.Module) -> None:
        torch.save(model.state_dict(), folder / "model.pt")

    def keep(self, folder: Path) -> None:
        (folder / "kept.txt").write_text("what a resumed run needs")

    def exported(self, folder: Path) -> bool:
        if not (folder / "model.pt").exists():
            return False
        found = torch.load(folder / "model.pt")
        return all(torch.equal(value, found[name]) for name, value in self.model.state_dict().items())


@dataclass
class Outcome:
    facts: dict[str, Any] = field(default_factory=dict)
    toy: Toy = field(default_factory=Toy)
    log: list[dict[str, Any]] = field(default_factory=list)

    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.log if entry["kind"] == "train"]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Sums in another order differ in the last bit, and the tests share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def few_texts() -> Iterator[None]:
    """A vocabulary of 300 ids is learned from few texts as well; `shapes` renders a picture for each of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_data, "TEXTS_READ_ENDLESS", 60)
        yield


@pytest.fixture
def run_toy() -> Any:
    def run(
        out: Path, dataset: Any = None, toy: Toy | None = None, optim: Any = None, resume: bool = False, **run: Any
    ) -> Outcome:
        settings = {"steps": 6, "batch_size": 8, "log_every": 1, "device": "cpu", "precision": "fp32", **run}
        config = RunConfig(**settings)
        folder = RunFolder(out, resume)
        folder.claim()
        outcome = Outcome(toy=toy or Toy())
        moves = OptimConfig(**{"lr": 1e-2, "warmup_steps": 2, **(optim or {})})
        told = {"run": dict(settings), "optim": optim or {}}
        outcome.facts = train(
            outcome.toy, dataset or Pictures(), folder, told, moves, config, World(torch.device("cpu"))
        )
        outcome.log = read_log(folder.log)
        return outcome

    return run


@pytest.fixture
def pictures() -> type[Pictures]:
    return Pictures


@pytest.fixture
def toy_class() -> type[Toy]:
    return Toy


@pytest.fixture
def train_small_tokenizer() -> Any:
    """The command itself, on rendered shapes with the debug preset."""

    def run(
        out: Path,
        *,
        quantizer: Any = None,
        tokenizer: Any = None,
        vit: Any = None,
        augment: Any = None,
        adversarial: Any = None,
        data: str = "shapes",
        muon: bool = False,
        resume: bool = False,
        **settings: Any,
    ) -> Any:
        preset = tokenizer or TOKENIZER_PRESETS["debug"]()
        if vit is not None:
            preset = replace(preset, backbone="vit", vit=vit)
        train_tokenizer(
            data=data,
            val_data="shapes@val?limit=8",
            out=out,
            tokenizer=replace(preset, quantizer=quantizer or preset.quantizer),
            losses=LossConfig(l1=0.5),
            adversarial=adversarial or AdversarialConfig(),
            augment=augment or AugmentConfig(),
            optim=OptimConfig(lr=2e-3, warmup_steps=2, muon=muon),
            run=RunConfig(**{**SMALL_RUN, **settings}),
            resume=resume,
        )
        return read_log(out / "log.jsonl")

    return run


@pytest.fixture
def train_small_generator(tiny_tokenizer_folder: Path) -> Any:
    def run(
        out: Path,
        *,
        data: Any = "shapes",
        val_data: Any = None,
        objective: Any = "next_token",
        resume: bool = False,
        text_tokenizer: str | None = None,
        tasks: Any = None,
        objective_settings: Any = None,
        dropout: float = 0.1,
        muon: bool = False,
        tokenizer: Path = tiny_tokenizer_folder,
        code_vectors: bool = False,
        augment: Any = None,
        **settings: Any,
    ) -> Any:
        train_generator(
            data=data,
            val_data=val_data,
            out=out,
            image_tokenizer=tokenizer,
            objective=objective,
            objective_settings=objective_settings or ObjectiveSettings(),
            trunk=TrunkConfig(width=32, depth=2, heads=2, dropout=dropout),
            code_vectors=code_vectors,
            tasks=tasks or TasksConfig(),
            augment=augment or AugmentConfig(),
            sampling=GivenSettings(),
            text_tokenizer=text_tokenizer,
            text_vocabulary=300,
            optim=OptimConfig(lr=2e-3, warmup_steps=2, muon=muon),
            run=RunConfig(**{**SMALL_RUN, **settings}),
            resume=resume,
        )
        return read_log(out / "log.jsonl")

    return run


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tokenizer: its codes say little, but they are the same every time."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    build_tokenizer(TOKENIZER_PRESETS["debug"]()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scaled_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_tokenizer_folder`, with four scales."""
    folder = tmp_path_factory.mktemp("scaled")
    torch.manual_seed(0)
    build_tokenizer(replace(TOKENIZER_PRESETS["debug"](), scales=(1, 2, 4, 8))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def multi_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_tokenizer_folder`, with two codes for each place."""
    folder = tmp_path_factory.mktemp("multi")
    torch.manual_seed(0)
    quantizer = MultiVQ(codebook_size=16, dim=4, codebooks=2)
    build_tokenizer(replace(TOKENIZER_PRESETS["debug"](), quantizer=quantizer)).save_pretrained(folder)
    return folder


ADVERSARIAL = (
    "--adversarial.weight 0.5 --adversarial.start 1 --adversarial.ramp 8 --adversarial.layers 2"
    " --adversarial.channels 8 --adversarial.r1_weight 1 --adversarial.r1_every 2"
)


@pytest.fixture
def words_of(tiny_tokenizer_folder: Path, scaled_tokenizer_folder: Path) -> Any:
    """The words of a small `unitok train ...` of a kind, such as "adversarial tokenizer" or "next_scale generator"."""

    def words(kind: str, data: str = "shapes") -> list[str]:
        scaled, common = kind.startswith("next_scale"), "--val_data shapes@val?limit=8 --preset debug --run.device cpu"
        found = f"train {kind.split()[-1]} --data {data} {common} --optim.lr 0.002 --optim.warmup_steps 2".split()
        if kind.endswith("generator"):
            folder = scaled_tokenizer_folder if scaled else tiny_tokenizer_folder
            found += ["--image_tokenizer", str(folder), "--text_vocabulary", "300"]
        found += ADVERSARIAL.split() if kind.startswith("adversarial") else []
        return [*found, *(["--objective", "next_scale"] if scaled else [])]

    return words


@pytest.fixture
def run_command() -> Any:
    """`unitok ...` in this process."""

    def run(words: list[str]) -> None:
        assert main(words) == 0

    return run


@pytest.fixture
def figures() -> None:
    """The losses of a run are drawn, and pictures by its model."""


@pytest.fixture(autouse=True)
def no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not where a test does not ask for it: each takes as long as a few steps."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr(loop, "plot_losses", lambda *_: None)
        monkeypatch.setattr(GeneratorTrainee, "draw", lambda *_: None)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TOKENIZER_PRESETS["debug"]())
    tokenizer.train()(torch.rand(4, 3, 32, 32) * 2 - 1)  # the codebook has started
    tokenizer.save_pretrained(folder)
    return folder
