"""The rules of the code's structure, and the tests that each rule finds what it is for."""
