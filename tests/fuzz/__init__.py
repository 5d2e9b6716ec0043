"""What any bytes may do to the service: a model of the HTTP API, and fuzzers of everything that is parsed."""
