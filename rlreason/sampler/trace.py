"""What a decoder's parts put out, recorded the same way in vLLM and in transformers, to find where two models part."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

#: Parts whose outputs mean the same in both.
TRACED = ("self_attn", "mlp", "embed_tokens")


class Trace:
    """From its making to ``end``: the first output of every traced module, [T, H] float32 on the CPU, in the order of
    use. Example: ``trace = Trace(model); model(ids); trace.end()["model.layers.0.mlp"]``."""

    def __init__(self, model: nn.Module) -> None:
        self._found: dict[str, Tensor] = {}
        self._hooks = [
            self._hook(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] in TRACED
        ]

    def _hook(self, name: str, module: nn.Module) -> RemovableHandle:
        def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            self._found.setdefault(name, tensor.detach().reshape(-1, tensor.shape[-1]).float().cpu().clone())

        return module.register_forward_hook(keep)

    def end(self) -> dict[str, Tensor]:
        """What was recorded."""
        for hook in self._hooks:
            hook.remove()
        return self._found
