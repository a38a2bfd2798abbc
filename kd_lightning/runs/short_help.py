"""`kd fit --help`: the options that most runs need, in one screen and without imports.

`--help-all` shows every option. The parser of a run imports torch and lightning, which takes
seconds; this text does not. A test compares its defaults with those of the parser.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL = "--help-all"
"""The option that shows everything."""

SHORT = ("-h", "--help")

WIDTH = 100
"""The columns of a screen."""


@dataclass(frozen=True)
class Option:
    """One line of the help.

    Attributes:
        name: as it is typed, such as `--run.name`.
        value: what follows it; empty for a switch.
        meaning: in one line.
        default: as text; empty if there is none worth a word.
    """

    name: str
    value: str
    meaning: str
    default: str = ""


CONFIGS = (
    Option(
        "-c", "FILE", "a config in YAML; repeat it: trainer, data, networks, method"
    ),
    Option("--print_config", "", "print the whole config and run nothing"),
    Option("--seed_everything", "N", "the seed of all random numbers", "0"),
)

NETWORKS = (
    Option(
        "--model.network",
        "CLASS",
        "what ClassifierModule trains; --model.network.ARG=VALUE",
    ),
    Option("--model.student", "CLASS", "what DistillationModule trains"),
    Option(
        "--model.teacher.checkpoint",
        "FILE",
        "weights to learn from: of kd or another program",
    ),
    Option("--model.init_from", "FILE", "weights to start from"),
    Option("--model.losses.NAME.weight", "X", "weight of a loss", "1.0"),
    Option(
        "--model.losses.kd.temperature", "T", "temperature of the soft targets", "4.0"
    ),
    Option(
        "--model.optimizer",
        "CLASS",
        "such as torch.optim.AdamW; --model.optimizer.lr=0.001",
    ),
    Option(
        "--model.scheduler",
        "CLASS",
        "of the learning rate; where it has max_lr, that decides",
    ),
)

DATA = (
    Option("--data", "CLASS", "the datamodule; its arguments: --data.ARG=VALUE"),
    Option(
        "--data.root", "DIR", "folder of the data sets", "KD_DATA_ROOT, else ./data"
    ),
    Option("--data.batch_size", "N", "samples per step on each device", "128"),
    Option(
        "--data.validation", "X", "share of the training samples for validation", "0.1"
    ),
    Option("--data.fraction", "X", "train on a part of the samples", "1.0"),
    Option("--data.label_fraction", "X", "keep this part of the labels", "1.0"),
)

TRAINER = (
    Option("--trainer.max_epochs", "N", "epochs"),
    Option("--trainer.accelerator", "NAME", "cpu, gpu, mps or auto", "auto"),
    Option("--trainer.devices", "N", "several need --trainer.strategy=ddp", "auto"),
    Option("--trainer.precision", "P", "such as bf16-mixed", "32-true"),
    Option("--trainer.gradient_clip_val", "X", "clip the gradient to this norm"),
    Option("--trainer.callbacks+", "CLASS", "add a callback, such as EarlyStopping"),
    Option(
        "--matmul_precision",
        "P",
        "medium: float32 products in bfloat16, faster",
        "highest",
    ),
)

RUN = (
    Option("--run.name", "NAME", "of the run and its folder below --run.root"),
    Option("--run.dir", "DIR", "the run's folder itself"),
    Option("--run.test", "no|last|best", "read the test set at the end", "no"),
    Option("--run.wandb", "MODE", "auto, online, offline or off", "auto"),
    Option(
        "--run.strict", "BOOL", "warnings about teacher and losses are errors", "false"
    ),
    Option("--ckpt_path", "FILE", "resume this run, with its own config"),
)

EVALUATED = (
    Option("--ckpt_path", "FILE", "checkpoint of a run; its config is used"),
    Option("-c", "FILE", "another config in YAML; may be repeated"),
    Option(
        "--data.root", "DIR", "folder of the data sets", "KD_DATA_ROOT, else ./data"
    ),
    Option("--data.eval_batch_size", "N", "samples per batch", "1000"),
    Option("--trainer.accelerator", "NAME", "cpu, gpu, mps or auto", "auto"),
    Option("--run.dir", "DIR", "folder of the results"),
)

PREDICTED = (
    Option("--data.predict_folder", "DIR", "new images, if the data are image folders"),
    Option("--data.predict_file", "FILE", "new sentences, if the data are texts"),
)

Groups = dict[str, tuple[Option, ...]]

GROUPS: dict[str, Groups] = {
    "fit": {
        "configs": CONFIGS,
        "networks and losses": NETWORKS,
        "data": DATA,
        "training": TRAINER,
        "the run": RUN,
    },
    "validate": {"options": EVALUATED},
    "test": {"options": EVALUATED},
    "predict": {"options": (*EVALUATED, *PREDICTED)},
}

INTRODUCTIONS = {
    "fit": "Train a teacher, a baseline or a student: kd fit -c FILE.yaml ... [--key=value ...]",
    "validate": "Evaluate on the validation split: kd validate --ckpt_path FILE [--key=value ...]",
    "test": "Evaluate on the test set: kd test --ckpt_path FILE [--key=value ...]",
    "predict": "Predict the test set: kd predict --ckpt_path FILE [--key=value ...]\n"
    "Predict your own files: kd predict RUN|EXPORT INPUT...; for its options: "
    "kd predict RUN INPUT --help",
}

ENDING = """\
kd list configs names the configs; kd fit --model.losses.help KD, --data.help CLASS and
--model.help CLASS describe classes.
"""


def short_help(command: str) -> str:
    """The help of a run's command.

    Args:
        command: fit, validate, test or predict.
    """
    lines = [INTRODUCTIONS[command]]
    for title, options in GROUPS[command].items():
        lines.append(f"{title}:")
        for option in options:
            lines.append(_line(option))
    # The short help must mention the full one.
    lines.append(f"kd {command} {ALL} shows all options, the Trainer's included.")
    return "\n".join(lines) + "\n" + ENDING


def _line(option: Option) -> str:
    """One option in one line."""
    # The meanings start in one column, and long options push theirs to the right.
    typed = f"{option.name} {option.value}".rstrip()
    meaning = option.meaning
    if option.default:
        meaning += f"; default: {option.default}"
    return f"  {typed:<34}{meaning}"
