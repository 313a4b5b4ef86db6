"""From a spectrum to records: personas, their queries, responses at every level."""
