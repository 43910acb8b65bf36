"""Is the model and data hub there? Asked once and quickly, because its own clients retry for most of a minute."""

import threading

DEADLINE = 8.0  # seconds the hub has to give its first answer


def why_silent(endpoint: str) -> str | None:
    """Ask the hub for anything; return None if it answers within the deadline, else why it does not."""
    from huggingface_hub import get_session

    reasons = [f"no answer within {DEADLINE:g} s"]

    def ask() -> None:
        try:
            status = get_session().head(endpoint, timeout=DEADLINE).status_code
            reasons.append(None if status < 500 else f"HTTP status {status}")
        except Exception as error:  # whatever it is, it is the answer to why
            reasons.append(str(error) or type(error).__name__)

    # A thread, because the timeout bounds each address that is tried, and not the name look-up at all.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    return reasons[-1]
