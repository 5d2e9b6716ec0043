"""The benchmark: what each operation costs the server in CPU time, beside peers in the same run."""
