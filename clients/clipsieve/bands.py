"""Words for a decision: of how many of its thresholds a score passed."""

from __future__ import annotations

OF_CLASSES = ("allow", "review", "block")
OF_GRADES = ("bad", "fair", "good")
"""The words of a head that grades, where a high score is what one looks for."""

BANDS = frozenset(OF_CLASSES + OF_GRADES)
LOWEST = frozenset({"0", OF_CLASSES[0], OF_GRADES[0]})
"""Names of a decision, as a word or a number, where the score passed no threshold."""


def words_of(task: str) -> tuple[str, str, str]:
    """The words for a head's decisions, the lowest first."""
    return OF_GRADES if task in ("regression", "ranking") else OF_CLASSES


def words_with(decision: object) -> tuple[str, str, str]:
    """The words that a table uses, by one of its decisions; those of classes where it is none of either."""
    return OF_GRADES if decision in OF_GRADES else OF_CLASSES


def band_of(passed: int, thresholds: int, words: tuple[str, str, str] = OF_CLASSES) -> str:
    """Name a decision: the first word where no threshold was passed, the last where all were, else that between."""
    if passed == 0:
        return words[0]
    return words[2] if passed >= thresholds else words[1]


def rank_of(band: object) -> int:
    """Place of a word among those of its kind; behind them for anything else."""
    words = words_with(band)
    return words.index(band) if band in words else len(words)
