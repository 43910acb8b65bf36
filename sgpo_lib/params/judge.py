"""Who judges in the gold user's place, in a params file's section `judge`."""

import re
from typing import Literal

from pydantic import Field

from sgpo_lib.params.section import Count, Section, Share

# A params file may come from elsewhere, and the value of the variable that it names is sent away.
KEY_VARIABLE = re.compile(r"[A-Za-z0-9_]+_(API_KEY|TOKEN)")


class LLMJudgeParams(Section):
    """A language model behind an OpenAI-compatible endpoint; names as in `sgpo_lib.judges.endpoint.Endpoint`."""

    kind: Literal["llm"]
    url: str
    model: str
    annotator: str = Field("alpaca_eval_clf_gpt4_turbo", description="whose prompt, of alpaca-eval's")
    max_tokens: Count = 8
    max_concurrency: Count = 8
    n_tries: Count = 3
    api_key_variable: str = Field("OPENAI_API_KEY", description="the environment's variable, never the key")
    price_per_million: tuple[float, float] | None = Field(None, description="of prompt and completion tokens")
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float | None = Field(0.0, ge=0, description="null leaves it to the server, as reasoning models want")
    max_unread: Share = Field(0.1, description="comparisons without a verdict that are borne, as ties; above it: stop")


class RewardModelParams(Section):
    """A sequence classifier of transformers; `pairwise` reads two answers together."""

    kind: Literal["reward_model", "pairwise"]
    name_or_path: str
    revision: str | None = None
    batch_size: Count = 16
    max_length: Count = 4096
