"""The `fused` backend: one kernel for PaiNN, on CPUs and GPUs of one source; docs/kernels.md says how it works."""
