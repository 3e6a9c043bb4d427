"""The answer of notebook 07: how many cards keep the promise all day, and what a day costs.

Knows the outcomes of simulated days as plain figures. Ignorant of how a day is simulated, and of
plots.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pandas as pd

from benchlib.cell_view import ShownInCell
from benchlib.questions.scale.outcomes import (
    HOURS,
    DayOutlook,
    FleetDays,
    lasting,
    next_day,
    saved,
    saved_percent,
)
from benchlib.study.busy import busy_words
from benchlib.study.intervals import Interval
from benchlib.study.latency import Record
from benchlib.study.wording import agreeing, counted, number, span, words

if TYPE_CHECKING:
    from benchlib.questions.scale.peak import PeakRun

MOST_REASONS = 2
NOT_CONFIRMED = "not confirmed"
"""The verdict on a real run that did not go as foretold (peak.py)."""


class Measured(Protocol):
    """Where the runs of a measured card are, and the record of the calibrating one (measure.py)."""

    @property
    def folder(self) -> Path: ...
    @property
    def record(self) -> Record: ...


@dataclass(frozen=True, repr=False)
class ScaleAnswer(ShownInCell):
    """How many cards, and what a day costs; `str()` has it in words.

    `outlook` is what was simulated, `peak` a real run beside it (None: none was made), and `folder`
    where runs and figures are. `busy` is what other work took beside the calibrating run, in a
    sentence; None: too little to matter.
    """

    outlook: DayOutlook
    peak: PeakRun | None
    folder: Path
    busy: str | None = None

    def __str__(self) -> str:
        outlook = self.outlook
        where = f"Runs and figures are in {self.folder}"
        if outlook.refusal is not None:
            subject = f"How many cards keep {outlook.slo} is not known"
            return f"{self._for_model(subject)}: {outlook.refusal}.\n{where}"
        lines = [f"{self._for_model(self._headline())}.", self._source()]
        if outlook.cut is not None:
            lines.append(f"{outlook.cut}.")
        if self.busy is not None:
            lines.append(self.busy)
        lines += self._failure_lines()
        lines += self._peak_lines()
        lines += self._limits()
        return "\n".join([*lines, where])

    def _for_model(self, text: str) -> str:
        """A sentence with the model before it: the tiny one is no SDXL."""
        if self.outlook.is_tiny:
            return f"The tiny model, not SDXL ({self.outlook.server}): {text}"
        return f"SDXL ({self.outlook.server}): {text}"

    # ---- the sentence to act on

    def _headline(self) -> str:
        """How many cards keep the promise, what autoscaling saves and breaks, images for money."""
        outlook = self.outlook
        enough = outlook.enough
        if enough is None:
            return self._not_kept()
        verb = agreeing(enough.most, "keeps", "keep")
        kept = f"{outlook.cards_words(enough)} {verb} {outlook.slo} all day"
        if outlook.open_question is not None:
            kept = (
                f"it is not known {outlook.open_question}: what was measured leaves both possible"
            )
            kept += f"; {enough.most} do on every simulated day"
        if outlook.too_few is not None:
            kept += f", and {_breaks(outlook.too_few, str(outlook.too_few.most))}"
        parts = [kept]
        if outlook.autoscaled is not None:
            parts.append(self._autoscaled(enough, outlook.autoscaled))
        parts.append(self._for_money(outlook.autoscaled or enough))
        foretold = "; ".join(parts)
        if self.peak is None or self.peak.verdict != NOT_CONFIRMED:
            return foretold
        contradicted = f"a real run contradicts that {foretold}"
        return f"how many cards keep {outlook.slo} all day is not shown: {contradicted}"

    def _not_kept(self) -> str:
        """That no number of cards that was tried keeps it on every day."""
        outlook = self.outlook
        best = min(outlook.fixed, key=lambda fleet: float(fleet.broken_h.mean()))
        up_to = outlook.fixed[-1].most
        kept = f"up to {counted(up_to, 'card')}, none {agreeing(1, 'keeps', 'keep')} {outlook.slo}"
        return f"{kept} all day on every simulated day; {_breaks(best, outlook.cards_words(best))}"

    def _autoscaled(self, enough: FleetDays, scaled: FleetDays) -> str:
        """What autoscaling saves beside the fixed cards, and how long it breaks the promise."""
        percent = saved_percent(enough, scaled)
        ends = next_day(100 * saved(enough, scaled), most=100.0)
        costs = "costs no less" if percent is None else f"costs {_per_cent(percent, ends)} less"
        name = f"autoscaling {scaled.least} to {scaled.most}"
        if scaled.keeps:
            return f"{name} {costs} and keeps it, too"
        return f"{name} {costs} and breaks it for {lasting(scaled.broken_h)}"

    def _for_money(self, fleet: FleetDays) -> str:
        outlook = self.outlook
        unit = "for each hour of a card" if outlook.price_per_hour is None else "a dollar"
        images = outlook.images_for_one(fleet)
        made = words(float(images.mean()), next_day(images), "")
        value, bracket, interval = made.partition(" (")
        return f"{value} images {unit}{bracket}{interval}"

    # ---- what it is made of, and its limits

    def _source(self) -> str:
        outlook = self.outlook
        days = outlook.fixed[0].days
        images = counted(outlook.images, "image")
        requests = counted(round(outlook.requests, -3) or round(outlook.requests), "request")
        simulated = f"{counted(days, 'simulated day')} of about {requests}"
        day = outlook.day[0].lower() + outlook.day[1:]
        return f"Foretold from {images} ({outlook.source}) and {simulated}: {day}."

    def _failure_lines(self) -> list[str]:
        """What one failure at the peak does, and whether failures are in the days."""
        outlook = self.outlook
        lines = []
        if outlook.failing is not None:
            ready = f"ready again after {number(outlook.restart_s)} s"
            fleet = outlook.failing
            effect = "the promise is kept all the same"
            if not fleet.keeps:
                effect = f"the promise is broken for {lasting(fleet.broken_h)}"
            lines.append(f"If one card fails at the peak, {ready}, {effect}.")
        if outlook.mtbf_h is not None:
            lines.append(
                f"Each card fails at random, once in {number(outlook.mtbf_h)} h in the mean."
            )
        return lines

    def _peak_lines(self) -> list[str]:
        if self.peak is None:
            return ["No real run confirms it."]
        return [f"{self.peak}."]

    def _limits(self) -> list[str]:
        """Why the estimate is wide, and what it leaves out."""
        outlook = self.outlook
        lines = []
        fewest, most = outlook.needed or (0, 0)
        if fewest < most:
            spread = (
                f"The easiest simulated day needs {counted(fewest, 'card')}, the hardest {most}"
            )
            lines.append(f"{spread}: a longer calibrating run brings them closer.")
        if outlook.remarks:
            lines.append(f"The estimate is widened: {'; '.join(outlook.remarks[:MOST_REASONS])}.")
        start = f"A card that is asked for is ready after {number(outlook.startup_s)} s"
        if outlook.startup_is_measured:
            start += " (measured: loading and warming up; a new machine takes longer)"
        lines.append(f"{start}. Brackets hold 95 % of the days.")
        return lines


def _breaks(fleet: FleetDays, name: str) -> str:
    """How long a fleet breaks the promise: "3 break it for 2.1 h (1.8 to 2.4)"."""
    verb = agreeing(fleet.most, "breaks", "break")
    return f"{name} {verb} it for {lasting(fleet.broken_h)}"


def _hours(fleet: FleetDays) -> Interval:
    return next_day(fleet.broken_h, most=HOURS)


def _ends(interval: Interval) -> str:
    """An interval for a table: "1.2 to 3"."""
    return "" if interval is None else span(interval)


def _per_cent(percent: float, ends: Interval) -> str:
    if ends is None:
        return f"{percent:.0f} %"
    low, high = ends
    return f"{percent:.0f} % ({low:.0f} to {high:.0f})"


def fleets_table(outlook: DayOutlook) -> pd.DataFrame:
    """A row for each fleet: the means of its days, with the interval of one more day.

    `broken_h` are the hours in which the promise is broken, `broken_days` on how many of the days
    that happened, `late` the share of images beyond the limit. `images_per_dollar` is left out without
    a price.
    """
    rows = []
    for fleet in outlook.fleets:
        target = "" if fleet.target_ongoing is None else number(fleet.target_ongoing)
        row = {
            "cards": outlook.cards_words(fleet),
            "target_ongoing": target,
            "broken_h": fleet.broken_h.mean(),
            "broken_h_interval": _ends(_hours(fleet)),
            "broken_days": f"{fleet.broken_days} of {fleet.days}",
            "late": fleet.late.mean(),
            "card_hours": fleet.card_hours.mean(),
            "card_hours_interval": _ends(next_day(fleet.card_hours)),
            "images_per_card_hour": round(fleet.images_per_card_hour.mean()),
        }
        if outlook.price_per_hour is not None:
            row["images_per_dollar"] = round(outlook.images_for_one(fleet).mean())
        rows.append(row)
    return pd.DataFrame(rows)


def judge_scale(card: Measured, outlook: DayOutlook, peak: PeakRun | None) -> ScaleAnswer:
    """How many cards keep the promise all day, and what a day costs: the answer of notebook 07.

    `card` is what measure_card returned, `outlook` what simulate_fleets did, and `peak` what
    confirm_at_peak did.
    """
    return ScaleAnswer(outlook, peak, card.folder, busy_words(card.record))
