"""What has been spent and what the next request could cost: no request is sent that could exceed the cap."""

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from flowgrain.vlm.config import BudgetConfig
from flowgrain.vlm.failures import Stopped


class OutOfBudget(Stopped):
    """The next request could exceed the cap."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one request; ``reported`` by the endpoint, or estimated where it reports none."""

    tokens_in: int
    tokens_out: int
    reported: bool = True


@dataclass
class Account:
    """What one question has taken, over all of its requests."""

    requests: int = 0
    troubles: list[str] = field(default_factory=list)
    """Reasons of the attempts that failed, in order."""
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False
    """Whether tokens of a request are estimated: it was lost, or the endpoint reports none."""
    cost: float = 0.0

    def add(self, usage: Usage, cost: float) -> None:
        """Count one request."""
        self.tokens_in += usage.tokens_in
        self.tokens_out += usage.tokens_out
        self.estimated |= not usage.reported
        self.cost += cost


class Ledger(ABC):
    """Where it is written down what has been spent and what is set aside for requests in flight."""

    @abstractmethod
    def taken(self) -> tuple[float, float]:
        """(spent, set aside), of all who share the ledger."""

    @abstractmethod
    def set_aside(self, most: float, cap: float) -> bool:
        """Set ``most`` aside where everything taken stays within ``cap``; whether that was so."""

    @abstractmethod
    def settle(self, reserved: float, cost: float) -> None:
        """Replace what was set aside by what was spent."""


class MemoryLedger(Ledger):
    """The ledger of one process."""

    def __init__(self, spent: float = 0.0):
        self._lock = threading.Lock()
        self._spent = spent
        self._reserved = 0.0

    def taken(self) -> tuple[float, float]:
        """See :class:`Ledger`."""
        with self._lock:
            return self._spent, self._reserved

    def set_aside(self, most: float, cap: float) -> bool:
        """See :class:`Ledger`."""
        with self._lock:
            fits = self._spent + self._reserved + most <= cap
            self._reserved += most if fits else 0.0
            return fits

    def settle(self, reserved: float, cost: float) -> None:
        """See :class:`Ledger`."""
        with self._lock:
            self._reserved -= reserved
            self._spent += cost


class Budget:
    """The purse that all workers share.

    A request is reserved at the most it can cost: its estimated input, scaled by the largest ratio of reported to
    estimated tokens seen so far, and the whole of ``max_answer_tokens``. The estimate is a rule of thumb, so the
    first request of all can miss the cap; later ones can do so only where the ratio grows.
    """

    def __init__(self, config: BudgetConfig, spent: float = 0.0, ledger: Ledger | None = None):
        """``ledger``: one that is shared with others; without it, a new one that starts at ``spent``."""
        self._config = config
        self._ledger = ledger or MemoryLedger(spent)
        self._lock = threading.Lock()
        self._largest_ratio = 0.0
        self._estimated_in = self._measured_in = self._measured_out = self._measured = 0

    @property
    def priced(self) -> bool:
        """Whether prices are known."""
        return self._config.price_in is not None

    @property
    def capped(self) -> bool:
        """Whether there is a cap."""
        return self._config.max_cost is not None

    @property
    def spent(self) -> float:
        """Cost so far, earlier sessions included."""
        return self._ledger.taken()[0]

    @property
    def measured(self) -> bool:
        """Whether the endpoint has reported the tokens of a request."""
        with self._lock:
            return self._measured > 0

    def observe(self, estimated_in: int, usage: Usage) -> None:
        """Learn from the reported tokens of a request, also from those in the log of earlier sessions."""
        if not usage.reported or estimated_in <= 0:
            return
        with self._lock:
            self._largest_ratio = max(self._largest_ratio, usage.tokens_in / estimated_in)
            self._estimated_in += estimated_in
            self._measured_in += usage.tokens_in
            self._measured_out += usage.tokens_out
            self._measured += 1

    def reserve(self, estimated_in: int, most_out: int) -> float:
        """Set aside the most that a request can cost, and return it; raises OutOfBudget where that exceeds the cap."""
        most, cap = self.most(estimated_in, most_out), self._config.max_cost
        if cap is not None and not self._ledger.set_aside(most, cap):
            left = cap - self.spent
            raise OutOfBudget(f"the next request could cost {most:.4g}, {left:.4g} of {cap:g} is left")
        return most

    def affords(self, estimated_in: int, most_out: int) -> bool:
        """Whether :meth:`reserve` would grant a request now."""
        cap = self._config.max_cost
        return cap is None or sum(self._ledger.taken()) + self.most(estimated_in, most_out) <= cap

    def settle(self, reserved: float, usage: Usage | None) -> float:
        """Replace what was reserved by what the request used (nothing, if None), and return its cost."""
        cost = 0.0 if usage is None else self._cost(usage.tokens_in, usage.tokens_out)
        self._ledger.settle(reserved if self.capped else 0.0, cost)
        return cost

    def most(self, estimated_in: int, most_out: int) -> float:
        """The most that a request can cost, as far as its input can be foreseen."""
        with self._lock:
            return self._cost(estimated_in * (self._largest_ratio or 1.0), most_out)

    def expected_usage(self, estimated_in: int, requests: int = 1) -> Usage:
        """What requests of ``estimated_in`` tokens together will use: by the rule, scaled by what was measured."""
        with self._lock:
            ratio = self._measured_in / self._estimated_in if self._measured else 1.0
            out = self._measured_out / self._measured if self._measured else self._config.expected_answer_tokens
            return Usage(round(estimated_in * ratio), round(out * requests), reported=False)

    def expected_cost(self, estimated_in: int, requests: int = 1) -> float:
        """Cost of :meth:`expected_usage`; 0 without prices."""
        usage = self.expected_usage(estimated_in, requests)
        return self._cost(usage.tokens_in, usage.tokens_out)

    def _cost(self, tokens_in: float | int, tokens_out: float | int) -> float:
        return (tokens_in * (self._config.price_in or 0.0) + tokens_out * (self._config.price_out or 0.0)) / 1e6
