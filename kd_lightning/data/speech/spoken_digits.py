"""The Free Spoken Digit Dataset as acoustic modelling: windows of log Mel energies, and the HMM state of one frame of each."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from kd_lightning.data.datamodule import STAGES, DataModule
from kd_lightning.data.files import checksum, data_root
from kd_lightning.data.speech.digit_strings import MELS
from kd_lightning.data.speech.hmm import Lexicon, WordLoop
from kd_lightning.data.speech.spoken_corpus import computed, fetch
from kd_lightning.data.speech.windows import CONTEXT, Speech, SpeechSource
from kd_lightning.data.subsets import check_fraction
from kd_lightning.errors import UserError
from kd_lightning.spec import Spec

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class SpokenDigitsDataModule(DataModule):
    """Acoustic modelling of spoken digits (Free Spoken Digit Dataset, Jakobovski et al.; six speakers, 3,000 recordings).

    The recordings of a speaker are joined to strings of 3 to 7 digits with gaps of low noise (100 to 300 ms, seeded). A sample
    is a frame (10 ms): its input 26 frames of 40 log Mel filterbank energies, 20 before it and 5 after it, its class one
    of `10 * states + 1` HMM states, by forced alignment from a flat start. Features have mean 0 and variance 1 over the
    speaker's training part; a speaker who is held out has none: all that this speaker says, without labels, takes its place.
    What is computed once is kept in `kd_lightning/` under `XDG_CACHE_HOME`, else `~/.cache`.

    Args:
        root: folder that holds `free-spoken-digit-dataset/recordings/*.wav`; else `KD_DATA_ROOT`, else `./data`.
        download: fetch the public archive where the folder is missing.
        batch_size: frames a training batch, on each device.
        eval_batch_size: frames a batch in validation, test and prediction.
        validation: hold takes 5 to 9 of the training part out for validation; false: train on them too.
        split: "takes", the official one, takes 0 to 4 of every speaker are the test set; or "speakers": the test set is
            all that the speakers of `held_out` say.
        held_out: speakers of the test set where the split is "speakers".
        fraction: of the training recordings kept, in whole strings, stratified by speaker and digit. The alignment and the
            speakers' means and variances remain those of the whole training part.
        states: HMM states of each digit, from left to right; silence has one.
        split_seed: of the order of recordings in strings, and of the gaps; the same for all seeds of a run.
        resident: keep the samples on the accelerator, where there is one.

    Raises:
        UserError: one line, for a missing, broken or differently coded recording, or a class that is left empty.
    """

    name = "spoken-digits"

    def __init__(
        self,
        root: str | None = None,
        download: bool = True,
        batch_size: int = 256,
        eval_batch_size: int = 1000,
        validation: bool = True,
        split: Literal["takes", "speakers"] = "takes",
        held_out: list[str] | None = None,
        fraction: float = 1.0,
        states: int = 5,
        split_seed: int = 0,
        resident: bool = True,
    ) -> None:
        super().__init__()
        check_fraction("data.fraction", fraction)
        if batch_size < 1 or eval_batch_size < 1 or states < 1:
            raise UserError(
                "data.batch_size, data.eval_batch_size and data.states must be at least 1"
            )
        if (split == "speakers") != bool(held_out):
            raise UserError(
                "data.held_out names the test set's speakers, such as [theo, yweweler]: it goes with data.split=speakers alone"
            )
        self.root, self.download = data_root(root), download
        self.batch_size, self.eval_batch_size, self.resident = batch_size, eval_batch_size, resident
        self.validation, self.fraction, self.split, self.held_out = (
            validation,
            fraction,
            split,
            sorted(held_out or []),
        )
        self.split_seed, self.lexicon = split_seed, Lexicon(len(WORDS), states)
        steps = [f"{word}/{state}" for word in WORDS for state in range(1, states + 1)]
        self.classes = (*steps, "silence")
        self._raw: dict[str, Speech] = {}
        self._sources: dict[str, SpeechSource] = {}

    def raw(self, split: str) -> Speech:
        """All frames of "train" (those held out for validation among them) or "test"."""
        if not self._raw:
            folder = self.root / "free-spoken-digit-dataset" / "recordings"
            if not folder.is_dir():
                fetch(folder, self.download)
            self._raw = computed(folder, tuple(self.held_out), self.lexicon, self.split_seed)
        return self._raw[split]

    def source(self, stage: str) -> SpeechSource:
        """The frames of "train", "validation" or "test"."""
        if stage not in self._sources:
            split = "test" if stage == "test" else "train"
            speech = self.raw(split)
            pairs = zip(speech.parts, speech.shares, strict=True)
            kept = torch.tensor([self._takes_part(stage, part, share) for part, share in pairs])
            rows = kept[speech.string].nonzero()[:, 0]
            if stage == "train":
                self._check_classes(speech.target[rows])
            self._sources[stage] = SpeechSource(
                speech.windows, speech.first, speech.target, rows, split
            )
        return self._sources[stage]

    def _takes_part(self, stage: str, part: str, share: float) -> bool:
        if stage != "train":
            return part == stage and (stage == "test" or self.validation)
        return (part == "train" or not self.validation) and share < self.fraction

    def _check_classes(self, target: Tensor) -> None:
        missing = torch.bincount(target, minlength=len(self.classes)) == 0
        if bool(missing.any()):
            word = self.classes[int(missing.nonzero()[0])].partition("/")[0]
            raise UserError(
                f"spoken digits: data.fraction={self.fraction} leaves no recording of {word!r} to train on"
            )

    def word_loop(self) -> WordLoop:
        """The decoder's transitions and the states' priors, from the alignment of the whole training part."""
        speech = self.raw("train")
        rows = torch.tensor([part == "train" for part in speech.parts])[speech.string]
        return WordLoop.from_alignment(self.lexicon, speech.target[rows], speech.string[rows])

    @property
    def spec(self) -> Spec:
        return Spec(
            data=self.name,
            task=self.task.name,
            input_shape=(1, CONTEXT, MELS),
            num_classes=len(self.classes),
            classes=tuple(self.classes),
            samples={stage: len(self.source(stage)) for stage in STAGES},
            source_samples=len(self.raw("train").target),
        )

    def images_for_display(self, index: Tensor) -> Tensor | None:
        return self.raw("test").images[index]

    def fingerprint(self) -> dict[str, Any]:
        """What decides the inputs of a teacher: the features, and the order of the frames."""
        speech = {split: self.raw(split) for split in ("train", "test")}
        samples = {split: checksum(s.frames, s.first, s.target) for split, s in speech.items()}
        return {
            "data": self.name,
            "samples": samples,
            "split": self.split,
            "held_out": self.held_out,
        }
