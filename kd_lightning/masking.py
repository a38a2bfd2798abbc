"""Keeps secrets out of the files of a run: config.yaml, run.json, checkpoints and messages.

A setting is a secret by its name, of which the last words decide. Words are separated by `_`, `-`,
`.` or a capital letter, and digits do not count, so `api_key`, `api-key`, `apiKey` and `API_KEY_2`
are the same name.

1. A name that ends with `password`, `passphrase`, `secret`, `credential` or a short or plural form
   of these is a secret.
2. A name that ends with `token` is a secret, such as `token` and `hf_token`, unless the word
   before it says that it is part of a text or an image: `mask_token`, `eos_token`, `pad_token`,
   `class_token`.
3. A name that ends with `key` or `keys` is a secret only after a word that says what it opens:
   `api_key`, `access_key`, `private_key`. `key`, `sort_key` and `state_key` are none.

Names that merely contain such a word are none: `tokenizer`, `num_tokens`, `key_dim`,
`password_file`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

MASK = "***"
"""Stands for a secret."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ALWAYS = _set(
    """
    password passwords passwd passphrase secret secrets credential credentials
    apikey apikeys accesskey
    """
)
"""Last words of secrets."""

_OPENS = _set(
    """
    api access account auth private secret signing encryption ssh subscription
    client license service shared storage admin deploy wandb
    """
)
"""Words before `key` that make it a secret."""

_MARKS = _set(
    """
    mask eos bos pad padding unk unknown cls class classification sep separator
    special start end begin beginning stop first last next prefix suffix blank space
    boundary newline image audio video text time patch register dist distillation
    additional decoder encoder extra global summary target word per
    """
)
"""Words before `token` that make it a part of a text or an image."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_NO_SECRETS = frozenset({"", "true", "false", "null", "none"})
"""Values that are no secret, and tell what the command did."""

_ENTRY = re.compile(
    # A name such as that in {api_key: abc}, then its value up to the next separator.
    r"""(?<![\w-])
    (?P<name>[\w-]*(?:token|key|password|passwd|passphrase|secret|credential)[\w-]*)
    (?P<between>["']?\s*[:=]\s*)
    (?P<value>"[^"]*"|'[^']*'|[^\s,"'{}\[\]][^\n,"'}\]&]*)""",
    re.IGNORECASE | re.VERBOSE,
)
_URL_LOGIN = re.compile(r"(://)[^/\s@]+@")
_URL_ARGUMENT = re.compile(r"(?P<name>[^?&=\s]+)(?P<between>=)(?P<value>[^&#\s]+)")

_SIGNED_URL = frozenset({"sig", "signature"})
"""Last words of the arguments that make a URL one that anybody may open."""

Entry: TypeAlias = "re.Match[str]"


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name holds a secret; see the rule above.

    Args:
        name: of an option or a key, such as `api_key`; of a dotted name the last part counts.
    """
    words = _words(name)
    if not words:
        return False
    last = words[-1]
    before = words[-2] if len(words) > 1 else ""
    if last in _ALWAYS:
        return True
    if last == "token":
        return before not in _MARKS
    return last in ("key", "keys") and before in _OPENS


def _words(name: str) -> list[str]:
    """The words of a name's last part, in lower case and without digits."""
    return [word.lower() for word in _WORD.findall(name.rpartition(".")[2])]


def masked_command(argv: Sequence[str]) -> list[str]:
    """A command line without secrets, to be stored.

    Masks the values of options and of keys in mappings that are secrets by their names, and the
    logins and secret arguments of URLs.

    Args:
        argv: words such as `--model.network.api_key=abc`, or `--token` and `abc`.
    """
    masked = []
    follows_secret = False
    for word in argv:
        option, equals, value = word.partition("=")
        is_value = follows_secret and not word.startswith("--")
        is_secret_option = option.startswith("--") and is_secret_name(option)
        if is_value:
            masked.append(_masked_value(word))
        elif is_secret_option and equals:
            masked.append(f"{option}={_masked_value(value)}")
        else:
            masked.append(_masked_url(_ENTRY.sub(_masked_entry, word)))
        follows_secret = is_secret_option and not equals
    return masked


def masked_config(config: Any) -> Any:
    """A nested config without secrets, to be stored.

    Masks the texts that `masked_command` masks in the command that sets them. Numbers stay: a
    vocabulary gives the word "password" an id.

    Args:
        config: in builtins; it is not changed. Other objects are returned as they are.
    """
    if isinstance(config, str):
        return _masked_url(config)
    if not isinstance(config, Mapping):
        return _with_items(config, masked_config)
    masked = {}
    for key, value in config.items():
        if is_secret_name(str(key)):
            masked[key] = _masked_secret(value)
        else:
            masked[key] = masked_config(value)
    return masked


def is_masked(value: object) -> bool:
    """Whether a value of a config stands for a secret that was not stored."""
    if not isinstance(value, str):
        return False
    # In a URL, the mask is only a part.
    in_url = f"://{MASK}@" in value or ("://" in value and f"={MASK}" in value)
    return value == MASK or in_url


def missing_secret(config: Any, name: str = "") -> str | None:
    """The first secret that is masked in a config, by the name of its option.

    Args:
        config: in builtins, such as the arguments in a checkpoint.
        name: of the config.

    Returns:
        A name such as `model.network.api_key`; `None` if no secret is missing.
    """
    if is_masked(config):
        return name
    # An option names neither positions in a list nor what the parser nests.
    items: list[tuple[str, Any]] = []
    if isinstance(config, Mapping):
        items = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, list | tuple):
        items = [("", value) for value in config]
    for key, value in items:
        parts = [name] if key in ("", "init_args", "dict_kwargs") else [name, key]
        found = missing_secret(value, ".".join(filter(None, parts)))
        if found is not None:
            return found
    return None


def _masked_secret(value: Any) -> Any:
    """All texts in the value of a secret masked."""
    if isinstance(value, str):
        return _masked_value(value)
    if not isinstance(value, Mapping):
        return _with_items(value, _masked_secret)
    masked = {}
    for key, item in value.items():
        masked[key] = _masked_secret(item)
    return masked


def _with_items(value: Any, mask: Callable[[Any], Any]) -> Any:
    """A list or tuple with masked items; any other value as it is."""
    if isinstance(value, list):
        return [mask(item) for item in value]
    if type(value) is tuple:
        return tuple(mask(item) for item in value)
    return value


def _masked_value(value: str) -> str:
    """The mask; a flag or a null is no secret."""
    return value if value.lower() in _NO_SECRETS else MASK


def _masked_entry(entry: Entry) -> str:
    """A name and its value, which is masked if the name is that of a secret."""
    if not is_secret_name(entry["name"]):
        return entry[0]
    return f"{entry['name']}{entry['between']}{_masked_value(entry['value'])}"


def _masked_url(text: str) -> str:
    """A text whose URLs have neither logins nor secret arguments."""
    if "://" not in text:
        return text
    without_login = _URL_LOGIN.sub(rf"\1{MASK}@", text)
    address, mark, arguments = without_login.partition("?")
    return f"{address}{mark}{_URL_ARGUMENT.sub(_masked_argument, arguments)}"


def _masked_argument(argument: Entry) -> str:
    """An argument of a URL, masked if it is a secret or signs the URL."""
    last_words = _words(argument["name"])[-1:]
    if not _SIGNED_URL.isdisjoint(last_words):
        return f"{argument['name']}={MASK}"
    return _masked_entry(argument)
