"""The physics audit: symmetries, conservation, continuity and dynamics of an engine beside its student's."""
