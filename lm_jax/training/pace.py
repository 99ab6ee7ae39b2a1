"""How many updates the compiled loop makes before the host looks at it: about a second's."""

BETWEEN_LOOKS = 1.0  # seconds


class Pace:
    """What is known of how long an update takes."""

    def __init__(self):
        self.compiled, self.rate = False, 0.0  # updates a second, once known

    def until(self, step: int, due: int) -> int:
        """Where to look next on the way to `due`; one step to compile, one to learn the rate."""
        return min(due, step + max(1, int(self.rate * BETWEEN_LOOKS)))

    def took(self, steps: int, seconds: float) -> None:
        """Learns how long some updates have taken."""
        if self.compiled and steps:
            self.rate = steps / seconds
        self.compiled = True
