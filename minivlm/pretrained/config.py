"""Published config.json files: their keys as the fields of our dataclasses, and back.

Nothing is built of a value before its type and its range are known. A ValueError names the file,
the key with its section, and the value.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minivlm.parts.layers import ACTIVATIONS

# Our field -> the published key, and the default where it is absent.
Keys = Mapping[str, tuple[str, object]]


class Section(dict):
    """A part of config.json that knows where it is: "text_config." before the names of its keys."""

    def __init__(self, values: Mapping, path: str = ""):
        super().__init__(values)
        self.path = path

    def over(self, defaults: Mapping) -> "Section":
        """The same with other values where this says nothing."""
        return Section({**defaults, **self}, self.path)

    def under(self, values: Mapping) -> "Section":
        """The same with some values replaced."""
        return Section({**self, **values}, self.path)


@dataclass(frozen=True)
class Number:
    """A setting that is a number from ``low`` to ``high``."""

    low: float
    high: float
    whole: bool = True

    def __contains__(self, value: object) -> bool:
        kinds = int if self.whole else (int, float)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        return number and self.low <= value <= self.high  # type: ignore[operator]

    def __str__(self) -> str:
        return f"a {'whole ' * self.whole}number from {self.low:,} to {self.high:,}"


@dataclass(frozen=True)
class Kind:
    """A setting of a type of Python's, which ``name`` says in words."""

    type: type
    name: str

    def __contains__(self, value: object) -> bool:
        return isinstance(value, self.type)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Choice:
    """A setting that is one of several strings."""

    names: tuple[str, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"


@dataclass(frozen=True)
class Several:
    """A setting that is a list of others, of any length or of one."""

    each: Number | Kind
    length: int | None = None

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, list | tuple) or self.length not in (None, len(value)):
            return False
        return all(part in self.each for part in value)

    def __str__(self) -> str:
        return f"a list of {self.length or 'any'} entries, each {self.each}"


WIDTH, LAYERS, HEADS = Number(1, 2**20), Number(1, 1000), Number(1, 2**12)
SIDE, CHANNELS, TABLE, TOKEN = (
    Number(1, 2**14),
    Number(1, 2**10),
    Number(1, 2**24),
    Number(0, 2**31),
)
SMALL, WORD = Number(0, 1, whole=False), Kind(str, "a string")
ACT = Choice(tuple(sorted(ACTIVATIONS)))
FLAG, OBJECT = Kind(bool, "true or false"), Kind(dict, "an object or null")
BLOCKS = Several(Number(0, 999))

KINDS: dict[str, Number | Kind | Choice | Several] = {  # published key -> what it must be
    **dict.fromkeys(("hidden_size", "intermediate_size", "embed_dim", "out_hidden_size"), WIDTH),
    **dict.fromkeys(("ffn_dim", "projection_dim", "projection_size"), WIDTH),
    **dict.fromkeys(("image_text_hidden_size", "num_query_tokens"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "depth", "cross_attention_frequency"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads"), HEADS),
    **dict.fromkeys(("image_size", "head_dim", "window_size"), SIDE),
    **dict.fromkeys(("num_channels", "in_channels", "patch_size"), CHANNELS),
    **dict.fromkeys(("spatial_merge_size", "temporal_patch_size"), Number(1, 2**5)),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "num_position_embeddings"), TABLE),
    **dict.fromkeys(("eos_token_id", "image_token_id", "image_token_index"), TOKEN),
    **dict.fromkeys(("video_token_id",), TOKEN),
    **dict.fromkeys(("layer_norm_eps", "rms_norm_eps"), SMALL),
    **dict.fromkeys(("hidden_act", "activation_function", "projector_hidden_act"), ACT),
    **dict.fromkeys(("qkv_bias", "attention_bias", "mlp_bias", "multimodal_projector_bias"), FLAG),
    **dict.fromkeys(("tie_word_embeddings", "use_qformer_text_input"), FLAG),
    **dict.fromkeys(("fullatt_block_indexes", "deepstack_visual_indexes"), BLOCKS),
    "rope_theta": Number(1, 10**15, whole=False),
    "mlp_ratio": Number(0.001, 1000, whole=False),
    "tokens_per_second": Number(0.001, 10**6, whole=False),
    "logit_scale_init_value": Number(-1000, 1000, whole=False),
    "mrope_section": Several(Number(0, 2**14), 3),
    "layer_types": Several(WORD),
    "id2label": OBJECT,
}
MAY_BE_NULL = {  # as good as absent, in published files too
    *("num_key_value_heads", "head_dim", "projection_size", "id2label", "layer_types"),
    *("image_token_id", "image_token_index"),
}


def refuse(config: Mapping, key: str, wanted: object, default: object = None) -> ValueError:
    """The error of a value that our code does not have."""
    name, value = getattr(config, "path", "") + key, reprlib.repr(config.get(key, default))
    return ValueError(f"config.json: {name} = {value} is not supported; it must be {wanted}")


def read_setting(config: Mapping, key: str, default: object = None) -> Any:
    """The value of a key, of the type and in the range of KINDS; an absent one has its default."""
    value = config.get(key)
    if key not in config or (value is None and key in MAY_BE_NULL):
        return default
    if value not in KINDS[key]:
        raise refuse(config, key, KINDS[key])
    return value


def section(config: Mapping, key: str) -> Section:
    """The settings of one part; absent or null, it says nothing, and all have their defaults."""
    value = config.get(key)
    if value is not None and value not in OBJECT:
        raise refuse(config, key, OBJECT)
    return Section(value or {}, f"{getattr(config, 'path', '')}{key}.")


def fields(config: Mapping, keys: Keys) -> dict:
    """What a published configuration says, by the names of our fields."""
    return {ours: read_setting(config, theirs, default) for ours, (theirs, default) in keys.items()}


def published(config: object, keys: Keys) -> dict:
    """Undo ``fields``: a dataclass of ours -> the published keys."""
    return {theirs: getattr(config, ours) for ours, (theirs, _) in keys.items()}


def require(config: Mapping, key: str, *allowed: object) -> None:
    """ValueError for a setting that our code does not have; an absent key has its default."""
    if key in config and config[key] not in allowed:
        raise refuse(config, key, f"one of {list(allowed)}")


def share_out(config: Mapping, key: str, whole: int, parts: int, multiple: int = 1) -> None:
    """ValueError unless ``parts``, the value of a key, divide ``whole`` into such multiples."""
    if whole % (parts * multiple):
        equal = "equal parts" if multiple == 1 else f"multiples of {multiple}"
        raise refuse(config, key, f"a number that divides {whole} into {equal}", parts)


def pair(config: Mapping, key: str, default: int) -> tuple[int, int]:
    """A size, published as one number or as two -> (height, width)."""
    value = config.get(key, default)
    sides = value if isinstance(value, list | tuple) else [value] * 2
    if sides not in Several(KINDS[key], 2):  # type: ignore[arg-type]
        raise refuse(config, key, f"{KINDS[key]}, or two of them")
    height, width = sides
    return height, width


def square(config: Mapping, key: str, default: int) -> int:
    """As ``pair``, of two equal sides -> one."""
    height, width = pair(config, key, default)
    if height != width:
        raise refuse(config, key, "one number, or two that are equal")
    return height
