"""The gateway's web page: static files that talk to the same HTTP API as every other client."""
