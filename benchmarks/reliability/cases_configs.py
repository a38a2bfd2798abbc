"""Malformed options, configs and experiments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml
from cases import TEACHER, Case, Trained, configs, student

HUGE_INTEGER = "9" * 5000

POSITIVE_INTEGERS = (
    "data.batch_size",
    "data.eval_batch_size",
    "trainer.max_epochs",
    "trainer.log_every_n_steps",
    "trainer.check_val_every_n_epoch",
    "trainer.accumulate_grad_batches",
    "data.parts",
)
FRACTIONS = ("data.fraction", "data.label_fraction")
RATES = ("model.optimizer.lr", "model.scheduler.max_lr")
CHOICES = (
    "matmul_precision",
    "run.test",
    "run.wandb",
    "trainer.precision",
    "trainer.accelerator",
)
STUDENT_NUMBERS = (
    "model.losses.kd.temperature",
    "model.losses.kd.weight",
    "model.losses.ce.weight",
    "model.student.dropout",
)

BAD_INTEGERS = (
    "0",
    "-1",
    "-1000000",
    "1.5",
    "nan",
    "inf",
    "x",
    "''",
    "[1]",
    "{a: 1}",
    HUGE_INTEGER,
)
BAD_FRACTIONS = (
    "0",
    "-0.1",
    "1.1",
    "nan",
    "inf",
    "-inf",
    "x",
    "[0.5]",
    "{a: 1}",
    "1e308",
)
BAD_RATES = ("-1", "nan", "inf", "-inf", "x", "[0.1]", "{a: 1}", HUGE_INTEGER)
BAD_CHOICES = ("x", "''", "1.5", "[highest]", "{a: 1}", "HIGHEST ", "null null")
BAD_STUDENT_NUMBERS = ("-1", "nan", "inf", "-inf", "x", "[1]", "{a: 1}", "1e400")

MEANINGFUL = {
    # Saves the initial weights.
    ("trainer.max_epochs", "0"),
    # Every sample is served without its label.
    ("data.label_fraction", "0"),
    # One rate per parameter group.
    ("model.scheduler.max_lr", "[0.1]"),
}
"""Values at the edge of the range that have a meaning."""

SINGLE_OPTIONS = {
    "hidden of zero": "--model.network.hidden=[0]",
    "hidden negative": "--model.network.hidden=[-4]",
    "hidden text": "--model.network.hidden=x",
    "hidden huge": "--model.network.hidden=[1000000000000]",
    "dropout above one": "--model.network.dropout=1.5",
    "dropout negative": "--model.network.dropout=-0.5",
    "clip negative": "--trainer.gradient_clip_val=-1",
    "clip nan": "--trainer.gradient_clip_val=nan",
    "val_check_interval zero": "--trainer.val_check_interval=0",
    "val_check_interval negative": "--trainer.val_check_interval=-0.5",
    "limit of no batch": "--trainer.limit_train_batches=0.000000001",
    "limit negative": "--trainer.limit_train_batches=-1",
    "devices zero": "--trainer.devices=0",
    "devices text": "--trainer.devices=many",
    "precision half on the CPU": "--trainer.precision=16-mixed",
    "strategy unknown": "--trainer.strategy=teleport",
    "misspelled option": "--trainer.max_epoch=1",
    "misspelled argument": "--model.network.hiden=[4]",
    "misspelled room": "--modle.network.hidden=[4]",
    "validation of one": "--data.validation=1.0",
    "validation negative": "--data.validation=-0.5",
    "validation nan": "--data.validation=nan",
    "views negative": "--data.views=-2",
    "views text": "--data.views=x",
    "seed text": "--seed_everything=x",
    "seed negative": "--seed_everything=-5",
    "seed huge": f"--seed_everything={HUGE_INTEGER}",
    "part beyond parts": "--data.part=7",
    "keep_classes unknown": "--data.keep_classes=[99]",
    "keep_classes none": "--data.keep_classes=[]",
    "drop_classes all": "--data.drop_classes=[0,1,2,3,4,5,6,7,8,9]",
    "channels zero": "--data.channels=0",
    "augment unknown": "--data.augment=[kd_lightning.data.NoSuchThing]",
    "augment no class": "--data.augment=[os.system]",
    "augment text": "--data.augment=x",
    "jitter zero": "--data.augment=[{class_path: kd_lightning.data.Jitter, init_args: {pixels: 0}}]",
    "jitter huge": (
        "--data.augment=[{class_path: kd_lightning.data.Jitter, init_args: {pixels: 1000000000000}}]"
    ),
    "network unknown": "--model.network=kd_lightning.models.NoSuchNet",
    "network no network": "--model.network=builtins.dict",
    "network a function": "--model.network=os.system",
    "optimizer unknown": "--model.optimizer=torch.optim.NoSuch",
    "optimizer a function": "--model.optimizer=os.getcwd",
    "optimizer a network": "--model.optimizer=torch.nn.Linear",
    "scheduler a function": "--model.scheduler=os.getcwd",
    "scheduler an optimizer": "--model.scheduler=torch.optim.SGD",
    "data unknown": "--data=kd_lightning.data.NoSuchData",
    "data no datamodule": "--data=collections.OrderedDict",
    "model unknown": "--model=kd_lightning.NoSuchModule",
    "callback unknown": "--trainer.callbacks+=lightning.pytorch.callbacks.NoSuch",
    "callback a function": "--trainer.callbacks+=os.getcwd",
    "run name leaves its root": "--run.name=../../x",
    "run name absolute": "--run.name=/tmp/x",
    "run name too long": f"--run.name={'x' * 300}",
    "run name with a null byte": "--run.name=a\0b",
    "run dir too long": f"--run.dir={'x' * 300}",
    "checkpoint missing": "--ckpt_path=nothing.ckpt",
    "checkpoint a folder": "--ckpt_path=.",
    "init_from missing": "--model.init_from=nothing.pt",
    "config missing": "--config=nothing.yaml",
    "config a folder": "--config=.",
    "logger unknown": "--trainer.logger=NoSuchLogger",
    "profiler unknown": "--trainer.profiler=nothing",
    "early stopping without its metric": (
        "--trainer.callbacks+={class_path: lightning.pytorch.callbacks.EarlyStopping, "
        "init_args: {monitor: nothing}}"
    ),
    "checkpoint without its metric": (
        "--trainer.callbacks+={class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
        "init_args: {monitor: nothing, dirpath: own}}"
    ),
    "pct_start above one": "--model.scheduler.pct_start=1.5",
    "momentum negative": "--model.optimizer.momentum=-1",
    "weight decay negative": "--model.optimizer.weight_decay=-1",
    "an argument that is no option": "stray",
    "an option without a value": "--model.network.hidden",
}

YAML_TEXTS = {
    "empty": "",
    "comment only": "# nothing\n",
    "a list": "- a\n- b\n",
    "a scalar": "42\n",
    "null": "null\n",
    "broken flow": "model: [1,\n  data: }\n",
    "tab": "model:\n\tinit_args: {}\n",
    "unknown tag": "model: !thing {}\n",
    "python object": "model: !!python/object/apply:os.system ['touch executed']\n",
    "python name": "model: !!python/name:os.system\n",
    "duplicate key": "trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}\n",
    "duplicate nested key": "trainer:\n  max_epochs: 1\n  max_epochs: 2\n",
    "trainer an integer": "trainer: 1\n",
    "trainer a list": "trainer: [1]\n",
    "trainer null": "trainer:\n",
    "model an integer": "model: 1\n",
    "model without class": "model: {init_args: 3}\n",
    "data null": "data:\n",
    "data a list": "data: [a]\n",
    "losses a list": "model: {init_args: {losses: [a]}}\n",
    "losses self-referring": "model: {init_args: {losses: &a {kd: *a}}}\n",
    "alias to itself": "model: &a [*a]\n",
    "alias bomb": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "deep nesting": "model: " + "[" * 3000 + "]" * 3000 + "\n",
    "deep mapping": "model: " + "{a: " * 1500 + "1" + "}" * 1500 + "\n",
    "sexagesimal": "trainer: {max_epochs: 190:20:30}\n",
    "huge integer": f"trainer: {{max_epochs: {HUGE_INTEGER}}}\n",
    "float epochs": "trainer: {max_epochs: 1.5}\n",
    "text epochs": "trainer: {max_epochs: many}\n",
    "nan rate": "model: {init_args: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: .nan}}}}\n",
    "infinite rate": "model: {init_args: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: .inf}}}}\n",
    "unknown key": "trainer: {max_epoch: 1}\n",
    "unknown top key": "teacher: {a: 1}\n",
    "integer key": "1: {a: 1}\n",
    "null key": "? \n: 1\n",
    "list key": "? [a, b]\n: 1\n",
    "control character": "model: \x07\n",
    "two documents": "trainer: {max_epochs: 1}\n---\ntrainer: {max_epochs: 2}\n",
    "merge key of text": "<<: text\n",
    "binary tag": "model: !!binary xxxx\n",
    "set tag": "model: !!set {a, b}\n",
    "timestamp": "trainer: {max_epochs: 2001-01-01}\n",
    "boolean epochs": "trainer: {max_epochs: {a: true}}\n",
}

SPEC = {
    "title": "t",
    "claim": "c",
    "time": "seconds",
    "seeds": 1,
    "configs": ["configs/trainer.yaml", "configs/data/digits.yaml"],
    "overrides": {"trainer.max_epochs": 1},
    "runs": {"teacher": {"configs": ["configs/teachers/digits_mlp.yaml"]}},
}
STUDENT_RUN = {
    "configs": ["configs/pairs/digits_mlp256_mlp16.yaml", "configs/methods/kd.yaml"],
    "needs": {"model.teacher.checkpoint": "teacher"},
}

SPEC_CHANGES: dict[str, dict[str, object]] = {
    "title a list": {"title": [1]},
    "title null": {"title": None},
    "title missing": {"title": "REMOVE"},
    "runs missing": {"runs": "REMOVE"},
    "runs empty": {"runs": {}},
    "runs null": {"runs": None},
    "runs a list": {"runs": ["a"]},
    "runs a text": {"runs": "a"},
    "run name a number": {"runs": {1: SPEC["runs"]["teacher"]}},  # type: ignore[index]
    "run name null": {"runs": {None: {}}},
    "run name empty": {"runs": {"": {}}},
    "run name leaves the folder": {"runs": {"../x": {}}},
    "run null": {"runs": {"a": None}},
    "run a text": {"runs": {"a": "b"}},
    "run with an unknown key": {"runs": {"a": {"config": []}}},
    "configs a text": {"configs": "configs/trainer.yaml"},
    "configs missing file": {"configs": ["configs/nothing.yaml"]},
    "configs numbers": {"configs": [1]},
    "configs null": {"configs": None},
    "seeds zero": {"seeds": 0},
    "seeds negative": {"seeds": -1},
    "seeds text": {"seeds": "many"},
    "seeds null": {"seeds": None},
    "seeds a list of text": {"seeds": ["a"]},
    "seeds fraction": {"seeds": 1.5},
    "seeds nan": {"seeds": float("nan")},
    "seeds a billion": {"seeds": 1_000_000_000},
    "overrides a list": {"overrides": [1]},
    "overrides null value": {"overrides": {"trainer": None}},
    "overrides unknown": {"overrides": {"trainer.max_epoch": 1}},
    "overrides integer key": {"overrides": {1: 2}},
    "overrides a text": {"overrides": "a=b"},
    "needs unknown run": {"runs": {"a": {"needs": {"model.teacher.checkpoint": "b"}}}},
    "needs itself": {"runs": {"a": {"needs": {"model.teacher.checkpoint": "a"}}}},
    "needs a list": {"runs": {"a": {"needs": ["b"]}}},
    "needs with an at sign": {
        "runs": {"a": {"needs": {"model.teacher.checkpoint": "x@y"}}}
    },
    "needs null": {"runs": {"a": {"needs": {"model.teacher.checkpoint": None}}}},
    "needs in a circle": {
        "runs": {"a": {"needs": {"x": "b"}}, "b": {"needs": {"x": "a"}}},
    },
    "compare unknown": {"compare": [["teacher", "b"]]},
    "compare a text": {"compare": "teacher"},
    "compare one": {"compare": [["teacher"]]},
    "compare null": {"compare": [None]},
    "metrics empty": {"metrics": []},
    "metrics a number": {"metrics": 1},
    "metrics null entry": {"metrics": [None]},
    "paper text": {"paper": "x"},
    "paper of an unknown run": {"paper": {"b": {"test_errors": 1}}},
    "paper of text": {"paper": {"teacher": {"test_errors": "x"}}},
    "margin text": {"margin": "x"},
    "margin negative": {"margin": -1},
    "quick a list": {"quick": [1]},
    "quick seeds text": {"quick": {"seeds": "x"}},
    "quick seeds negative": {"quick": {"seeds": -1}},
    "analyses a list": {"analyses": [1]},
    "analyses without function": {"analyses": {"a": {}}},
    "analyses function missing": {"analyses": {"a": {"function": "no.such"}}},
    "analyses function a file missing": {"analyses": {"a": {"function": "no.py:f"}}},
    "analyses of os.system": {"analyses": {"a": {"function": "os.system"}}},
    "analyses of shutil.copytree": {"analyses": {"a": {"function": "shutil.copytree"}}},
    "grid a text": {"runs": {"a": {"grid": "x"}}},
    "grid empty": {"runs": {"a": {"grid": {}}}},
    "unknown key": {"sedes": 3},
    "settings a list": {"settings": [1]},
    "instead a circle": {"runs": {"a": {"instead": "b"}, "b": {"instead": "a"}}},
    "matmul unknown": {"matmul_precision": "x"},
}


def write(name: str, content: str, folder: Path) -> None:
    """Write a text file into a case's folder."""
    (folder / name).write_text(content)


def write_spec(changes: dict[str, object], folder: Path) -> None:
    """Write an experiment with some keys changed or removed."""
    content = {**SPEC, **changes}
    content = {key: value for key, value in content.items() if value != "REMOVE"}
    (folder / "spec.yaml").write_text(yaml.safe_dump(content))


def option_cases(trained: Trained) -> Iterator[Case]:
    """Options with values out of their range or of another type."""
    lists = (
        (POSITIVE_INTEGERS, BAD_INTEGERS),
        (FRACTIONS, BAD_FRACTIONS),
        (RATES, BAD_RATES),
        (CHOICES, BAD_CHOICES),
    )
    for options, values in lists:
        for option in options:
            for value in values:
                name = f"{option}={value[:12]}"
                expected = "either" if (option, value) in MEANINGFUL else "refused"
                arguments = [*TEACHER, f"--{option}={value}"]
                yield Case("options", name, arguments, expected=expected)  # type: ignore[arg-type]
    for option in STUDENT_NUMBERS:
        for value in BAD_STUDENT_NUMBERS:
            arguments = [*student(str(trained.checkpoint)), f"--{option}={value}"]
            yield Case("options", f"{option}={value[:12]}", arguments)
    yield Case("options", "good", TEACHER, expected="accepted")
    yield Case(
        "options", "good student", student(str(trained.checkpoint)), expected="accepted"
    )
    for name, argument in SINGLE_OPTIONS.items():
        yield Case("options", name, [*TEACHER, argument])


def config_cases(trained: Trained) -> Iterator[Case]:
    """Config files that are no configs."""
    empty = partial(write, "bad.yaml", "trainer: {max_epochs: 1}\n")
    yield Case("configs", "good", [*TEACHER, "-c", "bad.yaml"], empty, "accepted")
    for name, text in YAML_TEXTS.items():
        prepare = partial(write, "bad.yaml", text)
        yield Case("configs", name, [*TEACHER, "-c", "bad.yaml"], prepare)
    for name, content in {"bytes": b"\xff\xfe\x00", "null bytes": b"\0" * 100}.items():

        def prepare_bytes(folder: Path, content: bytes = content) -> None:
            (folder / "bad.yaml").write_bytes(content)

        yield Case("configs", name, [*TEACHER, "-c", "bad.yaml"], prepare_bytes)


def spec_cases(trained: Trained) -> Iterator[Case]:
    """Experiments that cannot be planned, and options of `kd reproduce`."""
    run = ["reproduce", "spec.yaml", "--store=store", "--output=results"]
    for name, changes in SPEC_CHANGES.items():
        prepare = partial(write_spec, changes)
        # Without a value, an experiment has the default number of seeds.
        expected = "either" if name == "seeds null" else "refused"
        arguments = [*run, "--dry-run"]
        yield Case("experiments", name, arguments, prepare, expected)  # type: ignore[arg-type]
    for name, text in YAML_TEXTS.items():
        prepare_text = partial(write, "spec.yaml", text)
        yield Case("experiments", f"YAML {name}", [*run, "--dry-run"], prepare_text)
    good = partial(write_spec, {})
    yield Case("experiments", "good", [*run, "--dry-run"], good, "accepted")
    options = {
        "set broken YAML": "--set=a=[1",
        "set without value": "--set=a",
        "set unknown": "--set=nothing=1",
        "set python tag": "--set=a=!!python/object/apply:os.system [touch executed]",
        "only unknown": "--only=nothing",
        "seeds zero": "--seeds=0",
        "seeds text": "--seeds=x",
        "seeds a billion": "--seeds=1000000000",
        "workers zero": "--workers=0",
        "workers text": "--workers=x",
        "unknown option": "--nothing",
    }
    for name, option in options.items():
        yield Case("experiments", name, [*run, "--dry-run", option], good)
    for name in ("mnst", "hinton2015/mnst", "..", "/", "nothing.yaml", "."):
        yield Case("experiments", f"name {name}", ["reproduce", name, "--dry-run"])


RUN_JSON = {
    "a list": "[1, 2]",
    "a text": '"x"',
    "null": "null",
    "broken": "{",
    "empty": "",
    "deep": "[" * 5000 + "]" * 5000,
    "status a number": {"status": 3},
    "metrics a list": {"metrics": [1]},
    "metrics null": {"metrics": None},
    "metrics of text": {"metrics": {"test_errors": "x"}},
    "metrics of lists": {"metrics": {"test_errors": [1]}},
    "metrics NaN": {"metrics": {"test_errors": float("nan")}},
    "metrics infinite": {"metrics": {"test_errors": float("inf")}},
    "teacher a text": {"teacher": "x"},
    "seed a text": {"seed": "x"},
    "commit a list": {"commit": [1]},
    "versions null": {"versions": None},
    "wall time a text": {"wall_time_s": "x"},
}


def damage_record(run: Path, changes: object, folder: Path) -> None:
    """Copy a run twice and change the record of one copy."""
    import shutil

    shutil.copytree(run, folder / "runs" / "a")
    shutil.copytree(run, folder / "runs" / "b")
    path = folder / "runs" / "b" / "run.json"
    if isinstance(changes, dict):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    else:
        path.write_text(str(changes))


def damage_config(run: Path, text: str, folder: Path) -> None:
    """Copy a run and replace its config."""
    import shutil

    shutil.copytree(run, folder / "runs" / "b")
    (folder / "runs" / "b" / "config.yaml").write_text(text)


def compare_cases(trained: Trained) -> Iterator[Case]:
    """Run folders whose records or configs are damaged; a comparison may mark or skip them."""
    good = partial(damage_record, trained.student, {})
    arguments = ["compare", "runs/a", "runs/b", "--metrics=val_accuracy"]
    yield Case("compare", "good", arguments, good, "accepted")
    for name, changes in RUN_JSON.items():
        prepare = partial(damage_record, trained.student, changes)
        arguments = ["compare", "runs/a", "runs/b", "--metrics=val_accuracy"]
        yield Case("compare", f"run.json {name}", arguments, prepare, "either")
    for name, text in YAML_TEXTS.items():
        prepare_config = partial(damage_config, trained.student, text)
        yield Case(
            "compare", f"config {name}", ["compare", "runs/b"], prepare_config, "either"
        )
    for arguments in (
        ["compare"],
        ["compare", "nothing"],
        ["compare", "."],
        ["compare", "--metrics"],
        ["compare", "--wandb", "x"],
        ["list", "nothing"],
        ["nothing"],
        ["fit"],
        ["cache"],
        ["test"],
        ["predict", "--ckpt_path=x"],
        ["cache", *configs("trainer.yaml")],
    ):
        yield Case("compare", " ".join(arguments)[:40], arguments)


GROUPS = (option_cases, config_cases, spec_cases, compare_cases)
