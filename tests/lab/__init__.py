"""The lab: hosts in network namespaces with real services, for the end-to-end tests, the demo and the benchmarks."""
