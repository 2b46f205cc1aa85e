"""seqroute's serving half: an OpenAI-compatible gateway that plans a session's budget."""
