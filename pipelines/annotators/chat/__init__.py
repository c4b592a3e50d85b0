"""Texts from a chat model behind any server that speaks OpenAI's chat completions, asked with both photos of a pair."""
