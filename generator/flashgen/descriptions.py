"""What an api or a project is called in words where its spec has no `description`."""

from collections.abc import Sequence

from flashgen.user_text import UserText, plain_text

_OF_PROTOCOL = {
    "openai.chat_completions": "Answer a conversation with the model's next message.",
    "openai.completions": "Continue a text.",
    "openai.embeddings": "Turn texts into vectors.",
    "openai.models": "List the models that answer here.",
    "generate": "Continue a prompt.",
}


def api_description(protocol: str) -> str:
    """One sentence about what an api of this protocol does."""
    return _OF_PROTOCOL[protocol]


def project_description(model_ids: Sequence[UserText]) -> UserText:
    """`Serves mistralai/Mistral-7B-v0.1.`"""
    names = [plain_text(model_id) for model_id in dict.fromkeys(model_ids)]
    if not names:
        return UserText("A service without models.")
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return UserText(f"Serves {listed}.")
