"""A plugin of mypy: an attribute that torch finds only at run time has any type.

Torch declares `Module.__getattr__` to return `Tensor | Module`, so that `model.blocks[0].width`, or
a buffer's method, would be an error at every use. Declared attributes keep their types, and no
error code is switched off for it: a `None` that is not checked is still found.
"""

from collections.abc import Callable

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny, UnionType, get_proper_type

MODULE = "torch.nn.modules.module.Module."


def found_at_run_time(context: AttributeContext) -> Type:
    """Any for `Tensor | Module`, the declared type for everything else."""
    declared = get_proper_type(context.default_attr_type)
    return AnyType(TypeOfAny.special_form) if isinstance(declared, UnionType) else declared


class RunTimeAttributes(Plugin):
    """Asks `found_at_run_time` about the attributes that `Module` itself gives."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        return found_at_run_time if fullname.startswith(MODULE) else None


def plugin(version: str) -> type[Plugin]:
    """What mypy calls, with its version."""
    return RunTimeAttributes
