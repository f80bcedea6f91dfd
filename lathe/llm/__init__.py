"""A model's name becomes an object that answers: text or messages in, text out; knows no command line and no wire."""

from lathe.llm.llm import LLM
from lathe.llm.reply import Completion, Reply, Usage
from lathe.llm.wishes import MAX_NEW_TOKENS, Prompt, Wishes, defaults, ends

__all__ = ["LLM", "MAX_NEW_TOKENS", "Completion", "Prompt", "Reply", "Usage", "Wishes", "defaults", "ends"]
