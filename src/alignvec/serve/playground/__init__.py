"""The page on which people turn knobs: a client, over HTTP, of a server that has them."""
