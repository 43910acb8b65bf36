"""What can go wrong with an endpoint, by what to do about it: stop, count it, or try again."""


class EndpointError(RuntimeError):
    """The endpoint does not answer, or too often not so that it can be used; says why, and what to do."""


class Failure(Exception):
    """What went wrong with the conversation `key`, in words for people."""

    key: str


class Unanswered(Failure):
    """A failure that is the conversation's own: others may well be answered."""


class MayPass(Exception):
    """One try failed, and a further one may not."""

    def __init__(self, problem: str, retry_after: float = 0.0, kind: type[Failure] = Failure):
        """Take the problem, the seconds that the server asks to wait, and what it is if all tries fail."""
        super().__init__(problem)
        self.retry_after, self.kind = retry_after, kind
