"""Published config.json files: their keys as the fields of our dataclasses, and back."""

from collections.abc import Mapping

# Our field -> the published key, and the default where it is absent.
Keys = Mapping[str, tuple[str, object]]


def fields(config: Mapping, keys: Keys) -> dict:
    """What a published configuration says, by the names of our fields."""
    return {ours: config.get(theirs, default) for ours, (theirs, default) in keys.items()}


def published(config: object, keys: Keys) -> dict:
    """Undo ``fields``: a dataclass of ours -> the published keys."""
    return {theirs: getattr(config, ours) for ours, (theirs, _) in keys.items()}


def require(config: Mapping, key: str, *allowed: object) -> None:
    """ValueError for a setting that our code does not have; an absent key has its default."""
    if key in config and config[key] not in allowed:
        raise ValueError(
            f"config.json: {key} = {config[key]!r} is not supported; supported: {list(allowed)}"
        )


def pair(side: int | list[int]) -> tuple[int, int]:
    """An image size, published as one number or as two -> (height, width)."""
    height, width = (side, side) if isinstance(side, int) else side
    return height, width
