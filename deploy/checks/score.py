"""How many checks passed and failed, and what to say of those that failed."""


class Score:
    def __init__(self, name):
        self.name, self.passed, self.failed = name, 0, 0

    def count(self, is_good, what, details=()):
        if is_good:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED {what}", *details, sep="\n  ", flush=True)

    def close(self):
        """The closing line; the exit code."""
        print(f"{self.name}: {self.passed} passed, {self.failed} failed")
        return 1 if self.failed else 0
