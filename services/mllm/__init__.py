"""The language model service: vLLM's own server, extended to write generation prompts for jobs."""
