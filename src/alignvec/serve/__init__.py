"""Knobs over HTTP: what every engine's server shares, and the server of transformers."""
