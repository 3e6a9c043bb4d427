"""The answer of notebook 03 where it could be foretold: the capacity, users, and what confirms them.

Knows what was foretold as plain figures. Ignorant of how an estimate comes about (queueing/), and
of what the runs show by themselves (judge.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchlib.study.wording import agreeing, counted, in_time_words, number, per_second, words

if TYPE_CHECKING:
    import pandas as pd

CONFIRMED = "confirmed"
NOT_CONFIRMED = "not confirmed"
CALIBRATES = "calibrates"
"""The verdict of a run: of one that judges an estimate, or of the one that it was made from."""
LATEST = "latest"
EARLIER = "earlier"
"""The estimate that a run judges."""
MOST_REASONS = 2
"""So many broken assumptions are named in the answer."""


class Judged(Protocol):
    """What a run showed of an estimate that had no part in it (queueing/confirming.py)."""

    @property
    def rate(self) -> float: ...
    @property
    def images(self) -> int: ...
    @property
    def verdict(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def in_time(self) -> float | None: ...
    @property
    def foretold_in_time(self) -> Sequence[float] | None: ...


@dataclass(frozen=True)
class Outlook:
    """What was foretold of a server, and the runs that judge it. `lines` has it in words.

    - `server`: its model and settings in words; `is_tiny` says that these are not SDXL's figures.
    - `rate`, `interval`: the capacity within the promise `slo`, images/s; None where a request that
      has the server to itself breaks the promise, or nothing is foretold.
    - `images`: how many images carry the estimate; `is_loaded`: they were made under load.
    - `refusal`: why nothing is foretold, or None. `breaches`: why the interval is wider, in words.
    - `remarks`: what the calibrating runs lack though it widens nothing, in words.
    - `image_s`: seconds of an image alone. `most_images_per_s`: the highest throughput.
    - `users`: a row for each closed loop: `users`, `images_per_s`, `mean_s`, `in_time` (a share).
    - `confirmations`: the runs that judge this estimate. `former`: those that led to it, since they
      contradicted an earlier one.
    - `interrupted`: a person ended the measuring.
    """

    server: str
    is_tiny: bool
    slo: str
    rate: float | None
    interval: tuple[float, float] | None
    images: int
    is_loaded: bool
    refusal: str | None
    breaches: tuple[str, ...]
    image_s: float
    most_images_per_s: float
    users: pd.DataFrame
    confirmations: tuple[Judged, ...] = ()
    former: tuple[Judged, ...] = ()
    interrupted: bool = False
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A sentence on the capacity, then on doubts, the highest throughput and users.

        If the runs contradict the estimate, nothing of it is claimed.
        """
        if self.refusal is not None:
            return [f"No capacity is foretold for {self._subject}: {self.refusal}."]
        if self.is_contradicted:
            return [self._contradiction(), *self._doubts()]
        users = [self._users_line()] if len(self.users) else []
        return [self._capacity_line(), *self._doubts(), self._most_line(), *users]

    @property
    def is_contradicted(self) -> bool:
        """Whether a run contradicts the estimate, and none confirms it."""
        verdicts = {one.verdict for one in self.confirmations}
        return NOT_CONFIRMED in verdicts and CONFIRMED not in verdicts

    def _contradiction(self) -> str:
        """That nothing is claimed, since the runs show another server than the one foretold."""
        contradicting = [one for one in self.confirmations if one.verdict == NOT_CONFIRMED]
        foretold = f"{self.slo} at no rate"
        if self.rate is not None:
            foretold = words(self.rate, self.interval, "images/s")
        return (
            f"How many images/s {self._subject} makes within {self.slo} on this machine is not "
            f"shown: the runs contradict what was foretold from "
            f"{counted(self.images, 'image')}, {foretold}. {_with_reasons(contradicting)}."
        )

    @property
    def _subject(self) -> str:
        if self.is_tiny:
            return f"the tiny model, not SDXL ({self.server})"
        return f"SDXL ({self.server})"

    def _capacity_line(self) -> str:
        if self.rate is None:
            return f"On this machine {self._subject} keeps {self.slo} at no rate: {self._alone}."
        up_to = words(self.rate, self.interval, "images/s")
        is_confirmed = any(one.verdict == CONFIRMED for one in self.confirmations)
        verb = "keeps" if is_confirmed else "should keep"
        keeps = f"On this machine {self._subject} {verb} {self.slo} up to {up_to}"
        made = counted(self.images, "image")
        source = made if self.is_loaded else f"{made} made alone, before any load,"
        return f"{keeps}, foretold from {source} and {self._confirmed_words()}."

    @property
    def _alone(self) -> str:
        """Why even images that have the server to themselves break the promise."""
        from benchlib.study.slo import Slo

        goal = Slo.parse(self.slo)
        if self.image_s > goal.latency_s:
            return f"an image that has the server to itself takes {number(self.image_s)} s"
        late = f"more than {100 * (1 - goal.q):.3g} % of the images"
        return f"{late} take longer even if they have the server to themselves"

    def _confirmed_words(self) -> str:
        confirmed = [one for one in self.confirmations if one.verdict == CONFIRMED]
        if confirmed:
            return f"confirmed by {_listed([_made_in_time(one) for one in confirmed])}"
        if self.confirmations:
            return f"confirmed by no run: {_with_reasons(self.confirmations)}"
        reason = "measuring was interrupted" if self.interrupted else "there was no time for one"
        return f"confirmed by no run: {reason}"

    def _doubts(self) -> list[str]:
        """Runs that differ from what others confirm, and why the interval is wide."""
        lines = [f"An earlier estimate failed: {_made(one)}: {_why(one)}." for one in self.former]
        if any(one.verdict == CONFIRMED for one in self.confirmations):
            others = [one for one in self.confirmations if one.verdict != CONFIRMED]
            lines += [f"{_made(one)} did not confirm it: {_why(one)}." for one in others]
        if self.breaches:
            reasons = "; ".join(self.breaches[:MOST_REASONS])
            lines.append(f"The estimate is widened: {reasons}.")
        lines += [f"{remark}." for remark in self.remarks]
        return lines

    def _most_line(self) -> str:
        return f"It makes at most {per_second(self.most_images_per_s)}, whatever the latency."

    def _users_line(self) -> str:
        """What closed loops get, and with how many users the promise is kept."""
        from benchlib.study.slo import Slo

        goal = Slo.parse(self.slo)
        kept = self.users["users"][self.users["in_time"] >= goal.q]
        most = self.users.iloc[-1]
        holds = f"With {counted(self.users['users'].min(), 'user')} at a time it breaks {self.slo}"
        if len(kept):
            holds = f"It keeps {self.slo} with up to {counted(kept.max(), 'user')} at a time"
        get = f"{per_second(most['images_per_s'])}, each in {number(most['mean_s'])} s"
        verb = agreeing(most["users"], "gets", "get")
        return f"{holds}; {counted(most['users'], 'user')} {verb} {get} (foretold)."


def _made(one: Judged) -> str:
    return f"{counted(one.images, 'image')} at {number(one.rate)}/s"


def _with_reasons(runs: Sequence[Judged]) -> str:
    return "; ".join(f"{_made(one)}: {_why(one)}" for one in runs)


def _made_in_time(one: Judged) -> str:
    """A run, the share of its images in time, and what was foretold of that share."""
    if one.in_time is None or one.foretold_in_time is None:
        return _made(one)
    return f"{_made(one)} ({in_time_words(one.in_time, one.foretold_in_time)})"


def _why(one: Judged) -> str:
    return one.reason if one.verdict == NOT_CONFIRMED else f"{one.verdict}, {one.reason}"


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
