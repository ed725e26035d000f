"""The throughput and quality benchmarks: a black box that knows a server only by its HTTP interface."""
