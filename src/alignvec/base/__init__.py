"""The base: which one, its weights on disk and live, how it is spoken to."""
