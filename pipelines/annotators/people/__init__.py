"""People as annotators: what is shown to them, what they say, and how it is made one answer."""
