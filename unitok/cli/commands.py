"""The commands of `unitok`: the words that name them, the functions that run. Data only: it costs nothing to load."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command. Names of objects are written "module:name" and are imported when the command is asked for."""

    function: str
    """Its signature is the options, its docstring the help."""
    summary: str
    """One line for `unitok --help`."""
    positional: tuple[str, ...] = ()
    """Parameters that may be given without their names, in this order; a list takes all the words that remain."""
    presets: tuple[str, str] | None = None
    """(registry of presets, parameter): the preset named by `--preset` supplies the defaults of that parameter."""
    inline: str | None = None
    """A parameter whose dataclass lists options of the command: `--guidance`, not `--sampling.guidance`."""
    choices: tuple[str, ...] = ()
    """Base dataclasses whose subclasses are alternatives."""
    out_is_file: bool = False
    """Whether `--out` is a file; else it is a folder that one process at a time writes into."""
    meets: bool = False
    """Whether the processes that torchrun starts meet, and lock that folder together (`unitok.processes`)."""


COMMANDS: dict[str, Command] = {
    "train tokenizer": Command(
        "unitok.train.commands:train_tokenizer",
        "Train a VQ image tokenizer on a folder of pictures.",
        presets=("tokenizers_vq.config:TOKENIZER_PRESETS", "tokenizer"),
        choices=("tokenizers_vq.quantizers.config:QuantizerConfig",),
        meets=True,
    ),
    "train generator": Command(
        "unitok.train.commands:train_generator",
        "Train one transformer over text and image codes.",
        presets=("unitok.config:TRUNK_PRESETS", "trunk"),
        meets=True,
    ),
    "plan": Command(
        "unitok.train.plan.commands:plan",
        "Say what a training would need: memory, traffic, time.",
        positional=("model",),
    ),
    "import": Command(
        "unitok.cli.importing:import_published",
        "Turn a published checkpoint into the folder of a tokenizer or a model.",
        positional=("family", "file"),
    ),
    "merge": Command(
        "unitok.cli.merging:merge",
        "Join what was tuned apart, an adapter or a decoder, with a model.",
        positional=("model",),
    ),
    "encode": Command("unitok.train.commands:encode", "Tokenize a data set once, into shards of codes.", meets=True),
    "export": Command(
        "unitok.cli.exporting:export",
        "Write a model or a tokenizer for diffusers, transformers or ONNX.",
        positional=("model",),
    ),
    "push": Command(
        "unitok.cli.pushing:push",
        "Send a model or a tokenizer with its card to the Hugging Face hub.",
        positional=("model", "name"),
    ),
    "reconstruct": Command(
        "unitok.eval.tokenizer_commands:reconstruct",
        "Pictures of any size through a tokenizer and back.",
        positional=("pictures",),
    ),
    "data check": Command(
        "unitok.eval.data.commands:data_check",
        "Look at a data set: sizes, captions, broken pictures, near-duplicates.",
        positional=("data",),
    ),
    "sample": Command(
        "unitok.sample.commands:sample", "Draw pictures from captions.", positional=("prompts",), inline="sampling"
    ),
    "inpaint": Command(
        "unitok.sample.edit_commands:inpaint",
        "Draw a part of a picture anew, by a caption.",
        positional=("picture",),
        inline="sampling",
    ),
    "extend": Command(
        "unitok.sample.edit_commands:extend",
        "Draw a larger picture around one, by a caption.",
        positional=("picture",),
        inline="sampling",
    ),
    "caption": Command("unitok.sample.commands:caption", "Write captions for pictures.", positional=("pictures",)),
    "ask": Command(
        "unitok.sample.reading_commands:ask", "Answer questions about a picture.", positional=("picture", "questions")
    ),
    "ground": Command(
        "unitok.sample.reading_commands:ground",
        "Say where in a picture something is, and what is in a box.",
        positional=("picture", "phrase"),
    ),
    "edit": Command(
        "unitok.sample.given_commands:edit",
        "Draw a picture changed as an instruction says.",
        positional=("picture", "instruction", "further"),
        inline="sampling",
    ),
    "generate": Command(
        "unitok.sample.document_commands:generate",
        "Go on with documents of texts and pictures.",
        positional=("documents",),
        inline="sampling",
    ),
    "chat": Command(
        "unitok.sample.document_commands:chat", "Write texts and pictures in turn with a model.", inline="sampling"
    ),
    "serve": Command(
        "unitok.sample.serving.commands:serve",
        "Serve a model over HTTP, in the shape of OpenAI's API.",
        inline="limits",
    ),
    "studio": Command(
        "unitok.sample.serving.commands:studio",
        "Open a model in a browser: draw, compare, change, ask; or watch a training.",
    ),
    "eval tokenizer": Command(
        "unitok.eval.tokenizer_commands:eval_tokenizer", "Measure a tokenizer: PSNR, SSIM, LPIPS, rFID."
    ),
    "eval generator": Command(
        "unitok.eval.commands:eval_generator", "Measure a model: FID, KID, CLIPScore, captions.", inline="sampling"
    ),
    "eval tasks": Command(
        "unitok.eval.task_commands:eval_tasks",
        "Measure every task that a model learned, by exact scores.",
        positional=("data",),
        inline="sampling",
    ),
    "eval text": Command(
        "unitok.eval.task_commands:eval_text",
        "How well a model foresees a text: perplexity, bits per byte.",
        positional=("file",),
    ),
    "eval suite": Command(
        "unitok.eval.suite_commands:eval_suite",
        "A whole protocol: seeds, guidance sweep, nearest training pictures.",
        meets=True,
    ),
    "eval fid": Command(
        "unitok.eval.commands:eval_fid", "How far a set of pictures is from another: FID, KID.", positional=("a", "b")
    ),
    "eval statistics": Command(
        "unitok.eval.commands:eval_statistics",
        "Save what FID needs to know of a set.",
        positional=("data",),
        out_is_file=True,
    ),
    "eval retrieval": Command(
        "unitok.eval.data.retrieval:eval_retrieval",
        "Is the nearest known picture called what it should be?",
        positional=("data", "gallery"),
    ),
    "eval clipscore": Command(
        "unitok.eval.commands:eval_clipscore", "How well pictures and their captions agree.", positional=("data",)
    ),
    "eval compare": Command(
        "unitok.eval.commands:eval_compare",
        "Reports side by side, with bootstrap intervals.",
        positional=("reports",),
    ),
    "compare": Command(
        "unitok.cli.compare:compare", "Objectives side by side, with the same compute: quality against time."
    ),
    "bench": Command(
        "unitok.cli.bench:bench", "Measure speed and memory on this machine; compare with before.", positional=("what",)
    ),
    "compare-tokenizers": Command(
        "unitok.eval.tokenizer_commands:compare_tokenizers",
        "Tokenizers side by side on the same pictures: quality, codes, bits, speed.",
        positional=("tokenizers",),
    ),
    "start": Command(
        "unitok.cli.start:start",
        "From a folder of pictures to a model and a report, within a budget of minutes.",
        positional=("data",),
    ),
    "demo": Command("unitok.cli.demo:demo", "Full demo on rendered shapes: train, draw, caption, measure, report."),
}
