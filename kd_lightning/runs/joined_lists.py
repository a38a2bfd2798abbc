"""Joins the lists of callbacks, loggers and augmentations of several config files."""

from __future__ import annotations

from dataclasses import dataclass, field

from kd_lightning.values import Value

JOINED_LISTS = "trainer.callbacks, trainer.logger and data.augment"
"""The lists that are joined, in words."""

Place = tuple[str, ...]
"""The keys that lead to a list."""


@dataclass
class JoinedLists:
    """The lists that the config files of one command have given so far.

    The parser would replace a list of one file with that of the next, so that an augmentation or
    early stopping would vanish. An entry that is in the list already is not added again. A value
    that is not a list, such as `logger: false`, replaces the list, as does another class of data.

    Attributes:
        entries: place -> entries.
        data_classes: place -> class path of the data there.
    """

    entries: dict[Place, list[Value]] = field(default_factory=dict)
    data_classes: dict[Place, str] = field(default_factory=dict)

    def join(self, content: dict[str, Value]) -> bool:
        """Put the entries of earlier files in front of those of a config's lists.

        Args:
            content: of the next config file; its lists are changed in place.

        Returns:
            Whether the content has changed.
        """
        trainer = content.get("trainer")
        changed = False
        if isinstance(trainer, dict):
            for name in ("callbacks", "logger"):
                if self._join_list(("trainer", name), trainer, name):
                    changed = True
        if self._join_data(("data",), content.get("data")):
            changed = True
        return changed

    def _join_data(self, place: Place, data: Value) -> bool:
        """Join the augmentations of data, and of the data that it wraps."""
        if not isinstance(data, dict):
            return False
        class_path = data.get("class_path")
        if isinstance(class_path, str):
            # Arguments of one class mean nothing to another.
            if self.data_classes.get(place, class_path) != class_path:
                self._forget(place)
            self.data_classes[place] = class_path
        arguments = data.get("init_args")
        if not isinstance(arguments, dict):
            return False
        changed = self._join_list((*place, "augment"), arguments, "augment")
        return self._join_data((*place, "data"), arguments.get("data")) or changed

    def _forget(self, place: Place) -> None:
        """Drop the entries at and below a place."""
        for other in list(self.entries):
            if other[: len(place)] == place:
                del self.entries[other]

    def _join_list(self, place: Place, node: dict[str, Value], name: str) -> bool:
        """Join `node[name]`; `name+` is what the parser appends itself."""
        appended = node.get(f"{name}+")
        if appended is not None:
            entries = appended if isinstance(appended, list) else [appended]
            earlier = self.entries.get(place, [])
            self.entries[place] = [*earlier, *entries]
        if name not in node:
            return False
        value = node[name]
        # No list, such as `logger: false`, is a decision against the earlier entries.
        if not isinstance(value, list):
            self.entries[place] = []
            return False
        earlier = self.entries.get(place, [])
        added = [entry for entry in value if entry not in earlier]
        joined = [*earlier, *added]
        self.entries[place] = joined
        node[name] = joined
        return joined != value
