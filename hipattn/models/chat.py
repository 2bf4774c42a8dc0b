"""From messages to the text and the tokens that a model was tuned on, by the template that its GGUF carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from hipattn.errors import ArgumentError, ModelError
from hipattn.models.extra import models_extra
from hipattn.models.gguf_file import GGUFFile
from hipattn.models.tokenizer import Tokenizer

__all__ = ["Chat", "Message"]

Message = Mapping[str, str]

ROLES = ("system", "user", "assistant")


class _RefusedError(Exception):
    """The template called raise_exception."""


class Chat:
    """A model's chat template.

    The template is a program in the file, in Jinja. It runs in Jinja's sandbox, which keeps it from the rest of
    Python; it can still take time.

    Parameters
    ----------
    file
        The GGUF that holds the template.
    tokenizer
        The GGUF's tokenizer.

    Raises
    ------
    ModelError
        The GGUF has no template, or a damaged one.
    """

    def __init__(self, file: GGUFFile, tokenizer: Tokenizer) -> None:
        with models_extra():
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        source = file.metadata.get("tokenizer.chat_template")
        if not isinstance(source, str):
            raise ModelError(f"{file.path} has no chat template: it is not tuned for chats")
        self._path = file.path
        self._tokenizer = tokenizer
        # Templates are written for these settings.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        for name, token in (("bos_token", tokenizer.bos), ("eos_token", tokenizer.eos)):
            environment.globals[name] = "" if token is None else tokenizer.decode([token])
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelError(f"{file.path}: the chat template is damaged: {error}") from error

    def render(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        """Return the messages as the model's text.

        Parameters
        ----------
        messages
            ``{"role": "user", "content": "Hello"}`` and so on. The roles are system, user and assistant.
        reply
            End where the assistant is to speak.

        Raises
        ------
        ArgumentError
            There is no message, one is no such mapping, or the template refuses them.
        ModelError
            The template fails.
        """
        return self._render(_checked(messages), reply)

    def encode(self, messages: Sequence[Message], *, reply: bool = True) -> list[int]:
        """Return the messages as tokens.

        A control token's name inside a message is plain text: a message cannot end its turn and begin another
        one's.

        Parameters
        ----------
        messages, reply
            As in `render`.

        Raises
        ------
        ArgumentError
            There is no message, one is no such mapping, or the template refuses them.
        ModelError
            The template fails.
        """
        messages = _checked(messages)
        everything = "".join(message["content"] for message in messages)
        mark = next(letter for letter in map(chr, range(0xE000, 0x110000)) if letter not in everything)
        marked = [dict(message, content=self._broken(message["content"], mark)) for message in messages]
        return self._tokenizer.encode(self._render(marked, reply), begin=False, mark=mark)

    def _broken(self, content: str, mark: str) -> str:
        """Put `mark` into each control token's name, behind what may be its first letter."""
        names = self._tokenizer.control
        if any(name in content for name in names):
            for first in {name[:1] for name in names}:
                content = content.replace(first, first + mark)
        return content

    def _render(self, messages: Sequence[Message], reply: bool) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=reply)
        except _RefusedError as error:
            raise ArgumentError(f"messages are refused by the model's chat template: {error}") from None
        except Exception as error:  # anything: the template is a program
            raise ModelError(f"{self._path}: the chat template fails: {type(error).__name__}: {error}") from error


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ArgumentError(f"messages is {messages!r}; it takes a sequence of one or more messages")
    for n, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise ArgumentError(f"messages[{n}] is {message!r}; it takes a mapping with role and content")
        if message["role"] not in ROLES:
            raise ArgumentError(f"messages[{n}] has role {message['role']!r}; accepted: {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            kind = type(message["content"]).__name__
            raise ArgumentError(f"messages[{n}] has content of type {kind}; it takes a str")
    return messages


def _refuse(message: object) -> NoReturn:
    raise _RefusedError(str(message))
