"""The part of the text datamodules that does not depend on how samples are read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.loader import BucketLoader
from kd_lightning.data.text.files import Texts
from kd_lightning.data.text.sentences import PREDICTS, Sentences, TextSource
from kd_lightning.data.text.synthetic import SyntheticSentences
from kd_lightning.data.text.tokenizers import Tokenizer
from kd_lightning.networks import UsesVocabulary
from kd_lightning.randomness import run_seed, seed_from


class SentenceDataModule(DataModule):
    """Tokenizes texts and serves them in batches of similar length.

    A subclass reads the samples: it implements `raw` and `source`.

    Args:
        tokenizer: tokenizer of the student, or of the only network.
        teacher_tokenizer: tokenizer of the teacher, if it differs from the student's.
        augment: synthetic sentences for training.
        augmentation_seed: seed of `augment`.
    """

    augment: SyntheticSentences | None
    pool: int
    predict_file: str | None

    def __init__(
        self,
        tokenizer: Tokenizer,
        teacher_tokenizer: Tokenizer | None,
        augment: SyntheticSentences | None,
        augmentation_seed: int,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.teacher_tokenizer = teacher_tokenizer
        self.augment = augment
        self.augmentation_seed = augmentation_seed
        self._sentences: dict[str, Sentences] = {}
        self._learned = False

    def raw(self, split: str) -> Texts:
        """All samples of a source split."""
        raise NotImplementedError

    def source(self, stage: str) -> TextSource:
        """The samples of "train", "validation", "test" or "predict"."""
        raise NotImplementedError

    # -- tokens --------------------------------------------------------------------------------

    def learn(self) -> None:
        """Give every tokenizer its vocabulary: of the training sentences, or of a checkpoint."""
        if self._learned:
            return
        self._learned = True
        for tokenizer in self._tokenizers().values():
            # A restored vocabulary needs no training file.
            if not tokenizer.known:
                tokenizer.learn(self.raw("train").texts)

    def _tokenizers(self) -> dict[str, Tokenizer]:
        """The tokenizers by argument name."""
        tokenizers = {"tokenizer": self.tokenizer}
        if self.teacher_tokenizer is not None:
            tokenizers["teacher_tokenizer"] = self.teacher_tokenizer
        return tokenizers

    def sentences(self, split: str) -> Sentences:
        """A source split with its tokens."""
        self.learn()
        if split not in self._sentences:
            texts = self.raw(split)
            augment = self.augment if split == "train" else None
            if augment is not None:
                augment.learn(texts.texts)
            self._sentences[split] = Sentences(
                split, texts, augment, self.augmentation_seed
            )
        return self._sentences[split]

    def _source(self, split: str, rows: Tensor, target: Tensor) -> TextSource:
        """Some rows `(n,)` of a source split with targets `(N,)`."""
        return TextSource(
            self.sentences(split), target, rows, self.tokenizer, self.teacher_tokenizer
        )

    # -- training and loaders ------------------------------------------------------------------

    @property
    def augmented(self) -> bool:
        """Whether training samples are augmented."""
        return self.augment is not None

    def prepare_network(self, network: nn.Module) -> None:
        """Pass the vocabulary to embeddings that start from word vectors."""
        for module in network.modules():
            if isinstance(module, UsesVocabulary):
                self.learn()
                module.use_words(self.tokenizer.vocabulary)

    def loader(self, stage: str) -> BucketLoader:
        """The batches of a stage for this process."""
        is_training = stage == "train"
        rank, world_size = self.rank_and_world_size
        loader = BucketLoader(
            self.source(stage),
            self.batch_size if is_training else self.eval_batch_size,
            pool=self.pool,
            shuffle=is_training,
            seed=seed_from(run_seed(), "train"),
            # Evaluation always shows the real sentences.
            views=self.views if is_training and self.augmented else 0,
            rank=rank,
            world_size=world_size,
            prefetch=self.prefetch,
            pin=self._device().type == "cuda",
        )
        loader.drop_last = is_training and self.drop_last
        loader.repeat = is_training and self.repeats_batches
        loader.join = self.joins.get(stage)
        return loader

    def predict_dataloader(self) -> BucketLoader:
        """The sentences of `predict_file`, or the test set if there is none."""
        return self.loader(PREDICTS if self.predict_file else "test")

    def texts_for_display(self, index: Tensor) -> Sequence[str] | None:
        """The sentences of test rows `(N,)`; the two of a pair are joined."""
        texts = self.raw("test").texts
        return [" | ".join(texts[row]) for row in index.tolist()]
