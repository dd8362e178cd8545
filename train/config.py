"""What a training run can be told. Free of torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from tokenizers_vq.errors import Problems, shown
from unitok.config import TasksConfig
from unitok.sampling import SampleSettings


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer: AdamW or Muon, linear warm-up, then a cosine down to `min_lr`."""

    lr: float = 3e-4
    """Learning rate at the end of the warm-up."""
    min_lr: float = 0.0
    """Learning rate at the last step."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas: averaging of the gradient and of its square."""
    weight_decay: float = 0.05
    """Decay of weight matrices; norms, biases, embeddings and codebooks never decay."""
    clip: float = 1.0
    """Longest gradient (global norm); 0 = no clipping."""
    muon: bool = False
    """Move the matrices of a transformer's blocks, or the kernels of a convolutional network, by Muon, the rest by
    AdamW: several times fewer pictures for the same loss on small models, each step somewhat slower. The learning rate
    keeps its scale, but may be higher."""
    ema: float = 0.999
    """Decay of the moving average (EMA) of the weights that is evaluated, sampled and saved. Early steps use a smaller
    decay. 0 = no averaging."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check(0 < self.lr <= 1000, f"optim.lr is {self.lr}: choose a value above 0 and up to 1000")
        problems.check(
            self.lr <= 0 or 0 <= self.min_lr <= self.lr,
            f"optim.min_lr is {self.min_lr}: choose a value from 0 to optim.lr ({self.lr})",
        )
        problems.check_range("optim.warmup_steps", self.warmup_steps, 0, 2**40)
        problems.check(
            all(0 <= beta < 1 for beta in self.betas), f"optim.betas is {self.betas}: choose two values in [0, 1)"
        )
        problems.check(self.weight_decay >= 0, f"optim.weight_decay is {self.weight_decay}: choose 0 or more")
        problems.check(self.clip >= 0, f"optim.clip is {self.clip}: choose 0 (off) or more")
        problems.check(0 <= self.ema < 1, f"optim.ema is {self.ema}: choose 0 (off) or a value below 1")
        problems.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the training pictures, drawn again each time a picture is used."""

    flip: float = 0.0
    """Chance of mirroring left and right."""
    crop: float = 1.0
    """Smallest side of a random crop as a share of the picture; the crop is scaled back. 1 = whole pictures."""
    shift: int = 0
    """Pixels by which a picture is moved at most, up or down and left or right; its border is repeated."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check(0 <= self.flip <= 1, f"augment.flip is {self.flip}: choose a chance from 0 to 1")
        problems.check(0 < self.crop <= 1, f"augment.crop is {self.crop}: choose a share above 0 and up to 1")
        problems.check_range("augment.shift", self.shift, 0, 2**16)
        problems.raise_if_any()


AS_IT_IS = AugmentConfig()
"""Changes nothing."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One of several data sets that a generator learns from."""

    data: str
    """SOURCE[@SPLIT][?key=value&...], as --data."""
    share: float = 1.0
    """Share of the batch's records; the shares of all sources are normalised to sum to 1."""
    tasks: dict[str, float] | None = None
    """Task -> share of this source's records, such as {question: 1}; null: the shares of --tasks."""
    weight: float = 1.0
    """Weight of the losses of its records."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check(bool(self.data), "data: a source names no data")
        problems.check(0 < self.share <= 10**6, f"data: share is {self.share}: choose a value above 0")
        problems.check(0 <= self.weight <= 10**6, f"data: weight is {self.weight}: choose 0 or more")
        for task, share in (self.tasks or {}).items():
            problems.check(task in TASK_NAMES, f"data: task is {shown(task)}: choose from {', '.join(TASK_NAMES)}")
            problems.check(0 <= share <= 10**6, f"data: share of {task} is {share}: choose 0 or more")
        problems.check(
            self.tasks is None or any(share > 0 for share in self.tasks.values()),
            f"data: {self.data} has no task with a share: give one a share above 0",
        )
        problems.raise_if_any()


TASK_NAMES = [name for name, _ in TasksConfig().items()]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, hardware, and intervals of logging, evaluation and saving."""

    steps: int = 10_000
    """Optimizer steps of the whole run."""
    batch_size: int = 64
    """Pictures per step, over all processes."""
    micro_batch: int | None = None
    """Pictures per forward pass of one process; null = its share at once. Smaller needs less memory, same result (only
    tokenizer.contrastive_weight looks no further than this for negatives)."""
    seed: int = 0
    """Seed of the weights, the data order and every other draw."""
    workers: int | None = None
    """Loader processes; null = 0 on a CPU, up to 8 beside a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a GPU where there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto = bf16 autocast where the hardware has it, CPUs too. The weights stay fp32."""
    compile: bool = False
    """torch.compile the model (worth it on a GPU)."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """With several processes. ddp: each holds the whole model; fsdp: each holds a part of weights, gradients and
    optimizer (generators only). auto = ddp where the model leaves half of a device free, else fsdp."""
    shard_within: int | None = None
    """Processes that share one copy of the model under fsdp, such as those of a machine; null = all of them."""
    timeout_minutes: float = 60.0
    """How long a process waits for the others before it says where it stands and ends."""
    threads: int | None = None
    """CPU threads of one process; null = torch's choice. The same number is needed to repeat a run to the bit."""
    log_every: int = 20
    """Steps between two log entries."""
    eval_every: int = 1000
    """Steps between two evaluations of the validation data; 0 = only at the end."""
    sample_every: int = 1000
    """Steps between two picture grids; 0 = only at the end."""
    save_every: int = 1000
    """Steps between two checkpoints; 0 = only at the end."""
    async_save: bool = True
    """Train on while a checkpoint is written, from a copy of weights, moments and averages in the host's memory. Where
    it has no room for one, and with false, the training waits."""
    keep: int = 2
    """Checkpoints to keep."""
    eval_pictures: int = 512
    """Pictures of the validation data that one evaluation uses."""
    max_bad: float = 0.01
    """Share of the data set that may be unreadable before the run stops."""

    def __post_init__(self) -> None:
        problems = Problems()
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None:
                problems.check_range(f"run.{name}", value, least, most)
        problems.check(0 <= self.max_bad <= 1, f"run.max_bad is {self.max_bad}: choose a share from 0 to 1")
        problems.raise_if_any()

    def micro_batch_for(self, processes: int) -> int:
        """Pictures per forward pass of one process; raises UserError when the numbers do not divide."""
        problems = Problems()
        share, left = divmod(self.batch_size, processes)
        problems.check(
            left == 0 and share > 0,
            f"run.batch_size is {self.batch_size}: choose a multiple of the number of processes ({processes})",
        )
        micro_batch = self.micro_batch or share
        problems.check(
            share == 0 or share % micro_batch == 0,
            f"run.micro_batch is {micro_batch}: choose a divisor of {share}, one process's share of run.batch_size",
        )
        problems.raise_if_any()
        return micro_batch


_RANGES = {
    "steps": (1, 2**40),
    "batch_size": (1, 2**20),
    "micro_batch": (1, 2**20),
    "seed": (-(2**53), 2**53),
    "workers": (0, 1024),
    "shard_within": (1, 2**20),
    "timeout_minutes": (0.01, 2**20),
    "threads": (1, 1024),
    "log_every": (1, 2**40),
    "eval_every": (0, 2**40),
    "sample_every": (0, 2**40),
    "save_every": (0, 2**40),
    "keep": (1, 2**20),
    "eval_pictures": (1, 2**40),
}

FREE_ON_RESUME = frozenset(
    {"val_data"}
    | {f"run.{name}" for name in ("steps", "workers", "device", "compile", "checkpointing", "threads", "micro_batch")}
    | {f"run.{name}_every" for name in ("log", "eval", "sample", "save")}
    | {f"sampling.{item.name}" for item in fields(SampleSettings)}
    | {f"run.{name}" for name in ("keep", "async_save", "eval_pictures", "max_bad", "parallel", "shard_within")}
    | {"run.timeout_minutes"}
)
"""Settings that a resumed run may change, for they do not alter what is learned. (`steps` stretches the schedule.)"""
