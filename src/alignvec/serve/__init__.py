"""A server that OpenAI's clients talk to, with knobs as one field more."""
