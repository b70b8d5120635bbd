"""What the small grammars of this package share: tokens, and errors that point at the character."""

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple, NoReturn


class GrammarError(ValueError):
    """
    A text that does not follow its grammar; the message shows it with a caret under the offending character.

    :param text: the whole text
    :param column: the offending character, counted from 0
    :param problem: what is wrong there
    """

    subject: ClassVar[str] = "text"
    #: What is often written where it does not belong, and what to write instead.
    advice: ClassVar[Mapping[str, str]] = {}

    def __init__(self, text: str, column: int, problem: str) -> None:
        super().__init__(text, column, problem)
        self.text = text
        self.column = column
        self.problem = problem

    def __str__(self) -> str:
        found = [told for written, told in self.advice.items() if self.text.startswith(written, self.column)]
        problem = "; ".join([self.problem, *found])
        return f"malformed {self.subject}: {problem}\n    {self.text}\n    {' ' * self.column}^"


class Token(NamedTuple):
    """A piece of a text: what kind it is, how it is written, and where."""

    kind: str
    text: str
    column: int


class Scanner:
    """
    The tokens of a text, taken one after another.

    :param text: the text
    :param pattern: matches one token; its named groups are the kinds, and the kind ``space`` is skipped
    :param error: what :meth:`fail` raises
    :raises GrammarError: at a character that begins no token
    """

    def __init__(self, text: str, pattern: re.Pattern[str], error: type[GrammarError]) -> None:
        self.text = text
        self.error = error
        self.tokens = list(self._tokenize(pattern))
        self.position = 0

    def _tokenize(self, pattern: re.Pattern[str]) -> Iterator[Token]:
        column = 0
        while column < len(self.text):
            match = pattern.match(self.text, column)
            if match is None:
                raise self.error(self.text, column, f"unexpected character {self.text[column]!r}")
            if match.lastgroup and match.lastgroup != "space":
                yield Token(match.lastgroup, match.group(), column)
            column = match.end()
        yield Token("end", "", len(self.text))

    @property
    def next(self) -> Token:
        """The token that comes next; its kind is ``end`` after the last one."""
        return self.tokens[self.position]

    def take(self, *texts: str) -> Token | None:
        """
        :param texts: the tokens wanted
        :return: the next token if it is one of them (it is consumed), else None
        """
        return self.advance() if self.next.text in texts else None

    def take_kind(self, kind: str) -> Token | None:
        """
        :param kind: the kind wanted
        :return: the next token if it is of that kind (it is consumed), else None
        """
        return self.advance() if self.next.kind == kind else None

    def advance(self) -> Token:
        """
        :return: the next token, consumed
        """
        token = self.next
        self.position += 1
        return token

    def expect(self, text: str) -> Token:
        """
        :param text: the only token allowed here
        :return: that token, consumed
        :raises GrammarError: if another one comes next
        """
        return self.take(text) or self.fail(f"'{text}'")

    def fail(self, expected: str) -> NoReturn:
        """
        :param expected: what could have come next
        :raises GrammarError: always, at the next token
        """
        found = "the end" if self.next.kind == "end" else f"'{self.next.text}'"
        raise self.error(self.text, self.next.column, f"expected {expected}, found {found}")
