"""The Free Spoken Digit Dataset as acoustic modeling: from log Mel windows to HMM states."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.files import checksum, data_root
from kd_lightning.data.speech.corpus_cache import load_corpus
from kd_lightning.data.speech.framing import MELS
from kd_lightning.data.speech.hmm import Lexicon
from kd_lightning.data.speech.new_samples import RecordingReader
from kd_lightning.data.speech.spoken_corpus import fetch
from kd_lightning.data.speech.windows import CONTEXT, Speech, SpeechSource
from kd_lightning.data.speech.word_loop import WordLoop
from kd_lightning.data.subsets import check_fraction
from kd_lightning.errors import UserError
from kd_lightning.spec import Spec

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class SpokenDigitsDataModule(DataModule):
    """Acoustic modeling of spoken digits.

    The Free Spoken Digit Dataset (Jakobovski et al.) has 3,000 recordings of six speakers. The
    recordings of a speaker are joined to strings of 3 to 7 digits with gaps of low noise (100 to
    300 ms, seeded). A sample is a frame of 10 ms. Its input consists of 26 frames of 40 log Mel
    filterbank energies: 20 frames before it, itself and 5 frames after it. Its class is one of
    `10 * states + 1` HMM states, labeled by forced alignment from a flat start.

    Features have mean 0 and variance 1 over the speaker's training part. A held-out speaker has no
    training part, so all its strings are used instead, without their labels. Features and labels
    are computed once and cached in `kd_lightning/` below `XDG_CACHE_HOME` (default `~/.cache`).

    Args:
        root: folder that contains `free-spoken-digit-dataset/recordings/*.wav`; default
            `KD_DATA_ROOT`, then `./data`.
        download: whether to download the public archive if the folder is missing.
        batch_size: frames per training batch, on each device.
        eval_batch_size: frames per batch in validation, test and prediction.
        validation: whether to hold out takes 5 to 9 of the training part for validation; if
            false, they are trained on too.
        split: "takes", the official split, puts takes 0 to 4 of every speaker into the test set;
            "speakers" puts all recordings of the `held_out` speakers into it.
        held_out: speakers of the test set if the split is "speakers".
        fraction: fraction of the training recordings to train on, in whole strings, stratified by
            speaker and digit. Alignment, means and variances still use the whole training part.
        states: HMM states per digit, from left to right; silence has one.
        split_seed: seed of the order of recordings in strings, and of the gaps. It does not depend
            on the seed of a run.
        resident: whether to store the samples on the accelerator, if there is one.

    Raises:
        UserError: if a recording is missing, damaged or in another format, or if a class has no
            training sample.
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
                "data.held_out names the test set's speakers, such as [theo, yweweler]; "
                "set it if data.split=speakers, and only then"
            )
        self.root = data_root(root)
        self.download = download
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.validation = validation
        self.split = split
        # The order in which speakers are named must not decide the cache file.
        self.held_out = sorted(held_out or [])
        self.fraction = fraction
        self.split_seed = split_seed
        self.resident = resident
        self.lexicon = Lexicon(len(WORDS), states)
        digit_states: list[str] = []
        for word in WORDS:
            for state in range(1, states + 1):
                digit_states.append(f"{word}/{state}")
        self.classes = (*digit_states, "silence")
        self._raw: dict[str, Speech] = {}
        self._sources: dict[str, SpeechSource] = {}

    def raw(self, split: str) -> Speech:
        """All frames of a source split.

        Args:
            split: "train", which includes the frames held out for validation, or "test".
        """
        if not self._raw:
            folder = self.root / "free-spoken-digit-dataset" / "recordings"
            if not folder.is_dir():
                fetch(folder, self.download)
            held_out = tuple(self.held_out)
            self._raw = load_corpus(folder, held_out, self.lexicon, self.split_seed)
        return self._raw[split]

    def source(self, stage: str) -> SpeechSource:
        """The frames of "train", "validation" or "test"."""
        if stage not in self._sources:
            self._sources[stage] = self._make_source(stage)
        return self._sources[stage]

    def _make_source(self, stage: str) -> SpeechSource:
        """The frames of a stage, as rows of its source split."""
        # Validation strings are rows of the source split "train".
        split = "test" if stage == "test" else "train"
        speech = self.raw(split)
        # Whole strings are selected: a fraction of the data consists of the first ones.
        selected = []
        for part, share in zip(speech.parts, speech.shares, strict=True):
            selected.append(self._is_selected(stage, part, share))
        # From strings to frames: each frame is selected if its string is.
        is_selected = torch.tensor(selected)[speech.string]
        rows = is_selected.nonzero()[:, 0]
        if stage == "train":
            self._check_classes(speech.target[rows])
        return SpeechSource(speech.windows, speech.first, speech.target, rows, split)

    def _is_selected(self, stage: str, part: str, share: float) -> bool:
        """Whether a stage uses a string of this part, at this position within its part."""
        if stage == "test":
            return part == "test"
        if stage == "validation":
            return part == "validation" and self.validation
        # Without validation, its part is trained on as well.
        is_trained_on = part == "train" or not self.validation
        return is_trained_on and share < self.fraction

    def _check_classes(self, target: Tensor) -> None:
        """Refuse training samples, int64 `(n,)`, that do not contain every class."""
        counts = torch.bincount(target, minlength=len(self.classes))
        missing = counts == 0
        if bool(missing.any()):
            state = self.classes[int(missing.nonzero()[0])]
            word, _, _ = state.partition("/")
            raise UserError(
                f"spoken digits: data.fraction={self.fraction} leaves no recording of {word!r} "
                "to train on; increase it"
            )

    def word_loop(self) -> WordLoop:
        """Transitions of the decoder and priors of the states.

        They are counted in the alignment of the whole training part, without validation.
        """
        speech = self.raw("train")
        in_training = [part == "train" for part in speech.parts]
        rows = torch.tensor(in_training)[speech.string]
        states = speech.target[rows]
        strings = speech.string[rows]
        return WordLoop.from_alignment(self.lexicon, states, strings)

    @property
    def spec(self) -> Spec:
        """Windows of 26 frames as images of one channel, and the HMM states as classes."""
        return Spec(
            data=self.name,
            task=self.task.name,
            input_shape=(1, CONTEXT, MELS),
            num_classes=len(self.classes),
            classes=tuple(self.classes),
            samples=self._samples_per_stage(),
            source_samples=len(self.raw("train").target),
        )

    def input_reader(self) -> RecordingReader:
        """Cuts recordings into frames."""
        return RecordingReader()

    def images_for_display(self, index: Tensor) -> Tensor | None:
        """The windows of test frames as images, `(n, 1, 26, 40)`.

        Args:
            index: int64 `(n,)`, rows of the source split "test".
        """
        return self.raw("test").images[index]

    def fingerprint(self) -> dict[str, Any]:
        """All that decides a teacher's inputs: the features and the order of the frames."""
        samples = {}
        for split in ("train", "test"):
            speech = self.raw(split)
            samples[split] = checksum(speech.frames, speech.first, speech.target)
        return {
            "data": self.name,
            "samples": samples,
            "split": self.split,
            "held_out": self.held_out,
        }
