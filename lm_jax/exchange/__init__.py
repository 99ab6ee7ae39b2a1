"""Models in the files of other programs, and back."""
