"""OpenAI's protocols: bodies, answers and handlers, as generated routes use them."""

from flashgen_runtime.server.errors import RESPONSES, STREAM_RESPONSES, ErrorBody
from flashgen_runtime.server.openai.chat import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    Prediction,
    chat_completions,
)
from flashgen_runtime.server.openai.completions import Completion, CompletionChoice, CompletionRequest, completions
from flashgen_runtime.server.openai.embeddings import (
    Embedding,
    EmbeddingList,
    EmbeddingsRequest,
    EmbeddingsUsage,
    embeddings,
)
from flashgen_runtime.server.openai.models import Model, ModelList, get_model, list_models
from flashgen_runtime.server.sampling import StreamOptions
from flashgen_runtime.server.usage import Usage

__all__ = [
    "RESPONSES",
    "STREAM_RESPONSES",
    "ChatChoice",
    "ChatCompletion",
    "ChatCompletionRequest",
    "Completion",
    "CompletionChoice",
    "CompletionRequest",
    "Embedding",
    "EmbeddingList",
    "EmbeddingsRequest",
    "EmbeddingsUsage",
    "ErrorBody",
    "Model",
    "ModelList",
    "Prediction",
    "StreamOptions",
    "Usage",
    "chat_completions",
    "completions",
    "embeddings",
    "get_model",
    "list_models",
]
