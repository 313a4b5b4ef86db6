"""The paper's study on any base: a file a part, each result written once."""
