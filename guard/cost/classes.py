"""What the walk must know of a node class: once for each, from its declaration and its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..graph import Declared, is_link
from .names import LONGEST, Role, Trait, find_role, find_traits

#: Says what a class declares; nothing where nobody knows it.
Describe = Callable[[str], Declared]

#: What holds pictures, so that it has a size.
PICTURES = frozenset({"IMAGE", "LATENT", "MASK", "VIDEO"})
PLAIN = frozenset({"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "NUMBER"})

_NUMBERS = frozenset({"INT", "FLOAT", "BOOLEAN", "NUMBER"})
_SEEN = frozenset({"IMAGE", "MASK", "VIDEO"})
_ANY = re.compile(r"\*|COMFY_MATCHTYPE|COMFY_AUTOGROW|COMFY_DYNAMIC|COMFY_MULTITYPED|,|INFO")
_NO_WORD = re.compile(r"\W+")
#: Node classes come from clients.
_REMEMBERED = 4096

_NOTHING = Declared()
_NONE: frozenset[str] = frozenset()
#: Inputs that others come with.
_GROWING = frozenset({"COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3"})


def describe_nothing(_class_type: str) -> Declared:
    return _NOTHING


class NodeClass:
    """One class.

    Attributes:
        known: somebody knows what it takes and gives. Else it may give anything.
        kinds: the types of its outputs.
        only_pictures: it gives pictures and nothing else.
        outputs: (type, name without signs) of each.
        given: the first kind of pictures that it gives; None: none.
        makes: it may give pictures.
        sizes: it may say how large pictures are.
        pictures: it gives pictures that can be seen, and no latents.
        numbers: it may give numbers or texts.
        only_plain: it gives nothing else.
        only_numbers: of those, no text.
        calculates: it takes pictures for numbers in a formula, if any.
        computes: it gives nothing that a model or a picture would have to be in.
        hands_on: it gives the only input that it declares, or that its name says so of.
        takes_films: films that it may take apart.
        takes_lists: it gets each list whole; other nodes run once for each item.
        lists: the outputs that give lists, by place.
        lazy: the inputs that are made only if the node asks for them.
        most: the largest number that each input's widget has.
        gathers: it makes a list of whatever it gets, and knows nothing of what that is.
    """

    __slots__ = (
        "_declared", "calculates", "computes", "gathers", "given", "hands_on", "inputs", "kinds", "known", "lazy",
        "lists", "makes", "most", "numbers", "only_numbers", "only_pictures", "only_plain", "outputs", "pictures",
        "sizes", "takes_films", "takes_lists", "traits",
    )  # fmt: skip

    def __init__(self, class_type: str, declared: Declared) -> None:
        self.traits = find_traits(class_type) if len(class_type) <= LONGEST else frozenset()
        self.inputs = declared.inputs
        self.known = bool(declared.inputs or declared.outputs)
        self._declared = declared
        self.outputs = [(kind, _NO_WORD.sub("", name)) for kind, name in declared.outputs]
        kinds = [kind for kind, _name in self.outputs]
        self.kinds = frozenset(kinds)
        self.only_pictures = bool(kinds) and self.kinds <= PICTURES
        self.given = next((kind for kind in kinds if kind in PICTURES), None)
        anything = any(_ANY.search(kind) for kind in kinds)
        self.makes = not self.known or self.given is not None
        self.sizes = any(name.lower() == "width" for _kind, name in self.outputs)
        self.pictures = not _SEEN.isdisjoint(kinds) and "LATENT" not in kinds
        self.numbers = not self.known or anything or any(kind in PLAIN for kind in kinds)
        self.only_plain = bool(kinds) and all(kind in PLAIN for kind in kinds)
        self.only_numbers = bool(kinds) and all(kind in _NUMBERS for kind in kinds)
        self.computes = bool(kinds) and all(kind in PLAIN or _ANY.search(kind) or kind == "COLOR" for kind in kinds)
        self.hands_on = Trait.HANDS_ON in self.traits and len(self.inputs) <= 2
        self.calculates = self.only_plain and Trait.CALCULATES in self.traits
        self.takes_films = "VIDEO" in declared.inputs.values()
        self.takes_lists = declared.takes_lists
        self.lists = declared.lists
        self.lazy = declared.lazy
        self.most = declared.most
        self.gathers = self.takes_lists and bool(self.lists) and all(_ANY.search(kind) for kind in kinds)

    def takes_pictures(self, name: str) -> str | None:
        """The kind of pictures that an input may take: `*` for any; None: none."""
        kind = self.inputs.get(name, "*")
        return kind if kind in PICTURES else "*" if _ANY.search(kind) else None

    def drop_strange(self, inputs: Mapping[str, Any]) -> tuple[Mapping[str, Any], frozenset[str]]:
        """What ComfyUI hands to the node of a prompt's inputs, and those links of them that it does not declare.

        ComfyUI drops a constant that is not declared, or that belongs to another choice than the one that was made. A
        link it hands on: most nodes then fail, and those that take any names use it.
        """
        declared = self._declared
        if not self.known or declared.takes_more or declared.inputs.keys() >= inputs.keys():
            return inputs, _NONE
        names = {*declared.inputs, *declared.hidden}
        waiting = [name for name, kind in declared.inputs.items() if kind in _GROWING]
        while waiting:
            name = waiting.pop()
            if (parts := declared.parts.get(name)) is None:
                if name in declared.inputs:  # nobody knows what is within
                    names.update(each for each in inputs if each.startswith(f"{name}."))
                continue
            value = inputs.get(name)
            more = parts.get("", _NONE) | (parts.get(value, _NONE) if isinstance(value, str) else _NONE)
            names |= more
            waiting += more & declared.parts.keys()
        links = frozenset(name for name, value in inputs.items() if name not in names and is_link(value))
        return {name: value for name, value in inputs.items() if name in names or name in links}, links


class NodeClasses:
    """All of one host. Any thread."""

    def __init__(self, describe: Describe = describe_nothing) -> None:
        self._describe = describe
        self._known: dict[str, NodeClass] = {}

    def find(self, class_type: str) -> NodeClass:
        if (found := self._known.get(class_type)) is not None:
            return found
        found = NodeClass(class_type, self._describe(class_type))
        # Who is not known may come to be: packs can add classes after the start.
        if found.known and len(self._known) < _REMEMBERED:
            self._known[class_type] = found
        return found


def find_short_role(name: str) -> Role | None:
    return find_role(name) if len(name) <= LONGEST else None
