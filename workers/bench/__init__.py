"""What is measured, how, and against what: workloads, timings, reports."""
