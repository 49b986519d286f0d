"""Every figure the project claims: one command each, `python -m benchmarks NAME`; all in short form: `make bench`."""
