"""Settings of the steps that go with any rule, see `steps.py`; imports no torch, as `method.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from robustmerge.stage.settings import Problem, refuse, suggest

EQUALIZE_RULES = ("none", "norm", "cap")
CALIBRATE_RULES = ("none", "pico")
KEPT_NORMS = ("none", "experts", "merge")
SPECTRUM_RULES = ("none", "svc", "boost", "power")


def check_choice(value: str, choices: tuple[str, ...], key: str) -> list[Problem]:
    """A problem if the value is not among the choices."""
    name = key.rpartition(".")[2]
    return [] if value in choices else [Problem(f"unknown {name} '{value}'; {suggest(value, choices)}", key)]


def _check_at_least_0(value: float, key: str) -> list[Problem]:
    return [] if 0 <= value < math.inf else [Problem(f"{key} must be at least 0 and finite, got {value}", key)]


@dataclass(frozen=True)
class Equalize:
    """Settings of making the experts' norms more equal.

    rule: norm = every norm towards their median, cap = those far above it down. gamma: of norm, how far, 1 is all the
    way. deviations: of cap, a norm is at most the median plus so many median absolute deviations.
    """

    rule: str = "none"
    gamma: float = 1.0
    deviations: float = 3.0

    def __post_init__(self) -> None:
        refuse([
            *check_choice(self.rule, EQUALIZE_RULES, "rule"),
            *_check_at_least_0(self.gamma, "gamma"),
            *_check_at_least_0(self.deviations, "deviations"),
        ])  # fmt: skip

    @property
    def in_use(self) -> dict[str, bool]:
        """Which settings have an effect, by key."""
        return {"gamma": self.rule == "norm", "deviations": self.rule == "cap"}


@dataclass(frozen=True)
class Calibrate:
    """Settings of a calibration of the experts' B. norm: what gets its norm back: each expert, the merge, or none."""

    rule: str = "none"
    norm: str = "merge"

    def __post_init__(self) -> None:
        refuse([*check_choice(self.rule, CALIBRATE_RULES, "rule"), *check_choice(self.norm, KEPT_NORMS, "norm")])

    @property
    def in_use(self) -> dict[str, bool]:
        """Which settings have an effect, by key."""
        return {"norm": self.rule != "none"}


@dataclass(frozen=True)
class ReshapeSpectrum:
    """Settings of giving the merged update other singular values.

    alpha: of svc, the least that an expert's share of a direction counts; None: 1/N. beta: of boost, the share of the
    sum of singular values that the largest ones keep as they are. power: of power, the exponent.
    """

    rule: str = "none"
    alpha: float | None = None
    beta: float = 0.01
    power: float = 0.5

    def __post_init__(self) -> None:
        problems = [*check_choice(self.rule, SPECTRUM_RULES, "rule"), *_check_at_least_0(self.power, "power")]
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            problems.append(Problem(f"alpha must be above 0 and finite, got {self.alpha}", "alpha"))
        if not 0 <= self.beta <= 1:
            problems.append(Problem(f"beta must be in [0, 1], got {self.beta}", "beta"))
        refuse(problems)

    @property
    def in_use(self) -> dict[str, bool]:
        """Which settings have an effect, by key."""
        return {"alpha": self.rule == "svc", "beta": self.rule == "boost", "power": self.rule == "power"}
