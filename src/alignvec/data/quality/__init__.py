"""What records are worth: cleaning by named rules, statistics, the data sheet."""
