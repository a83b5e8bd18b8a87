"""What makes uncertainties, fitted on frames of the user's."""
