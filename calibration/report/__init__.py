"""Validation: bundles measured against their student, compared with one another, and reported on one HTML page."""
