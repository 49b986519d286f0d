"""The device twin's benchmarks: what a report costs, what an overload does, what memory it takes."""
