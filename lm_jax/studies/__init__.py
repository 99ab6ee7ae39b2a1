"""Questions about how a model's gradient travels through time, asked of a model and its text."""
