"""The paper's study, one file a part."""
