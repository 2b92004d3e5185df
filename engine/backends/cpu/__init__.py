"""The backend for CPUs: torch's packed linears, and attention, norms and gates in C++ (kernels/)."""
