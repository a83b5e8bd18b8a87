"""How sure an engine is of what it gives: from the features of its read-out, or from the spread of a committee."""
