"""OpenAI-compatible gateway that plans a session's budget."""
