"""What the stores on Bigtable share: a table with bounded calls and translated errors, row keys, and predicates."""
