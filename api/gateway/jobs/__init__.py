"""The job endpoints: list, read, resume, cancel and delete jobs over HTTP."""
