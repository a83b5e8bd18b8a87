"""The validation report: one HTML page with its charts."""
