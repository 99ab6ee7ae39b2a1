"""Number of updates per call of the compiled loop: about a second of work."""

BETWEEN_LOOKS = 1.0  # seconds


class Pace:
    """Measures the speed of updates and plans the next call."""

    def __init__(self):
        self.compiled, self.rate = False, 0.0  # updates per second; 0 if unknown

    def until(self, step: int, due: int) -> int:
        """The last step of the next call, at most `due`; the first two calls make one step each."""
        return min(due, step + max(1, int(self.rate * BETWEEN_LOOKS)))

    def took(self, steps: int, seconds: float) -> None:
        """Record the time of a call; the first call is ignored because of compilation."""
        if self.compiled and steps:
            self.rate = steps / seconds
        self.compiled = True
