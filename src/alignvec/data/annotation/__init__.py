"""People check the levels: the page, the answers, how far they agree."""
