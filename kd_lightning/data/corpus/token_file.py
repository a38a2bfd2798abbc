"""The tokens of a split in memory-mapped files, which all runs and processes share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_lightning.data.corpus.datasets_on_disk import sha256_of_dataset
from kd_lightning.data.corpus.documents import Document, read_documents
from kd_lightning.data.corpus.tokenizers import LanguageTokenizer
from kd_lightning.data.images.image_cache import cache_root
from kd_lightning.errors import UserError, printable
from kd_lightning.values import Value

VERSION = 1
"""Version of the format. It is part of a cache's name, so other versions are never read."""

DOCUMENTS_AT_ONCE = 64
"""Documents that are tokenized together, at most, in threads of the tokenizer."""

CHARACTERS_AT_ONCE = 2**20
"""Characters of these documents; a longer document is tokenized alone."""

IdArray = NDArray[Any]
"""Token ids of an integer type that holds the vocabulary."""


@dataclass(frozen=True)
class TokenFile:
    """The documents of a split, one after another, each with a token that ends it.

    Attributes:
        ids: `(T,)`, memory-mapped, uint16 or int32.
        starts: int64 `(D,)`, the first token of each document.
        prompts: int64 `(D,)`, how many tokens of each document are its prompt.
        sha256: checksum of the documents and the tokenizer.
    """

    ids: IdArray
    starts: NDArray[np.int64]
    prompts: NDArray[np.int64]
    sha256: str

    @property
    def stops(self) -> NDArray[np.int64]:
        """The end of each document, int64 `(D,)`."""
        return np.append(self.starts[1:], len(self.ids))


def documents_of(files: Iterable[Path]) -> Iterator[Document]:
    """The documents of several files, in order.

    Raises:
        UserError: if a file cannot be read.
    """
    for file in files:
        yield from read_documents(file)


def tokenized(
    files: list[Path],
    tokenizer: LanguageTokenizer,
    cache: str | None,
) -> TokenFile:
    """The tokens of some files, read from the cache if they are in it.

    If several processes call this at once, one of them tokenizes and the others wait.

    Args:
        files: of the split.
        tokenizer: that has learned its vocabulary.
        cache: folder of all caches; default: `KD_CACHE`, else `~/.cache/kd_lightning`.

    Raises:
        UserError: if a file cannot be read, the files hold no text, or the cache cannot be written.
    """
    from filelock import FileLock

    key = _key(files, tokenizer)
    folder = cache_root(cache) / "tokens" / key[:32]
    content = _open(folder, key)
    if content is not None:
        return content
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            # Another process may have written the cache while this one waited for the lock.
            content = _open(folder, key)
            if content is None:
                _write(folder, files, tokenizer)
                content = _open(folder, key)
    except OSError as error:
        raise UserError(
            f"the token cache {folder.parent} cannot be written ({error.strerror}); "
            "set --data.cache or KD_CACHE to a folder with room for the tokens"
        ) from error
    assert content is not None
    return content


def _key(files: list[Path], tokenizer: LanguageTokenizer) -> str:
    """A checksum of the content of the files and of the tokenizer."""
    described: list[Value] = [VERSION, dict(tokenizer.fingerprint())]
    for file in files:
        try:
            digest = _digest_of(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from error
        # The ending decides how a file is read; its other name does not matter.
        described.append([file.suffix, digest])
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _digest_of(file: Path) -> str:
    """A checksum of the content of a file, or of a data set in a folder."""
    if file.is_dir():
        return sha256_of_dataset(file)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _open(folder: Path, key: str) -> TokenFile | None:
    """The content of a cache; `None` if it is not there."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        # Plain arrays alone: an array of objects would be a pickle.
        return TokenFile(
            ids=np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False),
            starts=np.load(folder / "starts.npy", allow_pickle=False),
            prompts=np.load(folder / "prompts.npy", allow_pickle=False),
            sha256=key,
        )
    return None


def _write(folder: Path, files: list[Path], tokenizer: LanguageTokenizer) -> None:
    """Tokenize the files into a new folder, which appears under its name once it is whole."""
    names = f"{len(files)} files" if len(files) > 1 else str(files[0])
    print(printable(f"data: tokenizing {names} once, into {folder}"))
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _tokenize(temporary, files, tokenizer)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tokenize(folder: Path, files: list[Path], tokenizer: LanguageTokenizer) -> None:
    """Write the arrays of a TokenFile.

    Raises:
        UserError: if the files hold no text.
    """
    dtype = np.uint16 if tokenizer.size <= 2**16 else np.int32
    starts: list[int] = []
    prompts: list[int] = []
    total = 0
    raw = folder / "ids.raw"
    with raw.open("wb") as stream:
        # A group at a time, so that a corpus may be larger than the memory.
        for group in _groups(documents_of(files)):
            for prompt_ids, text_ids in _encoded(group, tokenizer):
                ids = np.array([*prompt_ids, *text_ids, tokenizer.end], dtype=dtype)
                starts.append(total)
                prompts.append(len(prompt_ids))
                total += len(ids)
                stream.write(ids.tobytes())
    if not starts:
        raise UserError(f"the corpus holds no text: {', '.join(map(str, files[:3]))}")
    _add_header(raw, folder / "ids.npy", np.dtype(dtype), total)
    raw.unlink()
    np.save(folder / "starts.npy", np.array(starts, dtype=np.int64))
    np.save(folder / "prompts.npy", np.array(prompts, dtype=np.int64))


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups that need little memory while they are tokenized."""
    group: list[Document] = []
    characters = 0
    for document in documents:
        length = len(document.prompt) + len(document.text)
        is_full = len(group) == DOCUMENTS_AT_ONCE
        if group and (is_full or characters + length > CHARACTERS_AT_ONCE):
            yield group
            group = []
            characters = 0
        group.append(document)
        characters += length
    if group:
        yield group


def _add_header(raw: Path, file: Path, dtype: np.dtype[Any], total: int) -> None:
    """Write a file of numbers as an array of numpy, without reading all of it at once."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (total,),
    }
    with raw.open("rb") as source, file.open("wb") as target:
        np.lib.format.write_array_header_1_0(target, header)
        shutil.copyfileobj(source, target)


def _encoded(
    documents: list[Document], tokenizer: LanguageTokenizer
) -> Iterator[tuple[list[int], list[int]]]:
    """The token ids of the prompt and of the text of each document."""
    # Separately, so that no token spans the end of a prompt.
    prompts = tokenizer.encode([document.prompt for document in documents])
    texts = tokenizer.encode([document.text for document in documents])
    yield from zip(prompts, texts, strict=True)
