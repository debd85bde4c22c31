"""What a layer of ours may take the place of: a module that computes what its type says, and nothing else."""

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from isvit_lightning.errors import IsvitError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_REMOVERS: tuple[tuple[type, str], ...] = (
    (WeightNorm, "call torch.nn.utils.remove_weight_norm for it"),
    (SpectralNorm, "call torch.nn.utils.remove_spectral_norm for it"),
    (BasePruningMethod, "call torch.nn.utils.prune.remove for it"),
)


def require_known(module: nn.Module, path: str, *known: type[nn.Module]) -> None:
    """Refuse to replace a module that may compute something else than its replacement does.

    Args:
        module: what is to be replaced, or changed in a way that only its type's own arithmetic allows.
        path: its place in the network.
        known: types whose arithmetic the replacement has; a subclass of them is another type.

    Raises:
        IsvitError: it is of another type, or something was added to it: a parametrization, a hook, a forward of its own
            or a tensor with an arithmetic of its own.
    """
    added, kind = _added(module), parametrize.type_before_parametrizations(module)
    if added is None and kind not in known:
        added = "", f"exactly {' or '.join(dict.fromkeys(kind.__name__ for kind in known))}", _way_out(module, known)
    if added is not None:
        what, expected, way = added
        name = told(kind, () if kind in known else known)
        raise IsvitError(f"Cannot replace {path}: it is a {name}{what}, expected {expected}: {way}.")


def told(kind: type, others: tuple[type, ...]) -> str:
    """Name of a type; with its module, where one of ``others`` has the same name."""
    twin = any(kind.__name__ == other.__name__ for other in others)
    return f"{kind.__module__}.{kind.__qualname__}" if twin else kind.__name__


def require_own_forwards(model: nn.Module) -> None:
    """Refuse a network of which a part has a ``forward`` that was set on the object: a copy may run the original's.

    Raises:
        IsvitError: there is such a part.
    """
    for path, module in model.named_modules():
        if "_orig_mod" in dict(module.named_children()):
            raise IsvitError(
                f"Cannot open {path or 'the network'}: it is wrapped by torch.compile, expected the module itself: "
                "compile it in place with its method compile, or put its attribute _orig_mod in its place."
            )
        if "forward" in vars(module):
            raise IsvitError(
                f"Cannot open {path or 'the network'}: the forward of this {type(module).__name__} was replaced on the "
                "object, expected that of its class: delete the attribute forward, or write a class that has it."
            )


def copy_error(model: nn.Module, reason: str) -> IsvitError:
    """What is said where ``model`` cannot be copied.

    Args:
        model: the network.
        reason: what the copy failed with.
    """
    for path, module in model.named_modules():
        added = _added(module)
        if added is not None:
            what, expected, way = added
            return IsvitError(f"Cannot copy {path}: it is a {type(module).__name__}{what}, expected {expected}: {way}.")
    return IsvitError(
        f"The network cannot be copied ({reason}), expected one that copy.deepcopy copies: detach the tensors that its "
        "modules hold beside parameters and buffers."
    )


def _added(module: nn.Module) -> tuple[str, str, str] | None:
    """What was added to ``module``, what is expected in its place, and the way out; None where nothing was."""
    if parametrize.is_parametrized(module):
        name, by = next(iter(module.parametrizations.items()))  # type: ignore[operator, union-attr]
        return (
            f" whose {name} is parametrized by {type(by[0]).__name__}",
            "a plain parameter",
            f'call torch.nn.utils.parametrize.remove_parametrizations(layer, "{name}") for it',
        )
    for hook in (hook for kind in _HOOKS for hook in getattr(module, kind).values()):
        name = getattr(hook, "__qualname__", type(hook).__name__)
        way = next((way for kind, way in _REMOVERS if isinstance(hook, kind)), "remove the hook")
        return f" with the hook {name}", "one without hooks", way
    for name, parameter in module.named_parameters(recurse=False):
        plain = type(parameter.data) is torch.Tensor
        if not (plain and parameter.layout == torch.strided and parameter.is_floating_point()):
            kind = f"tensor of {parameter.dtype} and {parameter.layout}" if plain else type(parameter.data).__name__
            return f" whose {name} is a {kind}", "a dense tensor of floating-point numbers", "give the float network"
    return None


def _way_out(module: nn.Module, known: tuple[type[nn.Module], ...]) -> str:
    if isinstance(module, known) or any(isinstance(child, known) for child in module.children()):
        return (
            f"merge the adapter that was added to it (PEFT: merge_and_unload), or put a {known[0].__name__} that "
            "computes the same in its place"
        )
    return "choose another model.network.name or register an adapter (docs/architectures.md)"
