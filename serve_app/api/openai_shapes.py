"""OpenAI's shapes, as far as we serve them; fields that we do not know are let through and ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from deployments.contracts import GenerationOptions, Usage
from deployments.conversation import standalone_question
from deployments.errors import InvalidInput
from deployments.parsing import ParsingConfig
from serve_app.api.schemas import STRING_OR_STRINGS, AnswerEnd, StopTexts

# What changes the meaning of an answer is refused rather than ignored, unless it is set to what we do anyway.
_NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "audio": (),
}


class OpenAIBody(BaseModel):
    """A body as OpenAI's clients send it."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ChatMessage(OpenAIBody):
    """A message; `content` is text, a list of text parts, or null."""

    role: str = Field(description="Who speaks.")
    content: str | list[dict[str, Any]] | None = Field(None, description="Text, or parts of type text.")

    def text(self) -> str:
        """The content as one text; raises InvalidInput for parts that are not text."""
        if not isinstance(self.content, list):
            return self.content or ""
        for part in self.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise InvalidInput(f"content part of type {part.get('type')!r} is not supported; send text parts only")
        return "\n".join(part["text"] for part in self.content)

    def spoken(self) -> str:
        """Its text alone: an assistant's tool calls and pictures say nothing that a question could refer to."""
        if not isinstance(self.content, list):
            return self.content or ""
        texts = [part.get("text") for part in self.content if part.get("type") == "text"]
        return "\n".join(text for text in texts if isinstance(text, str))


class StreamOptions(OpenAIBody):
    """How to stream."""

    include_usage: bool | None = Field(False, description="End the stream with a chunk that holds the usage.")


class ChatBody(OpenAIBody):
    """A chat: the last user message is the question that is answered from the documents."""

    model: str = Field(description="raglane for the default collection, or raglane/COLLECTION.")
    messages: list[ChatMessage] = Field(min_length=1, description="The conversation.")
    collection: str | None = Field(None, description="The collection, where the model is plain raglane.")
    stream: bool | None = Field(False, description="Send the answer while it is being written.")
    stream_options: StreamOptions | None = Field(None, description="How to stream.")
    max_tokens: int | None = Field(None, ge=1, description="Older name of max_completion_tokens.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The longest answer in tokens.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Sample from the likeliest tokens up to this mass.")
    stop: StopTexts | None = Field(None, description="Texts that end the answer, at most 4.")
    seed: int | None = Field(None, description="Makes sampling repeatable.")
    timeout_s: float | None = Field(None, gt=0, description="Seconds after which the answer is of no use any more.")
    cache: bool = Field(True, description="Whether an answer that was given before will do, if nothing has changed.")

    def options(self) -> GenerationOptions:
        """The sampling options among the fields."""
        max_tokens = self.max_completion_tokens or self.max_tokens
        return GenerationOptions(max_tokens, self.temperature, self.top_p, self.stop or (), self.seed)

    def question(self, parsing: ParsingConfig) -> str:
        """The last user message as a question that stands alone; raises InvalidInput where there is none.

        `parsing` is what the lane will read it with: a filter that it knows stays with the turn that has it.
        """
        return standalone_question([{"role": role, "content": text} for role, text in self._turns()], parsing)

    def history(self) -> tuple[str, ...]:
        """What was said before the last user message, oldest first, each turn with its speaker."""
        turns = self._turns()
        last = max((index for index, (role, _) in enumerate(turns) if role == "user"), default=0)
        return tuple(f"{role}: {text}" for role, text in turns[:last])

    def _turns(self) -> list[tuple[str, str]]:
        """Who said what. Raises InvalidInput for a user's parts that are not text."""
        said = [(m.role, m.text() if m.role == "user" else m.spoken()) for m in self.messages]
        return [(role, text) for role, text in said if role == "user" or (role == "assistant" and text)]

    def refuse_unsupported(self) -> None:
        """Raise InvalidInput for an option that would have to change the answer and can't."""
        extra = self.model_extra or {}
        for name, neutral in _NEUTRAL_VALUES.items():
            value = extra.get(name)
            if value is not None and value not in neutral:
                raise InvalidInput(f"{name} is not supported here; leave it out")


def _input_texts(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and any(isinstance(text, int | list) for text in texts):
        raise ValueError("token ids are not accepted; send the text itself")
    return texts


class EmbeddingsBody(OpenAIBody):
    """Texts to embed."""

    input: Annotated[tuple[str, ...], BeforeValidator(_input_texts), WithJsonSchema(STRING_OR_STRINGS)] = Field(
        description="A text or a list of texts; none may be empty."
    )
    model: str | None = Field(None, description="The served embedding model, if named at all.")
    encoding_format: Literal["float", "base64"] | None = Field("float", description="base64: little-endian float32.")
    dimensions: int | None = Field(None, ge=1, description="Must be the model's own, if given.")
    input_type: Literal["query", "passage"] = Field("passage", description="What a model with two prompts is told.")
    timeout_s: float | None = Field(None, gt=0, description="Seconds after which the result is of no use any more.")


@dataclass(frozen=True, slots=True)
class OpenAIErrorDetail:
    """`code` is our own name for what went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


@dataclass(frozen=True, slots=True)
class OpenAIErrorResponse:
    """The body of every error of these endpoints."""

    error: OpenAIErrorDetail
    request_id: str


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of a chat."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> TokenUsage:
        """The generator's count with its sum."""
        return cls(usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens)


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    """The answer."""

    role: Literal["assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The only choice."""

    index: int
    message: AssistantMessage
    finish_reason: str
    logprobs: None = None


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """An answer as a chat completion; `raglane` holds what OpenAI has no place for."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: Sequence[Choice]
    usage: TokenUsage
    raglane: AnswerEnd


@dataclass(frozen=True, slots=True)
class EmbeddingUsage:
    """Tokens that were embedded."""

    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class EmbeddingItem:
    """One text's vector, L2-normalised: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


@dataclass(frozen=True, slots=True)
class EmbeddingsResponse:
    """Vectors in the order of the texts."""

    object: Literal["list"]
    data: Sequence[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model by the name under which it is asked for; `root` is what works behind that name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class ModelList:
    """All models."""

    object: Literal["list"]
    data: Sequence[ModelCard]
