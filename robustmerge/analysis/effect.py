"""The effect of adapters on the logits of their base: what moves when it is loaded with each, as users load it.

The model reads a few fixed sequences of random tokens, so that no tokenizer and no picture is needed. transformers and
peft, which most of the library does without, are loaded only when a model is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustmerge.formats.adapter import PREFIX, LoraPair, open_adapter
from robustmerge.formats.checkpoint import find_weight_files
from robustmerge.module import squared_norm
from robustmerge.stage.files import read_json
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import quote

SEQUENCES, LENGTH, SEED = 8, 32, 0
NOTHING = 1e-6  # of the base's logits: rounding


@dataclass(frozen=True)
class Effect:
    """What an adapter does to the base.

    moved: ||L - L_0|| / ||L_0|| of the logits, each centred over the vocabulary, mean over the sequences. turned: the
    fraction of positions whose likeliest next token is another. modules: how many have LoRA in the file; active: how
    many have an update other than zero once the model is loaded; empty: how many have B A = 0 in the file; lost: those
    with an update that the model lacks. change: L - L_0, centred.
    """

    moved: float
    turned: float
    modules: int
    active: int
    empty: int
    lost: tuple[str, ...]
    change: Tensor = field(repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether the logits move and no update is lost."""
        return self.moved > NOTHING and not self.lost

    def cosine(self, other: Effect) -> float:
        """The cosine of both changes; 0 where one is nothing."""
        norms = float(self.change.norm() * other.change.norm())
        return float((self.change * other.change).sum()) / norms if norms else 0.0


def measure_effects(base: Path, adapters: Mapping[str, Path], device: str = "cpu") -> Iterator[tuple[str, Effect]]:
    """Load the base anew with each adapter (name -> folder), and yield what it does. Raises UserError."""
    opened = {name: open_adapter(folder, name) for name, folder in adapters.items()}
    model = load_model(base, device)
    names = {name for name, _ in model.named_modules()}
    tokens = draw_tokens(model)
    before = read_logits(model, tokens)
    del model
    for name, adapter in opened.items():
        empty = {module for module in adapter.modules if squared_norm(adapter.pair(module)) == 0}
        if names.isdisjoint(adapter.modules):  # peft refuses it
            lost = tuple(module for module in adapter.modules if module not in empty)
            yield name, Effect(0.0, 0.0, len(adapter.modules), 0, len(empty), lost, torch.zeros_like(before))
            continue
        model = load_adapted(base, adapters[name], device)
        active = {module for module, pair in list_updates(model).items() if squared_norm(pair) != 0}
        lost = tuple(module for module in adapter.modules if module not in active | empty)
        after = read_logits(model, tokens)
        del model
        change = after - before
        moved = float((change.flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).mean())
        turned = float((after.argmax(-1) != before.argmax(-1)).float().mean())
        yield name, Effect(moved, turned, len(adapter.modules), len(active), len(empty), lost, change)


def require_packages() -> None:
    """Raises UserError, naming the extra to install, unless transformers and peft are there."""
    try:
        import peft  # noqa: F401
        import transformers
    except ImportError as error:
        raise UserError(
            f"loading a model needs transformers and peft, and {error.name} cannot be imported: in a checkout "
            "pip install '.[check]'"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_model(folder: Path, device: str) -> Any:
    """Load a base by the class that its config.json names: on a CPU in float32, elsewhere in its own dtype."""
    require_packages()
    import transformers

    find_weight_files(folder)
    named = read_json(folder / "config.json", "the config of a model").get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    if cls is None or not hasattr(cls, "from_pretrained"):
        where = folder / "config.json"
        raise UserError(f"{where}: architectures must name a model of transformers, got {quote(named)}")
    dtype = torch.float32 if device == "cpu" else "auto"
    return cls.from_pretrained(folder, dtype=dtype).to(device).eval()


def load_adapted(base: Path, adapter: Path, device: str) -> Any:
    """Load the base with an adapter as `PeftModel.from_pretrained` does; what it warns of is told otherwise."""
    model = load_model(base, device)
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return PeftModel.from_pretrained(model, str(adapter)).eval()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"PeftModel.from_pretrained cannot load {adapter} for {base}: {error}") from error


def list_updates(model: Any) -> dict[str, LoraPair]:
    """Module -> update of every LoRA layer in a model of peft, as loaded."""
    updates = {}
    for name, layer in model.named_modules():
        pairs = {key: (A.weight, layer.lora_B[key].weight) for key, A in getattr(layer, "lora_A", {}).items()}
        embedded = getattr(layer, "lora_embedding_A", {})
        pairs |= {key: (A, layer.lora_embedding_B[key]) for key, A in embedded.items()}
        for key, (A, B) in pairs.items():
            pair = LoraPair(A.detach().float().flatten(1), B.detach().float().flatten(1) * layer.scaling[key])
            updates[name.removeprefix(PREFIX)] = pair
    return updates


def draw_tokens(model: Any) -> Tensor:
    """The sequences [SEQUENCES, LENGTH]: random tokens, none of them special (an image's, the padding)."""
    texts = [model.config, model.config.get_text_config()]
    numbers = (value for config in texts for key, value in vars(config).items() if "token" in key)
    special = {value for value in numbers if isinstance(value, int)}
    size = model.get_input_embeddings().weight.shape[0]
    allowed = torch.tensor([token for token in range(size) if token not in special])
    drawn = torch.randint(len(allowed), (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(SEED))
    return allowed[drawn]


def read_logits(model: Any, tokens: Tensor) -> Tensor:
    """The logits [SEQUENCES, LENGTH, vocabulary], centred over the vocabulary: a softmax does not see their mean."""
    names = ["input_ids", *(["decoder_input_ids"] if model.config.is_encoder_decoder else [])]
    with torch.inference_mode():
        output = model(**dict.fromkeys(names, tokens.to(model.device)))
    if getattr(output, "logits", None) is None:
        raise UserError(f"{type(model).__name__} gives no logits; take a model with a head as the base")
    logits = output.logits.float().cpu()
    return logits - logits.mean(-1, keepdim=True)


# --- in words -----------------------------------------------------------------------------------------------------


def describe_effect(name: str, base: str, effect: Effect) -> list[str]:
    """What an adapter does to the base, in a line, and one more if something of it is lost."""
    if effect.moved > NOTHING:
        lines = [
            f"{name}: moves the logits of {base} by {effect.moved:.2g} (relative, mean over {SEQUENCES} sequences of "
            f"{LENGTH} tokens), changes {100 * effect.turned:.0f} % of the likeliest next tokens; {effect.active} "
            f"of {effect.modules} adapted modules have an update other than zero"
        ]
    else:
        why = f": B A is 0 in {effect.empty} of its {effect.modules} modules" if effect.empty else ""
        lines = [f"{name}: moves nothing in {base}{why}"]
    if effect.lost:
        few = ", ".join(first_few([f"'{module}'" for module in effect.lost], 3))
        lines.append(f"{name}: {len(effect.lost)} of {effect.modules} adapted modules find no place in {base}: {few}")
    return lines


def describe_cosines(effects: Sequence[tuple[str, Effect]]) -> list[str]:
    """How close each adapter is to the last one: the cosine of their changes of the logits."""
    *others, (last, merged) = effects
    return [f"{name}: changes the logits with cosine {x.cosine(merged):.2f} to {last}" for name, x in others]
