"""What a user can want of the tuner."""

from __future__ import annotations

from dataclasses import dataclass

from bevel.errors import UsageError

MODES = ("off", "cached", "fast", "full")
# Candidates of a problem that `fast` measures.
FAST = 3


@dataclass(frozen=True)
class Tuning:
    """What the user wants of the tuner.

    Attributes:
        mode: "off": the static choice; "cached": what was measured before; "fast": measure the few statically best candidates of
            what was not; "full": measure all candidates.
        budget_s: seconds after which no batch begins; None for no limit.
    """

    mode: str = "cached"
    budget_s: float | None = None

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: there is no such mode, or the budget is not positive or for a mode that measures nothing.
        """
        if self.mode not in MODES:
            raise UsageError(f"tune {self.mode!r}: expected one of {', '.join(MODES)}")
        if self.budget_s is not None and self.budget_s <= 0:
            raise UsageError(f"tune budget of {self.budget_s} s: expected more than 0")
        if self.budget_s is not None and self.mode not in ("fast", "full"):
            raise UsageError(f"tune budget with tune {self.mode!r}, which measures nothing: expected fast or full")

    def wanted(self, candidates: int) -> int:
        """How many of a problem's candidates, the statically best ones, shall be measured."""
        return {"fast": min(FAST, candidates), "full": candidates}.get(self.mode, 0)
