"""Weights as other libraries and training scripts save them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from kd_lightning.data import DigitsDataModule
from kd_lightning.teachers import ModelTeacher
from kd_lightning.weights import KEY, load_file_weights, read_file
from tests.training.small import complaint, copied, mlp, same, shaky, trainer

State = dict[str, Tensor]


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def loaded(content: Any, network: nn.Module, path: Path, entry: str = "") -> nn.Module:
    torch.save(content, path)
    load_file_weights(network, read_file(f"{path}{entry}", "the file"), "the file")
    return network


def of_timm(state: State) -> dict[str, Any]:
    return {"epoch": 3, "arch": "net", "state_dict": state, "metric": 0.5}


def of_data_parallel(state: State) -> dict[str, Any]:
    optimizer = {
        "state": {0: {"exp_avg": torch.ones(2)}},
        "param_groups": [{"params": [0]}],
    }
    return {"model": prefixed("module.", state), "optimizer": optimizer, "epoch": 9}


CONTENTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "a state dict": (lambda state: state, ""),
    "timm": (of_timm, ""),
    "DataParallel": (of_data_parallel, "prefix 'module.' removed"),
    "mdistiller": (
        lambda s: {"model": prefixed("module.student.", s)},
        "prefix 'module.student.'",
    ),
    "net": (lambda s: {"net": s, "acc": 93.1}, ""),
    "teacher": (
        lambda s: {"teacher": prefixed("backbone.", s)},
        "prefix 'backbone.' removed",
    ),
    "model_state_dict": (
        lambda s: {"model_state_dict": s, "loss": torch.tensor(1.0)},
        "",
    ),
    "nested": (
        lambda s: {"checkpoint": {"state_dict": prefixed("model.", s)}},
        "prefix 'model.'",
    ),
    "an own container": (lambda s: {"anything": s}, ""),
    "compiled inside": (
        lambda s: prefixed("model._orig_mod.", s),
        "prefix 'model.' removed; '_orig_mod' removed",
    ),
    "with other parts": (
        lambda s: {
            "state_dict": {**prefixed("model.", s), "criterion.scale": torch.ones(1)}
        },
        "tensors of other names skipped: 'criterion.scale'",
    ),
    "under two names": (
        lambda s: {**prefixed("model.", s), **prefixed("net.", s)},
        "'model.'",
    ),
    "16 bits": (
        lambda s: {name: tensor.bfloat16() for name, tensor in s.items()},
        "bfloat16 converted to float32",
    ),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_is_loaded_and_says_what_was_changed(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, note = CONTENTS[kind]
    state = copied(mlp().bfloat16().float())  # exact in 16 bits
    network = loaded(make(state), mlp(), tmp_path / "file.pt")
    assert same(copied(network), state)
    printed = capsys.readouterr().out
    assert note in printed
    assert printed.count("\n") == bool(note)


class Wrapped(LightningModule):
    """A network in a module of a user."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp()
        self.loss = nn.CrossEntropyLoss()


def test_of_lightning(tmp_path: Path) -> None:
    module = Wrapped()
    fit = trainer()
    fit.strategy.connect(module)
    fit.save_checkpoint(tmp_path / "user.ckpt")
    network = mlp()
    load_file_weights(network, read_file(tmp_path / "user.ckpt", "here"), "here")
    assert same(copied(network), copied(module.model))


def test_of_torch_compile_and_averaging(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = shaky()
    compiled: Any = torch.compile(trained)
    assert same(
        copied(loaded(compiled.state_dict(), shaky(), tmp_path / "c.pt")),
        copied(trained),
    )
    assert "'_orig_mod' removed" in capsys.readouterr().out
    average = AveragedModel(trained)
    assert same(
        copied(loaded(average.state_dict(), shaky(), tmp_path / "a.pt")),
        copied(trained),
    )
    assert "skipped: 'n_averaged'" in capsys.readouterr().out


def test_of_timm(tmp_path: Path) -> None:
    utils = pytest.importorskip("timm.utils")
    trained, average = mlp(), mlp()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    saver = utils.CheckpointSaver(trained, optimizer, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=0.5)
    network = mlp()
    load_file_weights(network, read_file(tmp_path / "last.pth.tar", "here"), "here")
    assert same(copied(network), copied(trained))
    # With an average, the user chooses.
    saver.model_ema = utils.ModelEmaV3(average)
    saver.save_checkpoint(1, metric=0.6)
    message = complaint(
        lambda: load_file_weights(
            mlp(), read_file(tmp_path / "last.pth.tar", "here"), "here"
        )
    )
    assert "state_dict, state_dict_ema; choose" in message
    chosen = read_file(f"{tmp_path / 'last.pth.tar'}#state_dict_ema", "here")
    load_file_weights(network, chosen, "here")
    assert same(copied(network), copied(average))


def test_of_distributed_data_parallel(tmp_path: Path) -> None:
    distributed = torch.distributed
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        trained = mlp()
        wrapped = nn.parallel.DistributedDataParallel(trained)
        compiled: Any = torch.compile(wrapped)
        for content in (wrapped.state_dict(), {"model": compiled.state_dict()}):
            network = loaded(content, mlp(), tmp_path / "ddp.pt")
            assert same(copied(network), copied(trained))
    finally:
        distributed.destroy_process_group()


def test_tensors_of_a_gpu_are_read_on_the_cpu(tmp_path: Path) -> None:
    state = copied(mlp())
    torch.save(state, tmp_path / "cpu.pt")
    # A machine with a GPU writes the same file but for the name of the device.
    with (
        zipfile.ZipFile(tmp_path / "cpu.pt") as source,
        zipfile.ZipFile(tmp_path / "gpu.pt", "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content
                content = content.replace(
                    b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:7"
                )
            target.writestr(name, content)
    network = mlp()
    load_file_weights(network, read_file(tmp_path / "gpu.pt", "here"), "here")
    assert same(copied(network), state)
    assert {tensor.device.type for tensor in network.parameters()} == {"cpu"}


def test_averages_are_never_mixed_up(tmp_path: Path) -> None:
    raw, average = copied(mlp()), copied(mlp())
    path = tmp_path / "file.pt"
    for content, names in (
        (
            {"state_dict": raw, "state_dict_ema": average},
            ("state_dict", "state_dict_ema"),
        ),
        ({"model": raw, "extra": {"ema": average}}, ("model", "extra.ema")),
        (
            {**prefixed("online.", raw), **prefixed("target.", average)},
            ("online", "target"),
        ),
        (
            {"state_dict": {**prefixed("a.net.", raw), **prefixed("b.net.", average)}},
            ("state_dict.a.net", "state_dict.b.net"),
        ),
    ):
        message = complaint(lambda content=content: loaded(content, mlp(), path))  # type: ignore[misc]
        assert (
            f"several weights that fit MLP: {names[0]}, {names[1]}; choose" in message
        )
        assert same(copied(loaded(content, mlp(), path, f"#{names[0]}")), raw)
        assert same(copied(loaded(content, mlp(), path, f"#{names[1]}")), average)
    message = complaint(lambda: read_file(f"{path}#nothing", "the file"))
    assert "has no entry 'nothing' with weights; its entries: state_dict" in message


def test_our_own_average_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, average = copied(mlp()), copied(mlp())
    content = {
        KEY: {"role": "network"},
        "state_dict": prefixed("network.", average),
        # As Lightning's WeightAveraging stores it.
        "current_model_state": prefixed("network.", raw),
    }
    path = tmp_path / "last.ckpt"
    assert same(copied(loaded(content, mlp(), path)), average)
    assert (
        "state_dict holds averaged weights; the last ones are at '#current_model_state'"
        in (capsys.readouterr().out)
    )
    assert same(copied(loaded(content, mlp(), path, "#current_model_state")), raw)


def test_a_teacher_records_which_weights_it_has(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"state_dict": copied(mlp()), "state_dict_ema": copied(mlp())}, path)
    teacher = ModelTeacher(checkpoint=f"{path}#state_dict_ema", network=mlp())
    teacher.prepare(DigitsDataModule())
    (source,) = teacher.sources()
    assert source["path"] == str(path)
    assert source["entry"] == "state_dict_ema"
    assert "choose one as FILE#NAME" in complaint(
        lambda: ModelTeacher(str(path), mlp()).prepare(DigitsDataModule())
    )


def test_only_one_of_two_networks_fits(tmp_path: Path) -> None:
    small, large = copied(mlp(8)), copied(mlp(32))
    network = loaded(
        {"student": small, "teacher": large}, mlp(32), tmp_path / "file.pt"
    )
    assert same(copied(network), large)


def test_a_name_with_a_hash(tmp_path: Path) -> None:
    state = copied(mlp())
    assert same(copied(loaded(state, mlp(), tmp_path / "run#2.pt")), state)


def test_without_counters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = shaky()
    trained(torch.randn(4, 1, 8, 8))
    state = copied(trained)
    assert state.pop("2.num_batches_tracked") == 1
    network = loaded(state, shaky(), tmp_path / "old.pt")
    assert network.state_dict()["2.num_batches_tracked"] == 0
    assert same(
        {**copied(network), "2.num_batches_tracked": torch.tensor(1)}, copied(trained)
    )
    assert "1 missing num_batches_tracked set to 0" in capsys.readouterr().out


class Tied(nn.Module):
    """An output layer that is the transposed embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = Tied()
    for name in ("embedding.weight", "head.weight"):
        # As safetensors keeps it: each tensor once.
        save_file({name: trained.head.weight.detach()}, tmp_path / "tied.safetensors")
        network = Tied()
        load_file_weights(
            network, read_file(tmp_path / "tied.safetensors", "here"), "here"
        )
        assert torch.equal(network.head.weight, trained.head.weight)
        assert "taken from the tensors that they are tied to" in capsys.readouterr().out
    state = {"embedding.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)}
    message = complaint(lambda: loaded(state, Tied(), tmp_path / "file.pt"))
    assert "'head.weight' and 'embedding.weight' differ" in message


def test_a_near_miss_shows_names_of_both_sides(tmp_path: Path) -> None:
    state = {
        name.replace("body", "trunk"): tensor for name, tensor in copied(mlp()).items()
    }
    message = complaint(
        lambda: loaded({"net": prefixed("module.", state)}, mlp(), tmp_path / "f")
    )
    assert "missing: 'body.1.weight', 'body.1.bias'" in message
    assert "hold 'trunk.1.weight', 'trunk.1.bias' instead" in message


class Block(nn.Module):
    """A block of ResNet-20 with the shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, outputs // inputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)


class ResNet20(nn.Module):
    """The parameters of ResNet-20 by the names of the files in `wild`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv1(images)))


def test_a_published_checkpoint(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data_root / "wild" / "resnet20-12fca82f.th"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    network = ResNet20()
    load_file_weights(network, read_file(path, "the teacher"), "the teacher")
    raw = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert torch.equal(network.linear.weight, raw["module.linear.weight"])
    printed = capsys.readouterr().out
    assert (
        "prefix 'module.' removed; 19 missing num_batches_tracked set to 0" in printed
    )
    with_other_depth = ResNet20()
    del with_other_depth.layer3[2]
    message = complaint(
        lambda: load_file_weights(
            with_other_depth, read_file(path, "here"), "the teacher"
        )
    )
    assert "the weights hold 'layer3.2." in message
