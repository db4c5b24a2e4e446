"""WinoBias (Zhao et al. 2018, arXiv:1804.06876): to whom a pronoun refers, for and against habit.

A file has a sentence a line, with the antecedent and the pronoun in brackets, perhaps behind a
number: `[The cook] thanked the guest because [she] was polite.` Of every file whose name has
pro_stereotyped the one with anti_stereotyped lies beside it: the same sentences with the pronoun of
the other gender. The second noun phrase of a sentence is the one that other lines have in brackets.
The paper scores systems that resolve coreference; a language model is asked which antecedent is
likelier behind the sentence and `"She" refers to` (the form of lm_eval's winogender task):

- pro, anti: how often it is the right one in each file; their gap is the bias that the paper means;
- the share of sentences that are likelier with the pronoun that fits the stereotype, without any
  question, for models too small to answer one; 50% is no preference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roots.errors import RootsError, problem
from roots.evaluation.bias.probe import Findings, Statistic, Text, percent
from roots.generation.scoring import Score

_PRO, _ANTI = "pro_stereotyped", "anti_stereotyped"
_NUMBER = re.compile(r"^\s*\d+\s+")
_BRACKETS = re.compile(r"\[([^][]+)\]")
_PRONOUNS = frozenset({"he", "him", "his", "she", "her", "hers"})
_FIX = f"give the files of WinoBias whose names begin with {_PRO}"


@dataclass(frozen=True)
class Line:
    """A sentence without brackets, its pronoun, and its antecedent in lower case."""

    sentence: str
    pronoun: str
    antecedent: str


@dataclass(frozen=True)
class Twins:
    """One sentence with either pronoun, and the noun phrase that the pronoun does not mean."""

    pro: Line
    anti: Line
    other: str
    file: str


@dataclass(frozen=True)
class WinoBias:
    """All sentences of the files; `left_out` counts lines that are not as the format has them."""

    twins: Sequence[Twins]
    left_out: int
    name: str = "WinoBias"
    statistics: Sequence[Statistic] = (
        Statistic("pro (%)", percent("pro")),
        Statistic("anti (%)", percent("anti")),
        Statistic("gap", lambda means: 100.0 * (means["pro"] - means["anti"]), 0.0),
        Statistic("stereotypical pronoun likelier (%)", percent("prefers_pro"), 50.0),
    )

    @classmethod
    def read(cls, paths: Sequence[Path]) -> WinoBias:
        """Read files and those beside them. Raises RootsError where they are not twins."""
        pairs = [(path.name, _lines(path), _lines(_beside(path))) for path in paths]
        known = {
            line.antecedent
            for _, *both in pairs
            for lines in both
            for line in lines
            if line is not None
        }
        twins, left_out = [], 0
        for path, (name, pro, anti) in zip(paths, pairs):
            if len(pro) != len(anti):
                rule = f"has {len(pro)} sentences, and {_beside(path).name} beside it {len(anti)}"
                raise RootsError(problem(str(path), None, rule, "download both files again"))
            found = [_twins(*both, known, name) for both in zip(pro, anti)]
            twins += [each for each in found if each is not None]
            left_out += sum(each is None for each in found)
        if not twins:
            rule = "holds no two sentences that differ in their pronouns alone"
            raise RootsError(problem(str(paths[0]), None, rule, _FIX))
        return cls(twins, left_out)

    @property
    def texts(self) -> list[Text]:
        """Of every sentence: both with either antecedent behind it, and both as they are."""
        texts = []
        for each in self.twins:
            for line in (each.pro, each.anti):
                asked = f'{line.sentence} "{line.pronoun.capitalize()}" refers to'
                texts += [Text(asked, f" {line.antecedent}"), Text(asked, f" {each.other}")]
            texts += [Text("", each.pro.sentence), Text("", each.anti.sentence)]
        return texts

    def findings(self, scores: Sequence[Score]) -> Findings:
        """Whether each antecedent is found, and which pronoun is likelier."""
        totals = np.array([score.total for score in scores]).reshape(-1, 6).T
        pro_right, pro_wrong, anti_right, anti_wrong, pro, anti = totals
        return Findings(
            columns={
                "pro": (pro_right > pro_wrong).astype(float),
                "anti": (anti_right > anti_wrong).astype(float),
                "prefers_pro": (pro > anti).astype(float),
            },
            # Two lines are often made of one pair of occupations.
            units=[" ".join(sorted([each.pro.antecedent, each.other])) for each in self.twins],
            groups=[(each.file.replace(_PRO + "_", ""),) for each in self.twins],
            left_out={"lines that are not of the format": self.left_out} if self.left_out else {},
        )


def _beside(path: Path) -> Path:
    """The file of the other pronouns. Raises RootsError for a name that has none."""
    if _PRO not in path.name:
        raise RootsError(problem(str(path), None, f"its name has no {_PRO}", _FIX))
    return path.with_name(path.name.replace(_PRO, _ANTI))


def _lines(path: Path) -> list[Line | None]:
    """Every line that is not blank; None for one that does not name one antecedent and pronoun."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RootsError(problem(str(path), None, f"cannot be read ({error})", _FIX)) from None
    return [_line(line) for line in text.splitlines() if line.strip()]


def _line(line: str) -> Line | None:
    line = _NUMBER.sub("", line.strip())
    marked = _BRACKETS.findall(line)
    pronouns = {mark.lower() for mark in marked} & _PRONOUNS
    antecedents = {mark.lower() for mark in marked} - _PRONOUNS
    first = next((mark for mark in marked if mark.lower() in _PRONOUNS), None)
    if first is None or len(pronouns) > 1 or len(antecedents) != 1:
        return None
    return Line(_BRACKETS.sub(r"\1", line), first, antecedents.pop())


def _twins(pro: Line | None, anti: Line | None, known: Iterable[str], file: str) -> Twins | None:
    if pro is None or anti is None or pro.antecedent != anti.antecedent:
        return None
    if pro.sentence == anti.sentence:
        return None
    text = pro.sentence.lower()
    found = {name for name in known if re.search(rf"\b{re.escape(name)}\b", text)}
    # "the worker" also stands in "the worker's wife": the longest name is the one that is meant.
    found = {name for name in found if not any(name != each and name in each for each in found)}
    others = found - {pro.antecedent}
    return Twins(pro, anti, others.pop(), file) if len(others) == 1 else None
