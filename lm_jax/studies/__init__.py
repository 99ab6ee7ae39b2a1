"""Studies of a model on its text: how the gradient travels through time."""
