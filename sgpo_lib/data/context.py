"""What belongs to a prompt beside its instruction: inputs, system messages, histories, transcripts."""

import re

from sgpo_lib.data.prompts import LONE_SURROGATE, as_user

# What Alpaca's rows keep beside the instruction; joined to the prompt as LLaMA-Factory documents the format.
CONTEXT = {"input", "system", "history"}
# What other formats call a part of the prompt: which one, only who made the data knows.
AMBIGUOUS = ("context", "system_prompt", "query", "conversation", "conversations", "dialogue")
TURN = re.compile(r"\n\n(Human|Assistant):")


def with_context(
    row: dict, prompt: list[dict] | None, problems: list[str], implicit: bool = False
) -> list[dict] | None:
    """Join what stands beside the instruction: `system`, then the turns of `history`, then `input` below the text.

    Conversations whose prompt is `implicit` hold all of it but, perhaps, the system message.
    """
    if prompt is None:
        return None
    if implicit:
        row = {"system": row.get("system")}
    known = {name: row.get(name) for name in ("system", "history", "input", *AMBIGUOUS)}
    given = {name: value for name, value in known.items() if value not in (None, []) and not _is_blank(value)}
    for name in given.keys() & set(AMBIGUOUS):
        problems.append(f"{name}: may belong to the prompt, which leaves it out: put it there, or take the column out")
    for name in given.keys() & {"system", "input"}:
        if not isinstance(given[name], str) or LONE_SURROGATE.search(given[name]):
            problems.append(f"{name}: expected valid text, got {given[name]!r:.60}")
    history = given.get("history", [])
    if not isinstance(history, list) or not all(_is_exchange(exchange) for exchange in history):
        problems.append("history: expected a list of [user's text, assistant's text]")
    is_one_text = [message["role"] for message in prompt] == ["user"]
    if not is_one_text and given.keys() & {"history", "input"}:
        problems.append("history, input: stand beside a prompt of several messages, and their place in it is not known")
    has_system = prompt[0]["role"] == "system"
    if has_system and given.get("system", prompt[0]["content"]) != prompt[0]["content"]:
        problems.append("system: differs from the system message in the prompt")
    if problems:
        return prompt
    if "input" in given:
        prompt = as_user(f"{prompt[0]['content']}\n{given['input']}")
    roles = ("user", "assistant")
    turns = [
        {"role": role, "content": text} for exchange in history for role, text in zip(roles, exchange, strict=True)
    ]
    system = [{"role": "system", "content": given["system"]}] if "system" in given and not has_system else []
    return [*system, *turns, *prompt]


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _is_exchange(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(isinstance(text, str) and text.strip() and not LONE_SURROGATE.search(text) for text in value)


def transcript(text: str) -> list[dict] | None:
    """Read `\\n\\nHuman: ... \\n\\nAssistant: ...`, as in Anthropic's HH, as chat messages; None for any other text.

    An empty last turn of the assistant's, where a prompt ends, is left out.
    """
    parts = TURN.split(f"\n\n{text.lstrip()}")
    if len(parts) < 5 or parts[0] or parts[1] != "Human":
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return turns if turns[-1]["content"] or turns[-1]["role"] == "user" else turns[:-1]
