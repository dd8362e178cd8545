"""Warns when a logged value stays out of its healthy range for many steps. The run goes on."""

from __future__ import annotations

PATIENCE = 1000
"""Steps in a row before anything is said: every run passes through bad numbers at first."""


class LowForLong:
    """Speaks once, when a number has been below a bound for `PATIENCE` steps without a break."""

    def __init__(self, bound: float, notice: str) -> None:
        self.bound = bound
        self._notice = notice
        self._since: int | None = None
        self._spoken = False

    def see(self, step: int, value: float) -> list[str]:
        """The notice, if it is due with this value at this step; else nothing."""
        if value >= self.bound:
            self._since = None
            return []
        self._since = step if self._since is None else self._since
        if self._spoken or step - self._since < PATIENCE:
            return []
        self._spoken = True
        return [f"step {step}: {self._notice} (now {value:.3g}, below {self.bound:.3g} for {step - self._since} steps)"]
